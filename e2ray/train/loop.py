"""The training loop, free of Ray, files and the cluster: it runs with a list of batches and small functions.

A search trial and a training job are this same function, so that the same settings give the same losses.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray import files
from e2ray.config.train import TrainSettings
from e2ray.core.losses import predicted
from e2ray.records.run import MetricsLine
from e2ray.train.batch import Batch
from e2ray.train.schedule import learning_rate

Answer = Literal["stop"] | None


class Diverged(RuntimeError):
    """The training makes no usable progress: a restart would meet the same numbers."""


@dataclass
class Skips:
    """Steps that changed nothing, since their gradient norm or loss was no finite number."""

    total: int = 0  # of the run
    in_a_row: int = 0  # up to the newest step

    def count(self, skipped: bool) -> None:
        """Count one more step."""
        self.total += skipped
        self.in_a_row = self.in_a_row + 1 if skipped else 0

    def refuse_more_than(self, most: int, *, step: int) -> None:
        """Raise Diverged if as many steps as are allowed were skipped in a row, up to this one."""
        if self.in_a_row >= most:
            first = step - self.in_a_row + 1
            which = f"step {step}" if first == step else f"steps {first} to {step}"
            raise Diverged(
                f"{which} had no finite gradient norm or loss and changed nothing, {most} in a row end the run "
                "(max_skipped_steps); the rows and draws stand in skipped.jsonl; look at them, lower train.lr or "
                "lengthen the warm-up"
            )


class TrainingEngine(Protocol):
    """What the loop asks of an engine."""

    device: torch.device
    num_workers: int

    def update(self, batch: Batch, *, lr: float) -> Tensor:
        """Make one update and return each row's mean NLL over what it predicts, float32 [rows]."""

    @property
    def figures(self) -> Mapping[str, Tensor]:
        """Means of each row that the last update found beside the NLL, float32 [rows], by name."""

    @property
    def skipped(self) -> bool:
        """Whether the last update changed nothing, the same on every rank."""

    def mfu(self, tokens_per_second: float, *, window: int) -> float | None:
        """Return the share of the GPUs' operations that training needs at so many tokens a second, of all ranks."""

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""

    @property
    def grad_norm(self) -> float:
        """Norm of the last gradient before clipping; no finite number where the update was skipped."""


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
        self.figures: dict[str, Tensor] = {}  # sum of a figure over rows, and of the rows' weights
        self.since, self.waited, self.steps, self.skipped, self.rows = time.perf_counter(), 0.0, 0, 0, 0

    def add(self, batch: Batch, nll: Float[Tensor, " rows"], waited: float, *, skipped: bool = False) -> None:
        """Count one update's rows; `waited` is the time in s spent waiting for its data.

        A row without a finite NLL enters no mean.
        """
        scale = batch.draw.scale.to(self.engine.device, non_blocking=True)
        bucket = scale_bucket(scale).clamp(max=self.BUCKETS - 1)
        weights = torch.ones_like(nll, dtype=torch.float64)
        if batch.token_index is not None:  # a mean over tokens, not over rows
            counts = predicted(batch.token_index).sum(dim=1).double()
            weights = counts.to(self.engine.device, non_blocking=True) / (self.window - 1)
        weights, nll = weights * nll.isfinite(), nll.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        self.rows += len(nll) * self.engine.num_workers
        columns = torch.stack([nll.double() * weights, weights, scale.double() * weights], dim=1)
        self.sums.index_add_(0, bucket, columns)
        for name, values in self.engine.figures.items():
            known = weights * values.isfinite()
            part = torch.stack([(values.nan_to_num(0.0, 0.0, 0.0).double() * known).sum(), known.sum()])
            self.figures[name] = self.figures[name] + part if name in self.figures else part
        self.sums[self.BUCKETS, 0] += waited
        self.waited += waited
        self.steps += 1
        self.skipped += skipped

    def line(self, *, step: int, lr: float) -> MetricsLine:
        """Return the metrics since the last line over all ranks, and start anew; every rank must call this.

        Means are over the rows with a finite NLL. None stands for a number that is not finite: the means where there
        was no such row, and the norm of a step that was skipped.
        """
        sums = self.engine.total(self.sums).cpu()
        figures = {name: self.engine.total(self.figures[name]).tolist() for name in sorted(self.figures)}
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
            "mfu": self.engine.mfu(interval_tokens / seconds, window=self.window),
            "scale_mean": float(scale.sum() / rows.sum()),
            "loss_by_scale": {str(2**k): float(loss[k] / rows[k]) for k in range(self.BUCKETS) if rows[k] > 0},
            "data_wait_s": waited / self.steps,
            "skipped_steps": self.skipped,
            **{name: total / weight if weight else None for name, (total, weight) in figures.items()},
        }
        self._reset()
        return MetricsLine.model_validate(files.finite(metrics))


def fit(
    engine: TrainingEngine,
    batches: Iterable[Batch],
    settings: TrainSettings,
    *,
    start_step: int,
    report: Callable[[MetricsLine], Answer],
    save: Callable[[int], object],
    evaluate: Callable[[int], Mapping[str, object]] | None = None,
    progress: Callable[[int], object] | None = None,
    note_skipped: Callable[[int, Batch, Tensor], object] | None = None,
    skips: Skips | None = None,
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
        note_skipped: Called on every rank with a skipped step's number (from 1), its batch and each row's NLL.
        skips: Steps skipped before; new ones are added.
        tokens: Tokens read before, those of skipped steps included.

    Raises:
        Diverged: If as many steps in a row as `settings.max_skipped_steps` were skipped.
    """
    meter: Meter | None = None
    skips = Skips() if skips is None else skips
    source = iter(batches)
    for step in range(start_step, settings.steps):
        batch, waited = _next(source)
        if meter is None:
            meter = Meter(engine, batch.tokens.shape[1])
            meter.tokens = tokens
        lr = learning_rate(settings, step)
        nll = engine.update(batch, lr=lr)
        meter.add(batch, nll, waited, skipped=engine.skipped)
        done = step + 1
        skips.count(engine.skipped)
        if engine.skipped and note_skipped:
            note_skipped(done, batch, nll)
        skips.refuse_more_than(settings.max_skipped_steps, step=done)
        last = done == settings.steps
        if last or done % settings.log_every == 0:
            if engine.any(report(_line(meter, done, lr, evaluate)) == "stop"):
                save(done)
                return done
        if last or done % settings.checkpoint_every == 0:
            began = time.perf_counter()
            save(done)
            meter.since += time.perf_counter() - began  # its time is not the training's
        if progress:
            progress(done)
    return settings.steps


def _next(source: Iterator[Batch]) -> tuple[Batch, float]:
    """Return the next batch and how long the wait for it was, in s."""
    asked = time.perf_counter()
    batch = next(source)
    return batch, time.perf_counter() - asked


def _line(meter: Meter, step: int, lr: float, evaluate: Callable[[int], Mapping[str, object]] | None) -> MetricsLine:
    """Return the metrics of a logged step, with those of an evaluation if there is one."""
    metrics = meter.line(step=step, lr=lr)
    if evaluate:
        metrics = metrics.changed(**files.finite(dict(evaluate(step))))
        meter.since = time.perf_counter()  # its time is not the training's
    return metrics
