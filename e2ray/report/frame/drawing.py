"""What the pictures of a page share: size, colours and looks.

Figures are made without pyplot, so nothing is kept between them.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from e2ray.report.frame.text import number

# Okabe and Ito's palette: distinct for people with any colour vision.
BLUE, SKY, VERMILLION, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#8A8A8A"
GREEN, PURPLE, PALE, INK = "#009E73", "#CC79A7", "#E5E5E5", "#222222"
SURFACE_COLOURS = "cividis_r"
Style = dict[str, Any]  # options for matplotlib
Colour = str | tuple[float, ...]
DOTS_PER_INCH = 130
WIDTH = 10.5  # inches: at the page's full width its 10 pt text reads like the page's own


def new_figure(height: float, *, width: float = WIDTH, dots_per_inch: float = DOTS_PER_INCH) -> Figure:
    """Return an empty figure of a page's width, sizes in inches."""
    return Figure(figsize=(width, height), dpi=dots_per_inch, layout="constrained", facecolor="white")


def tidy(axis: Axes, title: str = "", *, grid: Literal["both", "x", "y"] = "both") -> None:
    """Give an axis the common style."""
    titled(axis, title)
    axis.grid(visible=True, axis=grid, color=PALE, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def titled(axis: Axes, title: str, size: float = 11) -> None:
    """Put a title above an axis, at its left."""
    if title:
        axis.set_title(plain(title), loc="left", fontsize=size, fontweight="bold", color=INK)


def plain(text: object) -> str:
    """Return a text that is drawn literally; `$` would begin a formula."""
    return str(text).replace("$", r"\$")


def colour_bar(figure: Figure, axes: Sequence[Axes], norm: Normalize, label: str, **where: float | str) -> None:
    """Put a colour bar beside maps."""
    style: Style = {"shrink": 0.8, "pad": 0.015, **where}
    bar = figure.colorbar(ScalarMappable(norm, SURFACE_COLOURS), ax=axes, **style)
    bar.set_label(label)
    bar.outline.set_visible(False)


def spanning(values: Sequence[float]) -> Normalize:
    """Return the colours' range from the lowest value to the highest."""
    return Normalize(min(values), max(max(values), min(values) + 1e-6))


def log_ticks(axis: Axes, low: float, high: float, *, which: str = "x") -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each decade inside [low, high], or at its ends."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**d for d in decades for m in (1, 2, 5) if low * 0.999 <= m * 10.0**d <= high * 1.001]
    if len(ticks) > 5:
        ticks = [tick for tick in ticks if f"{tick:e}".startswith("1")]
    side = axis.xaxis if which == "x" else axis.yaxis
    side.set_major_locator(FixedLocator(ticks if len(ticks) > 1 else [low, high]))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: number(float(value))))
