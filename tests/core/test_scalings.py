import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from e2ray.config.base import SettingsError
from e2ray.core.rope import find_rotary_modules
from e2ray.core.scalings import EXTENSIONS, extended

L = 32
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=L,
        initializer_range=0.3,
        rope_parameters=PLAIN,
    )
    return LlamaForCausalLM(config).eval()


def logits(model, window=128):
    tokens = torch.randint(64, (1, window), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=tokens).logits


@pytest.mark.parametrize(
    ("kind", "scale", "rope"),
    [
        ("linear", 4.0, {"rope_type": "linear", "factor": 4.0}),
        ("yarn", 4.0, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": L}),
        ("dynamic_ntk", 2.0, {"rope_type": "dynamic", "factor": 2.0}),
        ("ntk", 4.0, {"rope_type": "default", "rope_theta": 10_000.0 * 4.0 ** (32 / 30)}),
    ],
)
def test_it_reads_as_a_model_whose_config_asks_for_it(model, tmp_path, kind, scale, rope):
    model.save_pretrained(tmp_path)
    served = AutoModelForCausalLM.from_pretrained(tmp_path, rope_parameters=PLAIN | rope).eval()
    before = logits(model)
    with extended(model, kind, scale=scale, base_context_length=L, window=128):
        torch.testing.assert_close(logits(model), logits(served), rtol=0, atol=1e-5)
        assert (logits(model) - before).abs().max() > 0.01
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("kind", EXTENSIONS)
def test_scale_1_inside_the_base_window_changes_nothing(model, kind):
    before = logits(model, L)
    with extended(model, kind, scale=1.0, base_context_length=L, window=L):
        torch.testing.assert_close(logits(model, L), before, rtol=0, atol=1e-5)


def test_ntk_leaves_the_fastest_pair_and_divides_the_slowest_by_the_scale(model):
    (module,) = find_rotary_modules(model)
    plain = module.inv_freq.clone()
    with extended(model, "ntk", scale=8.0, base_context_length=L):
        ratio = plain / module.inv_freq
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(8.0, rel=1e-5)


def test_yarn_turns_the_attention_up(model):
    (module,) = find_rotary_modules(model)
    with extended(model, "yarn", scale=8.0, base_context_length=L):
        assert module.attention_scaling == pytest.approx(0.1 * math.log(8.0) + 1)
    assert module.attention_scaling == 1.0


def test_an_error_inside_leaves_the_model_as_it_was(model):
    before = logits(model)
    with pytest.raises(RuntimeError, match="stop"), extended(model, "yarn", scale=8.0, base_context_length=L):
        raise RuntimeError("stop")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


def test_what_cannot_be_extended_is_refused(model):
    with (
        pytest.raises(ValueError, match=r"scale must be at least 1, got 0\.5"),
        extended(model, "ntk", scale=0.5, base_context_length=L),
    ):
        pass
    with (
        pytest.raises(ValueError, match="dynamic_ntk needs the window"),
        extended(model, "dynamic_ntk", scale=2.0, base_context_length=L),
    ):
        pass
    scaled = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0},
        )
    )
    with (
        pytest.raises(SettingsError, match="untrained yarn: the model's rope is linear, wanted plain RoPE"),
        extended(scaled, "yarn", scale=2.0, base_context_length=L),
    ):
        pass


def test_layers_that_differ_are_refused():
    config = Gemma3TextConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    with (
        pytest.raises(SettingsError, match="the model's rope is one per layer type"),
        extended(Gemma3ForCausalLM(config), "ntk", scale=2.0, base_context_length=L),
    ):
        pass
