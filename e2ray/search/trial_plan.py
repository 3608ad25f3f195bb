"""What goes between a study and the processes of its trials: what to try, and what was found.

Knows neither Optuna nor what a study makes of its trials, which those processes would load for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from e2ray.config.run import RunConfig
from e2ray.search.objectives import cell_nll, long_of


@dataclass(frozen=True)
class Plan:
    """One trial to run: the recipe it trains with and the steps at which it is measured.

    `front` holds what the full trials so far found, (long, NLL at L) of each that no other beats on both.
    """

    number: int
    config: RunConfig
    rungs: tuple[int, ...]
    baseline: str | None
    repeat: int | None
    params: dict[str, Any]
    front: tuple[tuple[float, float], ...] = ()

    def may_lead(self, cells: Sequence[Mapping[str, Any]], windows: Sequence[int], base_context_length: int) -> bool:
        """Return whether none of the front is at least as good on both objectives as a trial with these cells."""
        long, short = long_of(cells, windows, base_context_length), cell_nll(cells, base_context_length, 1.0)
        return not any(other[0] <= long and other[1] <= short for other in self.front)


@dataclass(frozen=True)
class Measured:
    """What a trial's worker found at a step.

    Attributes:
        step: Updates made.
        cells: Rows {window, scale, nll, stderr, tokens, documents, stride}.
        asked: By objective of the retrieval grid what was found, None where the study does not ask.
        tokens: Tokens trained on so far.
        seconds: Wall time of training and evaluation so far.
        loss: Training loss since the last logged step; None where no row had a finite one.
    """

    step: int
    cells: list[dict[str, Any]]
    asked: dict[str, float | None]
    tokens: int
    seconds: float
    loss: float | None
