"""Result tables into files people look at: evaluation.json, evaluation.parquet and evaluation.png.

The picture answers three questions at a glance: does NLL keep falling with the window where the base fails (the
curves), which scale reads which window best (the surface of the tuned model), and what the base does with the same
scales (its surface). What was not measured is drawn as missing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from e2ray.config.base import SettingsError
from e2ray.core.scales import paper_scale
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.removed import base_name, scaling_of
from e2ray.evaluate.verdict import table
from e2ray.files import atomic_path, read_vouched, write_sealed
from e2ray.report.tables import write_table

SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("window", pa.int64(), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("perplexity", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("stride", pa.int64(), nullable=False),
        pa.field("stderr", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)

# Okabe and Ito's palette: told apart by people with any colour vision.
BLUE, SKY, VERMILLION, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#8A8A8A"
INK = "#222222"
SURFACE_COLOURS = "cividis_r"
DOTS_PER_INCH = 150


def write_evaluation(
    folder: str | Path, cells: Sequence[Cell], verdict: Mapping[str, Any], *, missing_windows: Sequence[int] = ()
) -> None:
    """Write evaluation.json, evaluation.parquet and evaluation.png into a folder, each whole or not at all.

    Args:
        folder: The run's folder.
        cells: Rows of the surface.
        verdict: What `evaluate.verdict.verdict` says about them.
        missing_windows: Windows asked for that no document fills; drawn as missing rows.

    Raises:
        SettingsError: If there are no cells, or the folder cannot be written.
    """
    if not cells:
        raise SettingsError(f"{folder}: there are no measured cells to write; every window was left out")
    folder = Path(folder)
    rows = [cell.row() for cell in cells]
    write_table(folder / "evaluation.parquet", pa.Table.from_pylist(rows, schema=SCHEMA))
    with atomic_path(folder / "evaluation.png") as aside:
        scaling = scaling_of(verdict.get("removed_scaling"))
        picture = draw(cells, verdict["base_context_length"], missing_windows=missing_windows, removed_scaling=scaling)
        picture.savefig(aside, format="png")
    write_sealed(folder / "evaluation.json", {"rows": rows, "verdict": dict(verdict)})


def read_evaluation(path: str | Path) -> tuple[list[Cell], dict[str, Any]]:
    """Return the cells and the verdict of an evaluation.json.

    Raises:
        FileNotFoundError: If there is no such file.
        SettingsError: If it is something else.
    """
    value = read_vouched(path, wanted="the evaluation.json of a run")
    try:
        return [Cell(**row) for row in value["rows"]], value["verdict"]
    except (TypeError, KeyError) as error:
        raise SettingsError(f"{path}: is no evaluation ({error}); rerun `e2ray evaluate`") from None


def draw(
    cells: Sequence[Cell],
    base_context_length: int,
    *,
    missing_windows: Sequence[int] = (),
    removed_scaling: str | None = None,
) -> Figure:
    """Return the picture of an evaluation: curves by window, then one surface per model.

    Args:
        cells: What was measured.
        base_context_length: L in tokens.
        missing_windows: Windows that were asked for and not reached.
        removed_scaling: Rope type that was removed from the base.
    """
    windows = sorted({cell.window for cell in cells} | set(missing_windows))
    scales = sorted({cell.scale for cell in cells})
    models = [name for name in ("tuned", "base") if any(cell.model == name for cell in cells)]
    surface_width = max(3.0, 0.72 * len(scales) + 1.2)
    height = max(4.6, 0.5 * len(windows) + 2.2)
    figure = Figure(figsize=(6.2 + len(models) * surface_width, height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(1, 1 + len(models), width_ratios=[5.4, *[surface_width] * len(models)], squeeze=False)[0]
    _draw_curves(axes[0], cells, base_context_length, removed_scaling)
    values = [cell.nll for cell in cells]
    norm = Normalize(min(values), max(max(values), min(values) + 1e-6))
    for axis, model in zip(axes[1:], models, strict=True):
        draw_surface(axis, cells, model, windows, scales, base_context_length, norm)
        if model == "base" and removed_scaling:
            axis.set_title(base_name(removed_scaling), loc="left", fontsize=11, fontweight="bold")
    explain_surfaces(figure, list(axes[1:]), norm)
    return figure


def explain_surfaces(figure: Figure, axes: Sequence[Axes], norm: Normalize) -> None:
    """Put the bar of colours beside surfaces, the name of their rows on the first and the key of marks below them."""
    axes[0].set_ylabel("window W (tokens)")
    bar = figure.colorbar(ScalarMappable(norm, SURFACE_COLOURS), ax=axes, shrink=0.8, pad=0.015)
    bar.set_label("NLL (nats per token), lower is better")
    bar.outline.set_visible(False)
    figure.legend(
        handles=[
            Patch(facecolor="none", edgecolor=INK, linewidth=1.8, label="scale W/L, as the paper serves"),
            Line2D([], [], marker="*", color=INK, linestyle="none", markersize=8, label="best scale of the window"),
            Patch(facecolor="white", edgecolor=GREY, hatch="////", label="not measured"),
        ],
        loc="outside lower right",
        ncols=3,
        frameon=False,
        fontsize=9,
    )


def _draw_curves(axis: Axes, cells: Sequence[Cell], base_context_length: int, removed_scaling: str | None) -> None:
    """Draw NLL by window for the tuned model and the base, each as it would be served."""
    name = base_name(removed_scaling)
    series = (
        (
            "base",
            f"{base_name(removed_scaling, untouched=True)} (g = 1)",
            VERMILLION,
            "s",
            "-",
            lambda cell: cell.scale == 1,
        ),
        ("base", f"{name}, g = W/L without training", ORANGE, "^", "-", _serves(base_context_length)),
        ("tuned", "tuned, g = W/L", BLUE, "o", "-", _serves(base_context_length)),
        ("tuned", "tuned, best g", SKY, "D", "--", None),
    )
    for model, label, colour, marker, style, wanted in series:
        points = _best_cells(cells, model) if wanted is None else [c for c in cells if c.model == model and wanted(c)]
        points = sorted(points, key=lambda cell: cell.window)
        if not points:
            continue
        axis.errorbar(
            [cell.window for cell in points],
            [cell.nll for cell in points],
            yerr=[cell.stderr or 0.0 for cell in points],
            label=label,
            color=colour,
            marker=marker,
            linestyle=style,
            markersize=5 if wanted is not None else 4,
            linewidth=2.2 if wanted is not None else 1.4,
            elinewidth=1.0,
            capsize=3,
        )
    axis.axvline(base_context_length, color=GREY, linewidth=1, linestyle=":")
    axis.set_xscale("log", base=2)
    ticks = sorted({cell.window for cell in cells})
    labels = [f"{window}\n= L" if window == base_context_length else str(window) for window in ticks]
    axis.set_xticks(ticks, labels, rotation=0 if len(ticks) < 9 else 60)
    axis.minorticks_off()
    axis.set_xlabel("window W (tokens)")
    axis.set_ylabel("NLL (nats per token), ± 1 standard error")
    axis.set_title("NLL by window", loc="left", fontsize=12, fontweight="bold")
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(y=0.12)
    axis.legend(frameon=False, fontsize=9)


def _serves(base_context_length: int) -> Any:
    """Return whether a cell is measured at the scale the paper serves its window with."""
    return lambda cell: abs(cell.scale - paper_scale(cell.window, base_context_length)) < 1e-6


def _best_cells(cells: Sequence[Cell], model: str) -> list[Cell]:
    best: dict[int, Cell] = {}
    for cell in cells:
        if cell.model == model and (cell.window not in best or cell.nll < best[cell.window].nll):
            best[cell.window] = cell
    return list(best.values())


def draw_surface(
    axis: Axes,
    cells: Sequence[Cell],
    model: str,
    windows: Sequence[int],
    scales: Sequence[float],
    base_context_length: int,
    norm: Normalize,
) -> None:
    """Draw one model's NLL over window (rows) and scale (columns), with the number in each cell."""
    grid = np.full((len(windows), len(scales)), np.nan)
    for cell in cells:
        if cell.model == model:
            grid[windows.index(cell.window), scales.index(cell.scale)] = cell.nll
    image = axis.imshow(grid, cmap=SURFACE_COLOURS, norm=norm, aspect="auto", origin="lower")
    size = 9 if max(grid.shape) <= 8 else 6
    for (row, column), nll in np.ndenumerate(grid):
        served = abs(scales[column] - paper_scale(windows[row], base_context_length)) < 1e-6
        if np.isnan(nll):
            axis.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0)
            )
        else:
            red, green, blue, _ = image.cmap(norm(nll))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            star = " ★" if nll == np.nanmin(grid[row]) else ""
            axis.text(
                column, row, f"{nll:.2f}{star}", ha="center", va="center", fontsize=size,
                color="white" if dark else INK,
            )  # fmt: skip
        if served:
            box = Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.8)
            axis.add_patch(box)
    axis.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axis.set_yticks(range(len(windows)), [str(window) for window in windows])
    axis.set_xlabel("scale g")
    axis.set_title(f"{model} model", loc="left", fontsize=12, fontweight="bold")
    axis.tick_params(length=0)
    axis.set_xticks(np.arange(1, len(scales)) - 0.5, minor=True)
    axis.set_yticks(np.arange(1, len(windows)) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=2)
    axis.tick_params(which="minor", length=0)
    axis.spines[:].set_visible(False)


__all__ = ["SCHEMA", "draw", "draw_surface", "explain_surfaces", "read_evaluation", "table", "write_evaluation"]
