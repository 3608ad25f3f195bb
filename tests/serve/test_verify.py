"""A good profile is served at any scale on any model; one that is a little wrong anywhere is refused."""

import json

import pytest
import torch
from transformers import (
    Ministral3Config,
    Ministral3ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from e2ray.config.base import SettingsError
from e2ray.config.methods import FactorsMethod, LogTemperature, NoTemperature, NtkMethod, RampPowerMethod, YarnMethod
from e2ray.core.methods.registry import method_of
from e2ray.serve import verify as serving
from e2ray.serve.profiles import make_profile
from e2ray.serve.verify import compared_layers, verify
from e2ray.testing.models import FAMILIES, SCALED, SIZES, tiny_config, tiny_model

L = 64
SCALES = (1.0, 1.5, 2.0, 3.0, 7.0, 16.0)
SHARP = 0.2  # spread of the weights under which rounding alone moves logits by more than 1e-4
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}


def served(folder, family, *, scales=SCALES, change=None, base_scaling=None, method=None, **changes):
    """Save a tiny model with a profile for each scale, changed by `change`, and return what verifying says."""
    tiny_model(family, **changes).save_pretrained(folder)
    config = tiny_config(family, **changes)
    return verified(folder, config, scales=scales, change=change, base_scaling=base_scaling, method=method)


def verified(folder, config, *, scales, change=None, base_scaling=None, base=L, method=None):
    lengths = {int(scale * base): scale for scale in scales}
    made = method and method_of(method)
    for length, scale in lengths.items():
        override = make_profile(config, base, length, base_scaling=base_scaling, scale=scale, method=made).override
        rope = override["rope_parameters"]
        if change is not None:
            change(rope["full_attention"] if "full_attention" in rope else rope)
        (folder / "serving" / str(length)).mkdir(parents=True, exist_ok=True)
        (folder / "serving" / str(length) / "config_override.json").write_text(json.dumps(override))
    return verify(folder, base_context_length=base, context_lengths=list(lengths), scales=lengths, method=made)


@pytest.mark.parametrize("spread", [0.02, SHARP])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_good_profile_passes_at_every_scale_however_sharp_the_weights(family, spread, tmp_path):
    checks = served(tmp_path, family, initializer_range=spread)
    assert [check.scale for check in checks] == list(SCALES)
    for check in checks:
        assert check.logit_difference <= 2 * check.logit_noise + 1e-5
        if check.scale in (1.0, 2.0, 16.0):  # dividing by a power of two rounds nothing
            assert check.max_logit_difference == 0.0


METHODS = {
    "ntk": NtkMethod(),
    "yarn": YarnMethod(),
    "yarn, other ends, none": YarnMethod(fast=6, slow=0.4, temperature=NoTemperature()),
    "yarn, colder": YarnMethod(fast=6, slow=0.4, temperature=LogTemperature(coefficient=-0.05)),
    "ramp_power": RampPowerMethod(fast=6, slow=0.4),
    "factors": FactorsMethod(factors=tuple(1 + 1.7 * n for n in range(8)), max_scale=16),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_profile_of_every_method_passes_at_every_scale(family, method, tmp_path):
    checks = served(tmp_path, family, method=METHODS[method], initializer_range=SHARP)
    for check in checks:
        assert check.logit_difference <= 4 * check.logit_noise + 1e-5


@pytest.mark.parametrize("method", ["yarn", "ramp_power", "factors"])
@pytest.mark.parametrize("rope", ["linear", "llama3", "yarn"])
def test_methods_on_top_of_a_kept_scaling_pass(rope, method, tmp_path):
    served(tmp_path, "llama", method=METHODS[method], base_scaling="keep", rope_parameters=SCALED[rope])


@pytest.mark.parametrize("method", [None, "ntk", "yarn", "ramp_power"])
def test_a_class_that_knows_longrope_alone_is_served_by_it(method, tmp_path):
    config = Phi3Config(**SIZES, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
    Phi3ForCausalLM(config).save_pretrained(tmp_path)
    verified(tmp_path, config, scales=(1.0, 3.0, 16.0), method=method and METHODS[method])
    for path in tmp_path.glob("serving/*/config_override.json"):
        wanted = "default" if method == "ntk" else "longrope"
        assert json.loads(path.read_text())["rope_parameters"]["rope_type"] == wanted


WRONG = {
    "another scale": ("yarn", lambda rope: rope.update(factor=rope["factor"] * 1.001), "its frequencies differ"),
    "no attention factor": ("yarn, colder", lambda rope: rope.pop("attention_factor"), "its attention factor differs"),
    "a later ramp": ("yarn, colder", lambda rope: rope.update(beta_fast=2), "its frequencies differ"),
    "another base frequency": ("ntk", lambda rope: rope.update(rope_theta=rope["rope_theta"] * 1.01), "frequencies"),
    "one factor of a pair": ("factors", lambda rope: rope["long_factor"].__setitem__(3, 9.0), "its frequencies differ"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_profile_of_a_method_that_is_a_little_wrong_is_refused(name, tmp_path):
    method, change, message = WRONG[name]
    with pytest.raises(SettingsError, match=message):
        served(tmp_path, "llama", method=METHODS[method], scales=(4.0,), change=change)


def test_a_profile_of_another_method_is_refused(tmp_path):
    served(tmp_path, "llama", scales=(4.0,))
    with pytest.raises(SettingsError, match=r"differs? from the trained model's at scale 4"):
        verify(tmp_path, base_context_length=L, context_lengths=[4 * L], method=method_of(YarnMethod()))


@pytest.mark.parametrize("scale", [3.0, 7.0])
def test_what_rounding_makes_of_deep_and_sharp_models_is_no_error(scale, tmp_path):
    (check,) = served(tmp_path, "llama", scales=(scale,), initializer_range=0.3, num_hidden_layers=6)
    assert check.max_logit_difference > 1e-4  # and yet it is served as it was trained


@pytest.mark.parametrize("experts", [8, 64])
def test_a_router_that_sends_tokens_elsewhere_for_an_ulp_is_no_error(experts, tmp_path):
    """Logits are no continuous function of the angles here, so that no bound on their difference would be right."""
    more = {"num_local_experts": experts, "num_experts_per_tok": 1, "intermediate_size": 16, "sliding_window": None}
    config = MixtralConfig(**SIZES | more | {"num_hidden_layers": 4})
    torch.manual_seed(0)
    MixtralForCausalLM(config).save_pretrained(tmp_path)
    verified(tmp_path, config, scales=(3.0,), base=1024)
    with pytest.raises(SettingsError, match="frequencies differ"):
        verified(tmp_path, config, scales=(3.0,), base=1024, change=by(1.0001))


def test_a_kept_yarn_passes_at_scales_that_are_no_powers_of_two(tmp_path):
    served(tmp_path, "llama", rope_parameters=YARN, base_scaling="keep", scales=(1.0, 3.0, 5.5))


def by(factor):
    return lambda rope: rope.update(factor=rope["factor"] * factor)


@pytest.mark.parametrize("scale", [2.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_factor_off_by_a_ten_thousandth_is_refused(family, scale, tmp_path):
    with pytest.raises(SettingsError, match=rf"frequencies differ .* scale {scale:g} by 0.0001 of their value"):
        served(tmp_path, family, scales=(scale,), change=by(1.0001), initializer_range=SHARP)


@pytest.mark.parametrize("scale", [2.0, 3.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_factor_that_counts_twice_is_refused(family, scale, tmp_path):
    with pytest.raises(SettingsError, match=rf"frequencies differ .* scale {scale:g} by"):
        served(tmp_path, family, scales=(scale,), change=by(scale))


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(
    "change",
    [
        lambda rope: rope.pop("attention_factor"),
        lambda rope: rope.update(attention_factor=rope["attention_factor"] * (1 + 1e-6)),
        lambda rope: rope.update(attention_factor=1.0),
    ],
)
def test_a_missing_or_other_attention_factor_is_refused(change, scale, tmp_path):
    with pytest.raises(SettingsError, match=rf"attention factor differs .* scale {scale:g} by"):
        served(tmp_path, "llama", scales=(scale,), change=change, rope_parameters=YARN, base_scaling="keep")


@pytest.mark.parametrize("scale", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
def test_factors_that_are_right_for_short_or_for_long_texts_alone_are_refused(key, scale, tmp_path):
    change = lambda rope: rope.update({key: [1.5 * each for each in rope[key]]})  # noqa: E731
    with pytest.raises(SettingsError, match=r"frequencies differ .* of their value in a text of \d+ tokens"):
        served(tmp_path, "llama", scales=(scale, 4.0), change=change, rope_parameters=YARN, base_scaling="keep")


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_scaled_by_a_thousandth_are_refused_though_all_angles_are_right(family, tmp_path, monkeypatch):
    """What other layers make of a profile: the same frequencies under another softmax scale."""
    load = serving._load

    def loaded(folder, override):
        model = load(folder, override)
        if override:
            for name, module in model.named_modules():
                if name.endswith("self_attn"):
                    module.scaling *= 1.001
        return model

    monkeypatch.setattr(serving, "_load", loaded)
    with pytest.raises(
        SettingsError, match=r"its logits differ .* under the very same angles, wanted at most .* refused"
    ):
        served(tmp_path, family, scales=(3.0,), initializer_range=SHARP)


def test_a_layer_is_judged_where_later_layers_hide_it(tmp_path, monkeypatch):
    """The head of this model sees nothing at all, its layers do."""
    load = serving._load

    def loaded(folder, override):
        model = load(folder, override)
        model.lm_head.weight.data.zero_()
        if override:
            model.model.layers[1].self_attn.scaling *= 1.01
        return model

    monkeypatch.setattr(serving, "_load", loaded)
    with pytest.raises(SettingsError, match=r"its outputs of layer 2 differ"):
        served(tmp_path, "llama", scales=(3.0,), initializer_range=SHARP)


def test_one_layer_of_each_type_and_two_at_least_are_compared():
    types = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]
    assert compared_layers(tiny_config("gemma3", num_hidden_layers=5, layer_types=types)) == [0, 1, 3]
    assert compared_layers(tiny_config("llama", num_hidden_layers=5)) == [0, 1]
    assert compared_layers(tiny_config("llama", num_hidden_layers=1)) == [0]


@pytest.mark.parametrize("length", [1024, 4096])
def test_a_layer_that_reads_positions_is_compared_at_the_end_of_the_context_too(length, tmp_path):
    """Ministral's queries grow with the plain position, here from position 700 on and in the profile from 600 on."""
    rope = YARN | {"original_max_position_embeddings": 700, "llama_4_scaling_beta": 0.1}
    config = Ministral3Config(**SIZES, head_dim=16, sliding_window=None, rope_parameters=rope)
    torch.manual_seed(0)
    Ministral3ForCausalLM(config).save_pretrained(tmp_path)
    scale = length / L
    verified(tmp_path, config, scales=(scale,), base_scaling="keep")
    change = lambda rope: rope.update(original_max_position_embeddings=600)  # noqa: E731
    with pytest.raises(SettingsError, match=r"its logits differ .* under the very same angles"):
        verified(tmp_path, config, scales=(scale,), base_scaling="keep", change=change)
