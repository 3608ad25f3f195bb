"""The rotary hook against transformers' own scaling and against plain runs of the same models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from e2ray.config.base import SettingsError
from e2ray.config.positions import PositionSettings
from e2ray.core.positions import draw, positions
from e2ray.core.rope import RotaryHook, find_rotary_modules, frequency_buffers
from e2ray.testing.models import (
    FAMILIES,
    LLAMA3,
    SLIDING_WINDOW,
    VOCAB_SIZE,
    inverse_frequencies_divided,
    logits,
    random_tokens,
    tiny_model,
)

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 0, "atol": 2e-5}  # float32 sums in another order; logits are of order 1 to 10


def e2llm(num, window, *, length=64):
    chosen = PositionSettings.model_validate({"preset": "e2llm", "max_scale": 20.0})
    return draw(chosen, seed=0, step=0, indices=range(num), window=window, base_context_length=length)


def enable_checkpointing(model):
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scale", [4.0, 3.0])
def test_a_scale_equals_the_linear_scaling_of_transformers(family, scale):
    tokens = random_tokens(2, 40)
    model, scaled = tiny_model(family), tiny_model(family, factor=scale)
    hook = RotaryHook(model)
    untouched, wanted = logits(model, tokens), logits(scaled, tokens)
    assert (untouched - wanted).abs().max() > 1e-2
    tolerance = EXACT if scale == 4.0 else CLOSE  # division by a power of two does not round
    with hook.applied(scale):
        torch.testing.assert_close(logits(model, tokens), wanted, **tolerance)
    with inverse_frequencies_divided(model, scale):
        torch.testing.assert_close(logits(model, tokens), wanted, **tolerance)
    torch.testing.assert_close(logits(model, tokens), untouched, **EXACT)


@pytest.mark.parametrize("family", FAMILIES)
def test_scale_one_without_offsets_is_the_untouched_model(family):
    tokens = random_tokens(2, 40)
    model = tiny_model(family)
    untouched = logits(model, tokens)
    hook = RotaryHook(model)
    hook.set(torch.ones(2), torch.zeros(2, 40, dtype=torch.int64))
    torch.testing.assert_close(logits(model, tokens), untouched, **EXACT)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_draws_equal_explicit_fractional_positions_under_an_explicit_mask(family):
    """An explicit 4-dimensional mask keeps transformers from reading documents out of the positions."""
    tokens, drawn = random_tokens(3, 40), e2llm(3, 40)
    model = tiny_model(family)
    causal = torch.ones(40, 40, dtype=torch.bool).tril().expand(3, 1, 40, 40)
    wanted = logits(model, tokens, position_ids=positions(drawn), attention_mask=causal)
    hook = RotaryHook(model)
    hook.set(drawn.scale, drawn.offsets)
    torch.testing.assert_close(logits(model, tokens), wanted, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_batch_each_have_their_own_draw(family):
    tokens, drawn = random_tokens(4, 40), e2llm(4, 40)
    assert len({*zip(drawn.scale.tolist(), drawn.offsets[:, -1].tolist(), strict=True)}) == 4
    model = tiny_model(family)
    hook = RotaryHook(model)
    hook.set(drawn.scale, drawn.offsets)
    together = logits(model, tokens)
    explicit_ids = logits(model, tokens, position_ids=torch.arange(40).expand(4, 40))
    torch.testing.assert_close(explicit_ids, together, **EXACT)
    for row in range(4):
        one = slice(row, row + 1)
        hook.set(drawn.scale[one], drawn.offsets[one])
        torch.testing.assert_close(logits(model, tokens[one]), together[one], **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_token_sees_the_first_under_gradient_checkpointing(family):
    tokens, drawn = random_tokens(2, SLIDING_WINDOW), e2llm(2, SLIDING_WINDOW)
    model = tiny_model(family).train()
    hook = RotaryHook(model)
    hook.set(drawn.scale, drawn.offsets)

    def reach():
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        model.zero_grad()
        result = model(inputs_embeds=embedded, use_cache=False).logits
        result[:, -1].logsumexp(dim=-1).sum().backward()
        return result.detach(), embedded.grad, model.get_output_embeddings().weight.grad.clone()

    plain = reach()
    enable_checkpointing(model)
    checkpointed = reach()
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    assert (checkpointed[1].abs().amax(dim=-1) > 1e-6).all()  # every token, the first four included


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_that_restart_per_document_keep_packed_documents_apart(family):
    lengths = [11, 5, 24]
    ids = torch.cat([torch.arange(length) for length in lengths])[None]
    tokens, drawn = random_tokens(1, 40), e2llm(1, 40)
    model = tiny_model(family)
    hook = RotaryHook(model)
    hook.set(drawn.scale, drawn.offsets)
    packed = logits(model, tokens, position_ids=ids)
    start = 0
    for length in lengths:
        alone = logits(model, tokens[:, start : start + length])
        torch.testing.assert_close(packed[:, start : start + length], alone, **CLOSE)
        start += length


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_a_scale_equals_the_scaled_model(family):
    prompt = random_tokens(2, 20)
    model, scaled = tiny_model(family), tiny_model(family, factor=4.0)
    hook = RotaryHook(model)
    asked = {"max_new_tokens": 8, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    asked["attention_mask"] = torch.ones_like(prompt)
    wanted, untouched = scaled.generate(prompt, **asked), model.generate(prompt, **asked)
    with hook.applied(4.0):
        got = model.generate(prompt, **asked)
    assert torch.equal(got.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(wanted.logits), **EXACT)
    assert not torch.equal(torch.stack(got.logits), torch.stack(untouched.logits))


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_stack_on_a_scaling_of_the_checkpoint(family):
    tokens = random_tokens(1, 40)
    model, scaled = tiny_model(family, factor=2.0), tiny_model(family, factor=8.0)
    with RotaryHook(model).applied(4.0):
        torch.testing.assert_close(logits(model, tokens), logits(scaled, tokens), **EXACT)


def test_positions_reach_the_rotary_module_in_float32_in_a_bf16_model():
    model = tiny_model("llama").to(torch.bfloat16)
    hook, seen = RotaryHook(model), []
    module = hook.rotary_modules[0]
    module.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[1]), with_kwargs=True)
    offsets = torch.zeros(1, 40, dtype=torch.int64)
    offsets[:, 4:] = 100_000
    hook.set(torch.tensor([16.0]), offsets)
    logits(model, random_tokens(1, 40))
    assert seen[0].dtype == torch.float32
    assert torch.equal(seen[0][0] * 16, (torch.arange(40) + offsets[0]).float())


def test_local_layers_of_gemma3_are_left_alone():
    model = tiny_model("gemma3")
    module = RotaryHook(model).rotary_modules[0]
    assert set(frequency_buffers(module)) == {"full_attention_inv_freq"}
    local = module.sliding_attention_inv_freq.clone()
    with inverse_frequencies_divided(model, 4.0):
        assert torch.equal(module.sliding_attention_inv_freq, local)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's use of it
def test_the_hook_works_inside_a_peft_model():
    tokens = random_tokens(1, 40)
    wanted = logits(tiny_model("llama", factor=4.0), tokens)
    wrapped = get_peft_model(tiny_model("llama"), LoraConfig(target_modules=["q_proj"]))
    with RotaryHook(wrapped).applied(4.0):
        torch.testing.assert_close(logits(wrapped, tokens), wanted, **EXACT)


def test_clear_and_remove_give_the_untouched_model_back():
    tokens = random_tokens(1, 40)
    model = tiny_model("llama")
    untouched = logits(model, tokens)
    hook = RotaryHook(model)
    hook.set(8.0)
    assert not torch.equal(logits(model, tokens), untouched)
    hook.clear()
    assert torch.equal(logits(model, tokens), untouched)
    hook.set(8.0)
    hook.remove()
    hook.set(8.0)
    assert torch.equal(logits(model, tokens), untouched)


def test_applied_restores_what_was_set_before_even_after_an_error():
    tokens = random_tokens(1, 40)
    model = tiny_model("llama")
    hook = RotaryHook(model)
    hook.set(2.0)
    before = logits(model, tokens)
    with pytest.raises(RuntimeError, match="in the block"), hook.applied(8.0):
        raise RuntimeError("in the block")
    assert torch.equal(logits(model, tokens), before)


def test_frequencies_in_place_are_restored_after_an_error():
    model = tiny_model("llama")
    hook = RotaryHook(model)
    hook.set(2.0)
    before = find_rotary_modules(model)[0].inv_freq.clone()
    with hook.in_place(3.0):
        assert torch.equal(find_rotary_modules(model)[0].inv_freq, before / 3)
    with pytest.raises(RuntimeError, match="in the block"), hook.in_place(3.0):
        raise RuntimeError("in the block")
    assert torch.equal(find_rotary_modules(model)[0].inv_freq, before)
    assert hook._scale == 2.0


def test_a_model_with_learned_positions_cannot_be_hooked():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=1, n_head=2, n_positions=32))
    with pytest.raises(SettingsError, match=r"GPT2LMHeadModel has no rotary module.*choose a RoPE model"):
        RotaryHook(model)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize(
    ("scale", "offsets", "message"),
    [
        (0.5, None, "scale must be finite and at least 1, got 0.5"),
        (float("nan"), None, "scale must be finite and at least 1, got nan"),
        (torch.ones(2, dtype=torch.bfloat16), None, r"scale must be a number or float32 \[batch\], got torch.bfloat16"),
        (torch.ones(2, 1), None, r"got torch.float32 \[2, 1\]"),
        (torch.ones(2), torch.zeros(2, 8), r"offsets must be integers \[batch, window\], got torch.float32"),
        (torch.ones(2), torch.zeros(8, dtype=torch.int64), r"offsets must be integers .* \[8\]"),
        (torch.ones(2), torch.zeros(3, 8, dtype=torch.int64), "one row per sequence, got 2 and 3"),
    ],
)
def test_wrong_scales_and_offsets_are_refused(scale, offsets, message):
    with pytest.raises(ValueError, match=message):
        RotaryHook(tiny_model("llama")).set(scale, offsets)


def test_a_batch_that_does_not_fit_the_draw_is_refused():
    model = tiny_model("llama")
    hook = RotaryHook(model)
    hook.set(torch.ones(3))
    with pytest.raises(ValueError, match="scale has 3 rows, the batch 1"):
        logits(model, random_tokens(1, 8))
    hook.set(2.0, torch.zeros(2, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="offsets has 2 rows, the batch 3"):
        logits(model, random_tokens(3, 8))
    with pytest.raises(ValueError, match="offsets cover 8 tokens, the batch has 9"):
        logits(model, random_tokens(2, 9))
    with pytest.raises(ValueError, match="offsets cover 8 tokens"):
        logits(model, random_tokens(2, 4), position_ids=torch.arange(6, 10)[None])


@pytest.mark.usefixtures("unchecked_shapes")
def test_two_hooks_at_once_and_multimodal_positions_are_refused():
    model = tiny_model("llama")
    first, second = RotaryHook(model), RotaryHook(model)
    first.set(2.0)
    second.set(2.0)
    with pytest.raises(ValueError, match="fractional already; set one RotaryHook at a time"):
        logits(model, random_tokens(1, 8))
    second.clear()
    with pytest.raises(SettingsError, match=r"position ids of shape \[3, 1, 8\], wanted \[batch, tokens\]"):
        first.rotary_modules[0](torch.zeros(1, 8, 4), torch.zeros(3, 1, 8, dtype=torch.int64))


def test_divided_frequencies_are_an_independent_reference_for_a_kept_llama3_scaling():
    tokens = random_tokens(1, 40)
    model = tiny_model("llama", rope_parameters=LLAMA3)
    with inverse_frequencies_divided(model, 4.0):
        wanted = logits(model, tokens)
    with RotaryHook(model).applied(4.0):
        torch.testing.assert_close(logits(model, tokens), wanted, rtol=0, atol=0)
