"""Training after training in this process, without Ray: a bench that loads the base model and the shards once.

The engine is kept too, as long as trainings agree in all that it is built from: each begins with the base's weights and
a fresh optimizer. The losses equal those of `jobs/train.py` bit for bit with the same settings and number of threads,
since engine, rows, draws and loop are the same.
"""

import copy
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from transformers.utils.logging import disable_progress_bar

from e2ray.config.model import LlamaModel
from e2ray.config.run import RunConfig
from e2ray.core.model import build_model, made_ready
from e2ray.data.shards import Rows, ShardSet, local_batches
from e2ray.evaluate.perplexity import DivergedWeights
from e2ray.records.folders import RunFolder
from e2ray.records.run import MetricsLine
from e2ray.train import checkpoint
from e2ray.train.batch import Batch
from e2ray.train.engine import Engine
from e2ray.train.heartbeat import MEASURING, Heartbeat
from e2ray.train.ledger import rows_of
from e2ray.train.loop import Answer, Diverged, Skips, fit
from e2ray.train.parameters import ParameterState, precision_of
from e2ray.train.record import note_skipped, prune_lines
from e2ray.train.task import Task
from e2ray.train.trackers import Show, Trackers
from e2ray.train.worker import begin, drawn, trackers_of

BUILT_FROM = {  # settings of train that an engine is built from; all others are asked for at each update
    "batch_sequences", "micro_batch_sequences", "betas", "eps", "weight_decay", "clip_norm", "zero_stage", "offload",
    "precision", "reduce_dtype", "deepspeed", "compile", "fused_loss",
}  # fmt: skip
Measure = Callable[[Engine, int, Callable[[], float]], Mapping[str, object]]
GaugesOf = Callable[[str], Show]


def tried(task: Task, config: RunConfig, *, name: str, folder: Path) -> Task:
    """Return the training of a recipe on a bench, which leaves no checkpoint.

    `task` holds what the trainings of a bench share: shards, tokenizer, window, base model.
    """
    return replace(
        task,
        name=name,
        folder=folder,
        seed=config.seed,
        model=task.model.model_copy(update={"lora": config.model.lora}),
        positions=config.positions,
        train=config.train.model_copy(update={"watch_every": None, "stop": None}),
        show_progress=False,
        keep=False,
    )


def one_rank(device: torch.device) -> None:
    """Make this process a group of one rank, since DeepSpeed needs a group."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed demands it
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


class Bench:
    """Runs training after training in this process, one at a time."""

    def __init__(
        self,
        task: Task,
        *,
        device: torch.device,
        gauges: GaugesOf | None = None,
        heart: Heartbeat | None = None,
    ) -> None:
        """Open what all trainings share: the shards and the base that a task names.

        `gauges` is called with a training's name and returns what takes its logged steps.

        Raises:
            SettingsError: If the model or the shards are not what the task says.
        """
        one_rank(device)
        disable_progress_bar()
        self.device, self.gauges, self.heart = device, gauges, heart
        self.trackers = Trackers(())
        self.shards = ShardSet.open(task.shards, window=task.window, tokenizer_hash=task.tokenizer_hash)
        self._base: tuple[tuple[torch.dtype, int | None], nn.Module] | None = None
        self._built: tuple[object, ...] = ()
        self._fresh: list[ParameterState] = []
        self.engine: Engine | None = None

    def _model(self, task: Task) -> nn.Module:
        """Return a fresh copy of the base with what this training adds to it."""
        dtype = precision_of(task.train, self.device)
        plain = task.model.model_copy(update={"lora": None, "checkpoint_share": 0.0, "liger": False})
        key = (dtype, task.seed if isinstance(plain, LlamaModel) else None)  # a built model's weights follow the seed
        if self._base is None or self._base[0] != key:
            self._base = None
            base = build_model(
                plain, dtype=dtype, vocab_size=task.vocab_size, seed=task.seed, device="cpu", runs_on=self.device
            )
            self._base = (key, base)
        return made_ready(copy.deepcopy(self._base[1]), task.model, seed=task.seed)

    def put(self, task: Task) -> None:
        """Put a training on the bench; the one before is dropped."""
        self.task = task
        self._engine_for(task)
        rows: Iterator[Rows] = local_batches(
            self.shards,
            seed=task.seed,
            start_step=0,
            stop_step=task.train.steps,
            rank=0,
            num_workers=1,
            batch_sequences=task.train.batch_sequences,
            window=task.window,
            tokenizer_hash=task.tokenizer_hash,
            shuffle_shards=task.shuffle_shards,
            rows_per_example=task.rows_per_example,
        )
        self.batches = self._counted(drawn(rows, task, rank=0, num_workers=1, start_step=0, engine=self.engine))
        if self.heart:
            self.batches = self.heart.around(self.batches, waiting="waiting for rows", working="updating", step=0)
        self.done = self.tokens = self.taken = 0
        self.skips = Skips()
        self.seconds = 0.0
        self.trackers.close()
        lost = self.trackers.lost  # reported once, not for each training
        self.trackers = trackers_of(task, 0, self.gauges(task.name) if self.gauges else None, without=lost)
        prune_lines(RunFolder(task.folder).skipped, 0)

    def _engine_for(self, task: Task) -> None:
        """Prepare an untrained engine: the last one with its state reset, or a new one if it is built otherwise."""
        seeded = task.model.lora is not None or isinstance(task.model, LlamaModel)  # weights that follow the seed
        key = (
            task.model,
            task.seed if seeded else None,
            task.train.model_dump(include=BUILT_FROM),
            task.positions.method,
            None if task.train.objective.is_plain else (task.train.objective, task.positions),
        )
        if self.engine is not None and self._built == key:
            self.engine.load(iter(self._fresh), optimizer_step=0)
            return
        self.end()
        model = self._model(task)
        assert self._base is not None, "a model is made of it"
        self.engine = begin(task, device=self.device, model=model, base=self._base[1])
        self._built, self._fresh = key, list(self.engine.fresh_states())

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.taken += 1
            yield batch

    def train(self, measure: Measure | None = None) -> dict[str, object]:
        """Train until a measurement finds `cells`, or to the end, and return that step's metrics.

        Args:
            measure: Called with the engine, each logged step and a function for the seconds so far; its numbers
                join the step's metrics. None trains to the end; what was trained stays on the bench.

        Returns:
            The metrics of the step; or `failed` (the reason), `step`, `tokens` and `trial_seconds` where the loss or an
            NLL is no finite number.
        """
        engine = self.engine
        assert engine is not None, "a training has begun"
        last: list[MetricsLine] = []
        began = time.perf_counter()

        def spent() -> float:
            return self.seconds + time.perf_counter() - began

        def report(metrics: MetricsLine) -> Answer:
            last[:] = [metrics]
            self.trackers.log(metrics.plain(), metrics.step)
            return "stop" if "cells" in metrics.model_fields_set else None

        def evaluate(step: int) -> Mapping[str, object]:
            if measure is not None:
                return measure(engine, step, spent)
            if step == self.task.train.steps:
                checkpoint.refuse_non_finite(engine, step=step)
            return {}

        measuring = self.heart.marking(evaluate, MEASURING, lambda step: "updating") if self.heart else evaluate
        try:
            self.done = fit(
                engine,
                self.batches,
                self.task.train,
                start_step=self.done,
                report=report,
                save=lambda step: None,
                evaluate=measuring,
                note_skipped=self._note_skipped,
                skips=self.skips,
                tokens=self.tokens,
            )
        except (Diverged, DivergedWeights) as error:
            self.trackers.close(failed=True)
            rows = self.taken * self.task.train.batch_sequences * self.task.rows_per_example
            spoilt = {"step": self.taken, "tokens": rows * self.task.window, "trial_seconds": spent()}
            self.end()  # its engine is not used again
            return {"failed": str(error), **spoilt}
        except BaseException:
            self.trackers.close(failed=True)
            raise
        self.tokens = last[0].tokens
        self.seconds = (last[0].model_extra or {})["trial_seconds"] if measure is not None else spent()
        return dict(last[0].plain())

    def _note_skipped(self, step: int, batch: Batch, nll: torch.Tensor) -> None:
        assert batch.ids is not None
        note_skipped(self.task.folder, step, rows_of(batch.ids, batch.draw, nll))

    def end(self) -> None:
        """Drop the training on the bench, its engine and what that held."""
        self.trackers.close()
        if self.engine is not None:
            self.engine.hook.remove()
            self.engine.ds.destroy()
            self.engine, self._fresh = None, []
            self.batches = iter(())
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
