"""The base as methods without training read it: each window at W / L, by the method's own frequencies."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from e2ray.config.base import SettingsError
from e2ray.config.methods import UNTRAINED
from e2ray.core.methods.ntk import Ntk
from e2ray.core.methods.registry import method_of
from e2ray.core.rope import RotaryHook
from e2ray.evaluate.perplexity import document_sums
from e2ray.evaluate.untrained import untrained_sums

L = 16
OPTIONS = {"windows": (16, 32, 64), "stride": 8, "batch_tokens": 256, "device": "cpu"}


def tiny(**changes):
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "max_position_embeddings": L, "initializer_range": 0.3}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **changes)).eval()


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 64, size=length).astype(np.int32) for length in (64, 81)]


def asked(model, documents, *lanes):
    return untrained_sums(model, documents, lanes=lanes, base_context_length=L, **OPTIONS)


def read_by(model, documents, method, window, scale):
    hook = RotaryHook(model, method, base_context_length=L)
    options = OPTIONS | {"windows": (window,), "scales": (scale,), "name": "base"}
    (sums,) = document_sums(model, hook, documents, **options)
    hook.remove()
    return sums.nll


@pytest.mark.parametrize("lane", ["linear", "ntk", "yarn", "ramp_power"])
def test_each_window_is_read_at_its_length_by_the_lanes_method(model, documents, lane):
    found = asked(model, documents, lane)
    assert [(sums.model, sums.window, sums.scale) for sums in found] == [
        (f"base_{lane}", 16, 1.0), (f"base_{lane}", 32, 2.0), (f"base_{lane}", 64, 4.0),
    ]  # fmt: skip
    for sums in found:
        wanted = read_by(model, documents, method_of(UNTRAINED[lane]), sums.window, sums.scale)
        np.testing.assert_array_equal(sums.nll, wanted)


def test_dynamic_ntk_is_read_as_its_longest_text_asks_and_stands_at_its_length(model, documents):
    found = asked(model, documents, "dynamic_ntk")
    assert [sums.scale for sums in found] == [1.0, 2.0, 4.0]
    for sums, scale in zip(found, (1.0, 5.0, 13.0), strict=True):  # G n / L - (G - 1), G = 4
        np.testing.assert_array_equal(sums.nll, read_by(model, documents, Ntk(), sums.window, scale))


def test_several_lanes_leave_no_hook_behind(model, documents):
    before = read_by(model, documents, None, 64, 1.0)
    linear, *_, yarn = asked(model, documents, "linear", "yarn")
    assert (linear.model, yarn.model) == ("base_linear", "base_yarn")
    np.testing.assert_array_equal(read_by(model, documents, None, 64, 1.0), before)


def test_a_base_with_a_scaling_of_its_own_is_refused(documents):
    scaled = tiny(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0})
    with pytest.raises(SettingsError, match=r"untrained linear: the model's rope is linear, wanted plain RoPE"):
        asked(scaled, documents, "linear")
