import re

import pytest

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.report.frame.text import printable
from e2ray.report.run_folder import open_run, open_runs
from e2ray.testing.runs import begun, evaluated
from e2ray.train.record import read_status


def test_a_run_is_known_by_its_folder_settings_and_state(tmp_path):
    run = open_run(evaluated(tmp_path))
    assert (run.name, run.state, run.evaluated) == ("small", "succeeded", True)
    assert run.settings["positions"]["scale"] == {"kind": "uniform_int", "max_scale": 4.0, "native_share": 0.0}


@pytest.mark.parametrize(
    ("prepare", "error", "message"),
    [
        (lambda folder: None, FileNotFoundError, "not found; wanted the folder of a run, <storage>/<run>"),
        (lambda folder: folder.write_text("x"), SettingsError, "is a file; wanted the folder of a run"),
        (lambda folder: folder.mkdir(), SettingsError, "holds no run: config.yaml is missing; wanted a folder that"),
        (
            lambda folder: begun(folder, "one"),
            SettingsError,
            r"config\.yaml is missing; wanted one of the runs in it: one",
        ),
        (
            lambda folder: (begun(folder.parent, folder.name) / "status.json").unlink(),
            SettingsError,
            r"holds no run: status\.json is missing",
        ),
        (
            lambda folder: (begun(folder.parent, folder.name) / "status.json").write_text("{"),
            SettingsError,
            r"status\.json: is no JSON .*; remove it and run `e2ray train --config .*config\.yaml` again",
        ),
        (
            lambda folder: (begun(folder.parent, folder.name) / "status.json").write_text("[]"),
            SettingsError,
            r"status\.json: is damaged, it holds a list; wanted a run's status; remove it",
        ),
        (
            lambda folder: (begun(folder.parent, folder.name) / "config.yaml").write_text("name: [a"),
            SettingsError,
            r"config\.yaml.*; put the recipe that the run was begun with in its place",
        ),
        (
            lambda folder: (begun(folder.parent, folder.name) / "study.journal").touch(),
            SettingsError,
            r"holds a study, no run; its report is .*report\.html",
        ),
        (
            lambda folder: (begun(folder.parent, folder.name) / "comparison.json").touch(),
            SettingsError,
            r"holds a comparison, no run; its tables are .*comparison\.md",
        ),
        (
            lambda folder: [
                (begun(folder.parent, folder.name) / "comparison.json").touch(),
                (folder / "report.html").touch(),
            ],
            SettingsError,
            r"holds a comparison, no run; its page is .*report\.html",
        ),
    ],
)
def test_what_is_no_run_is_told_in_one_line(tmp_path, prepare, error, message):
    folder = tmp_path / "small"
    prepare(folder)
    with pytest.raises(error, match=message):
        open_run(folder)


@pytest.mark.parametrize(
    ("changes", "model", "message"),
    [
        ({}, False, r"no evaluation yet: running, step 4 of 8; `e2ray train --config .*config\.yaml` continues it"),
        ({"state": "failed"}, False, r"failed, step 4 of 8; `e2ray train"),
        ({"state": "succeeded"}, True, r"no evaluation yet: succeeded; `e2ray evaluate --config .*` measures it"),
        (
            {"state": "succeeded", "evaluate": None},
            True,
            r"its recipe leaves the stage out; `e2ray evaluate --config .* --set evaluate=\{\}` measures it",
        ),
    ],
)
def test_a_run_without_an_evaluation_names_the_next_move(tmp_path, changes, model, message):
    folder = begun(tmp_path, **changes)
    if model:
        (folder / "model").mkdir()
    with pytest.raises(SettingsError, match=message):
        open_runs([folder])


def test_a_run_that_was_killed_is_not_running(tmp_path):
    folder = begun(tmp_path)
    with files.lock(folder / ".lock", what="running it"):
        assert open_run(folder).state == "running, step 4 of 8"
    run = open_run(folder)
    assert run.state == "killed, step 4 of 8"
    assert re.match(
        r"no evaluation yet: killed, step 4 of 8 \(its process was killed, .*\); `e2ray", run.what_is_missing
    )


def test_one_evaluated_run_is_enough_and_none_is_not(tmp_path):
    one, other = begun(tmp_path, "one"), begun(tmp_path, "other")
    with pytest.raises(SettingsError, match=r"one: no evaluation yet: .*, nor has any other of the 2 runs one"):
        open_runs([one, other])
    assert [run.evaluated for run in open_runs([one, evaluated(tmp_path, "third")])] == [False, True]


def test_runs_of_one_name_are_told_apart_and_one_run_is_named_once(tmp_path):
    folders = [evaluated(tmp_path / place) for place in ("a", "b")] + [evaluated(tmp_path / "other" / "a")]
    assert [run.name for run in open_runs(folders)] == ["a/small (1)", "b/small", "a/small (3)"]
    with pytest.raises(SettingsError, match="small: is given 2 times; name each run once"):
        open_runs([folders[0], folders[0] / ".." / "small"])


def test_names_are_one_printable_line():
    assert printable("a\n\tb \x1b[31mred\x07") == "a b \ufffd[31mred\ufffd"


def test_the_reason_of_a_failed_run_is_told(tmp_path):
    folder = begun(tmp_path)
    read_status(folder).changed(state="failed", error="no space left").write(folder / "status.json")
    assert "failed, step 4 of 8 (no space left)" in open_run(folder).what_is_missing
