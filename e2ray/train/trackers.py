"""Where a run's metrics go beside metrics.jsonl: TensorBoard, Ray's gauges, MLflow, Weights & Biases.

Rank 0 alone logs. A tracker that fails, when it is opened or later, is reported once and dropped: none stops a run.
MLflow and wandb are optional and are imported here alone. A run that goes on continues the same MLflow and wandb run,
whose number is kept in the run's folder.
"""

import fcntl
import importlib.util
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from e2ray.config.base import brief
from e2ray.config.kinds import made_by
from e2ray.config.trackers import SQLITE, TRACKERS, MlflowTracker, TrackerSettings, WandbTracker
from e2ray.optional import library
from e2ray.records.folders import RunFolder
from e2ray.records.run import TrackerNumbers
from e2ray.train.board import Board

FINISH_S = 60  # that the end of a run waits for what wandb has not sent yet
GROUPS = ("loss_by_scale", "watch_nll")  # metrics with a name for each number
QUIET = {  # no telemetry, and a server that is gone delays no run for long
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_SILENT": "true",
    "WANDB_INIT_TIMEOUT": "30",
}
Show = Callable[[Mapping[str, object]], None]  # of a logged step


class Tracker(Protocol):
    """One place that metrics go to."""

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Take a logged step's metrics as metrics.jsonl has them, or further numbers by name."""

    def log_artifact(self, path: Path) -> None:
        """Take a file of the run."""

    def close(self, *, failed: bool = False) -> None:
        """Take nothing more; `failed` where an error ends the run."""


class NumberedTracker(Tracker, Protocol):
    """A tracker of a recipe: a run has a number there, by which it goes on; None where it needs none."""

    @property
    def number(self) -> str | None:
        """Of the run, kept in its folder."""


def numbers(metrics: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    """Yield each finite number of a logged step under `train/<name>`, of a group under `<group>/<name>`."""
    for name, value in metrics.items():
        if name in GROUPS and isinstance(value, Mapping):
            pairs = [(f"{name}/{key}", part) for key, part in value.items()]
        else:
            pairs = [(name if "/" in name else f"train/{name}", value)]
        for tag, number in pairs:
            if isinstance(number, int | float) and math.isfinite(number) and name != "step":
                yield tag, number


class TensorBoard:
    """Event files below a run's folder."""

    def __init__(self, folder: Path, *, start_step: int) -> None:
        self.board = Board(folder / "tensorboard", purge_step=start_step + 1 if start_step else None)

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Write each number as a scalar."""
        for tag, value in numbers(metrics):
            self.board.add_scalar(tag, value, step)

    def log_artifact(self, path: Path) -> None:
        """Leave the file where it is, beside the events."""

    def close(self, *, failed: bool = False) -> None:
        """Close the file of events."""
        self.board.close()


class Gauges:
    """A function that shows a logged step, such as Ray's gauges."""

    def __init__(self, show: Show) -> None:
        self.show = show

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Show a logged step."""
        self.show(metrics)

    def log_artifact(self, path: Path) -> None:
        """Leave it: a gauge shows numbers."""

    def close(self, *, failed: bool = False) -> None:
        """Leave the last numbers shown."""


class Mlflow:
    """A run of MLflow, by its client alone, so that nothing global is set."""

    def __init__(self, settings: MlflowTracker, folder: Path, *, name: str, number: str | None) -> None:
        os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
        tracking = library("mlflow.tracking")
        assert settings.uri is not None, "where the recipe names none, `located` does"
        self._metric = library("mlflow.entities").Metric
        file = Path(settings.uri.removeprefix(SQLITE)) if settings.uri.startswith(SQLITE) else None
        with _alone(file):  # several trials begin at once, and only one may make the tables
            self.client = tracking.MlflowClient(tracking_uri=settings.uri)
            known = self.client.get_experiment_by_name(settings.experiment)
            artifacts = None if file is None else (file.parent / "mlflow-artifacts").as_uri()
            experiment = known.experiment_id if known else self.client.create_experiment(settings.experiment, artifacts)
        if number is None or not self._knows(number):
            number = self.client.create_run(experiment, run_name=name).info.run_id
        else:
            self.client.update_run(number, status="RUNNING")
        self.number = str(number)

    def _knows(self, number: str) -> bool:
        try:
            return str(self.client.get_run(number).info.lifecycle_stage) == "active"
        except library("mlflow.exceptions").MlflowException:  # it is gone for good; removed, it is kept for a while
            return False

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Log all numbers of a step at once."""
        now = round(time.time() * 1000)
        entries = [self._metric(tag.replace("/", "."), value, now, step) for tag, value in numbers(metrics)]
        self.client.log_batch(self.number, metrics=entries)

    def log_artifact(self, path: Path) -> None:
        """Put a copy of the file among the run's artifacts."""
        self.client.log_artifact(self.number, str(path))

    def close(self, *, failed: bool = False) -> None:
        """Mark the run as ended; one that goes on is marked as running again."""
        self.client.set_terminated(self.number, "FAILED" if failed else "FINISHED")


@contextmanager
def _alone(file: Path | None) -> Iterator[None]:
    """Hold off other processes that open the same database; a server sees to that itself."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f".{file.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, settings: WandbTracker, folder: Path, *, name: str, number: str | None) -> None:
        os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
        wandb = library("wandb")
        folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=settings.project,
            entity=settings.entity,
            name=name,
            id=number,
            resume="allow",
            dir=str(folder),
            mode="online" if settings.online else "offline",
            reinit="create_new",
            settings=wandb.Settings(finish_timeout=FINISH_S),  # else it waits for a network that is gone
        )
        self.number: str = self.run.id

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Log all numbers of a step at once; those of a step before the newest one go into the run's summary."""
        values = dict(numbers(metrics))
        if step < self.run.step:  # wandb would drop it silently
            self.run.summary.update(values)
        else:
            self.run.log(values, step=step)

    def log_artifact(self, path: Path) -> None:
        """Put a copy of the file among the run's files."""
        self.run.save(str(path), base_path=str(path.parent), policy="now")

    def close(self, *, failed: bool = False) -> None:
        """End the run; one that goes on is continued by its number."""
        self.run.finish(exit_code=int(failed))


class Trackers:
    """Several trackers as one; one that fails is reported and left out from then on."""

    def __init__(
        self,
        openers: Iterable[tuple[str, Callable[[], Tracker]]],
        *,
        show: Callable[[str], None] | None = print,
        lost: Collection[str] = (),
    ) -> None:
        """Open each (name, what opens it) that is not `lost` already; `show` gets a line where one fails."""
        self.show, self.lost = show, set(lost)
        self.open: dict[str, Tracker] = {}
        for name, opener in openers:
            if name not in self.lost:
                self._try(name, partial(self._open, name, opener))

    def _open(self, name: str, opener: Callable[[], Tracker]) -> None:
        self.open[name] = opener()

    def log(self, metrics: Mapping[str, object], step: int) -> None:
        """Log a step everywhere."""
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.log, metrics, step))

    def log_artifact(self, path: Path) -> None:
        """Hand a file to each that keeps files."""
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.log_artifact, path))

    def close(self, *, failed: bool = False) -> None:
        """Close all; `failed` where an error ends the run."""
        for name, tracker in list(self.open.items()):
            self._try(name, partial(tracker.close, failed=failed))
        self.open = {}

    def _try(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # of a foreign library: none may end the training
            self.open.pop(name, None)
            self.lost.add(name)
            if self.show:
                reason = brief(" ".join(f"{type(error).__name__}: {error}".split()))
                self.show(f"warning: {name}: logs no more, {reason}; the run goes on without it")


def located(settings: Sequence[TrackerSettings], storage: Path) -> tuple[TrackerSettings, ...]:
    """Return trackers with the place of those that name none, in the storage of the runs."""
    return tuple(tracker.located(storage) for tracker in settings)


def configured(
    settings: Sequence[TrackerSettings], folder: Path, *, name: str, continued: bool
) -> Iterator[tuple[str, Callable[[], Tracker]]]:
    """Yield the trackers that a recipe asks for, as `located` returns them, by name, with what opens each.

    Where the run may be `continued`, its number in each is kept in its folder.
    """
    for index, tracker in enumerate(settings):
        yield f"trackers.{index} ({tracker.kind})", partial(_opened, tracker, folder, name=name, continued=continued)


def _opened(settings: TrackerSettings, folder: Path, *, name: str, continued: bool) -> Tracker:
    path = RunFolder(folder).trackers
    record = TrackerNumbers.find(path) if continued else None
    known = dict((record.model_extra or {}) if record else {})
    made: NumberedTracker = made_by(TRACKERS, settings)(settings, folder, name=name, number=known.get(settings.key))
    if continued and made.number != known.get(settings.key):
        TrackerNumbers.model_validate(known | {settings.key: made.number}).write(path)
    return made


def missing(settings: Sequence[TrackerSettings]) -> Iterator[str]:
    """Yield a line for each tracker that a recipe asks for whose library is not installed here."""
    for index, tracker in enumerate(settings):
        if tracker.package and importlib.util.find_spec(tracker.package) is None:
            kind = tracker.kind
            yield f"trackers.{index}: {kind} is not installed; pip install 'e2ray[{kind}]', or leave it out"
