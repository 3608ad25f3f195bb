"""The curve of all pictures: a line with its marks, and its interval as a band or as bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from matplotlib.axes import Axes

from e2ray.report.frame.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION, Colour, Style, plain


@dataclass(frozen=True)
class Look:
    """How a curve is drawn; `size` is that of its marks, in points."""

    colour: Colour
    mark: str | None = "o"
    line: str = "-"
    width: float = 2.0
    size: float = 6.0


LOOKS = [  # of successive runs; after the last they repeat
    Look(colour, mark, line)
    for line in ("-", "--", "-.")
    for colour, mark in zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY), ("o", "s", "^", "D", "v", "P"), strict=True)
]
Known = tuple[float, float, float, float]  # x, y, and the ends of its interval


def curve(
    axis: Axes,
    points: Sequence[Known] | Sequence[tuple[float, float]],
    look: Look,
    *,
    label: str = "",
    interval: Literal["band", "bars"] | None = None,
    even_empty: bool = False,
    **style: object,
) -> None:
    """Draw a curve; nothing where it has no points.

    Args:
        axis: To draw on.
        points: (x, y), followed by the ends of an interval where one is drawn.
        look: Its colour, mark and line.
        label: In the legend.
        interval: How the interval is drawn.
        even_empty: Whether a curve without points is in the legend, too.
        style: Further options for matplotlib.
    """
    if not points and not even_empty:
        return
    x, y, *ends = (list(column) for column in zip(*points, strict=True)) if points else ([], [])
    drawn: Style = {
        "color": look.colour, "marker": look.mark, "linestyle": look.line, "linewidth": look.width,
        "markersize": look.size, **style,
    }  # fmt: skip
    if label:
        drawn["label"] = plain(label)
    if interval == "bars":
        below, above = ([abs(end - middle) for end, middle in zip(side, y, strict=True)] for side in ends)
        axis.errorbar(x, y, yerr=(below, above), elinewidth=1.1, capsize=3, **drawn)
        return
    axis.plot(x, y, **drawn)
    if interval == "band":
        axis.fill_between(x, ends[0], ends[1], color=look.colour, alpha=0.13, lw=0)


def window_axis(axis: Axes, windows: Sequence[int], base_context_lengths: Sequence[int]) -> None:
    """Scale an axis for windows W in tokens, by powers of two, with a line at each base context length."""
    for length in base_context_lengths:
        axis.axvline(length, color=GREY, linewidth=1, linestyle=":")
    axis.set_xscale("log", base=2)
    names = [f"{window:,}\n= L" if window in base_context_lengths else f"{window:,}" for window in windows]
    axis.set_xticks(windows, names, rotation=0 if len(windows) < 8 else 60)
    axis.minorticks_off()
    axis.set_xlabel("window W (tokens)")
    axis.margins(y=0.1)
