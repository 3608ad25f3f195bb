"""One trial without Ray: trained on a bench by the same engine and loop as a run, measured at its rungs.

A `Workbench` serves a process that runs trial after trial: the base model, the rows and the held-out documents are
loaded once. A trial's losses equal those of `jobs/train.py` with its settings bit for bit.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from transformers.utils.logging import disable_progress_bar

from e2ray.config.base import SettingsError
from e2ray.config.methods import UNTRAINED
from e2ray.core.methods.registry import method_of
from e2ray.core.rope import refuse_scaled
from e2ray.data.shards import ShardSet
from e2ray.evaluate.loaded import LoadedModel
from e2ray.search.examiner import Examiner, measure
from e2ray.search.record import Cell
from e2ray.search.shared import Shared
from e2ray.search.trial_plan import Plan
from e2ray.train.bench import Bench, GaugesOf
from e2ray.train.engine import Engine
from e2ray.train.heartbeat import Heartbeat
from e2ray.train.parameters import precision_of


@dataclass(frozen=True)
class Rungs:
    """Measures a trial in training at its rungs and at its end; it can be pickled, and opens what it needs itself."""

    shared: Shared
    plan: Plan

    def open(self, device: torch.device) -> Callable[[Engine, int], Mapping[str, object]]:
        """Return the function that the loop calls at each logged step."""
        examiner = Examiner(self.shared, ShardSet.open(self.shared.task.shards), device)
        began = time.perf_counter()
        return lambda engine, step: measure(examiner, engine, self.plan, step, lambda: time.perf_counter() - began)


class Workbench(Bench):
    """Runs trial after trial in this process, one at a time, and measures each at its rungs."""

    def __init__(
        self,
        shared: Shared,
        *,
        device: torch.device,
        gauges: GaugesOf | None = None,
        heart: Heartbeat | None = None,
    ) -> None:
        """Load what all trials share; further arguments as `Bench`.

        Raises:
            SettingsError: If the model, the shards or the documents are not what the recipe says.
        """
        super().__init__(shared.task, device=device, gauges=gauges, heart=heart)
        self.shared = shared
        self.examiner = Examiner(shared, self.shards, device)

    def begin(self, plan: Plan) -> None:
        """Put a trial on the bench; the one before is dropped."""
        self.plan = plan
        self.put(self.shared.task_of(plan))

    def advance(self, *, measured: bool = True) -> dict[str, object]:
        """Train the trial to its next rung or its end and return what `Bench.train` does.

        Without being `measured` it is trained to the end and stays on the bench.
        """
        return self.train(self._measured if measured else None)

    def _measured(self, engine: Engine, step: int, seconds: Callable[[], float]) -> dict[str, object]:
        return measure(self.examiner, engine, self.plan, step, seconds)


def examine_base(
    shared: Shared, device: torch.device
) -> tuple[list[Cell], dict[str, float | None], dict[str, object] | None]:
    """Return what `Study.set_base` takes: the base's cells and answers, and both as YaRN reads each window at W / L.

    Raises:
        SettingsError: If the model, the shards or the documents are not what the recipe says.
    """
    disable_progress_bar()
    task = shared.task
    loaded = LoadedModel(
        task.model,
        device=device,
        dtype=precision_of(task.train, device),
        vocab_size=task.vocab_size,
        method=method_of(task.positions.method),
        base_context_length=task.base_context_length,
        tokenizer_folder=task.tokenizer_folder,
        seed=task.seed,
    )
    examiner = Examiner(shared, ShardSet.open(task.shards), device)
    cells = examiner.cells(loaded.model, loaded.hook, examiner.surface)
    asked = examiner.asked(loaded.model, loaded.hook)
    try:
        refuse_scaled(loaded.model, "yarn")
        loaded.read_by(method_of(UNTRAINED["yarn"]))
    except SettingsError as error:  # a base that YaRN cannot read, whose trials go on without that row
        print(f"evaluate base: {error}", flush=True)
        return cells, asked, None
    served = examiner.cells(loaded.model, loaded.hook, examiner.served)
    return cells, asked, {"cells": served, **examiner.asked(loaded.model, loaded.hook)}
