"""Training on a Ray cluster: checks the resources, starts the workers, hands their errors on in one line."""

import logging
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
import ray.train
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.train import ClusterSettings
from e2ray.train.follow import following
from e2ray.train.heartbeat import MEASURING, Beat, Heartbeat
from e2ray.train.watch import Vigil, Watchman, watched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from e2ray.train.task import Task

READER_CPUS = 0.25  # what one data reader of a worker asks for, beside the worker itself
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
        wanted = Resources(settings.num_workers, use_gpu, cpus)
        missing = shortage(wanted, total)
        if not missing:
            return wanted
        if time.monotonic() >= deadline:
            raise SettingsError(missing)
        time.sleep(min(5.0, max(0.1, deadline - time.monotonic())))


def shortage(wanted: Resources, total: dict[str, float]) -> str | None:
    """Return one line that says what the cluster lacks, or None; the readers of the data are counted too."""
    needs = {"CPU": wanted.num_workers * (wanted.cpus_per_worker + READER_CPUS)}
    if wanted.use_gpu:
        needs["GPU"] = float(wanted.num_workers)
    for kind, need in needs.items():
        if need > total.get(kind, 0.0):
            fits = math.floor(total.get(kind, 0.0) / need * wanted.num_workers)
            return (
                f"cluster.num_workers: {wanted.num_workers} workers need {need:g} {kind}s (data readers included), the "
                f"cluster has {total.get(kind, 0.0):g}, enough for {fits}; lower cluster.num_workers or add nodes"
            )
    return None


class Watch(Protocol):
    """Measures a training at the steps it chooses; travels to the workers."""

    def open(self, device: Any) -> Callable[[Any, int], dict[str, Any]]:
        """Return what is called with the engine and each logged step, on a worker."""


def train(task: "Task", settings: ClusterSettings) -> None:
    """Train a task to its end on the connected cluster; it continues from the folder's newest checkpoint.

    Raises:
        SettingsError: If a setting, a path or data is wrong, with the worker's one line.
        Diverged: If the numbers are finite no more; it is not tried again.
        RuntimeError: If the workers failed more often than `cluster.max_failures`.
    """
    with _bar(task) if not task.show_progress else nullcontext():
        _fit(task, settings)


def try_out(task: "Task", settings: ClusterSettings, watch: Watch, callbacks: list[Any]) -> None:
    """Train a trial of several workers; what `watch` finds is reported to Ray Train's `callbacks`.

    A loss that is no number is reported as `failed` and ends the trial.

    Raises:
        SettingsError: If a setting, a path or data is wrong, with the worker's one line.
        RuntimeError: If the workers failed more often than `cluster.max_failures`.
    """
    _fit(task, settings, watch=watch, callbacks=callbacks)


def _fit(
    task: "Task", settings: ClusterSettings, watch: Watch | None = None, callbacks: list[Any] | None = None
) -> None:
    wanted = resources(settings)
    if watch is not None:
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a trial that is cut off begins anew
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every progress line twice
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(max(60.0, settings.wait_s)))
    attempt = uuid.uuid4().hex[:8]
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "task": task,
            "attempt": attempt,
            "watch": watch,
            # other trials may stand on the same machine: each keeps to what it reserved
            "threads": max(1, int(wanted.cpus_per_worker)) if watch else None,
        },
        scaling_config=ScalingConfig(
            num_workers=wanted.num_workers, use_gpu=wanted.use_gpu, resources_per_worker=wanted.per_worker()
        ),
        torch_config=TorchConfig(backend="nccl" if wanted.use_gpu else "gloo"),
        run_config=RunConfig(
            name=f"{task.name}-{attempt}",
            storage_path=str(task.folder / "ray"),
            failure_config=FailureConfig(max_failures=settings.max_failures, controller_failure_limit=2),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=callbacks,
        ),
    )
    failure: Exception | None = None
    beats = _beats(task.folder, attempt)
    watchman = watchman_of(beats, settings)
    try:
        with watched(watchman):
            trainer.fit()
    except TrainingFailedError as error:
        failure = _cause(error, watchman.blamed)
    except ray.exceptions.RayError as error:  # of the controller, which a full machine kills too
        failure = error
    finally:
        shutil.rmtree(beats, ignore_errors=True)
        left = _left(_refusal(task.folder, attempt))
    if left or failure:
        raise left or failure  # type: ignore[misc]  # one of them is an error


def _refusal(folder: Path, attempt: str) -> Path:
    return folder / f".refused-{attempt}"


def _leave(refusal: Path, error: Exception) -> None:
    """Leave an error that no restart mends for the driver, and for the workers that Ray starts again."""
    files.write_json(refusal, {"kind": type(error).__name__, "line": str(error)})


def _left(refusal: Path) -> Exception | None:
    """Return the error that a worker left, if any, and remove it."""
    from e2ray.train.loop import Diverged

    if not refusal.exists():
        return None
    found = files.read_json(refusal, wanted="what a worker left")
    refusal.unlink()
    return Diverged(found["line"]) if found["kind"] == Diverged.__name__ else SettingsError(found["line"])


def _beats(folder: Path, attempt: str) -> Path:
    return folder / f".heartbeats-{attempt}"


def _show(line: str) -> None:
    print(line, flush=True)


def heartbeat(folder: Path, name: str, *, label: str) -> Heartbeat:
    """Return this worker's heartbeat, with the node it is on."""
    return Heartbeat(folder, name, label=label, node=ray.get_runtime_context().get_node_id())


def watchman_of(folder: Path, settings: ClusterSettings) -> Watchman:
    """Return who looks after the workers of the connected cluster whose heartbeats lie in a folder."""
    return Watchman(folder, Vigil(hang_s=settings.hang_s), on_node=_on_node, show=_show)


def _on_node(beat: Beat, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function on a worker's machine and return its result; None where that does not answer."""
    if (beat.node, beat.host) == (ray.get_runtime_context().get_node_id(), socket.gethostname()[:64]):
        return function(*arguments)
    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(function).options(name="look at a worker", scheduling_strategy=there)
    asked = task.remote(*arguments)
    try:
        return ray.get(asked, timeout=ANSWER_S)
    except ray.exceptions.RayError:
        ray.cancel(asked, force=True)
        return None


def _work(config: dict[str, Any]) -> None:
    """Run one Ray Train worker.

    A wrong setting, damaged data and numbers that diverge do not get better by a restart: the line is left in a file,
    and the workers that Ray starts again find it and end, so that the driver can tell it. Numbers diverge on all ranks
    alike, so that none needs to be started again.
    """
    import ray.train.torch

    from e2ray.data.stream import batches
    from e2ray.evaluate.perplexity import DivergedWeights
    from e2ray.train import worker
    from e2ray.train.loop import Diverged

    logging.getLogger().setLevel(logging.WARNING)  # else Ray prints a line per report; LoggingConfig misses its logger
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    task: Task = config["task"]
    refusal = _refusal(task.folder, config["attempt"])
    if refusal.exists():
        return
    context = ray.train.get_context()
    rank = context.get_world_rank()
    worker.use_cores(config["threads"], context.get_local_world_size())
    heart = heartbeat(_beats(task.folder, config["attempt"]), f"rank-{rank}", label=f"worker of rank {rank}")
    open_rows = partial(_open_rows, batches, heart, task=task, rank=rank, num_workers=context.get_world_size())
    watch: Watch | None = config["watch"]
    device = ray.train.torch.get_device()
    logged: dict[str, Any] = {"step": 0, "tokens": 0, "trial_seconds": 0.0}  # the newest step, and when it was read

    def leads_to(metrics: dict[str, Any]) -> str:
        due = metrics["step"] % task.train.checkpoint_every == 0 or metrics["step"] == task.train.steps
        return "saving" if due else "updating"

    def report_measured(metrics: dict[str, Any]) -> None:
        logged.update({key: metrics[key] for key in logged if key in metrics})
        if "cells" in metrics:
            ray.train.report(metrics)

    try:
        worker.run(
            task,
            device=device,
            open_rows=open_rows,
            report=heart.marking(ray.train.report if watch is None else report_measured, "reporting", leads_to),
            gauges=gauges(task.name),
            evaluate=heart.marking(watch.open(device), MEASURING) if watch else None,
            looking=lambda look: heart.marking(look, MEASURING),
        )
    except (Diverged, DivergedWeights) as error:
        if watch is None:
            _leave(refusal, error)
            return  # every rank does: none waits for another, and Ray starts none again
        ray.train.report({"failed": str(error)} | logged)  # the same on every rank
    except SettingsError as error:
        _leave(refusal, error)
        raise
    finally:
        heart.close()


def _open_rows(
    batches: Any, heart: Heartbeat, start: int, stop: int, *, task: "Task", rank: int, num_workers: int
) -> Any:
    rows = batches(
        task.shards,
        seed=task.seed,
        start_step=start,
        stop_step=stop,
        rank=rank,
        num_workers=num_workers,
        batch_sequences=task.train.batch_sequences,
        window=task.window,
        tokenizer_hash=task.tokenizer_hash,
        shuffle_shards=task.shuffle_shards,
        prefetch_bytes=task.prefetch_bytes,
        rows_per_example=task.rows_per_example,
    )
    return heart.around(rows, waiting="waiting for rows", working="updating", step=start)


def gauges(run: str) -> Callable[[dict[str, Any]], None]:
    """Return a function that shows a logged step as Ray gauges: e2ray_loss, e2ray_tokens_per_second and so on."""
    shown = _gauges()

    def set_all(metrics: dict[str, Any]) -> None:
        for name, gauge in shown.items():
            gauge.set(metrics[name], tags={"run": run})  # None, which is no finite number, changes nothing

    return set_all


@lru_cache(maxsize=1)
def _gauges() -> dict[str, Any]:
    """Return this process's gauges; one that shows run after run makes them once."""
    from ray.util.metrics import Gauge

    return {
        "loss": Gauge("e2ray_loss", "Mean training loss, nats per token", tag_keys=("run",)),
        "tokens_per_second": Gauge("e2ray_tokens_per_second", "Tokens trained per second", tag_keys=("run",)),
        "scale_mean": Gauge("e2ray_scale_mean", "Mean scale of the draws", tag_keys=("run",)),
        "step": Gauge("e2ray_step", "Updates made", tag_keys=("run",)),
    }


def _cause(error: TrainingFailedError, hung: str | None) -> Exception:
    """Return the error to show for a failed training: the workers' own where there is one, else who stood still."""
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
def _bar(task: "Task") -> "Iterator[None]":
    """Show a bar on the terminal while the workers train, from the files rank 0 writes."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from e2ray.train.record import figures, newest_metrics

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        shown = progress.add_task("starting workers", total=task.train.steps)

        def show_newest() -> None:
            newest = newest_metrics(task.folder)
            if newest:
                progress.update(shown, completed=newest["step"], description=figures(newest))

        def failed(error: Exception) -> None:
            progress.update(shown, description=f"the bar stands still: {type(error).__name__}: {error}")

        with following(show_newest, every_s=0.5, failed=failed):
            yield
