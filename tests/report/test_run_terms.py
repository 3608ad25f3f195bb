import pytest

from e2ray.evaluate.perplexity import Cell
from e2ray.records.folders import RunFolder
from e2ray.records.run import Environment
from e2ray.records.suites import Score
from e2ray.report.frame.text import DASH, MISSING, setting_text
from e2ray.report.frame.text import duration as time_text
from e2ray.report.frame.text import share as share_text
from e2ray.report.frame.text import whole as tokens_text
from e2ray.report.run_files import Difference, read_run
from e2ray.report.run_folder import open_run
from e2ray.report.sections.cost import cost
from e2ray.report.sections.nll import difference_text, nll_text
from e2ray.report.sections.reach import length_text
from e2ray.report.sections.settings import differing, flat
from e2ray.report.sections.suites import score_text
from e2ray.testing.runs import begun, evaluated


def read(folder):
    return read_run(open_run(folder))


def test_what_was_not_measured_is_a_dash_and_zero_is_a_number():
    nothing = (nll_text(None), difference_text(None), score_text(None), tokens_text(None), time_text(None))
    assert {*nothing, length_text(None), share_text(0, 0), setting_text(MISSING)} == {DASH}
    with pytest.raises(ValueError, match="value"):  # a score that is no number is a missing one
        Score(task="t", metric="m", value=None)
    assert (tokens_text(0), share_text(0, 4), setting_text(None)) == ("0", "0 % (0 of 4)", "null")


def test_figures_are_said_with_what_is_known_of_their_spread():
    fields = ("tuned", 64, 2.0, 3.4, 30.0, 9, 3, 8, 0.05, 3.3, 3.5)
    cell = Cell(**dict(zip(Cell.model_fields, fields, strict=True)))
    assert nll_text(cell) == "3.400 (3.300 to 3.500)"
    assert nll_text(cell.changed(low=None, high=None)) == "3.400 ± 0.050"
    assert nll_text(cell.changed(low=None, high=None, stderr=None)) == "3.400"
    assert difference_text(Difference(-0.05, -0.06, 0.01)) == "-0.050 (-0.060 to +0.010)"
    assert difference_text(Difference(0.05, None, None)) == "+0.050"
    assert score_text(Score(task="t", metric="m", value=0.5, stderr=0.01)) == "0.500 ± 0.010"
    assert share_text(3, 4) == "75 % (3 of 4)"


def test_the_cost_follows_from_metrics_and_status(tmp_path):
    found = cost(read(evaluated(tmp_path)))
    assert (found.steps, found.tokens, found.peak_mib) == (8, 2048, 508)
    assert found.train_s == pytest.approx(1024 / 128 + 1024 / 256)
    assert found.tokens_per_second == pytest.approx(2048 / 12)
    assert found.whole_s == 150


def test_what_was_not_recorded_costs_nothing_that_is_known(tmp_path):
    folder = begun(tmp_path)
    (folder / "metrics.jsonl").unlink()
    assert set(vars(cost(read(folder))).values()) == {None}


def test_settings_are_named_as_set_names_them():
    found = flat({"a": {"b": [1, 2]}, "data": {"corpus": [{"kind": "text"}, {"kind": "json"}]}, "empty": {}})
    assert found == {"a.b": [1, 2], "data.corpus.0.kind": "text", "data.corpus.1.kind": "json", "empty": {}}


def test_settings_that_decide_come_before_those_that_do_not(tmp_path):
    one = evaluated(tmp_path, "one", cluster={"num_workers": 2})
    other = evaluated(tmp_path, "other", positions={"preset": "pose", "max_scale": 4}, seed=3)
    found = differing([read(one), read(other)])
    paths = [path for path, _, _ in found]
    assert "name" not in paths
    assert {"seed", "positions.scale.kind"} <= {path for path, _, decides in found if decides}
    assert [entry for entry in found if not entry[2]] == [("cluster.num_workers", [2, 1], False)]
    assert not found[-1][2]
    lacking = {path: values for path, values, _ in found}["positions.placement.prefix"]
    assert lacking[1] is MISSING


def test_versions_that_differ_are_told_as_such(tmp_path):
    one, other = evaluated(tmp_path, "one"), evaluated(tmp_path, "other")
    path = RunFolder(other).environment
    environment = Environment.read(path)
    environment.changed(versions=environment.versions | {"torch": "3"}).write(path)
    assert differing([read(one), read(other)]) == [("environment.versions.torch", ["2", "3"], False)]
