"""The proof of positions: it holds for every family and mode, and each way to be wrong is named."""

import pytest
import torch

from e2ray.config.base import SettingsError
from e2ray.config.methods import UNTRAINED, FactorsMethod, LogTemperature, NtkMethod, YarnMethod
from e2ray.config.model import LlamaModel, LoraSettings
from e2ray.core.methods.registry import method_of
from e2ray.core.model import build_model, prove
from e2ray.core.proof import prove_apart
from e2ray.core.rope import RotaryHook
from e2ray.testing.models import FAMILIES, SCALED, VOCAB_SIZE, logits, random_tokens, tiny_model


def run_proof(model, hook=None, forward=None):
    forward = forward or (lambda ids: model(input_ids=ids, use_cache=False).logits)
    prove(forward, hook or RotaryHook(model), model, vocab_size=VOCAB_SIZE, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_holds_for_every_family(family):
    run_proof(tiny_model(family).train())


METHODS = [settings for kind, settings in UNTRAINED.items() if kind not in ("linear", "dynamic_ntk")] + [
    YarnMethod(fast=8, slow=0.5, temperature=LogTemperature(coefficient=0.3)),
    FactorsMethod(factors=tuple(1 + n for n in range(8)), max_scale=16),
]


def hooked(model, method):
    return RotaryHook(model, method_of(method), base_context_length=16)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_holds_for_every_family_under_every_method(family, method):
    model = tiny_model(family).train()
    run_proof(model, hooked(model, method))


@pytest.mark.parametrize("method", [None, YarnMethod(), NtkMethod()], ids=str)
@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_the_proof_holds_on_top_of_a_kept_scaling(rope, method):
    model = tiny_model("llama", rope_parameters=SCALED[rope])
    run_proof(model, None if method is None else hooked(model, method))


def test_the_proof_refuses_a_method_whose_temperature_stays_out():
    model = tiny_model("llama")
    hook = hooked(model, YarnMethod())
    (module,) = hook.rotary_modules

    def leave_out(*_):
        if hook._scale is not None:
            module.attention_scaling = 1.0

    module.register_forward_pre_hook(leave_out)
    with pytest.raises(SettingsError, match=r"scale 4.0 differs from its frequencies in place"):
        run_proof(model, hook)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, LoraSettings(dropout=0.3, trainable=("embed_tokens",))])
def test_the_proof_holds_in_the_mode_of_training(dtype, lora):
    chosen = LlamaModel(hidden_size=64, num_layers=2, checkpoint_share=1.0, lora=lora)
    model = build_model(chosen, dtype=dtype, vocab_size=VOCAB_SIZE).train()
    state = torch.get_rng_state()
    run_proof(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_proof_leaves_the_model_untouched():
    model, tokens = tiny_model("llama"), random_tokens(1, 16)
    before = logits(model, tokens)
    hook = RotaryHook(model)
    hook.set(2.0)
    run_proof(model, hook)
    torch.testing.assert_close(logits(model, tokens), before, rtol=0, atol=0)


def test_the_proof_refuses_rounded_frequencies():
    with pytest.raises(SettingsError, match=r"its inv_freq is torch.bfloat16, wanted float32"):
        run_proof(tiny_model("llama").to(torch.bfloat16))


def test_the_proof_refuses_a_hook_that_was_removed():
    model = tiny_model("llama")
    hook = RotaryHook(model)
    hook.remove()
    with pytest.raises(SettingsError, match=r"scale 4.0 differs from its frequencies in place"):
        run_proof(model, hook)


def test_the_proof_refuses_a_model_whose_positions_do_not_matter():
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    with pytest.raises(SettingsError, match="a scale does not change its logits"):
        run_proof(model)


def test_the_proof_refuses_a_scale_of_one_that_is_no_identity():
    model = tiny_model("llama")
    hook = RotaryHook(model)

    def rounded_at_scale_one(ids):
        result = model(ids).logits
        return result if hook._scale is None or float(hook._scale) != 1 else result.bfloat16()

    with pytest.raises(SettingsError, match="scale 1 without offsets changes its logits by"):
        run_proof(model, hook, rounded_at_scale_one)


def test_the_proof_refuses_a_forward_that_hides_the_first_token():
    model = tiny_model("llama")

    def cut(ids):
        return model(torch.cat([torch.ones_like(ids[:, :1]), ids[:, 1:]], dim=1)).logits

    with pytest.raises(SettingsError, match="the last token does not depend on the first under a scale and a shift"):
        run_proof(model, forward=cut)


def test_the_proof_refuses_a_forward_that_ignores_offsets():
    model = tiny_model("llama")
    hook = RotaryHook(model)

    def without_offsets(ids):
        hook._offsets = None
        return model(ids).logits

    with pytest.raises(SettingsError, match="a shift behind a prefix does not change its logits"):
        run_proof(model, hook, without_offsets)


def test_the_proof_refuses_scaled_position_ids_that_cut_attention():
    """What happens where the scale goes into position_ids: attention sees a new document at every step."""
    model = tiny_model("llama")
    hook = RotaryHook(model)

    def by_position_ids(ids):
        scale, offsets = hook._scale, hook._offsets
        if scale is None:
            return model(ids).logits
        index = torch.arange(ids.shape[1]) + (0 if offsets is None else offsets[0])
        hook.clear()
        return model(ids, position_ids=(index / scale)[None], use_cache=False).logits

    with pytest.raises(SettingsError, match=r"proof of positions failed on LlamaForCausalLM: .*; this model cannot be"):
        run_proof(model, hook, by_position_ids)


def test_the_proof_refuses_a_model_that_yields_nan():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(SettingsError, match="its logits are not finite"):
        run_proof(model)


def test_the_proof_fits_its_text_into_a_sliding_window():
    model = tiny_model("mistral")
    lengths = []

    def forward(ids):
        lengths.append(ids.shape[1])
        return model(ids).logits

    run_proof(model, forward=forward)
    assert set(lengths) == {16}


def run_proof_apart(model, forward=None):
    forward = forward or (lambda text, ids: model(input_ids=text, position_ids=ids, use_cache=False).logits)
    prove_apart(forward, RotaryHook(model), model, vocab_size=VOCAB_SIZE, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_that_packed_documents_stand_apart_holds_for_every_family(family):
    run_proof_apart(tiny_model(family).train())


def test_the_proof_refuses_a_model_that_lets_packed_documents_see_each_other():
    model = tiny_model("llama")
    with pytest.raises(SettingsError, match=r"a packed document sees the one before it"):
        run_proof_apart(model, lambda text, ids: model(input_ids=text, use_cache=False).logits)


def test_the_proof_refuses_attention_cut_within_a_document():
    model = tiny_model("llama")
    with pytest.raises(SettingsError, match=r"does not see its own start"):
        run_proof_apart(model, lambda text, ids: model(input_ids=text, position_ids=ids * 0, use_cache=False).logits)


def test_the_proof_refuses_a_row_that_sees_the_one_before():
    model = tiny_model("llama")

    def flattened(text, ids):
        logits = model(input_ids=text, position_ids=ids, use_cache=False).logits
        return torch.cat([logits[:1], logits[1:] + logits[0, -1]])

    with pytest.raises(SettingsError, match=r"a packed row sees another one"):
        run_proof_apart(model, flattened)
