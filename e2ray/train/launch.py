"""Training on a Ray cluster: checks the resources, starts the workers, hands their errors on in one line."""

import math
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.data.follow import following
from e2ray.data.pace import Pace
from e2ray.train.attempt import beats, left, refusal
from e2ray.train.heartbeat import Beat
from e2ray.train.record import figures, newest_metrics
from e2ray.train.start import start
from e2ray.train.task import Task, Watch, Work
from e2ray.train.watch import Vigil, Watchman, watched

READER_CPUS = 0.25  # what one data reader of a worker asks for, beside the worker itself
P = ParamSpec("P")
R = TypeVar("R")
ANSWER_S = 30.0  # in which a worker's machine runs a small task


@dataclass(frozen=True)
class Resources:
    """What the workers of a run ask of the cluster."""

    num_workers: int
    use_gpu: bool
    cpus_per_worker: float

    def per_worker(self) -> dict[str, float]:
        """Return Ray's resources of one worker."""
        return {"CPU": self.cpus_per_worker} | ({"GPU": 1} if self.use_gpu else {})


def resources(settings: ClusterSettings) -> Resources:
    """Return what the workers ask for on the connected cluster, and wait for it where the cluster scales.

    Raises:
        SettingsError: If the cluster has less, at once on a fixed cluster, after `wait_s` on one that scales.
    """
    deadline = time.monotonic() + (settings.wait_s if settings.autoscaling else 0)
    while True:
        total = ray.cluster_resources()
        use_gpu = total.get("GPU", 0) > 0 if settings.use_gpu == "auto" else settings.use_gpu
        cpus = settings.cpus_per_worker or (1.0 if use_gpu else 0.5)
        request = Resources(settings.num_workers, use_gpu, cpus)
        missing = shortage(request, total)
        if not missing:
            return request
        if time.monotonic() >= deadline:
            raise SettingsError(missing)
        time.sleep(min(5.0, max(0.1, deadline - time.monotonic())))


def shortage(request: Resources, total: dict[str, float]) -> str | None:
    """Return one line on what the cluster lacks, or None; data readers are counted too."""
    needs = {"CPU": request.num_workers * (request.cpus_per_worker + READER_CPUS)}
    if request.use_gpu:
        needs["GPU"] = float(request.num_workers)
    for kind, need in needs.items():
        if need > total.get(kind, 0.0):
            fits = math.floor(total.get(kind, 0.0) / need * request.num_workers)
            return (
                f"cluster.num_workers: {request.num_workers} workers need {need:g} {kind}s (data readers included), "
                f"the cluster has {total.get(kind, 0.0):g}, enough for {fits}; lower cluster.num_workers or add nodes"
            )
    return None


def train(task: Task, settings: ClusterSettings) -> None:
    """Train a task to its end on the connected cluster; it continues from the folder's newest checkpoint.

    Raises:
        SettingsError: If a setting, a path or data is wrong, with the worker's one line.
        Diverged: If the numbers are no longer finite; it is not tried again.
        RuntimeError: If the workers failed more often than `cluster.max_failures`.
    """
    with _bar(task) if not task.show_progress else nullcontext():
        _fit(task, settings)


def try_out(task: Task, settings: ClusterSettings, watch: Watch, callbacks: list[UserCallback]) -> None:
    """Train a trial of several workers; what `watch` finds is reported to Ray Train's `callbacks`.

    A loss that is no number is reported as `failed` and ends the trial.

    Raises:
        SettingsError: If a setting, a path or data is wrong, with the worker's one line.
        RuntimeError: If the workers failed more often than `cluster.max_failures`.
    """
    _fit(task, settings, watch=watch, callbacks=callbacks)


def _fit(
    task: Task, settings: ClusterSettings, watch: Watch | None = None, callbacks: list[UserCallback] | None = None
) -> None:
    request = resources(settings)
    if watch is not None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a trial that is cut off begins anew
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every progress line twice
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(max(60.0, settings.wait_s)))
    attempt = uuid.uuid4().hex[:8]
    trainer = TorchTrainer(
        start,
        train_loop_config=Work(
            task=task,
            attempt=attempt,
            watch=watch,
            # other trials may run on the same machine: each keeps to what it reserved
            threads=max(1, int(request.cpus_per_worker)) if watch else None,
        ),
        scaling_config=ScalingConfig(
            num_workers=request.num_workers, use_gpu=request.use_gpu, resources_per_worker=request.per_worker()
        ),
        torch_config=TorchConfig(backend="nccl" if request.use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"{task.name}-{attempt}",
            storage_path=str(task.folder / "ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=2),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=callbacks,
        ),
    )
    failure: Exception | None = None
    beats_folder = beats(task.folder, attempt)
    watchman = watchman_of(beats_folder, settings)
    show = _show if task.show_progress and watch is None else None
    try:
        with Pace(show, f"{task.name}, workers start", total=task.train.steps, unit="updates") as pace:
            watchman.heard = partial(_hear, pace, task.name)
            with watched(watchman), _own_interrupt():
                trainer.fit()
    except TrainingFailedError as error:
        failure = _cause(error, watchman.blamed)
    except ray.exceptions.RayError as error:  # of the controller, which a full machine kills too
        failure = error
    finally:
        shutil.rmtree(beats_folder, ignore_errors=True)
        refused = left(refusal(task.folder, attempt))
    if refused or failure:
        raise refused or failure  # type: ignore[misc]  # one of them is an error


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Give Ctrl-C back its meaning after the block: Ray Train's handler would stay, and with it the controller."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def _hear(pace: Pace, name: str, workers: list[Beat]) -> None:
    """Set a training's pace to the phase and step of its first worker, which prints updates itself."""
    if workers:
        pace.what = f"{name}, {workers[0].phase}"
        pace.reach(workers[0].step)


def _show(line: str) -> None:
    print(line, flush=True)


def watchman_of(folder: Path, settings: ClusterSettings) -> Watchman:
    """Return the watchman of the connected cluster's workers whose heartbeats are in a folder."""
    return Watchman(folder, Vigil(hang_s=settings.hang_s), on_node=_on_node, show=_show)


def _on_node(beat: Beat, function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R | None:
    """Run a function on a worker's machine and return its result; None where that does not answer."""
    if (beat.node, beat.host) == (ray.get_runtime_context().get_node_id(), socket.gethostname()[:64]):
        return function(*arguments, **options)
    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(function).options(name="look at a worker", scheduling_strategy=there)
    asked = task.remote(*arguments, **options)
    try:
        return ray.get(asked, timeout=ANSWER_S)
    except ray.exceptions.RayError:
        ray.cancel(asked, force=True)
        return None


def _cause(error: TrainingFailedError, hung: str | None) -> Exception:
    """Return the error to show for a failed training: the workers' own if there is one, else who stood still."""
    failures = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else []
    for failure in failures:
        inner = getattr(failure, "cause", None) or failure
        if isinstance(inner, SettingsError):
            return SettingsError(str(inner))
    if hung:
        return RuntimeError(
            f"the training workers failed: {hung}; if that was work, raise cluster.hang_s, else see its stack above"
        )
    text = str(failures[0]) if failures else str(error)
    last = next((line for line in reversed(text.strip().splitlines()) if line.strip()), text)
    return RuntimeError(f"the training workers failed: {last.strip()}")


@contextmanager
def _bar(task: Task) -> Iterator[None]:
    """Show a bar on the terminal while the workers train, from the files rank 0 writes."""
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TimeElapsedColumn(), TimeRemainingColumn()),
    )
    with Progress(*columns) as progress:
        shown = progress.add_task("starting workers", total=task.train.steps)

        def show_newest() -> None:
            newest = newest_metrics(task.folder)
            if newest:
                progress.update(shown, completed=newest.step, description=figures(newest))

        def failed(error: Exception) -> None:
            progress.update(shown, description=f"the bar stands still: {type(error).__name__}: {error}")

        with following(show_newest, every_s=0.5, failed=failed):
            yield
