"""Losses against torch's cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F

from e2ray.core import losses
from e2ray.core.losses import next_token_nll, plain_ids, predicted, token_kl, token_nll

SHAPES = [(1, 2, 3), (3, 17, 29), (2, 64, 101)]


def example(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    logits = (4 * torch.randn(shape, generator=generator)).to(dtype)
    return logits.requires_grad_(), torch.randint(shape[2], shape[:2], generator=generator)


def reference(logits, tokens):
    """float64 NLL [batch, tokens - 1] by torch, and the gradient of a weighted sum of it."""
    exact = logits.detach().double().requires_grad_()
    nll = F.cross_entropy(exact[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    weights = torch.linspace(-1, 2, nll.numel(), dtype=torch.float64).view_as(nll)
    (nll * weights).sum().backward()
    return nll.detach(), exact.grad, weights


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_elements", [1, 150, 2**24])
def test_nll_and_gradient_equal_float64_cross_entropy_whatever_the_chunks(shape, chunk_elements, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk_elements)
    logits, tokens = example(shape)
    wanted, gradient, weights = reference(logits, tokens)
    nll = token_nll(logits, tokens)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll.double(), wanted, rtol=1e-6, atol=2e-6)
    (nll * weights.float()).sum().backward()
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-5, atol=1e-6)
    assert (logits.grad[:, -1] == 0).all()


def test_the_mean_is_per_row_over_its_predictions():
    logits, tokens = example((3, 17, 29))
    wanted, _, _ = reference(logits, tokens)
    torch.testing.assert_close(next_token_nll(logits, tokens).double(), wanted.mean(dim=1), rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(next_token_nll(logits, tokens)[1], logits)
    assert not gradient[0].any()
    assert gradient[1].any()


def test_bf16_logits_are_cast_up_before_the_sum():
    logits, tokens = example((2, 64, 3000), torch.bfloat16)
    wanted, gradient, weights = reference(logits, tokens)
    nll = token_nll(logits, tokens)
    torch.testing.assert_close(nll.double(), wanted, rtol=1e-6, atol=5e-6)
    (nll * weights.float()).sum().backward()
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=2**-8, atol=1e-30)  # one rounding to bf16


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    nll = next_token_nll(torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64))
    torch.testing.assert_close(nll, torch.full((2,), 7.0).log())


def test_no_float32_copy_of_the_logits_is_held(monkeypatch):
    """Beside the input nothing larger than a chunk is saved for the backward pass."""
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 1000)
    logits, tokens = example((2, 64, 101), torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda tensor: tensor):
        next_token_nll(logits, tokens).sum()
    others = [tensor for tensor in saved if tensor.data_ptr() != logits.data_ptr()]
    assert sum(tensor.numel() for tensor in others) <= 4 * tokens.numel()


def test_evaluation_needs_no_gradient():
    logits, tokens = example((3, 17, 29))
    with torch.inference_mode():
        assert not token_nll(logits, tokens).requires_grad


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("logits", "tokens"),
    [((2, 5, 7), (2, 4)), ((2, 5, 7), (3, 5)), ((2, 1, 7), (2, 1)), ((5, 7), (5,))],
)
def test_shapes_that_disagree_are_refused(logits, tokens):
    with pytest.raises(ValueError, match=r"logits must be \[batch, tokens, vocabulary\].*at least 2 tokens, got"):
        token_nll(torch.zeros(logits), torch.zeros(tokens, dtype=torch.int64))


def test_first_tokens_of_documents_and_what_fills_a_row_are_not_predicted():
    places = torch.tensor([[0, 1, 2, 0, 1, 0, -1, -2], [0, 1, 2, 3, 4, 5, 6, 7]])
    assert predicted(places).tolist() == [[True, True, False, True, False, False, False], [True] * 7]
    assert plain_ids(places).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_elements", [1, 150, 2**24])
@pytest.mark.parametrize("shape", SHAPES)
def test_kl_and_gradient_equal_float64_divergence_whatever_the_chunks(shape, chunk_elements, dtype, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk_elements)
    logits, _ = example(shape, dtype)
    teacher = (3 * torch.randn(shape, generator=torch.Generator().manual_seed(5))).to(dtype).requires_grad_()
    exact, taught = logits.detach().double().requires_grad_(), teacher.detach().double()
    wanted = F.kl_div(exact.log_softmax(-1), taught.log_softmax(-1), reduction="none", log_target=True).sum(-1)[:, :-1]
    weights = torch.linspace(-1, 2, wanted.numel(), dtype=torch.float64).view_as(wanted)
    (wanted * weights).sum().backward()
    found = token_kl(logits, teacher)
    assert found.dtype == torch.float32 and bool((found >= -1e-6).all())
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=1e-5, atol=5e-6)
    (found * weights.float()).sum().backward()
    rtol = 1e-4 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=rtol, atol=2e-6 if rtol < 1e-3 else 1e-3)
    assert teacher.grad is None and (logits.grad[:, -1] == 0).all()


def test_a_student_that_says_what_its_teacher_says_is_at_no_distance():
    logits, _ = example((3, 17, 29))
    assert token_kl(logits, logits).abs().max() < 1e-6
    with pytest.raises(ValueError, match="logits of student and teacher must be"):
        token_kl(logits, logits[:, :5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_loss_with_the_head_in_it_is_that_of_the_logits(dtype, with_bias, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", 100)  # of a vocabulary of 30: chunks of three tokens
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 8, 16, generator=generator).to(dtype)
    weight, bias = torch.randn(30, 16, generator=generator).to(dtype), torch.randn(30, generator=generator).to(dtype)
    tokens = torch.randint(30, (3, 8), generator=generator)
    share = torch.rand(3, 7, generator=generator)
    inputs = [each.requires_grad_() for each in (hidden, weight, *([bias] if with_bias else []))]
    found = losses.head_nll(hidden, weight, bias if with_bias else None, tokens)
    logits = F.linear(hidden.double(), weight.double(), bias.double() if with_bias else None)
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(3, 7)
    assert found.dtype == torch.float32 and found.shape == (3, 7)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(found, wanted.float(), **close)
    ours, exact = ((each * share).sum() for each in (found, wanted))
    for mine, its in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(exact, inputs), strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine, its, **close)


def test_a_head_that_is_not_trained_gets_no_gradient():
    hidden, weight = torch.randn(1, 4, 8, requires_grad=True), torch.randn(10, 8)
    losses.head_nll(hidden, weight, None, torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    assert weight.grad is None and hidden.grad is not None and not hidden.grad[:, -1].any()
