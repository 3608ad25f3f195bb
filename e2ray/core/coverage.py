"""Coverage: which relative distances a run's draws will show the model, counted before any training.

RoPE sees nothing but the difference of two positions, so what a method teaches about long windows is the set of
distances between the tokens of its rows. A model served at scale g in a window of W = g * L tokens meets the distances
k / g for k = 1 .. W - 1: all of [0, L) base-model tokens, at a spacing of 1 / g. This module draws the rows that the
run itself will draw, measures every pair of tokens in them (later minus earlier, in base-model tokens) and keeps, per
served scale, how often each part of [0, L) is shown.

Not all pairs teach the same. E2-LLM's shift acts only between the first four tokens and the rest, so it shows long
distances between a handful of tokens and everything else, and between any other two tokens none above (R - 5) / g. Each
count is therefore kept twice: over all pairs, and over the pairs of two ordinary tokens, where the leading tokens
of the row are left out.

Seen is not learned: a row whose tokens are all torn apart shows every distance (RandPos, whose perplexity is poor), but
its text is no longer contiguous. So the share of neighbours that stay neighbours is given beside what is shown.

Every pair of every drawn row is counted, none is sampled. A distance is below x exactly if the earlier position is
above the later one minus x, which is one search in the row's ascending positions; so the work is tokens * bins per
row whatever the scale, and fewer rows are drawn of windows for which that takes too long (`_num_draws`).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from e2ray.config.positions import PositionSettings, PrefixPlacement
from e2ray.core.positions import draw

MOST_BINS = 64  # of the distances [0, L)
SEEN_PAIRS_PER_ROW = 0.01  # a bin is reached if 100 rows of the run show at least one pair in it
LEADING_TOKENS = 4  # the first tokens of a row; E2-LLM leaves four unshifted, and attention leans on them anyway
MOST_DRAWS = 2048
FEWEST_DRAWS = 64  # however long the window
MOST_TOKENS = 2**22  # measured in all, unless FEWEST_DRAWS needs more
ROUNDING = 1e-9  # of a sum of shares
PIECE = 8192  # later tokens compared at once, which bounds the memory


@dataclass(frozen=True)
class ScaleCoverage:
    """Distances that the rows near one served scale show; a row belongs to the one nearest to its scale in log.

    Attributes:
        scale: The served scale g >= 1.
        context_length: round(g * L), the window W it reads, in tokens.
        rows: Share of all rows that belong to this scale, 0 to 1.
        reach: Share of the bins of [0, L) in which 100 rows of the run (rows of all scales counted) show at least
            one pair, 0 to 1.
        reach_ordinary: The same over pairs of ordinary tokens.
        overlap: 1 minus the total variation between the distances shown and those of W tokens of real text read
            at this scale, whose density is 2 (L - d) / L^2 on [0, L); 0 to 1, what is shown beyond L counts
            against it.
        neighbours: Share of the pairs of adjacent tokens that stay one token apart before scaling, 0 to 1; None
            without rows.
        near: Share of the pairs nearer than R tokens before scaling, which is all a row without jumps can show;
            None without rows.
        near_text: The same share in W tokens of real text.
        farthest: Largest distance shown, in base-model tokens; may exceed L.
        farthest_ordinary: Largest distance shown between ordinary tokens.
    """

    scale: float
    context_length: int
    rows: float
    reach: float
    reach_ordinary: float
    overlap: float
    neighbours: float | None
    near: float | None
    near_text: float
    farthest: float
    farthest_ordinary: float


@dataclass(frozen=True)
class Coverage:
    """Distances that draws show, by served scale; see the module.

    Attributes:
        window: R, tokens of a row.
        base_context_length: L, tokens.
        leading: First tokens of a row whose pairs are left out of the `ordinary` counts.
        run_rows: Rows of the whole run.
        num_rows: Rows of the run that were measured, its first ones. Where they are few, as with windows of more than
            32,768 tokens, a part of the distances that only rare rows show may look unseen.
        num_draws: Different draws among them: fewer than rows only where a step shares one.
        edges: float64 [bins + 1], bounds of the bins in base-model tokens, 0 to L.
        pairs: float64 [scales, bins], token pairs per row of the run at a distance within the bin.
        pairs_ordinary: float64 [scales, bins], those of two ordinary tokens.
        beyond: float64 [scales], pairs per row of the run at L or beyond, angles that the base model never met.
            `pairs` and `beyond` together are the R (R - 1) / 2 pairs of a row.
        scales: One entry per served scale, ascending.
    """

    window: int
    base_context_length: int
    leading: int
    run_rows: int
    num_rows: int
    num_draws: int
    edges: Float64[np.ndarray, " edges"]
    pairs: Float64[np.ndarray, "scales bins"]
    pairs_ordinary: Float64[np.ndarray, "scales bins"]
    beyond: Float64[np.ndarray, " scales"]
    scales: tuple[ScaleCoverage, ...]

    @property
    def headline(self) -> str:
        """The number of the whole in one plain sentence."""
        names = [f"{row.scale:g}" for row in self.scales]
        where = f"at scale {names[0]}" if len(names) == 1 else f"at the scales {', '.join(names[:-1])} and {names[-1]}"
        return (
            f"On average {where} the draws show {percent(self.reach)} of the distances below "
            f"L = {self.base_context_length:,} tokens, and {percent(self.reach_ordinary)} between ordinary tokens."
        )

    @property
    def reach(self) -> float:
        """Mean reach over the served scales, each weighted equally: the number of the whole."""
        return math.fsum(row.reach for row in self.scales) / len(self.scales)

    @property
    def reach_ordinary(self) -> float:
        """Mean reach between ordinary tokens over the served scales, each weighted equally."""
        return math.fsum(row.reach_ordinary for row in self.scales) / len(self.scales)

    @property
    def overlap(self) -> float:
        """Mean overlap with real text over the served scales, each weighted equally."""
        return math.fsum(row.overlap for row in self.scales) / len(self.scales)


def measure(
    settings: PositionSettings,
    *,
    window: int,
    base_context_length: int,
    scales: Sequence[float],
    steps: int,
    batch_sequences: int,
    seed: int,
) -> Coverage:
    """Return which distances the first rows of a run show.

    The draws are those of the run itself: the same seed, steps and places in the global batch.

    Args:
        settings: The distributions to draw from.
        window: R, tokens of a row, >= 2.
        base_context_length: L, tokens the base model was pretrained with, >= 2.
        scales: Scales the model will be served at, each >= 1; order and doubles do not matter.
        steps: Steps of the run, >= 1.
        batch_sequences: Rows of a step, >= 1.
        seed: Seed of the run, >= 0.

    Raises:
        ValueError: If the placement does not fit the window, or a number is out of range.
    """
    for name, value, least in (
        ("window", window, 2),
        ("base_context_length", base_context_length, 2),
        ("steps", steps, 1),
        ("batch_sequences", batch_sequences, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    served = sorted(set(map(float, scales)))
    if not served or served[0] < 1:
        raise ValueError(f"scales must be one or more numbers of at least 1, got {list(scales)}")
    placement = settings.placement
    leading = max(LEADING_TOKENS, placement.prefix) if isinstance(placement, PrefixPlacement) else LEADING_TOKENS
    edges = np.linspace(0, base_context_length, max(1, min(MOST_BINS, base_context_length // 2)) + 1)
    shared = settings.per == "step"
    per_step = 1 if shared else batch_sequences
    counts = _Counts(served, edges, window, leading)
    for step, num in _steps(_num_draws(window, steps * per_step), per_step):
        drawn = draw(
            settings,
            seed=seed,
            step=step,
            indices=range(num),
            window=window,
            base_context_length=base_context_length,
        )
        for scale, offsets in zip(drawn.scale.tolist(), drawn.offsets.numpy(), strict=True):
            counts.add(scale, offsets + np.arange(window))
    return counts.coverage(
        base_context_length, run_rows=steps * batch_sequences, rows_per_draw=batch_sequences if shared else 1
    )


def _num_draws(window: int, available: int) -> int:
    """Return how many draws are measured, for a window of `window` tokens and `available` draws in the run."""
    return min(available, MOST_DRAWS, max(FEWEST_DRAWS, MOST_TOKENS // window))


def _steps(num: int, per_step: int) -> Iterator[tuple[int, int]]:
    """Yield (step, number of draws from it) until there are `num` draws."""
    for step in range(math.ceil(num / per_step)):
        yield step, min(per_step, num - step * per_step)


class _Counts:
    """Pairs counted so far, by served scale.

    Attributes:
        draws: int64 [scales].
        below: int64 [scales, 2, edges], pairs nearer than each edge, of all tokens and of ordinary ones.
        near: int64 [scales], pairs nearer than R tokens before scaling.
        neighbours: int64 [scales], adjacent tokens one token apart before scaling.
        farthest: float64 [scales, 2], in base-model tokens, of all tokens and of ordinary ones.
    """

    def __init__(
        self, scales: Sequence[float], edges: Float64[np.ndarray, " edges"], window: int, leading: int
    ) -> None:
        self.scales, self.edges, self.window, self.leading = scales, edges, window, leading
        self.log_scales = np.log(scales)
        self.draws = np.zeros(len(scales), dtype=np.int64)
        self.below = np.zeros((len(scales), 2, len(edges)), dtype=np.int64)
        self.near = np.zeros(len(scales), dtype=np.int64)
        self.neighbours = np.zeros(len(scales), dtype=np.int64)
        self.farthest = np.zeros((len(scales), 2))

    def add(self, scale: float, positions: Int64[np.ndarray, " window"]) -> None:
        """Count the pairs of one row: its scale, and its positions before scaling, ascending."""
        nearest = int(np.abs(self.log_scales - math.log(scale)).argmin())
        limits = np.ceil(self.edges * scale).astype(np.int64)  # whole tokens: D / g < x exactly if D < ceil(x * g)
        below = pairs_below(positions, np.append(limits, self.window), self.leading)
        self.draws[nearest] += 1
        self.below[nearest] += below[:, :-1]
        self.near[nearest] += below[0, -1]
        self.neighbours[nearest] += np.count_nonzero(np.diff(positions) == 1)
        first = min(self.leading, self.window - 1)
        widest = (positions[-1] - positions[[0, first]]) / scale
        self.farthest[nearest] = np.maximum(self.farthest[nearest], widest)

    def coverage(self, base_context_length: int, *, run_rows: int, rows_per_draw: int) -> Coverage:
        """Return the counts per row of a run of `run_rows` rows, of which `rows_per_draw` share each draw."""
        draws = int(self.draws.sum())
        pairs, ordinary = np.moveaxis(np.diff(self.below, axis=2), 1, 0) / draws
        total = self.window * (self.window - 1) // 2
        rows = []
        for number, scale in enumerate(self.scales):
            num, length = int(self.draws[number]), round(scale * base_context_length)
            shown = np.diff(self.below[number, 0]) / max(1, num * total)
            limits = np.append(np.ceil(self.edges * scale), self.window)
            *text, near_text = text_below(length, limits)
            rows.append(
                ScaleCoverage(
                    scale=scale,
                    context_length=length,
                    rows=num / draws,
                    reach=float((pairs[number] >= SEEN_PAIRS_PER_ROW).mean()),
                    reach_ordinary=float((ordinary[number] >= SEEN_PAIRS_PER_ROW).mean()),
                    overlap=float(np.minimum(shown, np.diff(text)).sum()),
                    neighbours=float(self.neighbours[number] / (num * (self.window - 1))) if num else None,
                    near=float(self.near[number] / (num * total)) if num else None,
                    near_text=float(near_text),
                    farthest=float(self.farthest[number, 0]),
                    farthest_ordinary=float(self.farthest[number, 1]),
                )
            )
        return Coverage(
            window=self.window,
            base_context_length=base_context_length,
            leading=self.leading,
            run_rows=run_rows,
            num_rows=draws * rows_per_draw,
            num_draws=draws,
            edges=self.edges,
            pairs=pairs,
            pairs_ordinary=ordinary,
            beyond=(self.draws * total - self.below[:, 0, -1]) / draws,
            scales=tuple(rows),
        )


def pairs_below(
    positions: Int64[np.ndarray, " window"], limits: Int64[np.ndarray, " limits"], leading: int
) -> Int64[np.ndarray, "2 limits"]:
    """Return how many pairs of a row are nearer than each limit: of all tokens, and of those after `leading`.

    Args:
        positions: Strictly ascending positions before scaling, in tokens.
        limits: Whole tokens >= 0; a pair counts if later minus earlier is below the limit.
        leading: First tokens of the row that take part in no ordinary pair.
    """
    below = np.zeros((2, len(limits)), dtype=np.int64)
    wide = np.maximum(limits, 1)[:, None]  # no pair is nearer than 1 token; a limit of 0 would count a token itself
    for start in range(0, len(positions), PIECE):
        later = positions[start : start + PIECE]
        index = np.arange(start, start + len(later))
        first = np.searchsorted(positions, later - wide, side="right")  # [limits, tokens], first token near enough
        below[0] += (index - first).sum(axis=1)
        below[1] += np.maximum(index - np.maximum(first, leading), 0).sum(axis=1)
    return below


def text_below(context_length: int, limits: Shaped[np.ndarray, " limits"]) -> Float64[np.ndarray, " limits"]:
    """Return the share of the pairs of a text of W tokens nearer than each limit; W - k of them are k tokens apart.

    Args:
        context_length: W >= 2, tokens.
        limits: Whole tokens >= 0.
    """
    most = np.clip(limits, 1, context_length) - 1
    return (most * context_length - most * (most + 1) / 2) / (context_length * (context_length - 1) / 2)


def percent(share: float) -> str:
    """Return a share as whole percent; only what is exactly 0 or 1 is shown as 0 % or 100 %."""
    if 0 < share < 0.01:
        return "under 1 %"
    return f"{min(round(100 * share), 99) if share < 1 - ROUNDING else 100} %"


__all__ = ["Coverage", "ScaleCoverage", "measure", "pairs_below", "percent", "text_below"]
