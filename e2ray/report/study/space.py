"""The searched settings: which of them matter, and the trials along each of them and along all.

A setting that a trial does not use has no value there: in slices the trial is absent, in parallel coordinates its line
passes through a level of its own.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from e2ray.report.frame.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SURFACE_COLOURS,
    VERMILLION,
    colour_bar,
    log_ticks,
    new_figure,
    plain,
    tidy,
)
from e2ray.report.frame.page import Point
from e2ray.report.frame.text import number, plural, share_words
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import best_trial, measured_trials, share_of_range, short_name, upper_limit
from e2ray.search.record import SearchedSetting, StudyResults, TrialRecord


def draw_importances(results: StudyResults) -> Figure | None:
    """Return each setting's importance for being among the best quarter of the full trials, the largest on top."""
    ordered = sorted(results.importances.items(), key=lambda item: (-item[1], item[0]))
    if not ordered:
        return None
    figure = new_figure(0.36 * len(ordered) + 1.0)
    axis = figure.subplots()
    shares = [100 * share for _, share in ordered]
    axis.barh(range(len(ordered)), shares, color=BLUE, height=0.65)
    spans = [results.importance_spread.get(path, (share, share)) for path, share in ordered]
    axis.hlines(range(len(ordered)), [100 * low for low, _ in spans], [100 * high for _, high in spans], INK, lw=1)
    most = max(1.0, *shares, *(100 * high for _, high in spans))
    for y, (share, (_, high)) in enumerate(zip(shares, spans, strict=True)):
        x = max(share, 100 * high) + 0.01 * most
        axis.text(x, y, f"{share:.0f} %", va="center", fontsize=9.5, color=INK)
    axis.set_yticks(range(len(ordered)), [plain(short_name(path)) for path, _ in ordered], fontsize=10)
    axis.set(ylim=(len(ordered) - 0.4, -0.6), xlim=(0, 1.1 * most))
    axis.set_xlabel("importance for being among the best quarter of the full trials (%); line: any one trial left out")
    axis.tick_params(length=0, axis="y")
    tidy(axis, grid="x")
    return figure


def _importance_findings(results: StudyResults) -> list[Point]:
    head, trials = "Settings that matter.", len(measured_trials(results))
    if not results.importances:
        return [Point(head, f"Not computable: {plural(trials, 'trial')} ran in full.", warning=True)]
    ordered = sorted(results.importances.items(), key=lambda item: (-item[1], item[0]))
    top = ", ".join(
        f"{short_name(path)} {share_words(share, results.importance_spread.get(path))}" for path, share in ordered[:4]
    )
    rest = f"; the other {len(ordered) - 4} share the rest" if len(ordered) > 4 else ""
    known = (
        "In brackets the lowest and the highest share with any one trial left out; where these overlap, the order says "
        "nothing."
        if results.importance_spread
        else "Their own error was not measured, so take their order for a hint."
    )
    return [
        Point(
            head,
            f"What tells the best quarter of {plural(trials, 'full trial')} from the rest: {top}{rest}. {known}",
        )
    ]


IMPORTANCES = study_section(
    "Importances",
    "importances",
    Drawing(
        "importances",
        draw_importances,
        "Bars of each setting's importance for being among the best quarter of the full trials",
        "What tells the best quarter of the full trials from the rest, by PED-ANOVA; the shares sum to 1. A thin line "
        "spans the shares with any one trial left out: what a single trial decides. The true uncertainty is larger.",
        "The importances could not be computed: too few trials ran in full, or they all came out alike.",
    ),
    findings=_importance_findings,
)


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
    axis: Axes, path: str, spec: SearchedSetting, records: Sequence[TrialRecord], colour: str | None, top: float
) -> None:
    """Draw the trials that use a setting against its value; kinds as strips, numbers on their searched scale."""
    options = [str(option) for option in spec["options"]] if spec["kind"] == "choice" else None
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for record in records:
        if path not in record.params or record.value is None:
            continue
        value = record.params[path]
        spread = 0.55 * ((record.number * GOLDEN_SHARE) % 1 - 0.5)
        x = options.index(str(value)) + spread if options else float(value or 0)
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


MOST_AXES = 14  # of parallel coordinates; more are illegible
NOT_USED = -0.16  # level of a setting that a trial does not use, below the axis from 0 to 1


def draw_parallel(results: StudyResults) -> Figure | None:
    """Return one line per full trial through all its settings, coloured by the weighted number."""
    trials = [record for record in measured_trials(results) if record.params and not record.repeat]
    paths = _shown_paths(results)
    if not trials or not paths:
        return None
    figure = new_figure(5.4)
    axis = figure.subplots()
    values = np.array([record.value for record in trials], dtype=float)
    norm = Normalize(float(values.min()), max(upper_limit(list(values)), float(values.min()) + 1e-6))
    best = best_trial(results)
    order = np.argsort(-values, kind="stable")  # good ones on top
    lines, colours, widths = [], [], []
    for index in order:
        record = trials[index]
        heights = [_height(path, results.facts.space[path], record) for path in paths]
        lines.append(np.column_stack([range(len(paths)), heights]))
        colours.append(ScalarMappable(norm, SURFACE_COLOURS).to_rgba(record.value))
        widths.append(3.2 if best is not None and record.number == best.number else 1.3)
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=widths, alpha=0.9))
    for x, path in enumerate(paths):
        _parallel_axis(axis, x, results.facts.space[path])
    axis.axhline(NOT_USED, color=GREY, linewidth=0.8, linestyle=":")
    axis.set_yticks([NOT_USED], ["not used"], fontsize=10)
    names = [plain(short_name(path)) for path in paths]
    axis.set_xticks(range(len(paths)), names, rotation=28, ha="right", fontsize=10)
    axis.tick_params(length=0)
    axis.set(xlim=(-0.25, len(paths) - 0.35), ylim=(NOT_USED - 0.05, 1.06))
    axis.spines[:].set_visible(False)
    colour_bar(figure, [axis], norm, "weighted number, lower is better", pad=0.02, extend="max")
    return figure


def _shown_paths(results: StudyResults) -> list[str]:
    """Return the settings drawn as axes, in the space's order: all, or the most important ones."""
    paths = list(results.facts.space)
    ranked = sorted(paths, key=lambda path: -results.importances.get(path, 0.0))[:MOST_AXES]
    return [path for path in paths if path in ranked]


def _height(path: str, spec: SearchedSetting, record: TrialRecord) -> float:
    """Return the height of a trial on one axis: 0 to 1, kinds evenly spread, or the level below for `not used`."""
    if path not in record.params:
        return NOT_USED
    value = record.params[path]
    if spec["kind"] != "choice":
        return share_of_range(float(value or 0), spec)
    options = [str(option) for option in spec["options"]]
    return options.index(str(value)) / max(len(options) - 1, 1)


def _parallel_axis(axis: Axes, x: int, spec: SearchedSetting) -> None:
    """Draw one axis with the ends of its interval, or its kinds."""
    axis.plot([x, x], [0, 1], color=GREY, linewidth=1, zorder=3)
    if spec["kind"] == "choice":
        last = max(len(spec["options"]) - 1, 1)
        marks = [(index / last, number(option)) for index, option in enumerate(spec["options"])]
    else:
        marks = [(0.0, number(spec["low"])), (1.0, number(spec["high"]))]
    for y, text in marks:
        axis.text(
            x + 0.04, y, plain(text), fontsize=8.5, va="center", color=INK, zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip


def _note_on_axes(results: StudyResults) -> str:
    many = len(results.facts.space) > MOST_AXES
    return f" Only the {MOST_AXES} most important settings are drawn." if many else ""


PARALLEL = study_section(
    "Parallel coordinates",
    "parallel",
    Drawing(
        "parallel",
        draw_parallel,
        "Parallel coordinates: one line per full trial through its settings, coloured by the weighted number",
        "One line per full trial, dark is worse and light is better, the balanced best is thick. Each number runs from "
        "the searched low to the searched high. A line passes through the level 'not used' where a trial's kinds leave "
        "a setting without meaning. Published methods that the space cannot express are not in it.",
        "No sampled trial ran in full, so there is nothing to draw.",
        _note_on_axes,
    ),
)
