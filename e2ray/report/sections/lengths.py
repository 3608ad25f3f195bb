"""NLL by position: how well each scale predicts at each distance from the beginning of a document.

Past the base window the scales diverge, and the lowest curve of a stretch is the scale that reads a context of that
length best.
"""

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2ray.evaluate.by_length import LengthCell
from e2ray.evaluate.removed import base_name
from e2ray.report.frame.curve import Look, curve
from e2ray.report.frame.drawing import new_figure, tidy
from e2ray.report.frame.page import Picture, picture
from e2ray.report.run_files import RunRecord
from e2ray.report.sections.section import RunSection

MARKS = ("o", "s", "^", "D", "v", "P")


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
    for index, scale in enumerate(scales):
        points = {cell.context_length: cell.bucket_nll for cell in cells if cell.scale == scale}
        colour = colormaps["viridis"](0.92 * index / max(1, len(scales) - 1))
        look = Look(colour, MARKS[index % len(MARKS)], width=1.8, size=5)
        known = [(lengths.index(length), nll) for length, nll in points.items()]
        curve(axis, known, look, label=f"{scale:g}", even_empty=True)  # the other model may have it
    starts = [1, *(length + 1 for length in lengths[:-1])]
    names = [f"{first:,}\nto {last:,}" for first, last in zip(starts, lengths, strict=True)]
    axis.set_xticks(range(len(lengths)), names, fontsize=8)
    axis.set_xlabel("position in the document (tokens)")
    tidy(axis, title)


def _parts(records: Sequence[RunRecord]) -> list[Picture]:
    return [
        picture(
            draw_by_length(record.by_length, removed_scaling=record.removed_scaling),
            f"NLL of {record.name} by position, a curve for each scale",
            f"{record.name}: each scale reads the beginning of every document once; the curve shows how well it "
            "predicts each stretch with all that stands before it. The lowest curve of a stretch is the "
            "scale that reads a context of that length best.",
        )
        for record in records
        if record.by_length
    ]


LENGTHS = RunSection("NLL by position", "position", _parts)
