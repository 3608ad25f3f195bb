import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from e2ray.core.losses import token_nll
from e2ray.evaluate.scoring import forward_answers, forward_nll

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
CAPS = {"head_dim": 16, "final_logit_softcapping": 1.5, "attn_logit_softcapping": 20.0, "sliding_window": 8}


@pytest.fixture(params=["llama", "gemma2", "lora"])
def model(request):
    torch.manual_seed(0)
    if request.param == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    if request.param == "lora":
        adapters = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft's own use of transformers
            return get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES)), adapters).eval()
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, **CAPS, attn_implementation="eager")).eval()


@pytest.fixture
def tokens():
    return torch.randint(96, (3, 24), generator=torch.Generator().manual_seed(1))


def plain(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@pytest.mark.parametrize("chunk_elements", [1, 96 * 3 * 5, 96 * 3 * 23, 0])
@pytest.mark.parametrize("keep", [1, 7, 23, None])
def test_nll_equals_that_of_whole_logits(model, tokens, keep, chunk_elements):
    with torch.no_grad():
        whole = token_nll(model(input_ids=tokens, use_cache=False).logits, tokens)
    found = forward_nll(model, tokens, keep=keep, chunk_elements=chunk_elements)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole[:, -(keep or 23) :], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("chunk_elements", [1, 96 * 3 * 5, 0])
@pytest.mark.parametrize("keep", [1, 7, None])
def test_a_greedy_token_is_the_likeliest_of_whole_logits(model, tokens, keep, chunk_elements):
    with torch.no_grad():
        likeliest = model(input_ids=tokens, use_cache=False).logits[:, :-1].argmax(dim=-1)
    tokens[:, 1:] = torch.where(torch.arange(23) == 22, likeliest, tokens[:, 1:])  # the last one is greedy
    nll, greedy = forward_answers(model, tokens, keep=keep, chunk_elements=chunk_elements)
    torch.testing.assert_close(nll, forward_nll(model, tokens, keep=keep), rtol=1e-6, atol=1e-6)
    assert greedy.dtype == torch.bool
    assert torch.equal(greedy, (likeliest == tokens[:, 1:])[:, -(keep or 23) :])
    assert greedy[:, -1].all() and (keep == 1 or not greedy.all())


def test_the_layers_run_once_and_the_head_sees_a_slice_at_a_time(model, tokens):
    calls, widths = [], []
    inner = plain(model)
    layers = inner.model.layers[0].register_forward_hook(lambda *call: calls.append(1))
    head = inner.lm_head.register_forward_hook(lambda module, args, output: widths.append(output.numel()))
    forward_nll(model, tokens, chunk_elements=96 * 3 * 5)
    layers.remove(), head.remove()
    assert len(calls) == 1
    assert widths == [96 * 3 * 5] * 4 + [96 * 3 * 3]


def test_the_model_is_as_before_afterwards_and_after_an_error(model, tokens):
    with torch.no_grad():
        before = model(input_ids=tokens).logits
    broken = plain(model).lm_head.register_forward_hook(lambda *call: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        forward_nll(model, tokens)
    broken.remove()
    assert "forward" not in vars(plain(model).model)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=tokens).logits, before, rtol=0, atol=0)


@pytest.mark.parametrize("keep", [0, 24, -1])
def test_more_predictions_than_a_row_has_are_refused(model, tokens, keep):
    with pytest.raises(ValueError, match=r"keep must lie in \[1, 23\]"):
        forward_nll(model, tokens, keep=keep)


def test_a_model_without_layers_of_its_own_is_refused(tokens):
    with pytest.raises(ValueError, match="has no layers apart from its head"):
        forward_nll(torch.nn.Linear(2, 2), tokens)
