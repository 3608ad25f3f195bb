"""The objectives of a search, read off the cells that a trial was measured at."""

from collections.abc import Sequence

import numpy as np

from e2ray.core.scales import paper_scale
from e2ray.search.record import Cell

ASKED = ("retrieval", "answer_nll")  # objectives of the retrieval grid


def cell_nll(cells: Sequence[Cell], window: int, scale: float) -> float:
    """Return the NLL of one cell.

    Raises:
        ValueError: If it was not measured.
    """
    for cell in cells:
        if cell["window"] == window and abs(cell["scale"] - scale) < 1e-6:
            return float(cell["nll"])
    raise ValueError(f"window {window} at scale {scale:g} was not measured")


def long_windows(measured: Sequence[int], base_context_length: int) -> tuple[int, ...]:
    """Return the windows of the long objective among those measured: those beyond L, or all where none is."""
    return tuple(window for window in measured if window > base_context_length) or tuple(measured)


def long_of(cells: Sequence[Cell], windows: Sequence[int], base_context_length: int) -> float:
    """Return the mean NLL over windows, each read at scale W / L.

    Raises:
        ValueError: If one was not measured.
    """
    nll = [cell_nll(cells, window, paper_scale(window, base_context_length)) for window in windows]
    return float(np.mean(nll))


def minimised(objective: str, value: float | None) -> float:
    """Return an objective as a number that is better the lower it is."""
    assert value is not None
    return 1 - value if objective == "retrieval" else value
