"""What a trial is worth at a step: the model in training, or the base, read on the documents of its study."""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.core.scales import paper_scale
from e2ray.data.shards import ShardSet
from e2ray.data.tokenizer import load_tokenizer
from e2ray.evaluate.documents import select_documents
from e2ray.evaluate.perplexity import OUT_OF_MEMORY, cell, document_sums
from e2ray.evaluate.retrieval import accuracy
from e2ray.search.objectives import ASKED, long_windows
from e2ray.search.record import Cell
from e2ray.search.shared import Shared
from e2ray.search.trial_plan import Plan
from e2ray.train import checkpoint
from e2ray.train.engine import Engine


class Examiner:
    """Measures a model on the study's documents, the same for every trial."""

    def __init__(self, shared: Shared, shards: ShardSet, device: torch.device) -> None:
        """Choose the documents.

        Raises:
            SettingsError: If none is as long as the largest window.
        """
        settings = shared.evaluate
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
        return self.served | set(itertools.product({self.length, *self.windows}, self.settings.scales))

    def cells(self, model: nn.Module, hook: RotaryHook, pairs: set[tuple[int, float]]) -> list[Cell]:
        """Return the cell of each (window, scale), ascending.

        Raises:
            DivergedWeights: If an NLL is no finite number.
        """
        rows = []
        for window, scale in sorted(pairs):
            rows += document_sums(
                model,
                hook,
                self.documents,
                windows=[window],
                scales=[scale],
                stride=self.settings.stride,
                batch_tokens=self.settings.batch_tokens,
                device=self.device,
                name="tuned",
            )
        if len(rows) < len(pairs):
            raise SettingsError(f"evaluation: a window of {max(self.windows)} tokens: {OUT_OF_MEMORY}")
        return [
            Cell(
                window=row.window,
                scale=row.scale,
                nll=row.nll,
                stderr=row.stderr,
                tokens=row.tokens,
                documents=row.documents,
                stride=row.stride,
            )
            for row in map(cell, rows)
        ]

    def asked(self, model: nn.Module, hook: RotaryHook) -> dict[str, float | None]:
        """Return the objectives of the retrieval grid, each None where the study does not ask for them.

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
        trials = sum(row.trials for row in rows)
        known = [row.answer_nll for row in rows if row.answer_nll is not None]
        nll = sum(answer * row.trials for answer, row in zip(known, rows, strict=True)) / trials
        return {"retrieval": sum(row.found for row in rows) / trials, "answer_nll": nll}

    def examine(self, engine: Engine, plan: Plan, *, last: bool) -> dict[str, object]:
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


def measure(
    examiner: Examiner, engine: Engine, plan: Plan, step: int, seconds: Callable[[], float]
) -> dict[str, object]:
    """Return what is measured of a trial at a step: nothing but at its rungs and its end; `seconds` returns its time.

    Raises:
        Diverged: If its state is not finite, where the documents need not show it.
        DivergedWeights: If an NLL is not finite.
    """
    last = step == plan.config.train.steps
    if not last and step not in plan.rungs:
        return {}
    checkpoint.refuse_non_finite(engine, step=step)
    result = examiner.examine(engine, plan, last=last)
    return result | {"trial_seconds": seconds(), "complete": last}
