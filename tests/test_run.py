import json
import signal

import pytest
from report.made_runs import L, settings

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.run import Preempted, Run, reporting, result_line
from e2ray.train.record import KILLED, read_status, write_status


@pytest.fixture
def run(tmp_path):
    made = Run(settings(tmp_path), L)
    made.folder.mkdir()
    return made


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (SettingsError("train.lr: got 3"), "failed", "train.lr: got 3"),
        (RuntimeError("first\n  second"), "failed", "first second"),
        (KeyError(), "failed", "KeyError"),
        (MemoryError(), "failed", "MemoryError"),
        (KeyboardInterrupt(), "preempted", "interrupted"),
        (SystemExit(3), "preempted", "interrupted"),
    ],
)
def test_how_a_block_ends_stands_in_the_status(run, error, state, words):
    wanted = KeyboardInterrupt if state == "preempted" else type(error)

    def fail():
        with reporting(run):
            assert read_status(run.folder)["state"] == "running"
            raise error

    with pytest.raises(wanted):
        fail()
    status = read_status(run.folder)
    assert (status["state"], status["error"]) == (state, words) and status["ended_at"]


def test_sigterm_is_written_down_at_once(run):
    before = signal.getsignal(signal.SIGTERM)

    def be_stopped():
        with reporting(run):
            try:
                signal.raise_signal(signal.SIGTERM)
            except Preempted:
                assert read_status(run.folder)["state"] == "preempted"
                write_status(run.folder, step=5, state="running")  # a worker that read the status before
                raise

    with pytest.raises(KeyboardInterrupt):
        be_stopped()
    assert read_status(run.folder)["state"] == "preempted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_damaged_status_hides_no_error(run):
    def fail():
        with reporting(run):
            (run.folder / "status.json").write_text("[" * 100_000)
            raise RuntimeError("the real one")

    with pytest.raises(RuntimeError, match="the real one"):
        fail()
    assert read_status(run.folder)["error"] == "the real one"


def test_a_run_that_was_killed_is_told_by_the_next(run, capsys):
    write_status(run.folder, state="running", step=4)
    with files.lock(run.folder / ".lock", what="testing"), reporting(run):
        assert read_status(run.folder)["error"] is None
    assert capsys.readouterr().out == (
        f"{run.folder}: ended at step 4 without a word: {KILLED}; it goes on from what it left\n"
    )


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"verdict": []}', '{"verdict": {}}', '{"verdict": {"sentences": "a"}}', "[" * 100_000]
)
def test_an_evaluation_of_another_shape_is_one_line(run, content):
    (run.folder / "evaluation.json").write_text(content)
    with pytest.raises(SettingsError, match=r"evaluation\.json: is .*; run `e2ray evaluate` again"):
        result_line(run)
    (run.folder / "evaluation.json").write_text(json.dumps({"verdict": {"sentences": ["Reads far."]}}))
    assert result_line(run) == f"Reads far. Model: {run.folder / 'model'}"
