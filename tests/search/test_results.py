import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.records.study import StudyNoise
from e2ray.search import results
from e2ray.search.record import StudyFacts, TrialRecord
from e2ray.search.results import KEPT_GAIN_SHARE, choose, front, noise, spearman

LR, KIND, BREAKS = "train.lr", "positions.scale.kind", "positions.placement.num_breaks"
SPACE = {
    LR: {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True, "when": {}},
    KIND: {"kind": "choice", "options": ["uniform_int", "log_uniform"], "when": {}},
    BREAKS: {"kind": "int", "low": 1, "high": 16, "log": False, "when": {}},
}


def ranges(*told):
    return results.ranges(*told).plain()


def correlations(records, facts):
    return [row.plain() for row in results.correlations(records, facts)]


def noise_of(runs, long, short, value):
    return StudyNoise(runs=runs, long=long, short=short, value=value, retrieval=None, answer_nll=None)


def base_row(window, scale, nll):
    return {"window": window, "scale": scale, "nll": nll, "stderr": 0.01, "tokens": 9, "documents": 2, "stride": 32}


FACTS = StudyFacts(
    name="study",
    trials=40,
    base_context_length=128,
    window=128,
    windows=(128, 256),
    max_scale=16.0,
    steps=90,
    batch_sequences=32,
    rungs=(10, 30),
    weights={"long": 1.0, "short": 0.5, "retrieval": 0.0},
    mode="weighted",
    space=SPACE,
    base=[base_row(128, 1.0, 3.4), base_row(256, 1.0, 5.0), base_row(256, 2.0, 3.6)],  # its long: (3.4 + 3.6) / 2
    documents=2,
    seed=0,
)


def trial(number, long=None, short=0.0, *, state="complete", params=None, **more):
    value = None if long is None else long + 0.5 * short
    fields = {
        "baseline": None,
        "repeat": None,
        "seed": 0,
        "settings": {},
        "steps": 90,
        "step": 90,
        "retrieval": None,
        "value": value,
        "tokens": 1000,
        "seconds": 1.0,
        "reason": None,
        "curves": [],
        "values": {},
    }
    return TrialRecord(number=number, state=state, long=long, short=short, params=params or {}, **fields | more)


def beats(left, right):
    return all(a <= b for a, b in zip(left, right, strict=True)) and left != right


coarse = st.integers(0, 6).map(lambda number: number / 4)  # few values, so that ties are common


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(coarse, coarse), max_size=25))
def test_nobody_beats_the_front_and_somebody_beats_everyone_else(points):
    found = front([trial(number, *point) for number, point in enumerate(points)])
    for number, point in enumerate(points):
        assert (number in found) == (not any(beats(other, point) for other in points))
    assert [points[number][0] for number in found] == sorted(points[number][0] for number in found)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(coarse, coarse, coarse), min_size=1, max_size=20))
def test_retrieval_joins_the_front_and_more_of_it_is_better(points):
    records = [trial(number, *point[:2], retrieval=point[2]) for number, point in enumerate(points)]
    costs = [(long, short, -found) for long, short, found in points]
    wanted = {n for n, cost in enumerate(costs) if not any(beats(other, cost) for other in costs)}
    assert set(front(records)) == wanted


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(6)))
def test_the_front_does_not_depend_on_the_order_of_the_records(order):
    points = [(1.0, 0.5), (1.0, 0.5), (2.0, 0.25), (2.0, 0.5), (3.0, 0.0), (0.5, 0.75)]
    assert front([trial(number, *points[number]) for number in order]) == [5, 0, 1, 2, 4]


def test_only_complete_trials_with_the_shared_seed_stand_on_the_front():
    records = [
        trial(0, 3.0, baseline="e2llm", repeat=0),
        trial(1, 1.0, baseline="e2llm", repeat=1),
        trial(2, 1.0, state="pruned"),
        trial(3, None, None, state="failed"),
        trial(4, 1.0, state="running"),
        trial(5, None, None, state="waiting"),
    ]
    assert front(records) == [0]


def test_one_objective_leaves_its_best_trials():
    records = [trial(0, 2.0, 0.0), trial(1, 1.0, 9.0), trial(2, 1.0, 8.0)]
    assert front(records, objectives=("long",)) == [1, 2]


def test_noise_is_the_sample_deviation_of_the_complete_repeats():
    records = [
        trial(0, 1.0, 0.1, baseline="e2llm", repeat=0),
        trial(1, 2.0, 0.1, baseline="e2llm", repeat=1),
        trial(2, 3.0, 0.4, baseline="e2llm", repeat=2),
        trial(3, 99.0, 9.0, baseline="e2llm", repeat=3, state="pruned"),
        trial(4, 50.0, 7.0),
    ]
    measured = noise(records)
    assert measured.runs == 3
    assert measured.long == pytest.approx(1.0)  # deviations -1, 0, 1; sum of squares 2; over n - 1 = 2
    assert measured.short == pytest.approx(math.sqrt(0.06 / 2))  # about the mean 0.2: -0.1, -0.1, 0.2
    assert measured.value == pytest.approx(np.std([1.05, 2.05, 3.2], ddof=1))


@pytest.mark.parametrize("runs", [0, 1])
def test_fewer_than_two_repeats_measure_no_noise(runs):
    records = [trial(n, 1.0, repeat=n) for n in range(runs)] + [trial(5, 2.0)]
    assert noise(records) == noise_of(runs=runs, long=None, short=None, value=None)


def test_the_three_roles_are_filled_from_the_front():
    # the base reads 3.5; long-first gains 1.0, so short-first may go up to 3.5 - 0.8 = 2.7
    records = [trial(0, 2.5, 0.5), trial(1, 2.6, 0.1), trial(2, 2.69, 0.09), trial(3, 2.71, 0.01), trial(4, 3.4, 0.0)]
    assert front(records) == [0, 1, 2, 3, 4]
    assert choose(records, FACTS, [0, 1, 2, 3, 4]) == {"long-first": 0, "balanced": 1, "short-first": 2}


def test_the_balanced_trial_beats_the_paper_in_both_where_one_does():
    paper = trial(0, 3.00, 0.20, repeat=0, baseline="e2llm")
    records = [paper, trial(1, 3.05, 0.00), trial(2, 2.99, 0.15), trial(3, 2.98, 0.18), trial(4, 2.90, 0.40)]
    assert choose(records, FACTS, [1, 2, 3, 4])["balanced"] == 2  # though 1 has the lowest weighted number
    assert choose([paper, *records[1:2], records[4]], FACTS, [1, 4])["balanced"] == 1


def test_the_balanced_trial_follows_the_weights():
    records = [trial(0, 2.5, 0.5), trial(1, 2.6, 0.1), trial(2, 3.4, 0.0)]
    for weights, wanted in (((1.0, 0.0), 0), ((0.0, 1.0), 2), ((1.0, 1.0), 1)):
        facts = replace(FACTS, weights={"long": weights[0], "short": weights[1], "retrieval": 0.0})
        assert choose(records, facts, [0, 1, 2])["balanced"] == wanted


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(coarse, coarse, coarse), min_size=1, max_size=20))
def test_the_nll_of_answers_joins_the_front_and_less_of_it_is_better(points):
    records = [trial(number, *point[:2], answer_nll=point[2]) for number, point in enumerate(points)]
    wanted = {n for n, cost in enumerate(points) if not any(beats(other, cost) for other in points)}
    assert set(front(records)) == wanted


def test_the_weight_of_answers_counts_their_nll():
    records = [trial(0, 2.5, 0.0, answer_nll=2.0), trial(1, 2.6, 0.0, answer_nll=1.0)]
    for weight, wanted in ((0.0, 0), (1.0, 1)):
        facts = replace(FACTS, weights={"long": 1.0, "short": 0.5, "retrieval": 0.0, "answer_nll": weight})
        assert choose(records, facts, front(records))["balanced"] == wanted


def test_the_weight_of_retrieval_counts_what_was_not_found():
    records = [trial(0, 2.5, 0.0, retrieval=0.2), trial(1, 2.6, 0.0, retrieval=0.9)]
    for weight, wanted in ((0.0, 0), (1.0, 1)):
        facts = replace(FACTS, weights={"long": 1.0, "short": 0.5, "retrieval": weight})
        assert choose(records, facts, front(records))["balanced"] == wanted


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.floats(2.0, 3.4), st.floats(-0.1, 1.0)), min_size=1, max_size=12))
def test_short_first_keeps_its_share_of_the_gain_and_no_keeper_is_shorter(points):
    records = [trial(number, *point) for number, point in enumerate(points)]
    numbers = front(records)
    chosen = choose(records, FACTS, numbers)
    gains = {number: 3.5 - points[number][0] for number in numbers}
    wanted = KEPT_GAIN_SHARE * max(gains.values())
    assert gains[chosen["short-first"]] >= wanted - 1e-12
    assert all(points[chosen["short-first"]][1] <= points[n][1] for n in numbers if gains[n] >= wanted + 1e-12)


@pytest.mark.parametrize(
    "base", [[], FACTS.base[:2], *([base_row(128, 1.0, nll), *FACTS.base[1:]] for nll in (2.0, 1.0))]
)
def test_there_is_no_short_first_without_a_measured_gain_over_the_base(base):
    # not measured; not measured at scale W / L; the base's (2.0 + 3.6) / 2 is as good as the best trial, or better
    records = [trial(0, 2.8, 0.5), trial(1, 2.9, 0.1)]
    assert choose(records, replace(FACTS, base=base), [0, 1]) == {"long-first": 0, "balanced": 1}


def test_equal_trials_go_to_the_lower_number():
    records = [trial(number, 2.5, 0.1) for number in (3, 1, 2)]
    assert choose(records, FACTS, front(records)) == {"long-first": 1, "balanced": 1, "short-first": 1}


def near_best(count, params):
    """Return `count` good trials (3.0 and a little more) and one far off, with the noise 0.1."""
    records = [trial(n, 3.0 + 0.1 * n / count, params=params(n)) for n in range(count)]
    return [*records, trial(count, 3.2, params=params(count))], noise_of(runs=3, long=0.1, short=0.1, value=0.1)


def parameter(path, count, params, space=SPACE):
    records, measured = near_best(count, params)
    return ranges(records, replace(FACTS, space=space), measured, {path: 0.25}, {path: (0.125, 0.5)})["parameters"][
        path
    ]


def test_a_range_is_the_central_80_percent_of_the_good_trials():
    # 11 values 0.0 to 1.0: the 10th percentile is the second one, the 90th the last but one
    space = {LR: {"kind": "float", "low": 0.0, "high": 9.0, "log": False, "when": {}}}
    assert parameter(LR, 11, lambda n: {LR: 9.0 if n == 11 else n / 10}, space) == {
        "kind": "float",
        "trials": 11,
        "undetermined": False,
        "low": pytest.approx(0.1),
        "high": pytest.approx(0.9),
        "searched": {"low": 0.0, "high": 9.0, "log": False},
        "importance": 0.25,
        "importance_spread": [0.125, 0.5],
    }


def test_percentiles_of_a_log_parameter_are_interpolated_between_logarithms():
    # of 6 values the 10th percentile lies halfway between the first two: 1e-4 and 1e-3 give 10 ** -3.5
    values = [1e-4, 1e-3, 2e-3, 3e-3, 4e-3, 1e-2]
    found = parameter(LR, 6, lambda n: {LR: values[n] if n < 6 else 0.5})
    assert found["low"] == pytest.approx(10**-3.5)
    assert found["high"] == pytest.approx(math.sqrt(4e-3 * 1e-2))


def test_whole_numbers_are_rounded_outwards_and_stay_whole():
    found = parameter(BREAKS, 6, lambda n: {BREAKS: [2, 3, 5, 7, 8, 11][n] if n < 6 else 16})
    assert (found["low"], found["high"]) == (2, 10)  # the percentiles are 2.5 and 9.5
    assert isinstance(found["low"], int) and isinstance(found["high"], int)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("value", [1, 3, 5, 7, 11])
def test_a_range_of_one_whole_number_is_that_number(value, log):
    space = {BREAKS: SPACE[BREAKS] | {"log": log}}
    found = parameter(BREAKS, 5, lambda n: {BREAKS: value}, space)
    assert (found["low"], found["high"]) == (value, value)


@pytest.mark.parametrize("log", [False, True])
def test_percentiles_that_fall_on_whole_numbers_are_not_rounded_past_them(log):
    for first in range(1, 40):  # 0.1 * 10 and exp(log(n)) are not exact in floats
        assert results.central(range(first, first + 11), log=log, whole=True) == (first + 1, first + 9)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(1e-5, 1e3), min_size=5, max_size=30), st.booleans())
def test_a_range_holds_80_percent_and_lies_inside_what_was_found(values, log):
    low, high = results.central(values, log=log, whole=False)
    assert min(values) <= low <= high <= max(values)
    slack = 1e-9
    within = sum(low * (1 - slack) <= value <= high * (1 + slack) for value in values)
    assert within >= math.floor(0.8 * (len(values) - 1))


def test_kinds_are_counted_by_falling_number():
    kinds = ["uniform_int", "log_uniform", "log_uniform", "log_uniform", "uniform_int", "uniform_int", "log_uniform"]
    found = parameter(KIND, 6, lambda n: {KIND: kinds[n]})
    assert list(found["kinds"].items()) == [("log_uniform", 3), ("uniform_int", 3)]
    assert found["searched"] == {"options": ["uniform_int", "log_uniform"]}
    assert "low" not in found


def test_options_that_are_no_words_are_counted_as_json_writes_them():
    space = {KIND: {"kind": "choice", "options": [True, 2, None, "word"], "when": {}}}
    values = [True, 2, None, "word", True]
    found = parameter(KIND, 5, lambda n: {KIND: values[n % 5]}, space)
    assert found["kinds"] == {"true": 2, "2": 1, "null": 1, "word": 1}


@pytest.mark.parametrize(("count", "undetermined"), [(4, True), (5, False)])
def test_five_trials_that_have_a_parameter_determine_it(count, undetermined):
    def params(number):  # eight good trials, `count` of them with breaks and a kind
        return {LR: 1e-3} | ({BREAKS: 3, KIND: "uniform_int"} if number < count else {})

    records, measured = near_best(8, params)
    found = ranges(records, FACTS, measured, {})
    assert (found["within"], found["best"], found["trials"]) == (0.1, 0, 8)
    breaks, kind = found["parameters"][BREAKS], found["parameters"][KIND]
    assert breaks["trials"] == kind["trials"] == count
    assert breaks["undetermined"] is kind["undetermined"] is undetermined
    assert (breaks["low"], breaks["high"]) == ((None, None) if undetermined else (3, 3))
    assert kind["kinds"] == (None if undetermined else {"uniform_int": 5})
    assert breaks["importance"] is None
    assert found["parameters"][LR]["undetermined"] is False


def test_a_trial_exactly_one_deviation_off_counts_as_good():
    records = [trial(0, 3.0), trial(1, 3.125), trial(2, 3.25)]
    assert ranges(records, FACTS, noise_of(3, 0.1, 0.1, 0.125), {})["trials"] == 2


def test_repeats_and_stopped_trials_say_nothing_about_ranges():
    records = [trial(0, 3.0), trial(1, 1.0, repeat=1), trial(2, 1.0, state="pruned"), trial(3, 1.0, state="failed")]
    found = ranges(records, FACTS, noise_of(3, 0.1, 0.1, 0.1), {})
    assert (found["best"], found["trials"]) == (0, 1)


def test_without_noise_everything_is_undetermined():
    records, _ = near_best(9, lambda n: {LR: 1e-3, KIND: "uniform_int", BREAKS: 1})
    found = ranges(records, FACTS, noise_of(1, None, None, None), {})
    assert (found["within"], found["best"], found["trials"]) == (None, 0, 0)
    assert all(entry["undetermined"] and entry["trials"] == 0 for entry in found["parameters"].values())


def slow_spearman(left, right):
    """Return the rank correlation from its definition: mean rank by counting, then Pearson's sum by sum."""

    def ranks(values):
        return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]

    first, second = ranks(left), ranks(right)
    middle = (len(left) + 1) / 2
    top = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    under = sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second)
    return top / math.sqrt(under) if under else None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(coarse, coarse), min_size=3, max_size=20))
def test_spearman_is_its_definition_with_ties(pairs):
    left, right = [a for a, _ in pairs], [b for _, b in pairs]
    wanted = slow_spearman(left, right)
    found = spearman(left, right)
    assert found == (None if wanted is None else pytest.approx(wanted, abs=1e-12))


def test_spearman_by_hand():
    # ranks 1 2.5 2.5 4 against 1 3 2 4: sums of products 4.5, of squares 4.5 and 5
    assert spearman([1.0, 2.0, 2.0, 3.0], [10.0, 30.0, 20.0, 40.0]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert spearman([1.0, 2.0, 9.0], [3.0, 50.0, 51.0]) == 1.0
    assert spearman([1.0, 2.0, 9.0], [3.0, 2.0, 1.0]) == -1.0
    assert spearman([1.0, 1.0, 1.0], [3.0, 2.0, 1.0]) is None


def test_rungs_are_compared_over_the_trials_that_ran_to_the_end():
    records = [
        trial(0, 1.0, values={10: 5.0, 30: 3.0}),
        trial(1, 2.0, values={10: 4.0, 30: 4.0}),
        trial(2, 3.0, values={10: 3.0, 30: 5.0}),
        trial(3, 0.5, values={10: 9.0}),  # has no second rung
        trial(4, 0.1, values={10: 0.0, 30: 0.0}, repeat=1),
        trial(5, 0.1, values={10: 0.0, 30: 0.0}, state="pruned"),
    ]
    found = [(row["step"], row["spearman"], row["trials"]) for row in correlations(records, FACTS)]
    assert found == [(10, pytest.approx(-1.0), 4), (30, pytest.approx(1.0), 3)]
    assert correlations(records[:2], FACTS)[0]["spearman"] is None


def test_rungs_of_sampled_trials_are_compared_apart():
    records = [trial(n, 1.0 + n, values={10: 1.0 + n, 30: 1.0 + n}, baseline="pose") for n in range(3)]
    records += [trial(3 + n, 9.0 + n, values={10: 9.0 - n, 30: 9.0 + n}) for n in range(3)]
    first, second = correlations(records, FACTS)
    assert (first["sampled_spearman"], first["sampled_trials"], first["trials"]) == (pytest.approx(-1.0), 3, 6)
    assert second["sampled_spearman"] == pytest.approx(1.0) == second["spearman"]
    assert correlations(records[:5], FACTS)[0]["sampled_spearman"] is None


@pytest.mark.parametrize(
    "records",
    [
        [],
        [trial(0, None, None, state="failed", reason="NaN"), trial(1, None, None, state="failed", reason="died")],
        [trial(0, 3.0, state="pruned", step=10), trial(1, None, None, state="running")],
    ],
)
def test_a_study_without_a_complete_trial_claims_nothing(records):
    found = results.results(records, FACTS, {})
    assert (found.front, found.chosen) == ([], {})
    assert found.noise == noise_of(0, None, None, None)
    assert (found.ranges.best, found.ranges.trials, found.ranges.within) == (None, 0, None)
    assert all(entry.undetermined for entry in found.ranges.parameters.values())
    assert [entry.spearman for entry in found.ranges.rungs] == [None, None]


def test_results_do_not_depend_on_the_order_of_records():
    records = [trial(n, 3.0 - n / 8, n / 16, params={LR: 1e-3}, values={10: 1.0 * n}) for n in range(6)]
    records += [trial(6, 3.0, repeat=0), trial(7, 3.5, repeat=1)]
    forwards, backwards = (results.results(order, FACTS, {LR: 1.0}) for order in (records, records[::-1]))
    assert forwards == backwards
    assert [record.number for record in forwards.records] == list(range(8))
    assert forwards.record(3).long == 2.625
    assert forwards.noise.runs == 2 and forwards.importances == {LR: 1.0}


def test_a_surrogate_hears_of_stopped_trials_and_not_of_repeats_failures_or_what_no_space_holds():
    generator = np.random.default_rng(3)
    records = [
        trial(n, 3.0 + generator.normal() / 10, params={LR: 10 ** generator.uniform(-4, -2)}, values={30: 3.5})
        for n in range(8)
    ]
    stopped = {"state": "pruned", "step": 30, "values": {10: 4.0, 30: 3.9}, "params": {LR: 5e-3}}
    records += [trial(8, 3.9, **stopped), trial(9, None, None, state="failed", params={LR: 1e-3})]
    records += [trial(10, 3.0, baseline="e2llm", repeat=1, params={LR: 1e-3}), trial(11, 3.0, baseline="clex")]
    found = results.surrogate(records, FACTS, noise_of(runs=3, long=0.1, short=0.1, value=0.1))
    assert (found.trials, found.full) == (9, 8) and found.parameters[KIND] is None
