"""Position draws: one scale per training row, and the position that each of its tokens claims to have.

Every published short-window method splits the window into segments, moves each on by a non-decreasing jump
and divides by a scale. This module draws such rows from the family in `config/positions.py`, whose docstrings
give the densities. A draw is a pure function of (seed, step, index in the global batch): the number of
workers, the size of a micro batch and a restart change nothing. RoPE sees only differences of positions, so
a jump common to all tokens of a row has no effect.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import assert_never

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from e2ray.config.positions import (
    BetaJump,
    BetaScale,
    ChoiceScale,
    ChunksPlacement,
    EndsJump,
    FixedScale,
    HeadMiddleTailPlacement,
    Jump,
    LogUniformScale,
    NonePlacement,
    Placement,
    PositionSettings,
    PowerScale,
    PrefixPlacement,
    RandomBreaksPlacement,
    Scale,
    SortedRandomPlacement,
    TerminalPlacement,
    UniformIntScale,
    UniformJump,
    UniformScale,
)

Offsets = Int64[np.ndarray, " window"]

# First words of every key, so that no other random stream of a run shares its numbers with the draws.
SEQUENCE_KEY = 0x7365_7175
STEP_KEY = 0x7374_6570


@dataclass(frozen=True)
class Draw:
    """The scales and offsets of a batch of rows.

    Attributes:
        scale: float32 [batch], each at least 1; divides positions.
        offsets: int64 [batch, window], position before scaling minus the token's index; non-decreasing along a
            row and at least 0.
    """

    scale: Float[Tensor, " batch"]
    offsets: Int[Tensor, "batch window"]

    def repeated(self, times: int) -> "Draw":
        """Return the draw with each row repeated, one copy after the other."""
        if times == 1:
            return self
        return Draw(self.scale.repeat_interleave(times), self.offsets.repeat_interleave(times, dim=0))

    def __getitem__(self, rows: slice) -> "Draw":
        """Return the draw of a slice of the rows."""
        return Draw(self.scale[rows], self.offsets[rows])


def draw(
    settings: PositionSettings,
    *,
    seed: int,
    step: int,
    indices: Sequence[int],
    window: int,
    base_context_length: int,
) -> Draw:
    """Return the draws of the rows `indices` of a step's global batch.

    Args:
        settings: The distributions to draw from.
        seed: Seed of the run, >= 0.
        step: Step the rows belong to, >= 0.
        indices: Of the rows in the global batch, each >= 0; a row's draw depends on no other row.
        window: Tokens of a row, R >= 2.
        base_context_length: Tokens the base model was pretrained with, L.

    Returns:
        Draw on the CPU with one row per index; with `per: step` all rows, of any rank, are equal.

    Raises:
        ValueError: If the placement does not fit the window.
    """
    settings.check_window(window)
    scale = np.empty(len(indices), dtype=np.float32)
    offsets = np.empty((len(indices), window), dtype=np.int64)
    if settings.per == "step":
        scale[:], offsets[:] = _row(_generator(STEP_KEY, seed, step), settings, window, base_context_length)
    else:
        for row, index in enumerate(indices):
            rng = _generator(SEQUENCE_KEY, seed, step, index)
            scale[row], offsets[row] = _row(rng, settings, window, base_context_length)
    return Draw(torch.from_numpy(scale), torch.from_numpy(offsets))


def positions(draw: Draw) -> Float[Tensor, "batch window"]:
    """Return the positions of rows of one document each: (index + offset) / scale.

    Returns:
        float32 [batch, window], in base-model tokens.
    """
    index = torch.arange(draw.offsets.shape[1], device=draw.offsets.device)
    return (index + draw.offsets).to(torch.float32) / draw.scale[:, None]


def room(scale: float, base_context_length: int, window: int) -> int:
    """Return T = floor(max(0, scale * L - R)): how far the last token of a window may move, in tokens.

    It is 0 where the scaled context is no longer than the window. Source: E2-LLM (arXiv:2401.06951), under Eq. 7.
    """
    return math.floor(max(0.0, scale * base_context_length - window))


def _generator(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def _row(
    rng: np.random.Generator, settings: PositionSettings, window: int, base_context_length: int
) -> tuple[np.float32, Offsets]:
    """Return the scale and the offsets of one row; the room is that of the scale rounded to float32."""
    scale = np.float32(1.0 if rng.random() < settings.scale.native_share else _scale(rng, settings.scale))
    tokens = room(float(scale), base_context_length, window)
    return scale, _offsets(rng, settings.placement, window, tokens)


def _scale(rng: np.random.Generator, scale: Scale) -> float:
    """Return one scale of the distribution, without regard to `native_share`."""
    match scale:
        case FixedScale():
            return scale.max_scale
        case UniformIntScale():
            return float(rng.integers(1, int(scale.max_scale), endpoint=True))
        case UniformScale():
            return 1 + (scale.max_scale - 1) * rng.random()
        case LogUniformScale():
            return scale.max_scale ** rng.random()
        case PowerScale():
            return _power(rng.random(), scale.max_scale, scale.exponent)
        case BetaScale():
            return 1 + (scale.max_scale - 1) * rng.beta(scale.a, scale.b)
        case ChoiceScale():
            weights = np.array([choice.weight for choice in scale.choices])
            return scale.choices[rng.choice(len(weights), p=weights / weights.sum())].scale
    assert_never(scale)


def _power(u: float, max_scale: float, exponent: float) -> float:
    """Return the u-quantile of the density proportional to g ** exponent on [1, max_scale].

    Written with expm1 and log1p, since the plain form loses all digits near exponent -1, the log-uniform one.
    """
    growth = (exponent + 1) * math.log(max_scale)
    if abs(growth) < 1e-12:
        return max_scale**u
    return math.exp(math.log1p(u * math.expm1(growth)) / (exponent + 1))


def _jumps(rng: np.random.Generator, jump: Jump, tokens: int, num_jumps: int) -> Int64[np.ndarray, " jumps"]:
    """Return independent jumps in {0, ..., tokens}."""
    match jump:
        case UniformJump():
            return rng.integers(0, tokens, size=num_jumps, endpoint=True)
        case BetaJump():
            return np.rint(tokens * rng.beta(jump.a, jump.b, size=num_jumps)).astype(np.int64)
        case EndsJump():
            full = rng.random(num_jumps) < jump.p
            return np.where(full, tokens, rng.integers(0, tokens, size=num_jumps, endpoint=True))
    assert_never(jump)


def _offsets(rng: np.random.Generator, placement: Placement, window: int, tokens: int) -> Offsets:
    """Return the offsets of one row with room for `tokens`, the T of `room`."""
    match placement:
        case NonePlacement():
            return np.zeros(window, dtype=np.int64)
        case PrefixPlacement():
            return _steps(window, [placement.prefix], _jumps(rng, placement.jump, tokens, 1))
        case RandomBreaksPlacement():
            breaks = 1 + rng.choice(window - 1, placement.num_breaks, replace=False, shuffle=False)
            return _steps(window, np.sort(breaks), np.sort(_jumps(rng, placement.jump, tokens, len(breaks))))
        case SortedRandomPlacement():
            return _sorted_random(rng, placement, window, tokens)
        case HeadMiddleTailPlacement():
            middle = _truncated_gaussian(rng.random(), tokens, placement.sigma)
            return _steps(window, [placement.tokens, window - placement.tokens], [middle, tokens])
        case TerminalPlacement():
            return _steps(window, [window - placement.tokens], _jumps(rng, placement.jump, tokens, 1))
        case ChunksPlacement():
            return _chunks(rng, placement.num_chunks, window, tokens)
    assert_never(placement)


def _steps(
    window: int, breaks: Sequence[int] | Int64[np.ndarray, " jumps"], jumps: Sequence[int] | Int64[np.ndarray, " jumps"]
) -> Offsets:
    """Return offsets that are 0 before the first break and `jumps[i]` from `breaks[i]` on; both ascend."""
    lengths = np.diff(np.concatenate(([0], breaks, [window])))
    return np.repeat(np.concatenate(([0], jumps)), lengths)


def _sorted_random(rng: np.random.Generator, placement: SortedRandomPlacement, window: int, tokens: int) -> Offsets:
    """Return offsets to `window` sorted integers out of {0, ..., window + tokens - 1}, with ends pinned if asked."""
    first, last = int(placement.pin_first), int(placement.pin_last)
    stands = np.empty(window, dtype=np.int64)
    stands[0], stands[-1] = 0, window + tokens - 1
    free = rng.choice(window + tokens - first - last, window - first - last, replace=False, shuffle=False)
    stands[first : window - last] = first + np.sort(free)
    return stands - np.arange(window)


def _truncated_gaussian(u: float, tokens: int, sigma: float) -> int:
    """Return the rounded u-quantile of a Gaussian about tokens / 2, truncated to [0, tokens].

    The free range of a block is the offsets {0, ..., tokens}; sigma is a share of it. Source: CREAM
    (arXiv:2406.07138), which draws the block's middle toward the centre of the range.
    """
    normal = NormalDist()
    below = normal.cdf(-0.5 / sigma)
    probability = min(max(below + u * (1 - 2 * below), 1e-300), 1 - 2**-53)
    return min(max(round(tokens * (0.5 + sigma * normal.inv_cdf(probability))), 0), tokens)


def _chunks(rng: np.random.Generator, num_chunks: int, window: int, tokens: int) -> Offsets:
    """Return offsets of n equal chunks, each placed uniformly within its own n-th of window + tokens.

    Source: LOGO (arXiv:2410.18533), continuous chunks; each chunk stays in its own stretch, as in LOGO's code.
    """
    length = window // num_chunks
    bounds = np.arange(num_chunks + 1) * (window + tokens) // num_chunks
    starts = rng.integers(bounds[:-1], bounds[1:] - length, endpoint=True)
    return np.repeat(starts - np.arange(num_chunks) * length, length)
