"""A study in Optuna's hands: counts, baselines, rungs, failures, and resuming from any prefix of its journal."""

import json
import math
from collections import Counter

import optuna
import pytest

from e2ray.search.journal import JOURNAL, mend
from e2ray.search.study import Study

LENGTH = 32
WINDOWS = (32, 64, 128)


def cells(nll):
    """Return cells at scale W / L whose long objective is `nll` and whose short one is `nll` - 3."""
    return [
        {"window": w, "scale": w / LENGTH, "nll": nll, "stderr": 0.1, "tokens": 10, "documents": 2, "stride": 16}
        for w in WINDOWS
    ]


def measured(step, nll, **changes):
    found = {"step": step, "cells": cells(nll), "tokens": step * 128, "trial_seconds": 0.5, "loss": nll}
    return found | {"retrieval": None, "answer_nll": None} | changes


def quality(plan):
    """Return an NLL that follows from a trial's settings alone."""
    positions = plan.config.positions
    spread = {"uniform_int": 0.2, "uniform": 0.25, "log_uniform": 0.1, "power": 0.15, "beta": 0.3, "fixed": 0.5}
    nll = 3.0 + spread[positions.scale.kind] + abs(positions.scale.native_share - 0.2)
    return nll + 0.1 * abs(math.log(plan.config.train.lr / 1e-2)) + 0.001 * plan.config.seed


def opened(folder, config):
    folder.mkdir(exist_ok=True)
    study = Study(folder, config, LENGTH)
    if study.base is None:
        study.set_base(cells(3.0))
    return study


def work(study, plan):
    """Run one trial of the made-up objective through its rungs."""
    for step in plan.rungs:
        if study.rung(plan.number, measured(step, quality(plan) + 1 / step)):
            return
    study.complete(plan.number, measured(plan.config.train.steps, quality(plan)))


def finish(study):
    plans = []
    while plan := study.next():
        plans.append(plan)
        work(study, plan)
    return plans


def test_published_methods_come_first_and_only_repeats_have_other_rows(tmp_path, configured):
    study = opened(tmp_path / "s", configured())
    plans = finish(study)
    first = [(plan.baseline, plan.repeat, plan.config.seed) for plan in plans[:6]]
    assert first == [
        ("e2llm", 0, 0),
        ("e2llm", 1, 1),
        ("e2llm", 2, 2),
        ("pose", None, 0),
        ("pi", None, 0),
        ("native", None, 0),
    ]
    assert {plan.config.seed for plan in plans[6:]} == {0}
    assert plans[3].config.positions.placement.kind == "random_breaks"
    assert plans[5].params == {} and plans[5].config.positions.max_scale == 1  # the space cannot express native
    assert plans[0].params["positions.placement.prefix"] == 4
    assert len({str(plan.params) for plan in plans[6:]}) == 6
    assert study.next() is None and len(study.records()) == 12


def test_a_plan_knows_the_front_of_the_full_trials_so_far(tmp_path, configured):
    study = opened(tmp_path / "s", configured())
    plans = finish(study)
    assert plans[0].front == ()
    complete = [r for r in study.records() if r.state == "complete"]
    base = next(cell["nll"] for cell in study.base if (cell["window"], cell["scale"]) == (32, 1))
    for plan in plans[1:]:
        for long, at_base in plan.front:
            assert any(r.number < plan.number and (r.long, r.short + base) == (long, at_base) for r in complete)
            assert not any(o[0] <= long and o[1] <= at_base for o in plan.front if o != (long, at_base))
    last = plans[-1]
    earlier = [(r.long, r.short + base) for r in complete if r.number < last.number]
    assert all(any(f[0] <= e[0] and f[1] <= e[1] for f in last.front) for e in earlier)


def test_objectives_are_the_mean_over_windows_and_the_rise_over_the_base(tmp_path, configured):
    study = opened(tmp_path / "s", configured({"weights": {"long": 2.0, "short": 0.25}}))
    rows = [row | {"nll": nll} for row, nll in zip(cells(0.0), (3.5, 4.0, 6.0), strict=True)]
    found = study.objective(measured(9, 0.0, cells=rows))
    # of windows 32 (L), 64 and 128: L is the short objective's alone
    assert found == {"long": 5.0, "short": 0.5, "retrieval": None, "answer_nll": None, "value": 2 * 5.0 + 0.25 * 0.5}
    asked = {"retrieval": 0.75, "answer_nll": 1.5}
    for weights, more in (({"retrieval": 2.0}, 2 * 0.25), ({"answer_nll": 0.5}, 0.5 * 1.5), ({}, 0.0)):
        other = opened(tmp_path / f"of-{more}", configured({"weights": weights}))
        found = other.objective(measured(9, 3.0, **asked))
        assert found["value"] == pytest.approx(3.0 + more)
        assert {name for name in asked if found[name] is not None} == set(weights)
    with pytest.raises(ValueError, match="window 128 at scale 4 was not measured"):
        study.objective(measured(9, 3.0, cells=cells(3.0)[:2]))
    with pytest.raises(ValueError, match="the objective is nan"):
        study.objective(measured(9, math.nan))


def test_the_worse_ones_are_stopped_at_a_rung_and_told_as_pruned_there(tmp_path, configured):
    study = opened(tmp_path / "s", configured({"trials": 30}))
    finish(study)
    records = study.records()
    states = Counter(record.state for record in records)
    assert states["complete"] + states["pruned"] == 30 and states["pruned"] >= 8
    assert all(record.state == "complete" for record in records if record.baseline)
    for record, trial in zip(records, study._optuna.get_trials(), strict=True):
        assert record.step == max(record.values)
        if record.state == "pruned":
            assert trial.state == optuna.trial.TrialState.PRUNED
            assert record.step in (1, 3) and trial.last_step == record.step
            assert trial.value == record.value == record.values[record.step]
        else:
            assert record.step == 9 and set(record.values) == {1, 3, 9}
    pruned = [r.values[1] for r in records if r.state == "pruned" and r.step == 1]
    complete = [r.values[1] for r in records if r.state == "complete" and not r.baseline]
    assert min(complete) < min(pruned)


def test_hyperband_stops_at_the_same_steps(tmp_path, configured):
    study = opened(tmp_path / "s", configured({"trials": 30, "early_stopping": {"kind": "hyperband", "min_steps": 1}}))
    finish(study)
    assert {record.step for record in study.records()} <= {1, 3, 9}
    assert any(record.state == "pruned" for record in study.records())


def test_a_trial_that_fails_is_a_row_with_its_reason_and_counts(tmp_path, configured):
    study = opened(tmp_path / "s", configured())
    plan = study.next()
    study.rung(plan.number, measured(1, 4.0))
    study.fail(plan.number, "the loss is nan\nat step 2")
    study.fail(plan.number, "told twice")
    finish(study)
    record = study.records()[0]
    assert (record.state, record.reason, record.step) == ("failed", "the loss is nan at step 2", 1)
    assert study._optuna.get_trials()[0].state == optuna.trial.TrialState.FAIL
    assert len(study.records()) == 12


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_no_line_of_the_journal_holds_what_is_no_number(tmp_path, configured, wrong):
    study = opened(tmp_path / "s", configured())
    plan = study.next()
    rows = [cell | {"stderr": wrong} for cell in cells(3.5)]
    study.set_base([cell | {"stderr": wrong} for cell in cells(3.0)])
    study.rung(plan.number, measured(1, 3.5, cells=rows, loss=None))
    with pytest.raises(ValueError, match=r"the objective is (nan|inf)"):
        study.rung(plan.number, measured(3, wrong))
    finish(study)

    def refuse(word):
        raise AssertionError(word)

    for line in (tmp_path / "s" / JOURNAL).read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    assert study.records()[0].curves[0]["stderr"] is None


def test_several_objectives_run_to_the_end_and_give_a_front(tmp_path, configured):
    study = opened(tmp_path / "s", configured({"mode": "pareto", "early_stopping": None, "trials": 15}))
    plans = finish(study)
    assert all(plan.rungs == () for plan in plans)
    assert {record.state for record in study.records()} == {"complete"}
    assert all(len(trial.values) == 2 for trial in study._optuna.get_trials())
    assert study.objectives == ("long", "short")


def test_a_study_cut_off_behind_any_line_of_its_journal_ends_as_the_unbroken_one(tmp_path, configured):
    """The journal is the only memory: each of its prefixes is what a kill may leave, torn lines and locks included."""
    config = configured()
    whole = opened(tmp_path / "whole", config)
    finish(whole)
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    assert len(lines) > 100
    for count in range(0, len(lines), 3):
        folder = tmp_path / f"cut-{count}"
        folder.mkdir()
        torn = lines[count][: len(lines[count]) // 2]
        (folder / JOURNAL).write_bytes(b"".join(lines[:count]) + torn)
        (folder / f"{JOURNAL}.lock").symlink_to(folder / JOURNAL)
        study = opened(folder, config)
        finish(study)
        assert study.records() == whole.records(), f"cut behind line {count}"


def test_a_trial_cut_off_runs_again_under_its_number_with_its_values(tmp_path, configured):
    config = configured({"repeats": 3})
    study = opened(tmp_path / "s", config)
    for _ in range(7):
        plan = study.next()
        if plan.number < 6:
            work(study, plan)
    study.rung(plan.number, measured(1, 0.5))
    again = opened(tmp_path / "s", config)
    repeated = again.next()
    assert (repeated.number, repeated.params) == (plan.number, plan.params)
    assert again.records()[6].values == {1: pytest.approx(0.5 + 0.25 * (0.5 - 3.0))}
    assert not again.rung(repeated.number, measured(1, 0.5))


def test_more_trials_may_be_asked_for_later(tmp_path, configured):
    finish(opened(tmp_path / "s", configured()))
    study = opened(tmp_path / "s", configured({"trials": 14}))
    assert [plan.number for plan in finish(study)] == [12, 13]


def test_proposals_follow_from_the_seed_and_what_was_found(tmp_path, configured):
    def params(name, **changes):
        return [
            plan.params for plan in finish(opened(tmp_path / name, configured(changes.pop("search", None), **changes)))
        ]

    assert params("a") == params("b")
    assert params("a2")[6:] != params("c", seed=7)[6:]
    assert params("d", search={"sampler": "random"}) != params("a3")


def test_a_proposal_that_makes_no_recipe_is_a_failed_row(tmp_path, configured):
    study = opened(tmp_path / "s", configured())
    study.recipe["train"]["warmup_steps"] = -1
    assert finish(study) == []
    records = study.records()
    assert [record.state for record in records] == ["failed"] * 12
    assert "greater than or equal to 0" in records[7].reason and "\n" not in records[7].reason


def test_windows_up_to_the_base_length_are_the_long_objective_where_there_is_no_longer_one(tmp_path, configured):
    rows = [{"window": w, "scale": max(1.0, w / 32), "nll": w / 16, "documents": 2} for w in (8, 16, 32, 64)]
    study = Study(tmp_path, configured(evaluate={"windows": [16, 64], "scales": [1, 2]}), LENGTH)
    study.set_base(rows[1:])
    assert study.objective(measured(9, 0.0, cells=rows[1:]))["long"] == 4
    (tmp_path / "below").mkdir()
    below = Study(tmp_path / "below", configured(evaluate={"windows": [8, 16], "scales": [1]}), LENGTH)
    below.set_base(rows)
    assert below.objective(measured(9, 0.0, cells=rows))["long"] == (0.5 + 1) / 2
    rows = rows[1:]
    with pytest.raises(ValueError, match="window 32 at scale 1 was not measured"):
        study.set_base(rows[::2])


def test_importances_are_shares_of_the_settings_that_were_tried(tmp_path, configured):
    study = opened(tmp_path / "s", configured({"trials": 40, "early_stopping": None}))
    assert study.importances() == {}
    finish(study)
    found = study.importances()
    assert sum(found.values()) == pytest.approx(1) and set(found) <= set(study.space)
    unused = ("positions.placement.jump.a", "positions.placement.num_chunks", "positions.per")
    assert max(found, key=found.get) not in unused
    spread = study.importance_spread()
    assert set(spread) == set(found)
    assert all(0 <= low <= found[path] <= high <= 1 for path, (low, high) in spread.items())
    assert any(low < high for low, high in spread.values())


def test_a_failure_that_was_written_down_before_a_kill_is_forgotten_when_the_trial_ends_well(tmp_path, configured):
    study = opened(tmp_path / "s", configured())
    plan = study.next()
    study._live[plan.number].set_user_attr("failed", {"reason": "the loss is nan", "step": 9, "tokens": 10**9})
    again = opened(tmp_path / "s", configured())  # the driver was killed before it told Optuna
    plan = again.next()
    assert plan.number == 0
    again.complete(plan.number, measured(9, 3.0))
    record = again.records()[0]
    assert record.state == "complete" and record.reason is None and record.tokens == 9 * 128


def test_records_are_the_same_from_another_process_view(tmp_path, configured):
    study = opened(tmp_path / "s", configured())
    finish(study)
    assert opened(tmp_path / "s", configured()).records() == study.records()
    assert opened(tmp_path / "s", configured()).facts() == study.facts()


def test_mending_leaves_a_whole_journal_as_it_is(tmp_path):
    path = tmp_path / JOURNAL
    mend(path)
    assert not path.exists()
    path.write_bytes(b'{"a":1}\n{"b":2}\n')
    mend(path)
    assert path.read_bytes() == b'{"a":1}\n{"b":2}\n'
    path.write_bytes(b'{"a":1}\n{"b"')
    mend(path)
    assert path.read_bytes() == b'{"a":1}\n'
