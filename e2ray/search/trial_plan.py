"""What passes between a study and the processes of its trials: what to try, and what was measured.

Knows neither Optuna nor the study's own modules, which those processes would load for nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from e2ray.config.run import RunConfig
from e2ray.config.search import Value
from e2ray.search.objectives import cell_nll, long_of
from e2ray.search.record import Cell


@dataclass(frozen=True)
class Plan:
    """One trial to run: the recipe it trains with and the steps at which it is measured.

    `front` is the Pareto front of the full trials so far: (long, NLL at L) of each that no other beats on both.
    """

    number: int
    config: RunConfig
    rungs: tuple[int, ...]
    baseline: str | None
    repeat: int | None
    params: dict[str, Value]
    front: tuple[tuple[float, float], ...] = ()

    def may_lead(self, cells: Sequence[Cell], windows: Sequence[int], base_context_length: int) -> bool:
        """Return whether none of the front is at least as good on both objectives as a trial with these cells."""
        long, short = long_of(cells, windows, base_context_length), cell_nll(cells, base_context_length, 1.0)
        return not any(other[0] <= long and other[1] <= short for other in self.front)


class Reached(TypedDict, total=False):
    """A trial at a rung or its end as its worker reports it: what was measured there, or why it failed."""

    step: int  # updates made
    tokens: int  # trained on so far
    loss: float | None  # of the training since the last logged step; None where no row had a finite one
    trial_seconds: float  # of training and evaluation so far
    cells: list[Cell]
    retrieval: float | None
    answer_nll: float | None
    complete: bool
    failed: str
