"""What a served context length is told to each program, under every method; that it is right is `test_serving.py`'s."""

import json
import math
import shlex

import pytest

from e2ray.config.base import SettingsError
from e2ray.config.methods import FactorsMethod, LogTemperature, NtkMethod, RampPowerMethod, TruncatedMethod, YarnMethod
from e2ray.core.methods.registry import method_of
from e2ray.serve.profiles import commands, make_profile
from e2ray.testing.models import SCALED, tiny_config

L, W = 64, 1024
YARN = YarnMethod(fast=6, slow=0.4)
COLD = YarnMethod(temperature=LogTemperature(coefficient=0.05))


def profile(method, *, family="llama", length=W, base_scaling=None, **changes):
    config = tiny_config(family, **changes)
    return make_profile(config, L, length, base_scaling=base_scaling, method=method_of(method))


def lines(method, **options):
    return commands(profile(method, **options), model=".", name="demo")


def told(line, flag):
    words = shlex.split(line)
    return json.loads(words[words.index(flag) + 1])


def option(line, flag):
    words = shlex.split(line)
    return words[words.index(flag) + 1]


def test_yarn_is_written_out_and_gives_servers_the_context_length():
    made = profile(YARN)
    rope = made.override["rope_parameters"]
    assert rope == {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 16.0,
        "beta_fast": 6.0,
        "beta_slow": 0.4,
        "attention_factor": 0.1 * math.log(16) + 1,
        "original_max_position_embeddings": L,
    }
    assert made.override["max_position_embeddings"] == made.server_override["max_position_embeddings"] == W


def test_sglang_is_told_what_it_multiplies_its_own_attention_factor_by():
    for method, factor in ((YARN, 1.0), (COLD, (0.05 * math.log(16) + 1) / (0.1 * math.log(16) + 1))):
        found = lines(method)
        rope = told(found["sglang"], "--json-model-override-args")["rope_parameters"]
        assert rope["attn_factor"] == pytest.approx(factor)
        assert "attn_factor" not in told(found["vllm"], "--hf-overrides")["rope_parameters"]


def test_ntk_is_plain_rope_of_a_larger_base_frequency():
    found = profile(NtkMethod())
    rope = found.override["rope_parameters"]
    assert rope["rope_type"] == "default"
    assert rope["rope_theta"] == pytest.approx(10_000.0 * 16 ** (16 / 14))  # heads of 16 dimensions
    assert found.server_override["max_position_embeddings"] == W
    line = lines(NtkMethod())["llama.cpp"]
    assert float(option(line, "--rope-freq-base")) == pytest.approx(rope["rope_theta"])


@pytest.mark.parametrize("method", [RampPowerMethod(), FactorsMethod(factors=(1.0,) * 7 + (9.0,), max_scale=8)])
def test_a_list_of_factors_is_longrope_with_what_servers_call_its_attention_factor(method):
    found = profile(method)
    rope, servers = found.override["rope_parameters"], found.server_override["rope_parameters"]
    assert rope["rope_type"] == "longrope" and rope["short_factor"] == rope["long_factor"]
    assert servers["short_mscale"] == servers["long_mscale"] == rope["attention_factor"]
    assert lines(method)["llama.cpp"].startswith("cannot: llama.cpp takes a factor per pair from a GGUF file alone")


def test_llama_cpp_is_told_the_ramp_and_the_share_of_its_own_attention_factor():
    line = lines(COLD)["llama.cpp"]
    assert shlex.split(line)[:5] == ["llama-server", "--model", "demo.gguf", "--ctx-size", str(W)]
    assert [option(line, f"--{name}") for name in ("rope-scaling", "rope-scale", "yarn-orig-ctx")] == [
        "yarn",
        "16",
        "64",
    ]
    assert [option(line, f"--yarn-beta-{name}") for name in ("fast", "slow")] == ["32", "1"]
    share = (0.05 * math.log(16) + 1) / (0.1 * math.log(16) + 1)
    assert float(option(line, "--yarn-attn-factor")) == pytest.approx(share, rel=1e-6)
    assert commands(make_profile(tiny_config("gemma3"), L, W, base_scaling=None), model=".", name="x")[
        "llama.cpp"
    ].startswith("cannot: llama.cpp takes rope parameters per layer type")


def test_a_method_whose_pairs_stand_still_has_no_profile_and_says_what_to_do():
    with pytest.raises(
        SettingsError, match=r"^truncated: some of its pairs stand still, .*; read it with e2ray, or cho"
    ):
        make_profile(
            tiny_config("llama", rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
            L, W, base_scaling=None, method=method_of(TruncatedMethod()),
        )  # fmt: skip


def test_local_layers_keep_their_own_frequencies_under_every_method():
    config = tiny_config("gemma3")
    for method, kind in ((YARN, "yarn"), (NtkMethod(), "default"), (RampPowerMethod(), "longrope")):
        rope = profile(method, family="gemma3").override["rope_parameters"]
        assert rope["sliding_attention"] == config.rope_parameters["sliding_attention"]
        assert rope["full_attention"]["rope_type"] == kind


def test_a_yarn_below_w_over_l_is_longrope_since_vllm_reads_no_further_than_scale_times_l():
    config = tiny_config("llama")
    method = method_of(YARN)
    for scale, kind in ((W / L, "yarn"), (W / L / 2, "longrope"), (2 * W / L, "yarn")):
        made = make_profile(config, L, W, base_scaling=None, scale=scale, method=method)
        assert made.override["rope_parameters"]["rope_type"] == kind
        assert made.server_override["max_position_embeddings"] == W
        assert option(commands(made, model=".", name="x")["vllm"], "--max-model-len") == str(W)


@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_on_a_kept_scaling_a_method_multiplies_what_is_there(rope):
    plain = profile(YARN).override["rope_parameters"]
    kept = profile(YARN, base_scaling="keep", rope_parameters=SCALED[rope]).override["rope_parameters"]
    assert kept["rope_type"] == "longrope"
    own = 0.1 * math.log(SCALED[rope]["factor"]) + 1 if rope == "yarn" else 1.0
    assert kept["attention_factor"] == pytest.approx(plain["attention_factor"] * own)
    with pytest.raises(SettingsError, match="wanted keep"):
        profile(YARN, rope_parameters=SCALED[rope])
