"""NLL over window and scale: the surface of a run, and the picture that its evaluation leaves in its folder."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from e2ray.config.methods import untrained_model
from e2ray.core.methods.linear import Linear
from e2ray.core.scales import paper_scale
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.removed import base_name
from e2ray.evaluate.verdict import lane_label, lanes_of
from e2ray.report.frame.curve import Look, curve, window_axis
from e2ray.report.frame.drawing import (
    BLUE,
    GREY,
    ORANGE,
    SKY,
    SURFACE_COLOURS,
    VERMILLION,
    colour_bar,
    new_figure,
    spanning,
    tidy,
)
from e2ray.report.frame.heat import heat_map, marks
from e2ray.report.frame.page import Part, Words, picture
from e2ray.report.run_files import RunRecord, comparable
from e2ray.report.sections.section import RunSection

MODELS = ("tuned", "base")
Surface = Mapping[tuple[int, float], float]  # NLL by window and scale


def draw_surface(
    axis: Axes,
    cells: Surface,
    windows: Sequence[int],
    scales: Sequence[float],
    base_context_length: int,
    norm: Normalize,
    *,
    title: str,
    form: str = "{:.2f}",
    starred: bool = True,
    colours: str = SURFACE_COLOURS,
) -> None:
    """Draw numbers over window (rows) and scale (columns); those at W / L are framed.

    Args:
        axis: To draw on.
        cells: What was measured.
        windows: Rows, in tokens.
        scales: Columns.
        base_context_length: L in tokens.
        norm: The colours' range.
        title: Above it.
        form: Format of a number.
        starred: Whether the lowest of a window has a star.
        colours: Name of the colour map.
    """
    values = np.array([[cells.get((window, scale), np.nan) for scale in scales] for window in windows])

    def text(row: int, column: int) -> str:
        star = " ★" if starred and values[row, column] == np.nanmin(values[row]) else ""
        return form.format(values[row, column]) + star

    def served(row: int, column: int) -> bool:
        return abs(scales[column] - paper_scale(windows[row], base_context_length)) < 1e-6

    heat_map(
        axis, values, norm, text, rows=[str(window) for window in windows], columns=[f"{g:g}" for g in scales],
        framed=served, colours=colours, title=title,
    )  # fmt: skip
    axis.set_xlabel("scale g")


def draw_surfaces(record: RunRecord, scale_of: Sequence[RunRecord]) -> Figure:
    """Return a run's surfaces, tuned and base, over window and scale.

    Args:
        record: An evaluated run.
        scale_of: The runs it may be compared with, itself among them; their colours mean the same.
    """
    scales = {cell.scale for cell in record.cells if cell.model in MODELS} | set(
        (record.run.settings["evaluate"] or {}).get("scales") or ()
    )
    models = [model for model in MODELS if any(cell.model == model for cell in record.cells)]
    norm = spanning([cell.nll for each in scale_of for cell in each.cells if cell.model in MODELS])
    figure = new_figure(max(3.6, 0.46 * len(record.windows) + 1.8))
    axes = list(figure.subplots(1, len(models), squeeze=False)[0])
    for axis, model in zip(axes, models, strict=True):
        called = base_name(record.removed_scaling) if model == "base" else model
        draw_surface(
            axis, surface_of(record.cells, model), record.windows, sorted(scales), record.base_context_length, norm,
            title=f"{record.name}, {called}",
        )  # fmt: skip
    _explain(figure, axes, norm)
    return figure


def surface_of(cells: Sequence[Cell], model: str) -> Surface:
    """Return one model's NLL by window and scale."""
    return {(cell.window, cell.scale): cell.nll for cell in cells if cell.model == model}


def _explain(figure: Figure, axes: Sequence[Axes], norm: Normalize) -> None:
    """Put a colour bar beside surfaces, the name of their rows on the first and the key of marks below them."""
    axes[0].set_ylabel("window W (tokens)")
    colour_bar(figure, axes, norm, "NLL (nats per token), lower is better")
    key = marks("scale W/L, as the paper serves", starred="best scale of the window")
    figure.legend(handles=key, loc="outside lower right", ncols=3, frameon=False, fontsize=9)


def draw_evaluation(
    cells: Sequence[Cell],
    base_context_length: int,
    *,
    missing_windows: Sequence[int] = (),
    removed_scaling: str | None = None,
    method: str = Linear.label,
) -> Figure:
    """Return the picture of an evaluation: curves by window, then one surface per model.

    It shows at a glance whether NLL keeps falling with the window where the base fails, which scale reads which window
    best, and what the base does with the same scales. What was not measured is drawn as missing.

    Args:
        cells: What was measured.
        base_context_length: L in tokens.
        missing_windows: Windows that were asked for and not reached.
        removed_scaling: Rope type that was removed from the base.
        method: What both models are read by at a scale, named where the base was read by others too.
    """
    windows = sorted({cell.window for cell in cells} | set(missing_windows))
    of_surfaces = [cell for cell in cells if cell.model in MODELS]
    scales = sorted({cell.scale for cell in of_surfaces})
    models = [name for name in MODELS if any(cell.model == name for cell in cells)]
    surface_width = max(3.0, 0.72 * len(scales) + 1.2)
    height = max(4.6, 0.5 * len(windows) + 2.2)
    figure = new_figure(height, width=6.2 + len(models) * surface_width, dots_per_inch=150)
    axes = figure.subplots(1, 1 + len(models), width_ratios=[5.4, *[surface_width] * len(models)], squeeze=False)[0]
    _draw_curves(axes[0], cells, base_context_length, removed_scaling, method)
    norm = spanning([cell.nll for cell in of_surfaces])
    for axis, model in zip(axes[1:], models, strict=True):
        title = base_name(removed_scaling) if model == "base" and removed_scaling else f"{model} model"
        draw_surface(axis, surface_of(cells, model), windows, scales, base_context_length, norm, title=title)
    _explain(figure, list(axes[1:]), norm)
    return figure


def _draw_curves(
    axis: Axes, cells: Sequence[Cell], base_context_length: int, removed_scaling: str | None, method: str
) -> None:
    """Draw NLL by window for the tuned model and the base, each as it would be served."""

    def at(model: str, served: bool) -> list[Cell]:
        scale = (lambda window: paper_scale(window, base_context_length)) if served else (lambda window: 1.0)
        return [cell for cell in cells if cell.model == model and abs(cell.scale - scale(cell.window)) < 1e-6]

    best: dict[int, Cell] = {}
    for cell in sorted((cell for cell in cells if cell.model == "tuned"), key=lambda cell: cell.nll):
        best.setdefault(cell.window, cell)
    untouched, name = (base_name(removed_scaling, untouched=each) for each in (True, False))
    lanes = lanes_of(cells)
    own = f", {method}" if lanes else ""
    window_axis(axis, sorted({cell.window for cell in cells}), [base_context_length])
    for points, label, look in (
        (at("base", False), f"{untouched} (g = 1)", Look(VERMILLION, "s", width=2.2, size=5)),
        *(
            (
                at(untrained_model(lane), True),
                f"{name}, {lane_label(lane)}, g = W/L without training",
                Look(GREY, marker, width=1.6, size=5),
            )
            for lane, marker in zip(lanes, cycle("vxP"), strict=False)
        ),
        (at("base", True), f"{name}{own}, g = W/L without training", Look(ORANGE, "^", width=2.2, size=5)),
        (at("tuned", True), "tuned, g = W/L", Look(BLUE, "o", width=2.2, size=5)),
        (list(best.values()), "tuned, best g", Look(SKY, "D", "--", width=1.4, size=4)),
    ):
        known = [(c.window, c.nll, c.nll - (c.stderr or 0.0), c.nll + (c.stderr or 0.0)) for c in points]
        if known:
            curve(axis, sorted(known), look, label=label, interval="bars")
    axis.set_ylabel("NLL (nats per token), ± 1 standard error")
    tidy(axis, "NLL by window", grid="y")
    axis.legend(frameon=False, fontsize=9)


def _parts(records: Sequence[RunRecord]) -> list[Part]:
    parts: list[Part] = [
        picture(
            draw_surfaces(record, group),
            f"NLL of {record.name} over window and scale",
            f"{record.name}: what each scale reads of each window. Framed: scale W/L, as the paper serves; "
            "starred: the best of its window. Hatched: not measured.",
        )
        for group in comparable(records)
        for record in group
    ]
    return [
        *parts,
        *(
            Words(f"{record.name}: {record.run.what_is_missing}. It has no surface here.", warning=True)
            for record in records
            if not record.cells
        ),
    ]


SURFACE = RunSection("Window and scale", "surface", _parts)
