"""Trackers: each gets every logged step from rank 0 and the run's files, and none that fails stops a run."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_task import run, small_task

from e2ray.config.trackers import MlflowTracker, WandbTracker
from e2ray.train import trackers
from e2ray.train.trackers import TensorBoard, Trackers, configured, missing, numbers

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # within mlflow
LINE = {"step": 3, "loss": 2.5, "lr": 0.1, "grad_norm": None, "loss_by_scale": {"1": 2.0, "4": 3.0},
        "watch_nll": {"24": 1.5, "96": None}}  # fmt: skip
SEEN = {"train/loss": 2.5, "train/lr": 0.1, "loss_by_scale/1": 2.0, "loss_by_scale/4": 3.0, "watch_nll/24": 1.5}


class Kept:
    """A tracker that keeps what it is told, and fails where it is asked to."""

    def __init__(self, *, failing=()):
        self.failing, self.told = failing, []

    def _take(self, what, *given):
        if what in self.failing:
            raise OSError(f"no {what}\nand more of it")
        self.told.append((what, *given))

    def log(self, metrics, step):
        self._take("log", dict(metrics), step)

    def log_artifact(self, path):
        self._take("artifact", path)

    def close(self):
        self._take("close")


def test_what_is_logged_are_the_finite_numbers_of_a_step():
    assert dict(numbers(LINE)) == SEEN
    assert dict(numbers({"a/b": 1, "c": math.nan, "d": "text", "step": 4})) == {"a/b": 1}


@pytest.mark.parametrize("failing", ["open", "log", "artifact", "close"])
def test_one_that_fails_is_told_once_and_the_others_go_on(failing):
    good, bad, lines = Kept(), Kept(failing=(failing,)), []

    def open_bad():
        bad._take("open")
        return bad

    all_of_them = Trackers([("bad", open_bad), ("good", lambda: good)], show=lines.append)
    for step in (1, 2, 3):
        all_of_them.log({"loss": 1.0}, step)
    all_of_them.log_artifact(Path("x"))
    all_of_them.close()
    assert lines == [f"warning: bad: logs no more, OSError: no {failing} and more of it; the run goes on without it"]
    assert [what for what, *_ in good.told] == ["log", "log", "log", "artifact", "close"]
    assert len(bad.told) == {"open": 0, "log": 1, "artifact": 4, "close": 5}[failing]


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(each.step, each.value) for each in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def test_tensorboard_shows_what_the_restart_continues_from_and_not_what_came_behind(tmp_path):
    first = TensorBoard(tmp_path, start_step=0)
    for step in (1, 2, 3):
        first.log({"loss": step}, step)
    first.close()
    second = TensorBoard(tmp_path, start_step=2)
    second.log({"loss": 30.0}, 3)
    second.close()
    assert scalars(tmp_path) == {"train/loss": [(1, 1.0), (2, 2.0), (3, 30.0)]}


def client(folder):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def mlflow_runs(folder):
    known = client(folder)
    (experiment,) = [each for each in known.search_experiments() if each.name == "mine"]
    return known.search_runs([experiment.experiment_id])


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "storage" / "my-run"
    folder.mkdir(parents=True)
    return folder


def test_mlflow_keeps_numbers_and_files_beside_the_runs_and_a_restart_goes_on_in_the_same_run(run_folder):
    settings = (MlflowTracker(experiment="mine"),)
    (run_folder / "evaluation.json").write_text("{}")
    for step in (3, 6):
        made = Trackers(configured(settings, run_folder, name="my-run", continued=True), show=pytest.fail)
        made.log(LINE, step)
        made.log_artifact(run_folder / "evaluation.json")
        made.close()
    (found,) = mlflow_runs(run_folder.parent)
    assert found.info.run_name == "my-run" and found.info.status == "FINISHED"
    assert found.data.metrics == {tag.replace("/", "."): value for tag, value in SEEN.items()}
    history = client(run_folder.parent).get_metric_history(found.info.run_id, "train.loss")
    assert [each.step for each in history] == [3, 6]
    assert list((run_folder.parent / "mlflow-artifacts").rglob("evaluation.json"))
    assert json.loads((run_folder / trackers.NUMBERS).read_text()) == {"trackers.0 (mlflow)": found.info.run_id}


def test_wandb_keeps_a_run_below_the_runs_folder_without_a_server(run_folder):
    for step in (3, 6):
        made = Trackers(configured((WandbTracker(),), run_folder, name="my-run", continued=True), show=pytest.fail)
        made.log(LINE, step)
        made.close()
    number = json.loads((run_folder / trackers.NUMBERS).read_text())["trackers.0 (wandb)"]
    files = sorted((run_folder / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert files and all(b"train/loss" in path.read_bytes() for path in files)


def test_a_server_that_nobody_answers_at_is_one_line_and_the_run_goes_on(run_folder):
    lines = []
    settings = (MlflowTracker(uri="http://127.0.0.1:9"),)
    made = Trackers(configured(settings, run_folder, name="my-run", continued=True), show=lines.append)
    made.log(LINE, 3)
    (line,) = lines
    assert line.startswith("warning: trackers.0 (mlflow): logs no more, ") and "\n" not in line
    assert not (run_folder / trackers.NUMBERS).exists()


def test_a_library_that_is_not_there_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    assert list(missing((MlflowTracker(), WandbTracker()))) == [
        "trackers.1: wandb is not installed; pip install 'e2ray[wandb]', or leave it out"
    ]


@pytest.mark.usefixtures("one_rank")
def test_a_training_logs_each_line_to_all_and_none_of_them_changes_it(tmp_path, monkeypatch):
    (tmp_path / "plain").mkdir()
    (tmp_path / "tracked").mkdir()
    plain = small_task(tmp_path / "plain", preset="e2llm", steps=6, checkpoint_every=3)
    tracked = replace(
        small_task(tmp_path / "tracked", preset="e2llm", steps=6, checkpoint_every=3),
        trackers=(MlflowTracker(experiment="mine"), WandbTracker()),
    )
    kept = Kept(failing=("log",))
    monkeypatch.setattr("e2ray.train.worker.Gauges", lambda show: kept)
    lines = {}
    for task in (plain, tracked):
        assert run(task) == 6
        read = (task.folder / "metrics.jsonl").read_text().splitlines()
        lines[task.folder] = [json.loads(line)["loss"] for line in read]
    assert lines[plain.folder] == lines[tracked.folder]
    (found,) = mlflow_runs(tracked.folder.parent)
    history = client(tracked.folder.parent).get_metric_history(found.info.run_id, "train.loss")
    assert [each.value for each in history] == pytest.approx(lines[tracked.folder])
    assert [value for _, value in scalars(tracked.folder)["train/loss"]] == pytest.approx(lines[tracked.folder])
    assert not (plain.folder / trackers.NUMBERS).exists()


def test_no_tracker_is_imported_unless_it_is_asked_for():
    code = "import sys, e2ray.train.trackers; print({'mlflow', 'wandb', 'tensorboard', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
