"""NLL by context length as files: evaluation-lengths.parquet and its picture.

The picture shows how well each scale predicts at each distance from the beginning of a document: past the base window
the scales part, and the lowest curve of a bucket is the scale that reads a context of that length best.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2ray.evaluate.by_length import LengthCell
from e2ray.evaluate.removed import base_name
from e2ray.files import atomic_path
from e2ray.report.drawing import new_figure, tidy
from e2ray.report.tables import read_table, write_table

NAME = "evaluation-lengths"
SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("context_length", pa.int64(), nullable=False),
        pa.field("scale", pa.float64(), nullable=False),
        pa.field("nll", pa.float64(), nullable=False),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("bucket_nll", pa.float64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("last", pa.int64(), nullable=False),
    ]
)
MARKS = ("o", "s", "^", "D", "v", "P")


def write_by_length(folder: Path, cells: Sequence[LengthCell], *, removed_scaling: str | None = None) -> None:
    """Write evaluation-lengths.parquet and .png into a run's folder; without a cell, remove those of an earlier time.

    Args:
        folder: The run's folder.
        cells: As `evaluate.by_length.length_cells` returns them, of any models and scales.
        removed_scaling: Rope type that was removed from the base.
    """
    table, picture = (folder / f"{NAME}.{kind}" for kind in ("parquet", "png"))
    if not cells:
        table.unlink(missing_ok=True)
        picture.unlink(missing_ok=True)
        return
    write_table(table, pa.Table.from_pylist([cell.row() for cell in cells], schema=SCHEMA))
    with atomic_path(picture) as aside:
        draw_by_length(cells, removed_scaling=removed_scaling).savefig(aside, format="png")


def read_by_length(path: Path) -> list[LengthCell]:
    """Return the cells of an evaluation-lengths.parquet.

    Raises:
        SettingsError: If it cannot be read or is something else.
    """
    return [LengthCell(**row) for row in read_table(path, SCHEMA).to_pylist()]


def draw_by_length(cells: Sequence[LengthCell], *, removed_scaling: str | None = None) -> Figure:
    """Return NLL by bucket of positions, a panel for each model and a curve for each scale."""
    models = [name for name in ("tuned", "base") if any(cell.model == name for cell in cells)]
    models += sorted({cell.model for cell in cells} - set(models))
    scales = sorted({cell.scale for cell in cells})
    figure = new_figure(4.4, width=2.0 + 5.0 * len(models))
    axes = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axis, model in zip(axes, models, strict=True):
        title = base_name(removed_scaling) if model == "base" and removed_scaling else f"{model} model"
        _draw_model(axis, [cell for cell in cells if cell.model == model], title, scales)
    axes[0].set_ylabel("NLL (nats per token), lower is better")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="scale g", loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _draw_model(axis: Axes, cells: Sequence[LengthCell], title: str, scales: Sequence[float]) -> None:
    lengths = sorted({cell.context_length for cell in cells})
    colours = colormaps["viridis"]
    for place, scale in enumerate(scales):
        points = {cell.context_length: cell.bucket_nll for cell in cells if cell.scale == scale}
        axis.plot(
            [lengths.index(length) for length in points],
            [*points.values()],
            color=colours(0.92 * place / max(1, len(scales) - 1)),
            marker=MARKS[place % len(MARKS)],
            markersize=5,
            linewidth=1.8,
            label=f"{scale:g}",
        )
    starts = [1, *(length + 1 for length in lengths[:-1])]
    names = [f"{first:,}\nto {last:,}" for first, last in zip(starts, lengths, strict=True)]
    axis.set_xticks(range(len(lengths)), names, fontsize=8)
    axis.set_xlabel("position in the document (tokens)")
    axis.set_title(title, loc="left", fontsize=12, fontweight="bold")
    tidy(axis)
