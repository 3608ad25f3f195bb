"""Searched settings: what they become in a recipe, and what is refused before any trial."""

import json

import pytest

from e2ray.config.base import SettingsError
from e2ray.config.family import family
from e2ray.config.load import validate
from e2ray.config.methods import PRESETS
from e2ray.config.positions import PositionSettings
from e2ray.config.run import RunConfig
from e2ray.config.search import Choice, FloatRange, IntRange
from e2ray.config.space import assign, check, contains, ends, express, in_order, lookup

RECIPE = {
    "name": "study",
    "model": {"kind": "pretrained", "path": "/models/base", "base_context_length": 128},
    "data": {"corpus": [{"kind": "python_stdlib"}], "window": 128},
    "positions": {"preset": "e2llm", "max_scale": 16},
    "train": {"steps": 300, "lr": 1e-3, "log_every": 10},
}
KIND, PLACE = "positions.scale.kind", "positions.placement.kind"


def config(**search):
    return validate(json.loads(json.dumps(RECIPE)) | {"search": {"trials": 20} | search}, source="recipe")


def resolved():
    recipe = validate(RECIPE, source="recipe").model_dump(mode="json")
    recipe.pop("search")
    return recipe


def space(**parameters):
    return {path.replace("__", "."): parameter for path, parameter in parameters.items()}


def test_a_value_reaches_its_place_and_nothing_else():
    recipe = resolved()
    made = assign(recipe, {"train.lr": 0.5, "positions.placement.prefix": 9}, RunConfig)
    assert made["train"].pop("lr") == 0.5
    assert made["positions"]["placement"].pop("prefix") == 9
    wanted = resolved()
    wanted["train"].pop("lr"), wanted["positions"]["placement"].pop("prefix")
    assert made == wanted
    assert recipe == resolved()


def test_another_kind_keeps_what_both_have_and_drops_the_rest():
    params = {KIND: "power", "positions.scale.exponent": -1.0, PLACE: "random_breaks"}
    made = assign(resolved(), params, RunConfig)["positions"]
    assert made["scale"] == {"kind": "power", "max_scale": 16, "native_share": 0.0, "exponent": -1.0}
    assert made["placement"] == {"kind": "random_breaks", "jump": {"kind": "uniform"}}


def test_kinds_are_set_before_what_belongs_to_them_whatever_the_order_given():
    params = {"positions.scale.exponent": 0.5, KIND: "power"}
    assert assign(resolved(), params, RunConfig)["positions"]["scale"]["exponent"] == 0.5


def test_a_section_that_is_null_can_be_searched_below():
    recipe = resolved() | {"model": {**resolved()["model"], "lora": {"rank": 4}}}
    assert assign(recipe, {"model.lora.rank": 8}, RunConfig)["model"]["lora"]["rank"] == 8
    with pytest.raises(ValueError, match=r"model\.lora is None, not a section"):
        assign(resolved(), {"model.lora.rank": 8}, RunConfig)


def test_the_default_family_holds_every_published_method_but_native():
    family_space, recipe = config().space(), resolved()
    expressed = {}
    for name in PRESETS:
        target = recipe | {
            "positions": PositionSettings.model_validate({"preset": name, "max_scale": 16}).model_dump(mode="json")
        }
        params = express(family_space, recipe, RunConfig, target)
        if params:
            made = RunConfig.model_validate(assign(recipe, params, RunConfig)).positions
            assert made == PositionSettings.model_validate({"preset": name, "max_scale": 16})
        expressed[name] = bool(params)
    assert expressed == {name: name != "native" for name in PRESETS}  # native has a largest scale of its own


def test_the_default_family_passes_its_own_check_at_any_window():
    for window in (3, 12, 16, 128, 4096):
        positions = PositionSettings.model_validate(
            {"scale": {"kind": "log_uniform", "max_scale": 6.5}, "placement": {"kind": "none"}}
        )
        recipe = resolved() | {"positions": positions.model_dump(mode="json")}
        recipe["data"]["window"] = window
        found = family(positions, window=window, lr=0.9)
        check(found, recipe, RunConfig)
        assert not contains(found[KIND], "uniform_int")  # 6.5 is no whole number


@pytest.mark.parametrize("pack", ["concat", "document", "best_fit"])
def test_the_default_family_fits_however_rows_are_packed(pack):
    recipe = json.loads(json.dumps(RECIPE)) | {"search": {"trials": 20}}
    recipe["data"]["pack"] = pack
    made = validate(recipe, source="recipe")
    assert ("train.objective.distance_weights" in made.space()) is (pack == "concat")


def test_conditions_are_ordered_behind_what_they_name():
    order = in_order(config().space())
    assert order.index(KIND) < order.index("positions.scale.exponent")
    jump = "positions.placement.jump."
    assert order.index(PLACE) < order.index(jump + "kind") < order.index(jump + "p")


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({}, r"search\.space: is empty, there is nothing to search"),
        ({"train.lrr": {"kind": "float", "low": 1e-4, "high": 1e-3}}, r"train\.lrr: is no setting; train has .*, lr,"),
        ({"trian.lr": {"kind": "float", "low": 1e-4, "high": 1e-3}}, r"trian\.lr: is no setting; there is no section"),
        (
            {"train.lr": {"kind": "float", "low": 0.1, "high": 2.0}},
            r"train\.lr: high: got 2\.0: .*less than or equal to 1",
        ),
        ({"train.lr": {"kind": "float", "low": 0.0, "high": 0.5}}, r"train\.lr: low: got 0\.0: .*greater than 0"),
        ({"train.lr": {"kind": "float", "low": 0.5, "high": 0.1}}, r"train\.lr: low must be below high"),
        ({"train.lr": {"kind": "float", "low": -1.0, "high": 1.0, "log": True}}, r"train\.lr: log needs low above 0"),
        ({"data.window": {"kind": "int", "low": 2, "high": 64}}, r"data\.window: is shared by all trials"),
        ({"seed": {"kind": "int", "low": 2, "high": 64}}, r"seed: is shared by all trials"),
        (
            {"positions.scale": {"kind": "choice", "options": [1]}},
            r"positions\.scale: is a section; .*positions\.scale\.kind",
        ),
        (
            {KIND: {"kind": "choice", "options": ["power"]}},
            r"options: 'power' needs exponent, .*positions\.scale\.exponent",
        ),
        ({KIND: {"kind": "choice", "options": ["powr"]}}, r"options: got 'powr'"),
        (
            {"positions.placement.prefix": {"kind": "int", "low": 1, "high": 128}},
            r"prefix below the window \(128\), got 128",
        ),
        (
            {"positions.placement.prefix": {"kind": "float", "low": 1, "high": 2}},
            r"low: got 1\.0: wanted a valid integer",
        ),
        (
            {"train.lr": {"kind": "float", "low": 1e-4, "high": 1e-3, "when": {KIND: ["power"]}}},
            r"train\.lr: when: positions\.scale\.kind is no parameter of the space",
        ),
        (
            {
                KIND: {"kind": "choice", "options": ["uniform"]},
                "train.lr": {"kind": "float", "low": 1e-4, "high": 1e-3, "when": {KIND: ["fixed"]}},
            },
            r"train\.lr: when: .*fixed.* never comes up",
        ),
        (
            {
                KIND: {"kind": "choice", "options": ["uniform"], "when": {PLACE: ["none"]}},
                PLACE: {"kind": "choice", "options": ["none"], "when": {KIND: ["uniform"]}},
            },
            r"when: its conditions go in a circle",
        ),
    ],
)
def test_a_wrong_space_is_told_in_one_line(parameters, wanted):
    with pytest.raises(SettingsError, match=wanted) as caught:
        config(space=parameters)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("search", "wanted"),
    [
        ({"trials": 9}, r"trials: must be at least 10 \(8 baselines and 2 repeats of e2llm\), got 9"),
        ({"baselines": ["pose"]}, r"must hold e2llm"),
        ({"baselines": ["e2llm", "e2llm"]}, r"at most once"),
        ({"baselines": ["e2llm", "poze"]}, r"must name each of"),
        ({"mode": "pareto"}, r"early_stopping: needs one number"),
        ({"weights": {"long": 0.0, "short": 0.0}}, r"weights: long and short are both 0"),
        (
            {"mode": "pareto", "early_stopping": None, "weights": {"short": 0.0}},
            r"mode: pareto weighs several objectives, wanted at least two weights above 0",
        ),
        (
            {"space": {"train.batch_sequences": {"kind": "choice", "options": [16, 32]}}},
            r"train\.batch_sequences: is the same for all trials",
        ),
        (
            {"early_stopping": {"kind": "asha", "min_steps": 300}},
            r"min_steps: must be a multiple .* below the 300 steps",
        ),
        (
            {"early_stopping": {"kind": "asha", "min_steps": 33}},
            r"min_steps: must be a multiple of train\.log_every \(10\)",
        ),
        ({"trial": {"train.stepz": 3}}, r"search\.trial: .*stepz"),
        ({"trial": {"data.window": 3}}, r"search\.trial\.data\.window: wanted settings of train, evaluate or cluster"),
        ({"trial": {"train.steps": 0}}, r"search\.trial: train\.steps: "),
        ({"trials": 20, "sampler": "grid"}, r"search\.sampler"),
    ],
)
def test_a_wrong_search_is_told_in_one_line(search, wanted):
    with pytest.raises(SettingsError, match=wanted) as caught:
        config(**search)
    assert "\n" not in str(caught.value)


def test_trials_may_have_other_workers_than_the_recipe():
    found = config(trial={"cluster.num_workers": 1, "train.steps": 30})
    assert found.trial().cluster.num_workers == 1 and found.trial().train.steps == 30
    recipe = json.loads(json.dumps(RECIPE)) | {"cluster": {"num_workers": 2}}
    found = validate(recipe | {"search": {"trials": 20, "trial": {"cluster.num_workers": 1}}}, source="recipe")
    assert (found.cluster.num_workers, found.trial().cluster.num_workers) == (2, 1)
    with pytest.raises(SettingsError, match=r"search\.trial: train\.batch_sequences: must be a multiple of cluster"):
        config(trial={"cluster.num_workers": 3})


def test_a_search_needs_something_to_compare_by():
    with pytest.raises(SettingsError, match=r"evaluate: is null, a search compares trials by it"):
        validate(RECIPE | {"search": {"trials": 20}, "evaluate": None}, source="recipe")


def test_a_published_method_that_does_not_fit_the_window_is_named():
    recipe = json.loads(json.dumps(RECIPE)) | {"search": {"trials": 20}}
    recipe["data"]["window"] = 64
    with pytest.raises(SettingsError, match=r"search\.baselines: cream: .* leave it out of the list"):
        validate(recipe, source="recipe")


def test_settings_of_a_trial_do_not_touch_the_recipe():
    found = config(trial={"train.steps": 100, "evaluate.documents": 3})
    assert (found.trial().train.steps, found.trial().evaluate.documents) == (100, 3)
    assert (found.train.steps, found.evaluate.documents) == (300, 32)
    assert found.trial().search is None


def test_rungs_grow_by_the_factor_and_leave_the_end_out():
    search = config(early_stopping={"kind": "asha", "min_steps": 20, "reduction_factor": 3}).search
    assert search.rungs(300, 10) == (20, 60, 180)
    assert search.rungs(180, 10) == (20, 60)
    assert config(early_stopping=None).search.rungs(300, 10) == ()
    default = config().search
    assert default.rungs(300, 10) == (30, 90, 270)


def test_what_a_parameter_can_take():
    assert contains(Choice(options=(1, True, "a")), True)
    assert not contains(Choice(options=(1, "a")), True)
    assert contains(IntRange(low=1, high=3), 3)
    assert not contains(FloatRange(low=1.0, high=3.0), 3.5)
    assert ends(IntRange(low=1, high=3)) == [("low", 1), ("high", 3)]
    assert lookup({"a": {"b": 2}}, "a.b") == 2
