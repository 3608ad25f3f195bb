"""One trial without Ray: trained by the same engine and loop as a run, measured at its rungs.

A `Workbench` stands in a process that runs trial after trial: the base model, the rows and the held-out documents are
loaded once. The engine is kept too, as long as trials differ in nothing it is built from: each begins with the base's
weights and an optimizer that has seen nothing. A trial's losses equal those of `jobs/train.py` with its
settings in every bit at the same number of threads, since engine, rows, draws and loop are the same.
"""

import copy
import gc
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers.utils.logging import disable_progress_bar

from e2ray.config.base import SettingsError
from e2ray.config.evaluate import EvaluateSettings
from e2ray.config.methods import UNTRAINED
from e2ray.config.model import LlamaModel
from e2ray.config.retrieval import RetrievalSettings
from e2ray.config.run import RunConfig
from e2ray.core.methods.registry import method_of
from e2ray.core.model import build_model, made_ready
from e2ray.core.rope import RotaryHook, refuse_scaled
from e2ray.core.scales import paper_scale
from e2ray.data.shards import ShardSet, local_batches
from e2ray.data.tokenizer import load_tokenizer
from e2ray.evaluate.documents import select_documents
from e2ray.evaluate.perplexity import OUT_OF_MEMORY, DivergedWeights, surface
from e2ray.evaluate.retrieval import accuracy
from e2ray.search.objectives import ASKED, long_windows
from e2ray.search.study import Measured, Plan
from e2ray.train import checkpoint
from e2ray.train.batch import Batch
from e2ray.train.engine import Engine, ParameterState, precision_of
from e2ray.train.heartbeat import MEASURING, Heartbeat
from e2ray.train.ledger import rows_of
from e2ray.train.loop import Diverged, Skips, fit
from e2ray.train.record import note_skipped
from e2ray.train.task import Task
from e2ray.train.trackers import Trackers
from e2ray.train.worker import begin, drawn, trackers_of

BUILT_FROM = {  # settings of train that an engine is built from; all others are asked for at each update
    "batch_sequences", "micro_batch_sequences", "betas", "eps", "weight_decay", "clip_norm", "zero_stage", "offload",
    "precision",
}  # fmt: skip
CELL = ("window", "scale", "nll", "stderr", "tokens", "documents", "stride")


@dataclass(frozen=True)
class Shared:
    """What all trials of a study have in common; it can be pickled."""

    study: str
    folder: Path  # of the study; trials of several workers write below it
    task: Task  # of the recipe: shards, tokenizer, window, base model
    evaluate: EvaluateSettings  # resolved
    surface: bool  # whether a full trial that may be among the best is measured at every window and scale
    retrieval: RetrievalSettings | None

    def task_of(self, plan: Plan) -> Task:
        """Return the training of one trial."""
        config = plan.config
        lora = config.model.lora
        return replace(
            self.task,
            name=f"{self.study}-{plan.number}",
            folder=self.folder / "trials" / str(plan.number),
            seed=config.seed,
            model=self.task.model.model_copy(update={"lora": lora}),
            positions=config.positions,
            train=config.train.model_copy(update={"watch_every": None, "stop": None}),  # a trial has its rungs
            show_progress=False,
            keep=False,
        )


class Examiner:
    """Measures a model on the study's documents, the same for every trial."""

    def __init__(self, shared: Shared, shards: ShardSet, device: torch.device) -> None:
        """Choose the documents.

        Raises:
            SettingsError: If none is as long as the largest window.
        """
        settings = shared.evaluate
        assert settings.windows and settings.scales and settings.stride
        self.shared, self.settings, self.device = shared, settings, device
        self.length = shared.task.base_context_length
        self.windows = settings.windows
        held_out: list[np.ndarray] = shards.held_out()
        self.documents = select_documents(
            held_out,
            minimum_tokens=max(self.length, *self.windows),
            limit=settings.documents,
            cut=settings.document_tokens,
            skip=settings.skip_documents,
        )
        self.tokenizer = load_tokenizer(shared.task.tokenizer_folder) if shared.retrieval else None

    @property
    def served(self) -> set[tuple[int, float]]:
        """Each window at scale W / L."""
        return {(window, paper_scale(window, self.length)) for window in (self.length, *self.windows)}

    @property
    def surface(self) -> set[tuple[int, float]]:
        """Each window at every scale of the recipe, beside those served."""
        return self.served | set(itertools.product({self.length, *self.windows}, self.settings.scales or ()))

    def cells(self, model: nn.Module, hook: RotaryHook, wanted: set[tuple[int, float]]) -> list[dict[str, Any]]:
        """Return a row {window, scale, nll, ...} of each wanted (window, scale), ascending.

        Raises:
            DivergedWeights: If an NLL is no finite number.
        """
        rows = []
        for window, scale in sorted(wanted):
            rows += surface(
                model,
                hook,
                self.documents,
                windows=[window],
                scales=[scale],
                stride=self.settings.stride or 1,
                batch_tokens=self.settings.batch_tokens,
                device=self.device,
                name="tuned",
            )
        if len(rows) < len(wanted):
            raise SettingsError(f"evaluation: a window of {max(self.windows)} tokens: {OUT_OF_MEMORY}")
        return [{key: cell.row()[key] for key in CELL} for cell in rows]

    def asked(self, model: nn.Module, hook: RotaryHook) -> dict[str, float | None]:
        """Return the objectives of the retrieval grid, None each where the study does not ask.

        `retrieval` is the share of passkeys that the model finds, `answer_nll` the mean NLL of their tokens.
        """
        if self.shared.retrieval is None:
            return dict.fromkeys(ASKED)
        rows = accuracy(
            model,
            hook,
            self.documents,
            self.tokenizer,
            settings=self.shared.retrieval,
            windows=self.windows,
            base_context_length=self.length,
            batch_tokens=self.settings.batch_tokens,
            device=self.device,
        )
        trials = sum(row["trials"] for row in rows)
        nll = sum(row["answer_nll"] * row["trials"] for row in rows) / trials
        return {"retrieval": sum(row["found"] for row in rows) / trials, "answer_nll": nll}

    def examine(self, engine: Engine, plan: Plan, *, last: bool) -> dict[str, Any]:
        """Return `cells`, `retrieval` and `answer_nll` of a model in training.

        At the last step of a trial that may be among a study's best, the whole surface is measured.
        """
        module = engine.ds.module
        cells = self.cells(module, engine.hook, self.served)
        windows = long_windows(self.windows, self.length)
        if last and self.shared.surface and plan.may_lead(cells, windows, self.length):
            cells += self.cells(module, engine.hook, self.surface - self.served)
            cells.sort(key=lambda cell: (cell["window"], cell["scale"]))
        return {"cells": cells, **self.asked(module, engine.hook)}


@dataclass(frozen=True)
class Rungs:
    """Measures a trial in training at its rungs and at its end; it can be pickled, and opens what it needs itself."""

    shared: Shared
    plan: Plan

    def open(self, device: torch.device) -> Callable[[Engine, int], dict[str, Any]]:
        """Return what the loop calls at each logged step."""
        examiner = Examiner(self.shared, ShardSet.open(self.shared.task.shards), device)
        began = time.perf_counter()
        return lambda engine, step: measure(examiner, engine, self.plan, step, lambda: time.perf_counter() - began)


def measure(examiner: Examiner, engine: Engine, plan: Plan, step: int, seconds: Callable[[], float]) -> dict[str, Any]:
    """Return what a trial is at a step: empty but at its rungs and at its end.

    Args:
        examiner: Measures it.
        engine: Trains it.
        plan: What it is.
        step: Updates made.
        seconds: Returns the wall time it has trained and been measured.

    Raises:
        Diverged: If its state is not finite, where the documents need not show it.
        DivergedWeights: If an NLL is not finite.
    """
    last = step == plan.config.train.steps
    if not last and step not in plan.rungs:
        return {}
    checkpoint.refuse_non_finite(engine, step=step)
    found = examiner.examine(engine, plan, last=last)
    return found | {"trial_seconds": seconds(), "complete": last}


def measured(metrics: dict[str, Any]) -> Measured:
    """Return the part of a logged step's metrics that the study keeps."""
    return Measured(
        step=metrics["step"],
        cells=metrics["cells"],
        asked={name: metrics[name] for name in ASKED},
        tokens=metrics["tokens"],
        seconds=metrics["trial_seconds"],
        loss=metrics["loss"],
    )


def one_rank(device: torch.device) -> None:
    """Make this process a group of its own, as DeepSpeed wants one."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed demands it
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)


class Workbench:
    """Runs trial after trial in this process, one at a time."""

    def __init__(
        self,
        shared: Shared,
        *,
        device: torch.device,
        gauges: Callable[[str], Callable[[dict[str, Any]], None]] | None = None,
        heart: Heartbeat | None = None,
    ) -> None:
        """Load what all trials share.

        Args:
            shared: Of the study.
            device: Where the trials train.
            gauges: Called with a trial's name, returns what takes its logged steps.
            heart: Told each phase of a trial.

        Raises:
            SettingsError: If the model, the shards or the documents are not what the recipe says.
        """
        one_rank(device)
        disable_progress_bar()
        self.shared, self.device, self.gauges, self.heart = shared, device, gauges, heart
        self.trackers = Trackers(())
        self.shards = ShardSet.open(
            shared.task.shards, window=shared.task.window, tokenizer_hash=shared.task.tokenizer_hash
        )
        self.examiner = Examiner(shared, self.shards, device)
        self._base: tuple[Any, nn.Module] | None = None
        self._built: Any = None
        self._fresh: list[ParameterState] = []
        self.engine: Engine | None = None

    def _model(self, task: Task) -> nn.Module:
        """Return a fresh copy of the base with what this trial adds to it."""
        dtype = precision_of(task.train, self.device)
        plain = task.model.model_copy(update={"lora": None, "gradient_checkpointing": False})
        key = (dtype, task.seed if isinstance(plain, LlamaModel) else None)  # a built model's weights follow the seed
        if self._base is None or self._base[0] != key:
            self._base = None
            base = build_model(
                plain, dtype=dtype, vocab_size=task.vocab_size, seed=task.seed, device="cpu", runs_on=self.device
            )
            self._base = (key, base)
        return made_ready(copy.deepcopy(self._base[1]), task.model, seed=task.seed)

    def begin(self, plan: Plan) -> None:
        """Put a trial on the bench; the one before is dropped."""
        task = self.shared.task_of(plan)
        self.plan, self.task = plan, task
        self._engine_for(task)
        rows: Iterator[Any] = local_batches(
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
        self.batches = self._counted(drawn(rows, task, rank=0, num_workers=1, start_step=0))
        if self.heart:
            self.batches = self.heart.around(self.batches, waiting="waiting for rows", working="updating", step=0)
        self.done = self.tokens = self.taken = 0
        self.skips = Skips()
        self.seconds = 0.0
        self.trackers.close()
        self.trackers = trackers_of(task, 0, self.gauges(task.name) if self.gauges else None)

    def _engine_for(self, task: Task) -> None:
        """Make the engine one that has trained nothing: the last trial's put back, or where it differs a new one."""
        seeded = task.model.lora is not None or isinstance(task.model, LlamaModel)  # weights that follow the seed
        wanted = (
            task.model,
            task.seed if seeded else None,
            task.train.model_dump(include=BUILT_FROM),
            task.positions.method,
            None if task.train.objective.is_plain else (task.train.objective, task.positions),
        )
        if self.engine is not None and self._built == wanted:
            self.engine.load(iter(self._fresh), optimizer_step=0)
            return
        self.end()
        model = self._model(task)
        assert self._base is not None, "a model is made of it"
        self.engine = begin(task, device=self.device, model=model, base=self._base[1])
        self._built, self._fresh = wanted, list(self.engine.fresh_states())

    def _counted(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self.taken += 1
            yield batch

    def advance(self, *, measured: bool = True) -> dict[str, Any]:
        """Train the trial to its next rung or its end and return that step's metrics, `cells` among them.

        Args:
            measured: False trains to the end without any measurement; what was trained stays on the bench.

        Returns:
            The metrics of the step; or `failed` (the reason), `step`, `tokens` and `trial_seconds` where the loss or an
            NLL is no finite number.
        """
        assert self.engine is not None
        last: dict[str, Any] = {}
        began = time.perf_counter()

        def report(metrics: dict[str, Any]) -> Any:
            last.clear()
            last.update(metrics)
            self.trackers.log(metrics, metrics["step"])
            return "stop" if "cells" in metrics else None

        def evaluate(step: int) -> dict[str, Any]:
            assert self.engine is not None
            if not measured:
                if step == self.task.train.steps:
                    checkpoint.refuse_non_finite(self.engine, step=step)
                return {}
            seconds = self.seconds
            return measure(self.examiner, self.engine, self.plan, step, lambda: seconds + time.perf_counter() - began)

        def note(step: int, batch: Batch, nll: torch.Tensor) -> None:
            assert batch.ids is not None
            note_skipped(self.task.folder, step, rows_of(batch.ids, batch.draw, nll))

        measuring = self.heart.marking(evaluate, MEASURING, lambda step: "updating") if self.heart else evaluate
        try:
            self.done = fit(
                self.engine,
                self.batches,
                self.task.train,
                start_step=self.done,
                report=report,
                save=lambda step: None,
                evaluate=measuring,
                note_skipped=note,
                skips=self.skips,
                tokens=self.tokens,
            )
        except (Diverged, DivergedWeights) as error:
            rows = self.taken * self.task.train.batch_sequences * self.task.rows_per_example
            tokens = rows * self.task.window
            spent = self.seconds + time.perf_counter() - began
            self.end()  # nothing of it is put back
            return {"failed": str(error), "step": self.taken, "tokens": tokens, "trial_seconds": spent}
        self.tokens = last["tokens"]
        self.seconds = last["trial_seconds"] if measured else self.seconds + time.perf_counter() - began
        return last

    def end(self) -> None:
        """Drop the trial on the bench, its engine and what that held."""
        self.trackers.close()
        if self.engine is not None:
            self.engine.hook.remove()
            self.engine.ds.destroy()
            self.engine, self._fresh = None, []
            self.batches = iter(())
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()


def examine_base(
    shared: Shared, device: torch.device
) -> tuple[list[dict[str, Any]], dict[str, float | None], dict[str, Any] | None]:
    """Return what `Study.set_base` takes: the base's cells and answers, and both as YaRN reads each window at W / L.

    Raises:
        SettingsError: If the model, the shards or the documents are not what the recipe says.
    """
    disable_progress_bar()
    task = shared.task
    plain = task.model.model_copy(update={"lora": None, "gradient_checkpointing": False})
    dtype = precision_of(task.train, device)
    model = build_model(plain, dtype=dtype, vocab_size=task.vocab_size, seed=task.seed, device=device)
    examiner = Examiner(shared, ShardSet.open(task.shards), device)
    method = method_of(task.positions.method)
    hook = RotaryHook(model, method, base_context_length=task.base_context_length)
    cells, asked = examiner.cells(model.eval(), hook, examiner.surface), examiner.asked(model, hook)
    hook.remove()
    try:
        refuse_scaled(model, "yarn")
        yarn = RotaryHook(model, method_of(UNTRAINED["yarn"]), base_context_length=task.base_context_length)
    except SettingsError as error:  # a base that YaRN cannot read, whose trials go on without that row
        print(f"evaluate base: {error}", flush=True)
        return cells, asked, None
    return cells, asked, {"cells": examiner.cells(model, yarn, examiner.served), **examiner.asked(model, yarn)}


def share(config: RunConfig, task: Task, folder: Path) -> Shared:
    """Return what the trials of a resolved recipe share; `task` is the recipe's own training."""
    assert config.search is not None
    start = config.trial()
    assert start.evaluate is not None
    return Shared(
        study=config.name,
        folder=folder,
        task=task,
        evaluate=start.evaluate,
        surface=config.search.surface,
        retrieval=config.search.retrieval if config.search.weights.asks else None,
    )
