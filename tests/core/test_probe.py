"""A probe tells other weights from the same weights rounded otherwise."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig, Qwen3MoeConfig

from e2ray.config.base import SettingsError
from e2ray.core.probe import Probe, ask, forward_of, refuse_other_answers
from e2ray.core.rope import RotaryHook, find_rotary_modules
from e2ray.testing.models import FAMILIES, VOCAB_SIZE, tiny_model

CPU = torch.device("cpu")


def cast(model, dtype):
    """Return a copy with weights in another dtype and frequencies as they are."""
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval()


def probe_of(model, dtype=torch.float32):
    hook = RotaryHook(model)
    found = ask(forward_of(model), hook, vocab_size=VOCAB_SIZE, dtype=dtype, device=CPU)
    hook.remove()
    return found


def compare(probe, model):
    hook = RotaryHook(model)
    try:
        refuse_other_answers(probe, forward_of(model), hook, model, device=CPU, what="model")
    finally:
        hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_same_weights_pass_in_every_dtype_and_attention(family, attention):
    model = tiny_model(family)
    other = tiny_model(family, attn_implementation=attention)
    for dtype in (torch.float32, torch.bfloat16):
        probe = probe_of(cast(model, dtype), dtype)
        compare(probe, cast(other, dtype))
        compare(probe, cast(other, torch.float32))  # a bf16 engine's fp32 weights, merged


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens", "model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj", "model.norm", "lm_head"],
)
def test_other_weights_are_told_in_float32(family, name):
    model = tiny_model(family, tie_word_embeddings=False)
    probe = probe_of(model)
    module = model.get_submodule(name)
    module.weight.data += 1e-4 * torch.randn_like(module.weight)
    with pytest.raises(SettingsError, match=r"model: answers otherwise than the model that.*rounding explains"):
        compare(probe, model)


def test_one_changed_column_of_the_head_is_told():
    model = tiny_model("llama", tie_word_embeddings=False)
    probe = probe_of(model)
    model.lm_head.weight.data[VOCAB_SIZE - 2] += 1e-3
    with pytest.raises(SettingsError, match="answers otherwise"):
        compare(probe, model)


def test_other_positions_are_told():
    model = tiny_model("llama")
    probe = probe_of(model)
    compare(probe, tiny_model("llama"))
    with pytest.raises(SettingsError, match="answers otherwise"):
        compare(probe, tiny_model("llama", factor=2.0))


def test_a_wrong_model_is_told_in_bfloat16():
    model, other = (cast(tiny_model("llama", seed=seed), torch.bfloat16) for seed in (0, 1))
    with pytest.raises(SettingsError, match="answers otherwise"):
        compare(probe_of(model, torch.bfloat16), other)


SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
ROUTED = {
    "mixtral": (MixtralConfig, {"num_local_experts": 8}),
    "gpt_oss": (GptOssConfig, {"num_local_experts": 8, "sliding_window": 32}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": 8, "moe_intermediate_size": 48, "norm_topk_prob": True}),
}


def routed(family, seed):
    kind, own = ROUTED[family]
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(kind(**SMALL | own), attn_implementation="eager").eval()


@pytest.mark.parametrize("family", ROUTED)
def test_a_token_that_rounding_sends_to_another_expert_is_no_other_model(family):
    for seed in range(24):
        model = routed(family, seed)
        for parameter in model.parameters():  # a bf16 engine rounds its fp32 weights
            parameter.data += 1e-3 * torch.randn_like(parameter)
        probe = probe_of(cast(model, torch.bfloat16), torch.bfloat16)
        compare(probe, cast(model, torch.float32))
        compare(probe_of(cast(model, torch.float32)), cast(model, torch.float32))


@pytest.mark.parametrize("family", ROUTED)
def test_other_weights_of_a_model_with_experts_are_told(family):
    model = routed(family, 0)
    for dtype, measure in ((torch.bfloat16, "typical"), (torch.float32, "root mean square")):
        with pytest.raises(SettingsError, match=rf"answers otherwise.*: the {measure} difference"):
            compare(probe_of(cast(model, dtype), dtype), routed(family, 1))
    probe = probe_of(model)
    model.model.layers[1].self_attn.o_proj.weight.data *= 1 + 1e-3
    with pytest.raises(SettingsError, match="answers otherwise"):
        compare(probe, model)
    model = routed(family, 2)
    probe = probe_of(model)
    find_rotary_modules(model)[0].inv_freq.data /= 2
    with pytest.raises(SettingsError, match="answers otherwise"):
        compare(probe, model)


def test_one_expert_that_is_not_the_trained_one_is_told_where_a_token_goes_to_it():
    told = 0
    for expert in range(8):
        model = routed("mixtral", 0)
        probe = probe_of(model)
        model.model.layers[1].mlp.experts.down_proj.data[expert] = 0
        try:
            compare(probe, model)
        except SettingsError:
            told += 1
    assert told >= 5  # no token of the probe goes to the others


def test_weights_that_are_no_numbers_are_told():
    model = tiny_model("llama")
    probe = probe_of(model)
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(SettingsError, match=r"answers otherwise.* is nan"):
        compare(probe, model)


def test_another_vocabulary_is_told():
    with pytest.raises(SettingsError, match="embeds 90 tokens, the model that was trained 97"):
        compare(probe_of(tiny_model("llama")), tiny_model("llama", vocab_size=90))


def test_a_probe_comes_back_from_its_file(tmp_path):
    probe = probe_of(tiny_model("qwen3"), torch.bfloat16)
    probe.save(tmp_path / "p.safetensors")
    read = Probe.read(tmp_path / "p.safetensors")
    assert read.dtype == "bfloat16"
    assert all(
        torch.equal(getattr(read, name), getattr(probe, name)) for name in ("tokens", "scale", "offsets", "logits")
    )


@pytest.mark.parametrize("content", [b"", b"x" * 40, b'\x10\0\0\0\0\0\0\0{"__metadata__":{}}'])
def test_a_damaged_probe_is_one_line(tmp_path, content):
    path = tmp_path / "p.safetensors"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=r"p\.safetensors: is damaged"):
        Probe.read(path)
