"""From a context length to a scale: W / L as in the paper, unless draws, lanes or measurements say otherwise.

W is the length of the text that is read and L the base context length, both in tokens. No other module divides them.
"""

import math

from e2ray.config.compare import FIXED_SCALE, UNTOUCHED
from e2ray.config.positions import PositionSettings
from e2ray.core.methods.ntk import DynamicNtk
from e2ray.records.scales import ScaleRow, Scales


def paper_scale(window: int, base_context_length: int) -> float:
    """Return the scale at which the paper serves a window: W / L, at least 1."""
    return max(1.0, window / base_context_length)


def reaching_scale(context_length: int, base_context_length: int) -> float:
    """Return W / L, at least 1, rounded up so that scale * L reaches W in floating point.

    Servers compare W with that product and would refuse a context length that is too long by rounding alone.
    """
    scale = paper_scale(context_length, base_context_length)
    return scale if scale * base_context_length >= context_length else math.nextafter(scale, math.inf)


def drawn_scale(positions: PositionSettings, window: int, base_context_length: int) -> float:
    """Return the scale at which a model trained with these draws reads a window; see `PositionSettings.serve_at`."""
    return positions.serve_at(window / base_context_length)


def lane_scale(lane: str, window: int, base_context_length: int, max_scale: float) -> float:
    """Return the scale at which a lane reads a window: 1 for the untouched base, G where it trained for G alone."""
    if lane == UNTOUCHED:
        return 1.0
    return max_scale if lane in FIXED_SCALE else paper_scale(window, base_context_length)


def untrained_scale(lane: str, window: int, base_context_length: int, max_scale: float) -> float:
    """Return the scale at which an untrained lane reads a window, which for dynamic NTK depends on G and W."""
    if lane == "dynamic_ntk":
        return DynamicNtk.scale_of(max_scale, window, base_context_length)
    return lane_scale(lane, window, base_context_length, max_scale)


def row_scale(row: ScaleRow) -> float:
    """Return the scale at which a row of scales.json serves its length.

    In older files `served` may be the best of several scales without W / L among them; they are read as W / L.
    """
    return row.served if row.paper_scale is None or row.paper_nll is not None else row.paper_scale


def served_at(scales: Scales, context_length: int) -> float:
    """Return the scale at which a request of `context_length` tokens is read: that of the next longer measured length.

    Beyond the longest measured length it is W / L, as in the paper.
    """
    for row in scales.lengths:
        if row.context_length >= context_length:
            return row_scale(row)
    return paper_scale(context_length, scales.base_context_length)


def request_scale(num_tokens: int, base_context_length: int, scales: Scales | None) -> float:
    """Return the scale at which a prompt and its answer are read: that of scales.json if there is one, else W / L."""
    if scales is not None:
        return served_at(scales, num_tokens)
    return paper_scale(num_tokens, base_context_length)


def default_scales(max_scale: float) -> tuple[float, ...]:
    """Return the scales 1, 2, 4, ... up to `max_scale`."""
    if max_scale < 1:
        raise ValueError(f"max_scale must be at least 1, got {max_scale}")
    return tuple(2.0**power for power in range(math.floor(math.log2(max_scale)) + 1))


def default_windows(base_context_length: int, max_scale: float) -> tuple[int, ...]:
    """Return the windows L, 2L, 4L, ... up to max_scale * L, in tokens."""
    return tuple(int(base_context_length * scale) for scale in default_scales(max_scale))
