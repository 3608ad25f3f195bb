"""One rank of a training under Ray Train: its rows from Ray Data, its reports to Ray, and its error file."""

import logging
from collections.abc import Iterator
from functools import partial

import ray.train
import ray.train.torch

from e2ray.config.base import SettingsError
from e2ray.data.shards import Rows
from e2ray.data.stream import batches
from e2ray.evaluate.perplexity import DivergedWeights
from e2ray.records.run import MetricsLine
from e2ray.train.attempt import beats, leave, refusal
from e2ray.train.heartbeat import MEASURING, Heartbeat
from e2ray.train.loop import Diverged
from e2ray.train.ray_worker import gauges, heartbeat
from e2ray.train.task import Task, Work
from e2ray.train.worker import run, use_cores


def work(config: Work) -> None:
    """Run one Ray Train worker.

    A restart does not help against a wrong setting, damaged data and numbers that diverge: the line is left in a file,
    and the workers that Ray starts again find it and end, so that the driver can show it. Numbers diverge on all ranks
    alike, so that none needs to be started again.
    """
    logging.getLogger().setLevel(logging.WARNING)  # else Ray prints a line per report; LoggingConfig misses its logger
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    task, watch = config["task"], config["watch"]
    refused = refusal(task.folder, config["attempt"])
    if refused.exists():
        return
    context = ray.train.get_context()
    rank = context.get_world_rank()
    use_cores(config["threads"], context.get_local_world_size())
    heart = heartbeat(beats(task.folder, config["attempt"]), f"rank-{rank}", label=f"worker of rank {rank}")
    open_rows = partial(_open_rows, heart, task=task, rank=rank, num_workers=context.get_world_size())
    device = ray.train.torch.get_device()
    logged: dict[str, object] = {"step": 0, "tokens": 0, "trial_seconds": 0.0}  # the newest step, and when it was read

    def leads_to(metrics: MetricsLine) -> str:
        due = metrics.step % task.train.checkpoint_every == 0 or metrics.step == task.train.steps
        return "saving" if due else "updating"

    def report(metrics: MetricsLine) -> None:
        values = metrics.plain()
        logged.update({key: values[key] for key in logged if key in values})
        if watch and "cells" in values:  # nobody reads the others, and each waits for the controller
            ray.train.report(values)

    try:
        run(
            task,
            device=device,
            open_rows=open_rows,
            report=heart.marking(report, "reporting", leads_to),
            gauges=gauges(task.name),
            evaluate=heart.marking(watch.open(device), MEASURING) if watch else None,
            looking=lambda look: heart.marking(look, MEASURING),
        )
    except (Diverged, DivergedWeights) as error:
        if watch is None:
            leave(refused, error)
            return  # every rank does, so that none waits for another and Ray starts none again
        ray.train.report({"failed": str(error)} | logged)  # the same on every rank
    except SettingsError as error:
        leave(refused, error)
        raise
    finally:
        heart.close()


def _open_rows(heart: Heartbeat, start: int, stop: int, *, task: Task, rank: int, num_workers: int) -> Iterator[Rows]:
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
