import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.evaluate.documents import long_enough, reachable_windows, select_documents
from e2ray.evaluate.intervals import ratio_interval, ratio_stderr
from e2ray.evaluate.perplexity import Sums, cell, default_stride, document_sums, merged, spans

VOCABULARY = 64


def tiny_config(**changes):
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 16,
        "initializer_range": 0.3,  # far from uniform predictions, so that an error shows
    }
    return LlamaConfig(**(sizes | changes))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config()).eval()


@pytest.fixture
def hook(model):
    hook = RotaryHook(model)
    yield hook
    hook.remove()


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCABULARY, size=length).astype(np.int32) for length in (32, 41, 57)]


def measure(model, hook, documents, **changes):
    settings = {"windows": (16,), "scales": (1.0,), "stride": 4, "batch_tokens": 64, "device": "cpu", "name": "tuned"}
    return [cell(sums) for sums in document_sums(model, hook, documents, **(settings | changes))]


def token_losses(model, document, *, window, step):
    """Score one token at a time, each in the window the protocol gives it, with float64 log-probabilities; 0 first."""
    losses = [0.0]
    for token in range(1, len(document)):
        moves = max(0, math.ceil((token - window + 1) / step))
        end = min(window + moves * step, len(document))
        context = torch.from_numpy(document[end - window : end].astype(np.int64))[None]
        with torch.no_grad():
            logits = model(context).logits[0].double()
        place = token - (end - window)
        losses.append(-torch.log_softmax(logits[place - 1], dim=-1)[int(document[token])].item())
    return losses


def naive_nll(model, documents, *, window, stride):
    step = min(stride, window - 1)
    losses = [loss for document in documents for loss in token_losses(model, document, window=window, step=step)[1:]]
    return sum(losses) / len(losses), len(losses)


@pytest.mark.parametrize(("window", "stride"), [(16, 4), (16, 5), (16, 16), (32, 8), (7, 3), (2, 1), (32, 31)])
def test_nll_equals_a_naive_implementation(model, hook, documents, window, stride):
    (cell,) = measure(model, hook, documents, windows=(window,), stride=stride)
    wanted, tokens = naive_nll(model, documents, window=window, stride=stride)
    assert cell.nll == pytest.approx(wanted, abs=1e-6)
    assert cell.tokens == tokens == sum(len(document) - 1 for document in documents)
    assert cell.perplexity == pytest.approx(math.exp(wanted), rel=1e-6)
    assert (cell.documents, cell.stride, cell.model) == (3, min(stride, window - 1), "tuned")


def test_ends_are_the_same_tokens_at_every_window_each_behind_a_whole_context(model, hook, documents):
    found = document_sums(
        model, hook, documents, windows=(16, 32), scales=(1.0,), stride=4, batch_tokens=64, device="cpu", name="tuned"
    )
    for sums in found:
        assert sums.end.tokens.tolist() == [4, 13, 29]  # from token 28 on
        for document, nll in zip(documents, sums.end.nll, strict=True):
            losses = token_losses(model, document, window=sums.window, step=4)
            assert nll == pytest.approx(sum(losses[28:]), abs=1e-5)
    assert found[0].end.mean != found[1].end.mean
    assert Sums("tuned", 16, 1.0, 4, np.arange(1), np.ones(1), np.ones(1)).end is None


@pytest.mark.parametrize("length", [8, 9, 12, 13, 16, 31])
@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_every_token_after_the_first_is_scored_once_with_context_behind_it(length, step):
    window = 8
    scored = []
    for span in spans(length, window=window, step=step):
        assert 0 <= span.start <= length - window
        targets = range(span.start + window - span.scored, span.start + window)
        if span.start:
            assert targets[0] - span.start >= window - step
        scored += targets
    assert scored == list(range(1, length))


def test_batching_changes_nothing(model, hook, documents):
    cells = [measure(model, hook, documents, windows=(16, 32), batch_tokens=tokens) for tokens in (1, 40, 100_000)]
    for one, few, many in zip(*cells, strict=True):
        assert few.nll == pytest.approx(one.nll, abs=1e-6)
        assert many.nll == pytest.approx(one.nll, abs=1e-6)
        assert many.stderr == pytest.approx(one.stderr, abs=1e-6)


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_scale_column_equals_a_model_with_linear_scaling_in_its_config(model, hook, documents, scale, tmp_path):
    model.save_pretrained(tmp_path)
    rope = {"rope_type": "linear", "factor": scale, "rope_theta": 10_000.0}
    scaled = AutoModelForCausalLM.from_pretrained(tmp_path, rope_parameters=rope).eval()
    plain, cell = measure(model, hook, documents, scales=(1.0, scale))
    assert cell.nll == pytest.approx(naive_nll(scaled, documents, window=16, stride=4)[0], abs=1e-6)
    assert abs(cell.nll - plain.nll) > 1e-3


def test_logit_softcapping_models_are_scored_with_their_own_head(documents):
    torch.manual_seed(1)
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        final_logit_softcapping=1.0,
        initializer_range=0.3,
    )
    gemma = Gemma3ForCausalLM(config).eval()
    (cell,) = measure(gemma, RotaryHook(gemma), documents[:1])
    assert cell.nll == pytest.approx(naive_nll(gemma, documents[:1], window=16, stride=4)[0], abs=1e-6)


def test_measuring_leaves_the_model_as_it_was(model, hook, documents):
    model.train()
    measure(model, hook, documents, scales=(4.0,))
    assert model.training
    model.eval()
    tokens = torch.arange(20)[None]
    hook.remove()
    with torch.no_grad():
        untouched = model(tokens).logits
        hook_again = RotaryHook(model)
        measure(model, hook_again, documents, scales=(4.0,))
        torch.testing.assert_close(model(tokens).logits, untouched, rtol=0, atol=0)
        hook_again.remove()


def test_a_window_longer_than_the_documents_is_missing_and_told_in_one_line(model, hook, documents):
    lines = []
    cells = measure(model, hook, documents, windows=(16, 64), scales=(1.0, 2.0), progress=lines.append)
    assert [(cell.window, cell.scale) for cell in cells] == [(16, 1.0), (16, 2.0)]
    assert lines[-1] == "tuned: window 64 left out; the shortest document has 32 tokens"
    assert len(lines) == 3


def test_without_documents_the_next_move_is_named(model, hook):
    with pytest.raises(SettingsError, match=r"no held-out documents; raise data\.validation_share"):
        measure(model, hook, [])


def test_a_diverged_model_is_named_and_no_cell(model, hook, documents):
    broken = LlamaForCausalLM(tiny_config()).eval()
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(SettingsError, match=r"base model, window 16, scale 1: NLL is nan.*diverged"):
        measure(broken, RotaryHook(broken), documents, name="base")


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_a_model_whose_perplexity_is_beyond_a_float_is_named_as_diverged(documents, size):
    broken = LlamaForCausalLM(tiny_config()).eval()
    with torch.no_grad():
        broken.lm_head.weight.mul_(size / broken.lm_head.weight.std())
    with pytest.raises(SettingsError, match=r"NLL is [0-9.e+]+, wanted a number whose perplexity is finite.*diverged"):
        measure(broken, RotaryHook(broken), documents)


def test_selected_documents_all_reach_the_largest_window(documents):
    chosen = select_documents(documents, minimum_tokens=40, limit=5, cut=None)
    assert [len(document) for document in chosen] == [41, 57]
    assert [len(document) for document in select_documents(documents, minimum_tokens=40, limit=1, cut=40)] == [40]
    np.testing.assert_array_equal(select_documents(documents, minimum_tokens=40, limit=5, cut=50)[1], documents[2][:50])


def test_documents_that_a_search_chose_by_can_be_left_out(documents):
    chosen = select_documents(documents, minimum_tokens=40, limit=5, cut=None, skip=1)
    assert [len(document) for document in chosen] == [57]
    with pytest.raises(SettingsError, match=r"evaluate\.skip_documents: 2 leaves none of the 2 held-out documents"):
        select_documents(documents, minimum_tokens=40, limit=5, cut=None, skip=2)
    assert long_enough([len(document) for document in documents], 40, None) == [
        index for index, document in enumerate(documents) if len(document) >= 40
    ]
    assert long_enough([50, 60], 40, 30) == []


def test_too_short_documents_name_the_setting_to_change(documents):
    with pytest.raises(SettingsError, match=r"longest of 3 held-out documents has 57 tokens, wanted at least 64"):
        select_documents(documents, minimum_tokens=64, limit=5, cut=None)
    with pytest.raises(SettingsError, match=r"evaluate\.document_tokens: cuts documents to 20 tokens.*window of 32"):
        select_documents(documents, minimum_tokens=32, limit=5, cut=20)


def test_unreachable_windows_are_told_in_one_line_and_left_out(documents):
    lines = []
    assert reachable_windows(documents, (16, 32, 64, 128), cut=None, progress=lines.append) == (16, 32)
    assert lines == ["left out: windows 64, 128; the longest held-out document has 57 tokens"]
    assert reachable_windows(documents, (16, 32), cut=32) == (16, 32)
    with pytest.raises(SettingsError, match="wanted at least 64"):
        reachable_windows(documents, (64, 128), cut=None)


def test_the_default_stride_is_the_papers_protocol():
    assert (default_stride(4096), default_stride(128), default_stride(2)) == (256, 32, 1)


def test_standard_error_covers_the_spread_of_repeated_studies():
    rng = np.random.default_rng(0)
    estimates, errors = [], []
    for _ in range(2000):
        counts = rng.integers(50, 200, size=40)
        sums = counts * (3.0 + 0.2 * rng.standard_normal(40))
        estimates.append(sums.sum() / counts.sum())
        errors.append(ratio_stderr(sums, counts))
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.05)
    assert ratio_stderr(np.array([3.0]), np.array([1])) is None


def test_documents_of_equal_length_have_the_usual_standard_error():
    means = np.array([2.0, 2.5, 3.5, 2.2])
    assert ratio_stderr(means * 10, np.full(4, 10)) == pytest.approx(means.std(ddof=1) / 2)


def test_cells_are_plain_rows(model, hook, documents):
    (cell,) = measure(model, hook, documents[:1])
    assert cell.plain() == dict(cell)
    assert cell.stderr is None
    assert list(cell.plain()) == [
        "model", "window", "scale", "nll", "perplexity", "tokens", "documents", "stride", "stderr", "low", "high",
    ]  # fmt: skip


def parts(model, hook, documents, shares, **changes):
    settings = {"windows": (16, 32), "scales": (1.0, 2.0), "stride": 4, "batch_tokens": 64, "device": "cpu"}
    return [
        document_sums(model, hook, [documents[n] for n in share], numbers=share, name="tuned", **(settings | changes))
        for share in shares
    ]


def test_documents_scored_by_several_workers_give_the_same_cells(model, hook, documents):
    alone = measure(model, hook, documents, windows=(16, 32), scales=(1.0, 2.0))
    together = [cell(sums) for sums in merged(parts(model, hook, documents, [[0, 2], [1]]))]
    assert [one.plain().keys() for one in alone] == [other.plain().keys() for other in together]
    for one, other in zip(alone, together, strict=True):
        assert (one.window, one.scale, one.tokens, one.documents) == (
            other.window,
            other.scale,
            other.tokens,
            other.documents,
        )
        assert other.nll == pytest.approx(one.nll, abs=1e-6)
        assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-6)


def test_a_cell_that_one_worker_lacks_is_missing(model, hook, documents):
    whole, half = parts(model, hook, documents, [[0], [1, 2]])
    left = merged([whole, half[1:]])
    assert [sums.key for sums in left] == [sums.key for sums in whole[1:]]
    assert [sums.documents.tolist() for sums in left] == [[0, 1, 2]] * 3


def test_the_interval_is_that_of_the_documents(model, hook, documents):
    ((sums,),) = parts(model, hook, documents, [[0, 1, 2]], windows=(16,), scales=(1.0,))
    (found,) = measure(model, hook, documents)
    assert (found.low, found.high) == ratio_interval(sums.nll, sums.tokens)
    assert found.low < found.nll < found.high


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")],
    ids=["gpu", "cpu"],
)
def test_a_window_that_does_not_fit_into_memory_is_left_out_and_told(model, hook, documents, error):
    def too_large(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 16:
            raise error

    handle = model.model.register_forward_pre_hook(too_large, with_kwargs=True)
    lines = []
    try:
        cells = measure(model, hook, documents, windows=(16, 32), progress=lines.append)
    finally:
        handle.remove()
    assert [found.window for found in cells] == [16]
    assert lines[1].startswith("tuned: window 32, scale 1 left out: it does not fit into memory; lower evaluate.batch")


def test_other_errors_of_a_forward_are_not_taken_for_memory(model, hook, documents):
    handle = model.model.register_forward_pre_hook(lambda *call: (_ for _ in ()).throw(RuntimeError("a bug")))
    try:
        with pytest.raises(RuntimeError, match="a bug"):
            measure(model, hook, documents)
    finally:
        handle.remove()
