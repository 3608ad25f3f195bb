"""Labels of points and of curves that keep clear of each other."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from scipy.optimize import isotonic_regression

from e2ray.report.frame.drawing import GREY, INK, Colour, plain

END_GAP = 9.5  # points between the names of two curves
NEAR = 23  # points from which a label needs a line to its point


def label_points(
    axis: Axes,
    points: Sequence[tuple[float, float, str]],
    *,
    obstacles: Sequence[tuple[float, float]],
    fontsize: float = 9,
) -> None:
    """Write each point's label beside it where it covers no other label and the fewest points.

    The layout is settled first, so call it when the axis holds everything else.

    Args:
        axis: The axis to write on.
        points: x, y and text; those outside the axis are left out.
        obstacles: Other points that a label should not cover.
        fontsize: Of the labels, in points.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    to_pixels = axis.transData.transform
    frame = axis.get_window_extent()
    blocked = [to_pixels(point) for point in obstacles] + [to_pixels((x, y)) for x, y, _ in points]
    taken: list[Bbox] = []
    for x, y, text in points:
        if not frame.contains(*to_pixels((x, y))):
            continue
        label = axis.annotate(
            plain(text), (x, y), textcoords="offset points", xytext=(0, 0), fontsize=fontsize, color=INK, zorder=9
        )
        label.set_in_layout(False)
        costs: list[tuple[int, int, tuple[float, float]]] = []
        for offset in _offsets():
            box = _placed(label, offset)
            inside = frame.x0 < box.x0 and box.x1 < frame.x1 and frame.y0 < box.y0 and box.y1 < frame.y1
            cost = 50 * sum(box.overlaps(other) for other in taken) + 50 * (not inside)
            costs.append((cost + sum(bool(box.contains(*pixel)) for pixel in blocked), len(costs), offset))
            if costs[-1][0] == 0:
                break
        offset = min(costs)[2]
        taken.append(_placed(label, offset))
        if math.hypot(*offset) > NEAR:
            line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
            axis.annotate("", (x, y), textcoords="offset points", xytext=offset, arrowprops=line)


def label_ends(axis: Axes, ends: Sequence[tuple[float, float, str, Colour]]) -> None:
    """Write each curve's name to the right of its last point, clear of other names, with a line if it was moved.

    The layout is settled first, so call it when the axis holds everything else, with room for the names.

    Args:
        axis: The axis to write on.
        ends: x, y, name and colour of each curve.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    points = 72 / figure.dpi
    order = sorted(ends, key=lambda end: end[1])
    middles = [float(axis.transData.transform(end[:2])[1]) * points for end in order]
    for (x, y, name, colour), middle, height in zip(order, middles, spread(middles, END_GAP), strict=True):
        moved = height - middle
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3}
        label = axis.annotate(
            plain(name),
            (x, y),
            textcoords="offset points",
            xytext=(16, moved),
            fontsize=7,
            color=colour,
            va="center",
            arrowprops=line if abs(moved) > 1 else None,
        )
        label.set_in_layout(False)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Return places at least `gap` apart, in the order of `values`, and nearest to these by least squares.

    Args:
        values: Increasing.
        gap: Positive.
    """
    steps = gap * np.arange(len(values))
    return list((isotonic_regression(np.array(values) - steps).x + steps).tolist())


def _placed(label: Annotation, offset: tuple[float, float]) -> Bbox:
    """Move a label by an offset in points, away from its point, and return the pixels it covers."""
    label.set_horizontalalignment("left" if offset[0] > 0 else "right" if offset[0] < 0 else "center")
    label.set_verticalalignment("bottom" if offset[1] > 0 else "top" if offset[1] < 0 else "center")
    label.xyann = offset
    return label.get_window_extent().padded(3)


def _offsets() -> list[tuple[float, float]]:
    """Return places of a label round its point, in points, the nearest first."""
    around = [(1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0)]
    return [(radius * x, radius * y) for radius in (9, 16, 26, 40, 60, 85) for x, y in around]
