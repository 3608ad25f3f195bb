"""Position settings: presets, and what is refused."""

import pytest
from pydantic import ValidationError

from e2ray.config.methods import PRESETS
from e2ray.config.positions import PositionSettings, preset

FIXED = {"kind": "fixed", "max_scale": 4.0}


def read(**value):
    return PositionSettings.model_validate(value)


@pytest.mark.parametrize(
    ("name", "scale", "placement", "per"),
    [
        ("e2llm", "uniform_int", {"kind": "prefix", "prefix": 4, "jump": {"kind": "uniform"}}, "sequence"),
        ("pose", "fixed", {"kind": "random_breaks", "num_breaks": 1, "jump": {"kind": "uniform"}}, "sequence"),
        ("randpos", "fixed", {"kind": "sorted_random", "pin_first": False, "pin_last": False}, "sequence"),
        ("cream", "fixed", {"kind": "head_middle_tail", "tokens": 32, "sigma": 0.2}, "sequence"),
        ("clex", "uniform_int", {"kind": "sorted_random", "pin_first": True, "pin_last": True}, "step"),
        ("endprompt", "fixed", {"kind": "terminal", "tokens": 32, "jump": {"kind": "ends", "p": 1.0}}, "sequence"),
        ("pi", "fixed", {"kind": "none"}, "sequence"),
    ],
)
def test_a_preset_stands_for_the_published_method(name, scale, placement, per):
    chosen = read(preset=name, max_scale=20.0)
    assert chosen.scale.model_dump() == {"kind": scale, "max_scale": 20.0, "native_share": 0.0}
    assert chosen.placement.model_dump() == placement
    assert chosen.per == per
    assert chosen.max_scale == 20


def test_the_native_preset_never_scales():
    for chosen in (read(preset="native"), read(preset="native", max_scale=20.0)):
        assert chosen.scale.model_dump() == {"kind": "fixed", "max_scale": 1.0, "native_share": 0.0}
        assert chosen.placement.kind == "none"


@pytest.mark.parametrize("name", PRESETS)
def test_resolved_settings_reproduce_a_preset(name):
    chosen = read(preset=name, max_scale=8.0)
    assert PositionSettings.model_validate(chosen.model_dump()) == chosen
    assert PositionSettings.model_validate_json(chosen.model_dump_json()) == chosen


def test_settings_beside_a_preset_replace_its_own():
    chosen = read(preset="e2llm", max_scale=8.0, per="step", placement={"kind": "random_breaks", "num_breaks": 3})
    assert (chosen.scale.kind, chosen.placement.num_breaks, chosen.per) == ("uniform_int", 3, "step")


def test_the_largest_scale_of_a_choice_is_its_largest_entry():
    choices = [{"scale": 8.0, "weight": 1.0}, {"scale": 2.0, "weight": 5.0}]
    assert read(scale={"kind": "choice", "choices": choices}, placement={"kind": "none"}).max_scale == 8


@pytest.mark.parametrize(
    ("scale", "served"),
    [
        ({"kind": "log_uniform", "max_scale": 8}, (1.0, 1.0, 3.0, 16.0)),
        ({"kind": "fixed", "max_scale": 1}, (1.0, 1.0, 3.0, 16.0)),
        ({"kind": "fixed", "max_scale": 4}, (4.0, 4.0, 4.0, 4.0)),
        ({"kind": "fixed", "max_scale": 4, "native_share": 0.5}, (1.0, 1.0, 4.0, 4.0)),
        (
            {"kind": "choice", "choices": [{"scale": 2, "weight": 1}, {"scale": 8, "weight": 1}], "native_share": 0.25},
            (1.0, 1.0, 8.0, 8.0),
        ),
    ],
)
def test_a_text_is_read_at_the_least_drawn_scale_that_reaches_it(scale, served):
    """At half of L, at L, at 3 L and at 16 L."""
    positions = read(scale=scale, placement={"kind": "none"})
    assert tuple(map(positions.serve_at, (0.5, 1.0, 3.0, 16.0))) == served


def test_unknown_presets_are_refused_by_name():
    with pytest.raises(ValueError, match=r"must be one of e2llm, pose, .*, recommended, got 'yarn'"):
        preset("yarn", 4.0)
    with pytest.raises(ValidationError, match="must be one of e2llm"):
        read(preset="yarn", max_scale=4.0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"preset": "e2llm"}, "needs max_scale, a number of at least 1, got None"),
        ({"preset": "e2llm", "max_scale": 0.5}, "needs max_scale, a number of at least 1, got 0.5"),
        ({"preset": "e2llm", "max_scale": True}, "needs max_scale, a number of at least 1, got True"),
        ({"preset": "e2llm", "max_scale": 2.5}, "must be a whole number for uniform_int, got 2.5"),
        ({"preset": "e2llm", "max_scale": 4.0, "scale": FIXED}, "either preset or scale, not both"),
        ({"scale": FIXED}, "placement\n  Field required"),
        ({"scale": FIXED | {"native_share": 1.5}, "placement": {"kind": "none"}}, "less than or equal to 1"),
        (
            {"scale": FIXED | {"kind": "cauchy"}, "placement": {"kind": "none"}},
            "does not match any of the expected tags",
        ),
        ({"scale": FIXED | {"max_scale": float("inf")}, "placement": {"kind": "none"}}, "finite number"),
        ({"scale": FIXED, "placement": {"kind": "none", "jump": {"kind": "uniform"}}}, "Extra inputs"),
        ({"scale": {"kind": "choice", "choices": []}, "placement": {"kind": "none"}}, "at least 1 item"),
        (
            {
                "scale": {"kind": "choice", "choices": [{"scale": 2.0, "weight": 1.0}] * 2},
                "placement": {"kind": "none"},
            },
            "must name each scale once",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(value, message):
    with pytest.raises(ValidationError, match=message):
        PositionSettings.model_validate(value)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        ({"kind": "prefix", "prefix": 8}, r"prefix needs prefix below the window \(8\), got 8"),
        ({"kind": "random_breaks", "num_breaks": 8}, r"random_breaks needs num_breaks of at most 7 .* got 8"),
        ({"kind": "head_middle_tail", "tokens": 4}, r"2 \* tokens below the window \(8\), got tokens = 4"),
        ({"kind": "terminal", "tokens": 8}, r"terminal needs tokens below the window \(8\), got 8"),
        ({"kind": "chunks", "num_chunks": 3}, r"chunks needs num_chunks that divides the window \(8\), got 3"),
    ],
)
def test_a_placement_has_to_fit_the_window(placement, message):
    with pytest.raises(ValueError, match=message):
        read(scale=FIXED, placement=placement).check_window(8)


@pytest.mark.parametrize(
    "placement",
    [
        {"kind": "prefix", "prefix": 7},
        {"kind": "random_breaks", "num_breaks": 7},
        {"kind": "head_middle_tail", "tokens": 3},
        {"kind": "terminal", "tokens": 7},
        {"kind": "chunks", "num_chunks": 8},
        {"kind": "sorted_random"},
        {"kind": "none"},
    ],
)
def test_the_largest_placement_that_fits_is_taken(placement):
    read(scale=FIXED, placement=placement).check_window(8)
