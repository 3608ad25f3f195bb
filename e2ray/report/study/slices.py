"""The weighted number against each searched setting."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from e2ray.report.frame.drawing import BLUE, GREY, ORANGE, VERMILLION, log_ticks, new_figure, plain, tidy
from e2ray.report.frame.text import number
from e2ray.report.study.axes import upper_limit
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import measured_trials, short_name
from e2ray.search.record import StudyResults, TrialRecord

GOLDEN_SHARE = 0.6180339887  # spreads points of a strip evenly by trial number


def draw_slices(results: StudyResults) -> Figure | None:
    """Return the weighted number against each setting, stopped trials in grey at the number they were stopped with."""
    full = [record for record in measured_trials(results) if not record.repeat]
    pruned = [record for record in results.records if record.state == "pruned" and record.value is not None]
    paths = [path for path in results.facts.space if any(path in record.params for record in full)]
    if not paths:
        return None
    columns = min(3, len(paths))
    lines = -(-len(paths) // columns)
    figure = new_figure(2.5 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    values = [record.value for record in full if record.value is not None]
    low, top = min(values), upper_limit(values)
    for axis, path in zip(axes.flat, paths, strict=False):
        for records, colour in ((pruned, "#B5B5B5"), (full, None)):
            _slice(axis, path, results.facts.space[path], records, colour, top)
        if results.noise.value is not None:
            axis.axhspan(low, low + results.noise.value, color=ORANGE, alpha=0.35, linewidth=0, zorder=0)
        axis.set_xlabel(plain(short_name(path)), fontsize=10)
        tidy(axis)
    for axis in list(axes.flat)[len(paths) :]:
        axis.set_visible(False)
    pad = max(top - low, 1e-3)
    axes[0, 0].set_ylim(low - 0.08 * pad, top + 0.08 * pad)
    for axis in axes[:, 0]:
        axis.set_ylabel("weighted number")
    figure.legend(handles=_slice_legend(results), loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def _slice_legend(results: StudyResults) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], marker="o", color=BLUE, linestyle="none", label="sampled, full"),
        Line2D([], [], marker="s", color=VERMILLION, linestyle="none", label="published, full"),
        Line2D([], [], marker="o", color="#B5B5B5", linestyle="none", label="stopped early"),
        Line2D([], [], marker="^", color=GREY, linestyle="none", label="above the picture"),
    ]
    if results.noise.value is not None:
        handles.append(Patch(color=ORANGE, alpha=0.35, label="within one noise of the best"))
    return handles


def _slice(
    axis: Axes, path: str, spec: Mapping[str, Any], records: Sequence[TrialRecord], colour: str | None, top: float
) -> None:
    """Draw the trials that use a setting against its value; kinds as strips, numbers on their searched scale."""
    options = [str(option) for option in spec["options"]] if spec["kind"] == "choice" else None
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        if path not in record.params or record.value is None:
            continue
        value = record.params[path]
        spread = 0.55 * ((record.number * GOLDEN_SHARE) % 1 - 0.5)
        x = value if options is None else options.index(str(value)) + spread
        published = record.baseline is not None
        marker = "^" if record.value > top else "s" if published else "o"
        shown = colour or (VERMILLION if published else BLUE)
        points.setdefault((marker, shown), []).append((x, min(record.value, top)))
    for (marker, shown), some in points.items():
        axis.plot([x for x, _ in some], [y for _, y in some], marker, color=shown, markersize=4, alpha=0.8)
    if options is not None:
        turned = sum(len(option) for option in options) > 26
        names = [plain(number(option)) for option in spec["options"]]
        axis.set_xticks(range(len(options)), names, fontsize=9, rotation=28 if turned else 0,
                        ha="right" if turned else "center")  # fmt: skip
        axis.set_xlim(-0.5, len(options) - 0.5)
    else:
        low, high = spec["low"], spec["high"]
        pad = (high / low) ** 0.04 if spec.get("log") else 0.04 * (high - low)
        if spec.get("log"):
            axis.set_xscale("log")
            axis.set_xlim(low / pad, high * pad)
            log_ticks(axis, low, high)
        elif high > low:
            axis.set_xlim(low - pad, high + pad)


SLICES = study_section(
    "Slices",
    "slices",
    Drawing(
        "slices",
        draw_slices,
        "Small scatter plots of the weighted number against each searched setting",
        "Each trial that uses the setting. Grey ones were stopped early: their number belongs to fewer updates and "
        "mostly stands above where it would have ended. A point alone shows what went together, not what caused it: "
        "the other settings vary too. Kinds are spread sideways only to keep points apart.",
    ),
)
