"""A coverage in a picture and in words: which distances the draws show, by served scale, before any training.

Two heat maps, scale by distance, on one logarithmic colour scale: all pairs of tokens, and pairs of ordinary tokens
only. The line in them is R / g, as far as a row of R tokens reaches at that scale if nothing is moved; what is to its
right is due to the placement. Bars beside them give the shares per scale.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from e2ray.config.base import SettingsError
from e2ray.core.coverage import SEEN_PAIRS_PER_ROW, Coverage, ScaleCoverage, percent
from e2ray.report.frame.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    SURFACE_COLOURS,
    VERMILLION,
    colour_bar,
    new_figure,
    titled,
)
from e2ray.report.frame.page import write_png

HATCH_COLOUR = "#C8C8C8"


def write_coverage(path: str | Path, coverage: Coverage, *, title: str) -> None:
    """Write the picture as a PNG, whole or not at all.

    Raises:
        SettingsError: If the name does not end in .png, or the folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise SettingsError(f"{path}: the picture is a PNG; give it a name that ends in .png")
    write_png(path, draw_coverage(coverage, title=title))


def draw_coverage(coverage: Coverage, *, title: str) -> Figure:
    """Return the picture of a coverage.

    Args:
        coverage: What the draws show.
        title: What the draws are, such as the name of the recipe; the coverage's headline follows under it.
    """
    num_scales = len(coverage.scales)
    figure = new_figure(2.9 + 0.62 * num_scales, width=13.5, dots_per_inch=150)
    axes = figure.subplots(1, 3, width_ratios=[4, 4, 2.6])
    norm = _norm(coverage)
    _draw_map(axes[0], coverage, coverage.pairs, norm, "All pairs of tokens")
    ordinary = f"Ordinary tokens only (not the first {coverage.leading})"
    _draw_map(axes[1], coverage, coverage.pairs_ordinary, norm, ordinary)
    axes[0].set_yticks(
        range(num_scales), [f"g = {row.scale:g}\n{row.context_length:,} tokens" for row in coverage.scales], fontsize=9
    )
    axes[0].set_ylabel("served scale and window")
    axes[1].set_yticks(range(num_scales), [f"g = {row.scale:g}" for row in coverage.scales], fontsize=9)
    bars = _draw_bars(axes[2], coverage)
    colour_bar(figure, list(axes[:2]), norm, "pairs per training row", shrink=0.9, pad=0.01)
    headline = textwrap.fill(coverage.headline, 150)
    figure.suptitle(f"{title}\n{headline}", x=0.01, ha="left", fontsize=12, linespacing=1.5)
    figure.legend(
        handles=[
            Line2D([], [], color=VERMILLION, linewidth=2, label="R / g: as far as a row reaches if nothing is moved"),
            Patch(
                facecolor="white",
                edgecolor=HATCH_COLOUR,
                hatch="////",
                label=f"not shown: less than one pair in {1 / SEEN_PAIRS_PER_ROW:g} rows",
            ),
        ],
        loc="outside lower left",
        frameon=False,
        fontsize=9,
    )
    figure.legend(handles=bars, loc="outside lower right", ncols=2, frameon=False, fontsize=9)
    return figure


def _norm(coverage: Coverage) -> LogNorm:
    """Return the colours' range: from the least that counts as shown to the most that is shown."""
    return LogNorm(SEEN_PAIRS_PER_ROW, max(float(coverage.pairs.max()), 10 * SEEN_PAIRS_PER_ROW))


def _draw_map(
    axis: Axes, coverage: Coverage, pairs: Float64[np.ndarray, "scales bins"], norm: LogNorm, title: str
) -> None:
    """Draw pairs per row over distance (columns) and served scale (rows); what is not shown stays hatched."""
    length, num_scales = coverage.base_context_length, len(coverage.scales)
    axis.add_patch(
        Rectangle((0, -0.5), length, num_scales, facecolor="white", edgecolor=HATCH_COLOUR, hatch="////", linewidth=0)
    )
    shown = np.ma.masked_less(pairs, SEEN_PAIRS_PER_ROW)
    rows = np.arange(num_scales + 1) - 0.5
    axis.pcolormesh(coverage.edges, rows, shown, cmap=SURFACE_COLOURS, norm=norm, linewidth=0, rasterized=True)
    axis.hlines(rows[1:-1], 0, length, color="white", linewidth=3)
    limits = [min(length, coverage.window / row.scale) for row in coverage.scales]
    axis.plot(np.repeat(limits, 2), np.repeat(rows, 2)[1:-1], color=VERMILLION, linewidth=2, clip_on=False)
    axis.set_xlim(0, length)
    axis.set_ylim(-0.5, num_scales - 0.5)
    axis.set_xlabel(f"distance (base-model tokens; L = {length:,})")
    axis.set_xticks([length * part / 4 for part in range(5)], [f"{length * part / 4:,g}" for part in range(5)])
    titled(axis, title)
    axis.tick_params(axis="y", length=0)
    axis.spines[:].set_visible(False)


def _draw_bars(axis: Axes, coverage: Coverage) -> list[BarContainer]:
    """Draw the shares of each served scale as bars on the rows of the maps; return what a legend explains."""
    series = (
        ("distances shown (reach)", BLUE, [row.reach for row in coverage.scales]),
        ("... between ordinary tokens", SKY, [row.reach_ordinary for row in coverage.scales]),
        ("overlap with real text", ORANGE, [row.overlap for row in coverage.scales]),
        ("share of the rows drawn", GREY, [row.rows for row in coverage.scales]),
    )
    height, bars = 0.2, []
    drawn = np.array([row.rows > 0 for row in coverage.scales])
    for number, (label, colour, shares) in enumerate(series):
        where = np.arange(len(shares)) + (1.5 - number) * height
        bars.append(axis.barh(where, shares, height=0.9 * height, color=colour, label=label))
        for row in np.flatnonzero(drawn):
            axis.text(shares[row] + 0.015, where[row], percent(shares[row]), va="center", fontsize=7, color=INK)
    for row in np.flatnonzero(~drawn):
        axis.text(0.015, float(row), "no rows are drawn here", va="center", fontsize=9, color=INK)
    axis.set_xlim(0, 1.16)
    axis.set_ylim(-0.5, len(coverage.scales) - 0.5)
    axis.set_xticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axis.set_yticks(range(len(coverage.scales)), [f"g = {row.scale:g}" for row in coverage.scales], fontsize=9)
    axis.tick_params(axis="y", length=0)
    axis.spines[["top", "right", "left"]].set_visible(False)
    titled(axis, "Shares")
    return bars


def lines(coverage: Coverage, name: str) -> list[str]:
    """Return a coverage as a table with its meaning in sentences under it."""
    header = ["scale g", "window W", "rows", "reach", "(ordinary)", "overlap", "neighbours", "farthest", "(ordinary)"]
    return [
        f"{name}: {coverage.headline}",
        "",
        *_aligned([header, *(_row(row) for row in coverage.scales)]),
        "",
        *(f"- {sentence}" for sentence in sentences(coverage)),
        "",
        *_legend(coverage),
    ]


def sentences(coverage: Coverage) -> list[str]:
    """Return what a coverage means for serving, in plain words."""
    texts = []
    gaps = [f"{row.scale:g}" for row in coverage.scales if not row.rows]
    if gaps:
        texts.append(f"No row is drawn near scale {', '.join(gaps)}: the model will not be trained for reading there.")
    seen = [row for row in coverage.scales if row.rows]
    if seen and seen[-1].near is not None:
        texts.append(_largest(coverage, seen[-1], seen[-1].near))
    beyond = float(coverage.beyond.sum()) / (coverage.window * (coverage.window - 1) / 2)
    if beyond:
        texts.append(
            f"{percent(beyond)} of all pairs stand {coverage.base_context_length:,} tokens (L) apart or more, at "
            "angles the base model never met."
        )
    torn = [row for row in coverage.scales if row.neighbours is not None and row.neighbours < 0.5]
    if torn:
        texts.append(
            f"At scale {', '.join(f'{row.scale:g}' for row in torn)} fewer than half of the neighbouring tokens stay "
            "neighbours; such rows show every distance and are still known to train poorly."
        )
    return texts


def _largest(coverage: Coverage, row: ScaleCoverage, near: float) -> str:
    """Return what the largest scale that is drawn shows."""
    text = (
        f"At scale {row.scale:g} (W = {row.context_length:,}) the draws show {percent(row.reach)} of the distances up "
        f"to L = {coverage.base_context_length:,}, {percent(row.reach_ordinary)} between ordinary tokens, which stand "
        f"at most {_tokens(row.farthest_ordinary)} tokens apart."
    )
    if row.scale > 1:
        text += (
            f" {percent(near)} of the pairs are nearer than R = {coverage.window:,} tokens before scaling; in real "
            f"text of W tokens it is {percent(row.near_text)}."
        )
    if row.reach_ordinary < row.reach / 2:
        leading = coverage.leading
        text += f" So the long distances are shown almost only between the first {leading} tokens and the rest."
    return text


def _row(row: ScaleCoverage) -> list[str]:
    return [
        f"{row.scale:g}",
        f"{row.context_length:,}",
        percent(row.rows),
        percent(row.reach),
        percent(row.reach_ordinary),
        percent(row.overlap),
        "none" if row.neighbours is None else percent(row.neighbours),
        _tokens(row.farthest) if row.rows else "none",
        _tokens(row.farthest_ordinary) if row.rows else "none",
    ]


def _tokens(distance: float) -> str:
    return f"{distance:,.1f}" if distance < 1000 else f"{distance:,.0f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows]


def _legend(coverage: Coverage) -> list[str]:
    """Return what the columns mean and what was measured."""
    draws, rows = coverage.num_draws, coverage.num_rows
    shared = "" if draws == rows else f" ({draws:,} draws, each shared by a step)"
    return [
        f"rows: share of the rows drawn nearest to this scale. reach: share of the distances [0, L), in "
        f"{len(coverage.edges) - 1} bins, that {1 / SEEN_PAIRS_PER_ROW:g} rows",
        f"show at least once; ordinary: between tokens that are not among the first {coverage.leading} of their row. "
        "overlap: 1 - total variation between the",
        "distances shown and those of real text of W tokens. neighbours: adjacent tokens that stay adjacent. farthest: "
        "largest distance",
        f"shown, in base-model tokens. Measured on every pair of the first {rows:,} of the run's "
        f"{coverage.run_rows:,} rows{shared}.",
    ]
