"""Looks at a model while it trains: NLL of a few held-out documents at L and at longer windows, and the price at L.

Every window scores the same last tokens of the same documents, read at the scale that the draws serve it at. The price
is NLL at L minus that of the untouched model, before its first step and at scale 1.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from e2ray.config.base import SettingsError
from e2ray.config.train import TrainSettings
from e2ray.core.scales import drawn_scale
from e2ray.data.shards import ShardSet
from e2ray.evaluate.by_length import token_nlls
from e2ray.evaluate.documents import documents_digest, select_documents
from e2ray.evaluate.perplexity import is_out_of_memory
from e2ray.records.checkpoint import FirstLook, Look, Watched
from e2ray.records.run import MetricsLine
from e2ray.train.engine import Engine
from e2ray.train.task import Task

NLL, PRICE = "watch_nll", "price_at_base"


def watched_windows(base_context_length: int, max_scale: float) -> tuple[int, ...]:
    """Return L, the longest window that is trained for, and their geometric mean."""
    ends = (1.0, max_scale**0.5, max_scale)
    return tuple(sorted({round(base_context_length * scale) for scale in ends}))


class Lookout:
    """What looks at a model in training; every rank has one and takes part in each look.

    Attributes:
        windows: W in tokens, ascending; the first is L.
        base: `nll` of the untouched model at L and scale 1, and what it was measured on; None until it is known.
        last: What the newest look found, None before it.
    """

    def __init__(self, engine: Engine, task: Task, documents: Sequence[np.ndarray]) -> None:
        """Choose the first of the held-out documents, integer tokens each, that are long enough.

        Raises:
            SettingsError: If none fills the window of L tokens.
        """
        self.engine, self.task = engine, task
        lengths = [len(document) for document in documents]
        windows = watched_windows(task.base_context_length, task.positions.max_scale)
        self.windows = tuple(window for window in windows if window <= max(lengths, default=0))
        if not self.windows:
            raise SettingsError(
                f"train.watch_every: the longest held-out document has {max(lengths, default=0)} tokens, wanted the "
                f"{windows[0]} of L at least; name longer ones in data.validation_corpus, or set it to null"
            )
        chosen = select_documents(
            documents, minimum_tokens=self.windows[-1], limit=task.train.watch_documents, cut=self.windows[-1]
        )
        share = slice(None) if task.train.zero_stage == 3 else slice(engine.rank, None, engine.num_workers)
        self.documents = list(chosen)[share]  # of ZeRO 3 every rank takes part in each forward
        self.digest = documents_digest(chosen)
        self.base: FirstLook | None = None
        self.last: Look | None = None

    @property
    def scored(self) -> int:
        """S, tokens that every window scores at its end."""
        return max(1, self.windows[0] // 2)

    def look(self) -> dict[str, float | None]:
        """Return NLL by window, nats per token; every rank must call this and gets the same.

        None stands for a window that did not fit into memory, or gave no finite number.
        """
        length = self.task.base_context_length
        return {
            str(window): self._nll(window, drawn_scale(self.task.positions, window, length)) for window in self.windows
        }

    def _nll(self, window: int, scale: float) -> float | None:
        sums = torch.zeros(2, dtype=torch.float64, device=self.engine.device)
        try:
            if self.documents:
                nll = token_nlls(
                    self.engine.ds.module,
                    self.engine.hook,
                    [document[-window:] for document in self.documents],
                    window=window,
                    scale=scale,
                    batch_tokens=window,
                    device=self.engine.device,
                )[:, -self.scored :]
                sums += torch.tensor([nll.sum(dtype=np.float64), nll.size], dtype=torch.float64)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            sums += math.nan
        total, count = self.engine.total(sums).tolist()
        return total / count if math.isfinite(total) else None

    def begin(self, step: int = 0) -> dict[str, object]:
        """Look at the model before its first step; every rank must call this.

        Raises:
            SettingsError: If that gives no number and the training is to end by it.
        """
        nll = self._nll(self.windows[0], 1.0)
        if nll is None and self.task.train.stop is not None:
            raise SettingsError(
                f"train.stop: NLL of the untouched model at {self.windows[0]} tokens is no finite number or did not "
                "fit into memory, so no price can be told; set it to null"
            )
        self.base = self._first(nll)
        return {}

    def _first(self, nll: float | None) -> FirstLook:
        return FirstLook(nll=nll, window=self.windows[0], scored=self.scored, documents=self.digest)

    def resume(self, watched: Watched | None) -> None:
        """Continue from what a checkpoint has kept.

        Raises:
            SettingsError: If it was made without a look at this text before the first step.
        """
        if watched is None or watched.base is None or watched.base != self._first(watched.base.nll):
            raise SettingsError(
                "train.watch_every: the checkpoint was made without a look at these documents before the first step, "
                "so no price can be told; set it and train.watch_documents as they were, or choose another name"
            )
        self.base, self.last = watched.base, watched.last

    def metrics(self, step: int) -> dict[str, object]:
        """Return what joins a logged step's metrics: `watch_nll` by window, and `price_at_base` in nats per token."""
        assert self.base is not None, "the first look is before the first step"
        nll, before = self.look(), self.base.nll
        here = nll[str(self.windows[0])]
        price = None if here is None or before is None else here - before
        self.last = Look(step=step, watch_nll=nll, price_at_base=price)
        return {NLL: nll, PRICE: price}

    def watched(self) -> Watched:
        """Return what a checkpoint keeps."""
        return Watched(base=self.base, last=self.last)


def lookout_of(engine: Engine, task: Task) -> Lookout | None:
    """Return the lookout of a training, None where it is not watched."""
    if task.train.watch_every is None:
        return None
    opened = ShardSet.open(task.shards, window=task.window, tokenizer_hash=task.tokenizer_hash)
    return Lookout(engine, task, opened.held_out())


def pays_too_much(settings: TrainSettings, line: MetricsLine | Look, base_context_length: int) -> str | None:
    """Return one line if a step's metrics end a training by `train.stop`, else None."""
    price = line.price_at_base
    if settings.stop is None or price is None or price <= settings.stop.price_at_base:
        return None
    return (
        f"step {line.step}: NLL at {base_context_length} tokens is {price:.3f} nats above the base's, "
        f"train.stop.price_at_base is {settings.stop.price_at_base:g}: it ends here"
    )
