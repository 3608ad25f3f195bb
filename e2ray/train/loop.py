"""The training loop, free of Ray, of files and of the cluster: it runs with a list and small functions.

A search trial and a training job are this same function, so that the same settings give the same losses.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray.config.train import TrainSettings
from e2ray.core.losses import predicted
from e2ray.core.positions import Draw
from e2ray.train.schedule import learning_rate

Answer = Literal["stop"] | None


class Diverged(RuntimeError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one update: tokens int64 [rows, window], their draws, and their places where packed.

    A place is a token's index in its document, int64 [rows, window]; one that only fills the row has -1 - its index
    among these. None where a row is one text.
    """

    tokens: Int[Tensor, "rows window"]
    draw: Draw
    places: Int[Tensor, "rows window"] | None = None


class TrainingEngine(Protocol):
    """What the loop asks of an engine."""

    device: torch.device
    num_workers: int

    def update(self, tokens: Tensor, draw: Draw, *, lr: float, places: Tensor | None = None) -> Tensor:
        """Make one update and return each row's mean NLL over what it predicts, float32 [rows]."""

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""

    @property
    def grad_norm(self) -> float:
        """Norm of the last gradient before clipping."""


def scale_bucket(scale: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return k for scales in (2^(k-1), 2^k]; exactly 1 is bucket 0."""
    return torch.log2(scale.double()).ceil().clamp(min=0).long()


class Meter:
    """Sums of losses by scale since the last line, kept on the device: no step waits for a number."""

    BUCKETS = 24  # up to scale 2^23; the last bucket takes what is larger

    def __init__(self, engine: TrainingEngine, window: int) -> None:
        self.engine, self.window = engine, window
        self.tokens = 0
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(self.BUCKETS + 1, 3, dtype=torch.float64, device=self.engine.device)
        self.since, self.waited, self.steps, self.rows = time.perf_counter(), 0.0, 0, 0

    def add(self, batch: Batch, nll: Float[Tensor, " rows"], waited: float) -> None:
        """Count one update's rows; `waited` is the time in s that its data were waited for."""
        scale = batch.draw.scale.to(self.engine.device)
        bucket = scale_bucket(scale).clamp(max=self.BUCKETS - 1)
        weights = torch.ones_like(nll, dtype=torch.float64)
        if batch.places is not None:  # a mean over tokens, not over rows
            weights = predicted(batch.places).sum(dim=1).double().to(self.engine.device) / (self.window - 1)
        self.rows += len(nll) * self.engine.num_workers
        columns = torch.stack([nll.double() * weights, weights, scale.double() * weights], dim=1)
        self.sums.index_add_(0, bucket, columns)
        self.sums[self.BUCKETS, 0] += waited
        self.waited += waited
        self.steps += 1

    def line(self, *, step: int, lr: float) -> dict[str, Any]:
        """Return the metrics since the last line over all ranks, and start anew; every rank must call this."""
        sums = self.engine.total(self.sums).cpu()
        waited = float(sums[self.BUCKETS, 0]) / self.engine.num_workers
        loss, rows, scale = (sums[: self.BUCKETS, column] for column in range(3))
        seconds = time.perf_counter() - self.since
        interval_tokens = self.rows * self.window
        self.tokens += interval_tokens
        metrics = {
            "step": step,
            "tokens": self.tokens,
            "loss": float(loss.sum() / rows.sum()),
            "lr": lr,
            "grad_norm": self.engine.grad_norm,
            "tokens_per_second": interval_tokens / seconds,
            "scale_mean": float(scale.sum() / rows.sum()),
            "loss_by_scale": {str(2**k): float(loss[k] / rows[k]) for k in range(self.BUCKETS) if rows[k] > 0},
            "data_wait_s": waited / self.steps,
        }
        self._reset()
        return metrics


def fit(
    engine: TrainingEngine,
    batches: Iterable[Batch],
    settings: TrainSettings,
    *,
    start_step: int,
    report: Callable[[dict[str, Any]], Answer],
    save: Callable[[int], object],
    evaluate: Callable[[int], dict[str, Any]] | None = None,
    progress: Callable[[int], object] | None = None,
    tokens: int = 0,
) -> int:
    """Train from `start_step` to `settings.steps` and return the number of updates made in all.

    Args:
        engine: The model and its optimizer on this rank.
        batches: One batch of this rank's rows per step, beginning with step `start_step`.
        settings: Steps, schedule and how often to log and save.
        start_step: Updates that were made before.
        report: Takes the metrics of a logged step; may answer "stop", which all ranks then agree on.
        save: Called with the number of updates made, every `checkpoint_every` steps and at the end.
        evaluate: Called with each logged step; its numbers, if any, join that step's metrics.
        progress: Called after every update with the number of updates made.
        tokens: Tokens that were trained on before.

    Raises:
        Diverged: If a loss is no finite number; the last checkpoint is from before.
    """
    meter: Meter | None = None
    source = iter(batches)
    for step in range(start_step, settings.steps):
        asked = time.perf_counter()
        batch = next(source)
        waited = time.perf_counter() - asked
        if meter is None:
            meter = Meter(engine, batch.tokens.shape[1])
            meter.tokens = tokens
        lr = learning_rate(settings, step)
        meter.add(batch, engine.update(batch.tokens, batch.draw, lr=lr, places=batch.places), waited)
        done = step + 1
        last = done == settings.steps
        saving = last or done % settings.checkpoint_every == 0
        if last or done % settings.log_every == 0:
            metrics = meter.line(step=done, lr=lr)
            if not math.isfinite(metrics["loss"]):
                raise Diverged(f"the loss is {metrics['loss']} at step {done}; lower train.lr or lengthen the warm-up")
            if evaluate:
                metrics |= evaluate(done)
            if engine.any(report(metrics) == "stop"):
                save(done)
                return done
        if saving:
            save(done)
        if progress:
            progress(done)
    return settings.steps
