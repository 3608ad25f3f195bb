"""Frequency methods: transformers' own frequencies, the papers' formulas, and what holds for all of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from e2ray.config.base import SettingsError
from e2ray.config.methods import (
    DynamicNtkMethod,
    FactorsMethod,
    LinearMethod,
    LogTemperature,
    Method,
    NoTemperature,
    NtkMethod,
    RampPowerMethod,
    TruncatedMethod,
    YarnMethod,
)
from e2ray.core.methods.ntk import DynamicNtk
from e2ray.core.methods.registry import method_of

METHODS = [
    LinearMethod(),
    NtkMethod(),
    YarnMethod(),
    YarnMethod(fast=8, slow=0.5, temperature=NoTemperature()),
    RampPowerMethod(),
    RampPowerMethod(fast=64, slow=4),
    FactorsMethod(factors=tuple(np.geomspace(1, 24, 32)), max_scale=16),
    TruncatedMethod(),
    DynamicNtkMethod(),
]
IDS = [f"{each.kind}-{place}" for place, each in enumerate(METHODS)]
PAIRS, THETA, L = 32, 10_000.0, 4096


def plain(pairs=PAIRS, theta=THETA):
    return 1.0 / theta ** (torch.arange(pairs, dtype=torch.float32) / pairs)


def llama3(pairs=PAIRS):
    """Frequencies of Llama 3.1's own scaling, whose logarithms are on no straight line."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 500_000.0}
    config = LlamaConfig(hidden_size=2 * pairs, num_attention_heads=1, rope_parameters=rope)
    return ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]


@pytest.mark.parametrize("method", METHODS, ids=IDS)
@pytest.mark.parametrize("base", [plain(), llama3(), plain(32, 1e6)], ids=["plain", "llama3", "theta 1e6"])
def test_scale_1_is_the_base_in_every_bit_and_a_scale_only_slows_down(method, base):
    found = method_of(method)
    rows = found.frequencies(base, torch.tensor([1.0, 1.5, 7.0, 16.0]), L)
    assert rows.dtype == torch.float32 and rows.shape == (4, PAIRS)
    assert torch.equal(rows[0], base) and bool((rows <= base).all()) and bool((rows >= 0).all())
    assert torch.equal(rows[2], found.frequencies(base, torch.tensor(7.0), L))  # a row knows nothing of the others
    temperature = found.temperature(torch.tensor([1.0, 16.0]))
    assert temperature[0] == 1.0 and temperature.shape == (2,)


@pytest.mark.parametrize("method", [each for each in METHODS if not isinstance(each, TruncatedMethod)], ids=str)
@given(scale=st.floats(1, 1000), more=st.floats(1.001, 4))
@settings(max_examples=20, deadline=None)
def test_a_larger_scale_slows_every_pair_down_or_leaves_it(method, scale, more):
    found = method_of(method)
    one, other = found.frequencies(plain(), torch.tensor([scale, scale * more]), L)
    assert bool((other <= one).all()) and float(other[-1]) < float(one[-1])


@pytest.mark.parametrize("scale", [1.5, 4.0, 16.0, 40.0])
@pytest.mark.parametrize("length", [128, 4096, 131_072])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(("fast", "slow"), [(32, 1), (8, 2), (64, 0.5)])
def test_yarn_is_transformers_yarn(scale, length, theta, fast, slow):
    rope = {"rope_type": "yarn", "factor": scale, "rope_theta": theta, "original_max_position_embeddings": length}
    config = LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters=rope | {"beta_fast": fast, "beta_slow": slow},
    )
    wanted, attention = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    found = method_of(YarnMethod(fast=fast, slow=slow))
    told = found.frequencies(plain(PAIRS, theta), torch.tensor(scale), length)
    torch.testing.assert_close(told, wanted, rtol=3e-7, atol=0)  # three roundings of float32
    assert float(found.temperature(torch.tensor(scale, dtype=torch.float64))) == pytest.approx(attention, rel=1e-12)


@pytest.mark.parametrize("scale", [2.0, 3.0, 16.0])
def test_linear_is_transformers_linear_in_every_bit(scale):
    rope = {"rope_type": "linear", "factor": scale, "rope_theta": THETA}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, rope_parameters=rope)
    wanted, _ = ROPE_INIT_FUNCTIONS["linear"](config, "cpu")
    assert torch.equal(method_of(LinearMethod()).frequencies(plain(), torch.tensor(scale), L), wanted)


@pytest.mark.parametrize("length", [100, 4096, 5000, 65_536])
def test_dynamic_ntk_is_transformers_dynamic(length):
    rope = {"rope_type": "dynamic", "factor": 16.0, "rope_theta": THETA}
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=L, rope_parameters=rope)
    wanted, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=length)
    scale = DynamicNtk.scale_of(16.0, length, L)
    found = method_of(DynamicNtkMethod()).frequencies(plain(), torch.tensor(scale), L)
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=0)


def test_ntk_is_a_larger_base_frequency():
    found = method_of(NtkMethod()).frequencies(plain(), torch.tensor(8.0), L)
    dimension = 2 * PAIRS
    torch.testing.assert_close(found, plain(theta=THETA * 8.0 ** (dimension / (dimension - 2))), rtol=2e-6, atol=0)
    assert found[0] == plain()[0] and float(found[-1]) == pytest.approx(float(plain()[-1]) / 8, rel=1e-6)


def test_ramp_power_keeps_fast_pairs_divides_slow_ones_and_steps_quadratically_between():
    found = method_of(RampPowerMethod(fast=32, slow=1)).factors(plain().double(), torch.tensor(16.0).double(), L)
    turns = L * plain().double() / (2 * math.pi)
    fast, slow = turns >= 32, turns < 1
    assert bool((found[fast] == 1).all()) and torch.allclose(found[slow], torch.tensor(1 / 16).double())
    between = found[~fast & ~slow]
    steps = len(between) + 1
    wanted = [16.0 ** (-q * (q + 1) / (steps * (steps + 1))) for q in range(1, steps)]
    assert between.tolist() == pytest.approx(wanted, rel=1e-12) and steps > 3


def test_a_searched_list_is_whole_at_its_own_scale_and_half_as_strong_at_its_root():
    listed = tuple(np.geomspace(1, 24, PAIRS))
    method = method_of(FactorsMethod(factors=listed, max_scale=16))
    whole, half = method.factors(plain().double(), torch.tensor([16.0, 4.0]).double(), L)
    torch.testing.assert_close(whole, 1 / torch.tensor(listed), rtol=1e-12, atol=0)
    torch.testing.assert_close(half, whole.sqrt(), rtol=1e-12, atol=0)
    with pytest.raises(SettingsError, match=r"positions\.method\.factors: has 32 numbers, the model's heads have 16"):
        method.factors(plain(16).double(), torch.tensor(2.0).double(), L)


def test_truncated_gives_slow_pairs_one_turn_in_sixteen_contexts_and_stops_the_slowest():
    found = method_of(TruncatedMethod()).frequencies(plain(), torch.tensor([1.01, 64.0]), L)
    turns = L * plain() / (2 * math.pi)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0][turns >= 1], plain()[turns >= 1])
    slow = (turns < 1) & (turns >= 1 / 8)
    torch.testing.assert_close(
        found[0][slow], torch.full((int(slow.sum()),), 2 * math.pi / (16 * L)), rtol=1e-6, atol=0
    )
    assert bool((found[0][turns < 1 / 8] == 0).all()) and bool(slow.any()) and bool((turns < 1 / 8).any())


def test_temperature_is_what_the_settings_say():
    scale = torch.tensor([1.0, 8.0], dtype=torch.float64)
    for coefficient in (0.1, -0.05, 0.0):
        method = method_of(YarnMethod(temperature=LogTemperature(coefficient=coefficient)))
        assert method.temperature(scale).tolist() == pytest.approx([1.0, 1 + coefficient * math.log(8)])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"kind": "yarn", "fast": 1.0, "slow": 1.0}, r"fast: must be above slow \(1 rotations\), got 1"),
        ({"kind": "ramp_power", "fast": 2.0, "slow": 4.0}, r"fast: must be above slow \(4 rotations\), got 2"),
        ({"kind": "factors", "factors": [0.5, 2.0], "max_scale": 4.0}, "must be 1 to 1048576 each, got 0.5 to 2"),
        ({"kind": "factors", "factors": [], "max_scale": 4.0}, "at least 1 item"),
        ({"kind": "factors", "factors": [1.0], "max_scale": 1.0}, "greater than 1"),
        ({"kind": "dynamic_ntk"}, "does not match any of the expected tags"),  # it needs the length of a text
        ({"kind": "yarn", "temperature": {"kind": "log", "coefficient": 3.0}}, "less than or equal to 1"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(told, message):
    with pytest.raises(ValueError, match=message):
        TypeAdapter(Method).validate_python(told)
