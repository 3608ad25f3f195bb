"""What a run ends with: a page in its folder, lines for whoever waited, and what trackers hear of the evaluation."""

import json
import os
import sys
from pathlib import Path

import pytest

from e2ray.config.load import load
from e2ray.records.folders import RunFolder
from e2ray.stages.closing import last_lines, track_evaluation, write_page
from e2ray.stages.run import resolve
from e2ray.testing.runs import begun, evaluated

PAGE = RunFolder.page.name


def run_of(folder):
    return resolve(load(str(folder / "config.yaml"), []))


@pytest.fixture
def measured(tmp_path):
    return run_of(evaluated(tmp_path))


def test_the_page_lies_in_the_runs_folder_and_tells_of_it(measured):
    page = write_page(measured)
    assert page == measured.folder / PAGE and "<html" in page.read_text()
    assert (measured.folder / "report.md").read_text().startswith("## Run small")
    assert list((measured.folder / "report-pictures").glob("*.png"))


def test_a_run_that_was_not_measured_has_no_page(tmp_path, capsys):
    run = run_of(begun(tmp_path))
    assert write_page(run) is None and not (run.folder / PAGE).exists() and capsys.readouterr().out == ""


def test_a_page_that_cannot_be_written_is_told_and_the_run_stays_done(measured, capsys):
    (measured.folder / PAGE).mkdir()
    (measured.folder / PAGE / "in the way").touch()
    assert write_page(measured) is None
    lines = capsys.readouterr().out.splitlines(keepends=True)
    told = "".join(
        line for line in lines if not line.startswith("writing the page: ")
    )  # on a slow machine it takes long
    assert told.startswith("warning: ") and PAGE in told and told.count("\n") == 1


def test_the_last_lines_say_what_was_found_where_the_page_is_and_what_to_type_next(measured, monkeypatch):
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    page = write_page(measured)
    found, where, then = last_lines(measured, page)
    assert found.endswith(f"Model: {measured.folder / 'model'}") and where == f"page: {page}"
    assert then == f"next: e2ray generate {measured.folder} --prompt-file TEXT"
    for length in ("64", "1024"):
        (measured.folder / "export" / "serving" / length).mkdir(parents=True)
        (measured.folder / "export" / "serving" / length / "README.md").touch()
    monkeypatch.setenv("PATH", "/nowhere")  # an environment that nobody has activated
    command = Path(sys.executable).with_name("e2ray")
    assert last_lines(measured, None)[1].startswith(f"next: {command} generate {measured.folder} --prompt-file TEXT; ")
    told = last_lines(measured, None)
    assert len(told) == 2 and told[1].endswith(f"; to serve it: {measured.folder}/export/serving/1024/README.md")


def test_trackers_hear_every_nll_once_and_get_the_tables(measured, monkeypatch):
    told = []

    class Kept:
        def log(self, metrics, step):
            told.append((step, dict(metrics)))

        def log_artifact(self, path):
            told.append(path.name)

        def close(self, *, failed=False):
            told.append("closed")

    track_evaluation(measured)
    assert told == []  # none is asked for
    monkeypatch.setattr("e2ray.stages.closing.configured", lambda *given, **named: [("kept", Kept)])
    monkeypatch.setattr("e2ray.stages.closing.located", lambda settings, storage: settings)
    tracked = measured.config.model_copy(update={"trackers": ("any",)})
    track_evaluation(type(measured)(tracked, measured.base_context_length, ()))
    (step, numbers), *files, last = told
    rows = json.loads((measured.folder / "evaluation.json").read_text())["rows"]
    assert step == 8 and len(numbers) == len(rows)
    assert numbers["evaluate/tuned/64/2"] == next(
        row["nll"] for row in rows if (row["model"], row["window"], row["scale"]) == ("tuned", 64, 2)
    )
    assert {"config.yaml", "evaluation.json", "evaluation.png", "effective.json"} <= set(files) and last == "closed"


def test_a_tracker_that_the_training_could_not_open_is_told_no_second_time(measured, capsys):
    gone = {"kind": "mlflow", "uri": "http://127.0.0.1:9"}  # the port of nobody
    config = type(measured.config).model_validate(measured.config.model_dump() | {"trackers": (gone,)})
    run = type(measured)(config, measured.base_context_length, ())
    track_evaluation(run, begun_only=True)
    assert capsys.readouterr().out == ""
    (run.folder / "trackers.json").write_text(json.dumps({config.trackers[0].key: "0" * 32}))
    track_evaluation(run, begun_only=True)
    assert capsys.readouterr().out.startswith("warning: trackers.0 (mlflow): logs no more, ")
