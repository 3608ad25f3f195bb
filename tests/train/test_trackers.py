"""Trackers: each gets every logged step from rank 0 and the run's files, and none that fails stops a run."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from e2ray.config.trackers import MlflowTracker, WandbTracker
from e2ray.records.folders import RunFolder
from e2ray.records.run import TrackerNumbers
from e2ray.testing.tasks import CPU, rows, small_task
from e2ray.train import trackers, worker
from e2ray.train.record import read_metrics
from e2ray.train.trackers import TensorBoard, Trackers, configured, located, missing, numbers

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

    def close(self, *, failed=False):
        self._take("close", failed)


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
    after = Trackers([("bad", open_bad), ("good", lambda: good)], show=lines.append, lost=all_of_them.lost)
    assert list(after.open) == ["good"] and after.lost == {"bad"}
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


def opened(settings, folder, *, show=pytest.fail, continued=True):
    """The trackers of a run, opened as a training opens them."""
    return Trackers(
        configured(located(settings, folder.parent), folder, name=folder.name, continued=continued), show=show
    )


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
        made = opened(settings, run_folder)
        made.log(LINE, step)
        made.log_artifact(run_folder / "evaluation.json")
        made.close()
    (found,) = mlflow_runs(run_folder.parent)
    assert found.info.run_name == "my-run" and found.info.status == "FINISHED"
    assert found.data.metrics == {tag.replace("/", "."): value for tag, value in SEEN.items()}
    history = client(run_folder.parent).get_metric_history(found.info.run_id, "train.loss")
    assert [each.step for each in history] == [3, 6]
    assert list((run_folder.parent / "mlflow-artifacts").rglob("evaluation.json"))
    (number,) = TrackerNumbers.read(RunFolder(run_folder).trackers).plain().values()
    assert number == found.info.run_id


def test_a_tracker_elsewhere_gets_a_run_of_its_own_and_the_first_one_goes_on_when_it_is_named_again(run_folder):
    first, other = MlflowTracker(experiment="mine"), MlflowTracker(experiment="another")
    for settings in (first, other, first):
        made = opened((settings,), run_folder)
        made.log({"loss": 1.0}, 1)
        made.close()
    assert len(TrackerNumbers.read(RunFolder(run_folder).trackers).plain()) == 2
    (found,) = mlflow_runs(run_folder.parent)
    assert len(client(run_folder.parent).get_metric_history(found.info.run_id, "train.loss")) == 2
    path = RunFolder(run_folder).trackers

    def numbered(number):
        """Return the number of the run that goes on from this one."""
        known = {key: number if known == found.info.run_id else known for key, known in kept.items()}
        TrackerNumbers.model_validate(known).write(path)
        opened((first,), run_folder).close()
        return next(known for key, known in TrackerNumbers.read(path).plain().items() if kept[key] == found.info.run_id)

    kept = TrackerNumbers.read(path).plain()
    assert numbered(found.info.run_id) == found.info.run_id
    client(run_folder.parent).delete_run(found.info.run_id)  # MLflow keeps it for a while, but takes nothing for it
    assert numbered(found.info.run_id) != found.info.run_id
    assert numbered("0" * 32) not in ("0" * 32, found.info.run_id)
    assert len(mlflow_runs(run_folder.parent)) == 2


def test_a_run_that_an_error_ends_is_told_as_failed(run_folder):
    opened((MlflowTracker(experiment="mine"),), run_folder).close(failed=True)
    assert [each.info.status for each in mlflow_runs(run_folder.parent)] == ["FAILED"]


BESIDE_OTHERS = """
import sys, time
from pathlib import Path
from mlflow.tracking import MlflowClient
from e2ray.config.trackers import MlflowTracker
from e2ray.train.trackers import Trackers, configured, located
folder = Path(sys.argv[1])
folder.with_name(f"{folder.name} is ready").touch()
while not folder.with_name("go").exists():
    time.sleep(0.01)
settings = located((MlflowTracker(experiment="mine"),), folder.parent)
made = Trackers(configured(settings, folder, name=folder.name, continued=False), show=sys.exit)
made.log({"loss": 1.0}, 1)
made.close()
"""


def test_trials_that_begin_at_once_make_one_database_and_a_run_each(run_folder):
    trials = [run_folder.parent / name for name in ("one", "other")]
    work = [subprocess.Popen([sys.executable, "-c", BESIDE_OTHERS, str(trial)]) for trial in trials]
    until = time.monotonic() + 120
    while not all(trial.with_name(f"{trial.name} is ready").exists() for trial in trials):
        assert time.monotonic() < until
        time.sleep(0.01)
    run_folder.with_name("go").touch()
    assert [each.wait(120) for each in work] == [0, 0]
    assert sorted(found.info.run_name for found in mlflow_runs(run_folder.parent)) == ["one", "other"]


def test_wandb_takes_what_lies_behind_its_newest_step_into_the_summary(run_folder):
    made = opened((WandbTracker(),), run_folder)
    (tracker,) = made.open.values()
    made.log({"loss": 1.0}, 5)
    made.log({"loss": 2.0}, 7)
    made.log({"evaluate/tuned/64/2": 3.5}, 4)
    assert tracker.run.summary["evaluate/tuned/64/2"] == 3.5
    made.close()


def test_wandb_keeps_a_run_below_the_runs_folder_without_a_server(run_folder):
    for step in (3, 6):
        made = opened((WandbTracker(),), run_folder)
        made.log(LINE, step)
        made.close()
    (number,) = TrackerNumbers.read(RunFolder(run_folder).trackers).plain().values()
    files = sorted((run_folder / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    until = time.monotonic() + 30  # its own process writes, and on a busy machine is not done when the run has ended
    while not all(b"train/loss" in path.read_bytes() for path in files) and time.monotonic() < until:
        time.sleep(0.1)
    assert files and all(b"train/loss" in path.read_bytes() for path in files)


def test_a_server_that_nobody_answers_at_is_one_line_and_the_run_goes_on(run_folder):
    lines = []
    settings = (MlflowTracker(uri="http://127.0.0.1:9"),)
    made = opened(settings, run_folder, show=lines.append)
    made.log(LINE, 3)
    (line,) = lines
    assert line.startswith("warning: trackers.0 (mlflow): logs no more, ") and "\n" not in line
    assert not (run_folder / RunFolder.trackers.name).exists()


def test_a_library_that_is_not_there_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else object())
    assert list(missing((MlflowTracker(), WandbTracker()))) == [
        "trackers.1: wandb is not installed; pip install 'e2ray[wandb]', or leave it out"
    ]


@pytest.mark.usefixtures("one_rank")
def test_a_training_logs_each_line_to_all_and_none_of_them_changes_it(tmp_path, capsys):
    def failing(metrics):
        raise OSError("nobody there")

    lines = {}
    for name, chosen in (("plain", ()), ("tracked", (MlflowTracker(experiment="mine"), WandbTracker()))):
        (tmp_path / name).mkdir()
        task = small_task(tmp_path / name, preset="e2llm", steps=6, checkpoint_every=3)
        task = replace(task, trackers=located(chosen, tmp_path / name), show_progress=False)
        task.folder.mkdir()
        gauges = failing if chosen else None
        assert worker.run(task, device=CPU, open_rows=partial(rows, batch=4), gauges=gauges) == 6
        lines[name] = [line.loss for line in read_metrics(task.folder)]
    assert lines["plain"] == lines["tracked"]
    assert capsys.readouterr().out.count("warning: gauges: logs no more, OSError: nobody there; the run goes on") == 1
    (found,) = mlflow_runs(tmp_path / "tracked")
    history = client(tmp_path / "tracked").get_metric_history(found.info.run_id, "train.loss")
    assert [each.value for each in history] == pytest.approx(lines["tracked"]) and found.info.status == "FINISHED"
    assert [value for _, value in scalars(task.folder)["train/loss"]] == pytest.approx(lines["tracked"])
    assert not (tmp_path / "plain" / "run" / RunFolder.trackers.name).exists()


def test_no_tracker_is_imported_unless_it_is_asked_for():
    code = "import sys, e2ray.train.trackers; print({'mlflow', 'wandb', 'tensorboard', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
