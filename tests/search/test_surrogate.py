"""Intervals from a surrogate: on made-up objectives whose good values are known, some settings conditional."""

import math
import random

import pytest

from e2ray.search import surrogate
from e2ray.search.surrogate import FEWEST_TRIALS, FEWEST_TRIED, Surrogate, Trial, grid

SPACE = {
    "lr": {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "share": {"kind": "float", "low": 0.0, "high": 0.8, "log": False},
    "kind": {"kind": "choice", "options": ["linear", "yarn", "ntk"]},
    "slow": {"kind": "float", "low": 0.25, "high": 4.0, "log": True, "when": {"kind": ["yarn"]}},
    "breaks": {"kind": "int", "low": 1, "high": 16, "log": True},
    "idle": {"kind": "float", "low": -1.0, "high": 1.0, "log": False},
}
NOISE = 0.02


def value(params, rng):
    """The best is lr 1e-3, yarn, slow 0.4; share matters little, breaks and idle not at all."""
    found = 0.25 * (math.log10(params["lr"]) + 3) ** 2 + 0.01 * params["share"]
    found += {"linear": 0.4, "yarn": 0.0, "ntk": 0.25}[params["kind"]]
    if params["kind"] == "yarn":
        found += 0.3 * (math.log(params["slow"], 4) + 0.65) ** 2  # best at 0.4, far from where an idle one stands
    return 2.0 + found + rng.gauss(0, NOISE)


def trials(count=45, seed=1):
    rng, found = random.Random(seed), []
    for _ in range(count):
        params = {
            "lr": 10 ** rng.uniform(-4, -2),
            "share": rng.uniform(0, 0.8),
            "kind": rng.choice(SPACE["kind"]["options"]),
            "breaks": rng.randint(1, 16),
            "idle": rng.uniform(-1, 1),
        }
        if params["kind"] == "yarn":
            params["slow"] = 4 ** rng.uniform(-1, 1)
        found.append(Trial(params, value(params, rng)))
    return found


def intervals(space, given, *, within):
    found = surrogate.intervals(space, given, within=within)
    return None if found is None else found.plain()


@pytest.fixture(scope="module")
def found():
    return intervals(SPACE, trials(), within=NOISE)


def test_settings_that_matter_are_determined_about_their_best(found):
    told = found["parameters"]
    assert told["lr"]["determined"] and told["lr"]["low"] < 1e-3 < told["lr"]["high"]
    wanted = {"kinds": ["yarn"], "trials": 45, "share": 1 / 3, "held": 1.0, "narrow": 1.0, "determined": True}
    assert told["kind"] == wanted
    assert told["slow"]["low"] < 0.4 < told["slow"]["high"] and told["slow"]["share"] < 0.7
    assert found["left_out_spearman"] > 0.8 and found["coverage"] >= 0.8


def test_settings_that_do_not_matter_are_not(found):
    for path in ("breaks", "idle"):
        assert found["parameters"][path]["share"] > 0.5 and not found["parameters"][path]["determined"]


def test_a_conditional_setting_is_judged_where_it_applies():
    """Trials without slow, were they ever so good, say nothing of where it is best."""
    moved = [Trial(each.params, each.value - (1.0 if each.params["kind"] == "linear" else 0.0)) for each in trials()]
    told = intervals(SPACE, moved, within=NOISE)["parameters"]
    assert told["kind"]["kinds"] == ["linear"] and told["slow"]["low"] < 0.4 < told["slow"]["high"]


def test_of_very_many_trials_the_best_and_some_of_the_others_are_taken(monkeypatch):
    monkeypatch.setattr(surrogate, "MOST_TRIALS", 40)
    given = trials(150)
    kept = surrogate._fewer(given)
    ranked = sorted(given, key=lambda trial: trial.value)
    assert len(kept) == 40 and kept[:20] == ranked[:20] and kept[-1] == ranked[-1]
    told = intervals(SPACE, given, within=NOISE)
    assert told["trials"] == 40 and told["parameters"]["kind"]["kinds"] == ["yarn"]


def early(trial, share=0.65):
    """The trial with a rung, at which its number stands 0.1 higher."""
    return Trial(trial.params, trial.value, {share: trial.value + 0.1})


def test_trials_that_were_stopped_tell_where_it_is_bad():
    """Of other kinds than yarn none ran to the end, so that full trials alone cannot know what they are worth."""
    given = [early(trial) if trial.params["kind"] == "yarn" else Trial(trial.params, None, early(trial).rungs)
             for trial in trials(60)]  # fmt: skip
    full = [trial for trial in given if trial.value is not None]
    told, alone = intervals(SPACE, given, within=NOISE), intervals(SPACE, full, within=NOISE)
    assert (told["trials"], told["full"]) == (60, len(full)) and (alone["trials"], alone["full"]) == (len(full),) * 2
    assert told["parameters"]["kind"]["kinds"] == ["yarn"] and told["parameters"]["kind"]["determined"]
    assert not alone["parameters"]["kind"]["determined"]
    assert told["parameters"]["lr"]["low"] < 1e-3 < told["parameters"]["lr"]["high"] and told["coverage"] >= 0.8


def test_a_setting_that_few_trials_have_is_not_determined():
    given = trials(60)
    having = [trial for trial in given if "slow" in trial.params][: FEWEST_TRIALS - 1]
    few = [trial for trial in given if "slow" not in trial.params] + having
    told = intervals(SPACE, few, within=NOISE)["parameters"]["slow"]
    assert told["trials"] == FEWEST_TRIALS - 1 and not told["determined"]


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_setting_that_all_but_one_or_two_trials_lack_says_nothing(count, stopped):
    given = [trial for trial in trials(60) if trial.params["kind"] != "yarn"][:20]
    params = given[0].params | {"kind": "yarn"}
    rare = [Trial(params | {"slow": slow}, value(params | {"slow": slow}, random.Random(0))) for slow in (0.4, 2.0)]
    rare = [rare[0], early(rare[1]) if stopped else rare[1]][:count]
    interval = intervals(SPACE, [*given, *rare], within=NOISE)["parameters"]["slow"]
    assert interval["trials"] == count and not interval["determined"]


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(("tried", "determined"), [(1, False), (2, False), (3, True)])
def test_an_option_that_few_trials_tried_is_not_ruled_out(tried, determined, full):
    space = SPACE | {"kind": {"kind": "choice", "options": ["linear", "yarn"]}}
    given = trials(90)
    yarn = [trial for trial in given if trial.params["kind"] == "yarn"]
    linear = [early(trial) for trial in given if trial.params["kind"] == "linear"][:tried]
    linear = [Trial(each.params, each.value if full else None, each.rungs) for each in linear]
    told = intervals(space, [*map(early, yarn), *linear], within=NOISE)["parameters"]["kind"]
    assert told["kinds"] == (["yarn"] if tried >= FEWEST_TRIED else ["linear", "yarn"])
    assert told["determined"] is determined


def test_what_nobody_tried_is_not_ruled_out():
    given = [trial for trial in trials(120) if trial.params["lr"] < 1.2e-3 and trial.params["share"] < 0.5]
    told = intervals(SPACE, given, within=NOISE)["parameters"]
    assert told["lr"]["high"] == SPACE["lr"]["high"] and told["share"]["high"] == 0.8
    assert told["lr"]["low"] > 2e-4  # where trials were, they count


def test_a_left_out_trial_is_left_out_with_all_its_rungs():
    whole = Surrogate(SPACE, [early(trial) for trial in trials(20)], noise=NOISE)
    other = whole.without(3)
    assert len(other.values) == len(whole.values) - 2 and other.owners.tolist() == [
        n for n in range(19) for _ in (0, 1)
    ]
    assert other.trials == whole.trials[:3] + whole.trials[4:]


def test_what_is_asked_for_is_the_number_at_the_end():
    whole = Surrogate(SPACE, [early(trial) for trial in trials(40)], noise=NOISE)
    best = min(whole.trials, key=lambda trial: trial.value)
    end, rung = (whole.predict([whole.point(best.params, share)])[0] for share in (1.0, 0.65))
    assert rung - end == pytest.approx(0.1, abs=2 * NOISE)
    assert whole.along("kind", best.params)[1] == pytest.approx(end)


def test_the_same_trials_give_the_same_intervals(found):
    assert intervals(SPACE, trials(), within=NOISE) == found


@pytest.mark.parametrize("seed", range(8))
def test_noise_alone_determines_nothing(seed):
    rng = random.Random(seed)
    given = [Trial(trial.params, 2.0 + rng.gauss(0, NOISE)) for trial in trials(seed=seed + 10)]
    told = intervals(SPACE, given, within=NOISE)["parameters"]
    assert [path for path, each in told.items() if each["determined"]] == []


def test_another_option_is_asked_with_the_settings_that_go_with_it():
    """linear is as good as yarn at its best, and yarn's slow has no say in it."""
    given = [Trial(each.params, each.value - 0.4 * (each.params["kind"] == "linear")) for each in trials(60)]
    whole = Surrogate(SPACE, given, noise=NOISE)
    ranked = sorted(given, key=lambda trial: trial.value)
    best = {kind: next(trial for trial in ranked if trial.params["kind"] == kind) for kind in ("yarn", "linear")}
    assert "slow" not in whole.moved(best["yarn"].params, "kind", "linear")
    assert whole.moved(best["linear"].params, "kind", "yarn")["slow"] == best["yarn"].params["slow"]
    for start in best.values():
        linear, yarn, _ = whole.along("kind", start.params)
        assert abs(linear - yarn) < 3 * NOISE


def test_too_few_trials_or_none_that_differ_say_nothing():
    assert intervals(SPACE, trials()[: FEWEST_TRIALS - 1], within=NOISE) is None
    assert intervals(SPACE, [Trial(trial.params, 1.0) for trial in trials()], within=NOISE) is None


def test_a_setting_that_no_trial_has_is_left_out():
    given = [
        Trial(each.params, None, early(each).rungs) if each.params["kind"] == "yarn" else each for each in trials(80)
    ]
    assert intervals(SPACE, given, within=NOISE)["parameters"]["slow"] is None  # no full one has it


def test_grids_reach_both_ends_and_are_whole_where_the_setting_is():
    assert grid(SPACE["lr"])[0] == pytest.approx(1e-4) and grid(SPACE["lr"])[-1] == pytest.approx(1e-2)
    assert grid(SPACE["breaks"]) == sorted(set(grid(SPACE["breaks"]))) and grid(SPACE["breaks"])[-1] == 16
    assert all(isinstance(place, int) for place in grid(SPACE["breaks"]))
