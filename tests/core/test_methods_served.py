"""What a method tells transformers makes the frequencies that the hook reads with."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from e2ray.config.base import SettingsError
from e2ray.config.methods import UNTRAINED, FactorsMethod, TruncatedMethod, YarnMethod
from e2ray.core.methods.registry import method_of

PAIRS, THETA = 32, 10_000.0
METHODS = {
    **{name: each for name, each in UNTRAINED.items() if name != "dynamic_ntk"},
    "yarn, other ends": YarnMethod(fast=7, slow=0.25),
    "factors": FactorsMethod(factors=tuple(1 + 0.3 * place for place in range(PAIRS)), max_scale=8),
}


def plain():
    return 1.0 / THETA ** (torch.arange(PAIRS, dtype=torch.float32) / PAIRS)


def made_of(rope, length):
    """Return the frequencies and the attention factor that transformers makes of rope parameters."""
    config = LlamaConfig(
        hidden_size=2 * PAIRS, num_attention_heads=1, max_position_embeddings=length, rope_parameters=dict(rope)
    )
    if rope["rope_type"] == "default":
        return 1.0 / rope["rope_theta"] ** (torch.arange(PAIRS, dtype=torch.float32) / PAIRS), 1.0
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu")


@pytest.mark.parametrize("way", ["to_transformers", "to_longrope"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1.0, 2.7, 8.0, 40.0])
@pytest.mark.parametrize("length", [2048, 400_000])
def test_served_frequencies_are_those_of_the_hook(way, name, scale, length):
    method = method_of(METHODS[name])
    base = plain()
    if name == "truncated" and scale > 1 and length == 2048:
        with pytest.raises(SettingsError, match=r"truncated: some of its pairs stand still, which no rope type"):
            getattr(method, way)({"rope_theta": THETA}, base, scale, length)
        return
    rope = getattr(method, way)({"rope_theta": THETA}, base, scale, length)
    frequencies, attention = made_of(rope, length)
    wanted = method.frequencies(base, torch.tensor(scale), length)
    torch.testing.assert_close(frequencies, wanted, rtol=1e-6, atol=0)
    left_alone = wanted == base
    if way == "to_longrope":
        assert torch.equal(frequencies[left_alone], base[left_alone])
    assert attention == pytest.approx(float(method.temperature(torch.tensor(scale).double())), rel=1e-6)


def test_the_share_of_a_head_that_turns_is_kept():
    rope = {"rope_theta": THETA, "partial_rotary_factor": 0.5, "rope_type": "default"}
    for name, settings in METHODS.items():
        if not isinstance(settings, TruncatedMethod):
            method = method_of(settings)
            told = method.to_transformers(rope, plain(), 2.0, 4096)
            assert told["partial_rotary_factor"] == 0.5, name
