"""The heat map of all pictures: a number in each cell, hatched where nothing was measured."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from e2ray.report.frame.drawing import GREY, INK, SURFACE_COLOURS, Style, plain, titled

HATCHED: Style = {"facecolor": "white", "edgecolor": GREY, "hatch": "////"}
FRAMED: Style = {"edgecolor": INK, "linewidth": 1.8}


def heat_map(
    axis: Axes,
    values: Float64[np.ndarray, "rows columns"],
    norm: Normalize,
    text: Callable[[int, int], str],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    framed: Callable[[int, int], bool] = lambda row, column: False,
    colours: str = SURFACE_COLOURS,
    title: str = "",
    size: float | None = None,
) -> None:
    """Draw a grid of colours, its first row at the bottom.

    Args:
        axis: To draw on.
        values: NaN where nothing was measured.
        norm: The colours' range.
        text: Returns the text of a measured cell, by row and column.
        rows: Labels.
        columns: Labels.
        framed: Which cells have a frame, by row and column.
        colours: Name of the colour map.
        title: Above the map.
        size: Of the text in a cell, in points; None chooses it by the number of cells.
    """
    image = axis.imshow(values, cmap=colours, norm=norm, aspect="auto", origin="lower")
    size = size or (9 if max(values.shape) <= 8 else 6)
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axis.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, linewidth=0, **HATCHED))
        else:
            red, green, blue, _ = image.cmap(norm(value))
            colour = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else INK
            axis.text(column, row, text(row, column), ha="center", va="center", fontsize=size, color=colour)
        if framed(row, column):
            axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, **FRAMED))
    axis.set_xticks(range(len(columns)), [plain(name) for name in columns])
    axis.set_yticks(range(len(rows)), [plain(name) for name in rows])
    axis.set_xticks(np.arange(1, len(columns)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(rows)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="both", length=0)
    axis.spines[:].set_visible(False)
    titled(axis, title)


def marks(framed: str, *, starred: str = "") -> list[Patch | Line2D]:
    """Return the key of a map's marks: what a frame means, and a star where there are any."""
    star = Line2D([], [], marker="*", color=INK, linestyle="none", markersize=8, label=starred)
    frame = Patch(facecolor="none", label=framed, **FRAMED)
    return [frame, *([star] if starred else []), Patch(label="not measured", **HATCHED)]
