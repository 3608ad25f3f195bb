"""Pictures of a study's space: recommended ranges, importances, slices and parallel coordinates.

Each function returns a figure, or None where the study holds nothing to draw. A setting that a trial does not use
has no value there: in slices the trial is absent, in parallel coordinates it stands on a level of its own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from e2ray.report.frame.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PALE,
    SURFACE_COLOURS,
    VERMILLION,
    log_ticks,
    new_figure,
    plain,
    tidy,
)
from e2ray.report.frame.text import number, plural
from e2ray.report.study_terms import (
    best_trial,
    measured_trials,
    range_words,
    ranges_by_space,
    share_of_range,
    short_name,
    upper_limit,
)
from e2ray.search.record import StudyResults, TrialRecord
from e2ray.search.results import text_of

MOST_AXES = 14  # of parallel coordinates; more cannot be told apart
NOT_USED = -0.16  # level of a setting that a trial does not use, below the axis from 0 to 1
GOLDEN_SHARE = 0.6180339887  # spreads points of a strip evenly by trial number


def draw_ranges(results: StudyResults) -> Figure | None:
    """Return the recommended interval of each number inside the searched one, and the count of each kind.

    Below each what the surrogate says, where there is one.
    """
    rows, said = ranges_by_space(results), (results.ranges.get("surrogate") or {}).get("parameters", {})
    space = results.facts.space
    numbers = [path for path in rows if space[path]["kind"] != "choice"]
    kinds = [path for path in rows if space[path]["kind"] == "choice"]
    if results.ranges.get("best") is None:
        return None
    bars = sum((1 if rows[path]["undetermined"] else len(space[path]["options"])) + 0.7 for path in kinds)
    heights = [*([0.62 * len(numbers) + 0.8] if numbers else []), *([0.27 * bars + 0.9] if kinds else [])]
    figure = new_figure(sum(heights) + 0.5)
    axes = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if numbers:
        _number_rows(axis := axes.pop(0), [(path, space[path], rows[path]) for path in numbers])
        _surrogate_numbers(axis, [(space[path], said.get(path)) for path in numbers])
    if kinds:
        _kind_rows(axes.pop(0), [(path, space[path], rows[path]) for path in kinds], said)
    handles = [
        Patch(facecolor=PALE, label="searched"),
        Patch(facecolor=BLUE, label="recommended (central 80 %), or trials of that kind"),
        Patch(facecolor="white", edgecolor=GREY, hatch="////", label="undetermined: under five trials"),
    ]
    if said:
        handles += [
            Patch(facecolor=VERMILLION, label="surrogate: determined"),
            Patch(facecolor="white", edgecolor=VERMILLION, label="surrogate: not determined"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _number_rows(axis: Axes, rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Draw one bar per number on its own axis from the searched low (0) to the searched high (1)."""
    for y, (_, spec, row) in enumerate(rows):
        open_one = row["undetermined"] or row.get("low") is None
        hatch = {"facecolor": "white", "edgecolor": GREY, "hatch": "////", "linewidth": 0.5}
        axis.barh(y, 1, height=0.5, **(hatch if open_one else {"color": PALE}))
        if open_one:
            note = f"undetermined ({plural(row['trials'], 'trial')})"
            axis.text(0.5, y, note, ha="center", va="center", fontsize=9, color=INK, bbox={"color": "white", "pad": 1})
        else:
            low, high = share_of_range(row["low"], spec), share_of_range(row["high"], spec)
            axis.barh(y, max(high - low, 0.006), left=low, height=0.5, color=BLUE)
            told = range_words(row)
            inside = high - low > 0.25
            side = (low + high) / 2 if inside else high + 0.012 if high < 0.75 else low - 0.012
            aligned = "center" if inside else "left" if high < 0.75 else "right"
            axis.text(side, y, told, ha=aligned, va="center", fontsize=9.5, color="white" if inside else INK)
        axis.text(-0.012, y, number(spec["low"]), ha="right", va="center", fontsize=9, color=INK)
        axis.text(1.012, y, number(spec["high"]), ha="left", va="center", fontsize=9, color=INK)
    names = [plain(short_name(path)) + (" (log)" if spec.get("log") else "") for path, spec, _ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=10)
    axis.tick_params(length=0, pad=52, axis="y")
    axis.set_xticks([])
    axis.set(xlim=(-0.002, 1.075), ylim=(len(rows) - 0.5, -0.5))
    axis.spines[:].set_visible(False)
    axis.set_title("Numbers", loc="left", fontsize=11, fontweight="bold")


def _surrogate_numbers(axis: Axes, rows: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]]) -> None:
    """Draw below each number's bar a slim one, where the surrogate's prediction stays within one noise of the best."""
    for y, (spec, row) in enumerate(rows):
        if row is None:
            continue
        low, high = share_of_range(row["low"], spec), share_of_range(row["high"], spec)
        face = VERMILLION if row["determined"] else "white"
        width = max(high - low, 0.006)
        axis.barh(y + 0.34, width, left=low, height=0.11, facecolor=face, edgecolor=VERMILLION, linewidth=0.8)


def _kinds_words(row: Mapping[str, Any] | None) -> str:
    """Return which options of a setting the surrogate leaves, where that is not all of them."""
    if row is None or row["share"] == 1:
        return ""
    left = ", ".join(number(option) for option in row["kinds"])
    return f"surrogate: {left}{'' if row['determined'] else ', not determined'}"


def _kind_rows(
    axis: Axes, rows: Sequence[tuple[str, Mapping[str, Any], Mapping[str, Any]]], said: Mapping[str, Any]
) -> None:
    """Draw how many of the trials near the best chose each option, options nobody chose included."""
    y, ticks, names = 0.0, [], []
    most = max((found for _, _, row in rows for found in (row.get("kinds") or {}).values()), default=1)
    for path, spec, row in rows:
        if row["undetermined"]:
            axis.barh(y, 1.05 * most, height=0.7, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.5)
            note = f"undetermined ({plural(row['trials'], 'trial')})"
            box = {"color": "white", "pad": 1}
            told = _kinds_words(said.get(path))
            axis.text(most / (4 if told else 2), y, note, ha="center", va="center", fontsize=9, bbox=box)
            if told:
                colour = VERMILLION if said[path]["determined"] else INK
                axis.text(most / 2, y, told, ha="left", va="center", fontsize=9, color=colour, bbox=box)
            ticks.append(y)
            names.append(plain(short_name(path)))
            y += 1.7
            continue
        for option in spec["options"]:
            found = row["kinds"].get(text_of(option), 0)
            axis.barh(y, found, height=0.7, color=BLUE)
            axis.text(found + 0.01 * most, y, str(found), va="center", fontsize=9, color=INK)
            ticks.append(y)
            names.append(f"{plain(short_name(path))}: {plain(number(option))}")
            y += 1
        y += 0.7
    axis.set_yticks(ticks, names, fontsize=9.5)
    axis.tick_params(length=0, axis="y")
    axis.set(xlim=(0, 1.08 * max(most, 1)), ylim=(y - 1.1, -0.6))
    tidy(axis, "Kinds", grid="x")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("trials within one noise of the best")
    if all(row["undetermined"] for _, _, row in rows):
        axis.set(xticks=[], xlabel="")


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
        place = max(share, 100 * high) + 0.01 * most
        axis.text(place, y, f"{share:.0f} %", va="center", fontsize=9.5, color=INK)
    axis.set_yticks(range(len(ordered)), [plain(short_name(path)) for path, _ in ordered], fontsize=10)
    axis.set(ylim=(len(ordered) - 0.4, -0.6), xlim=(0, 1.1 * most))
    axis.set_xlabel("importance for being among the best quarter of the full trials (%); line: any one trial left out")
    axis.tick_params(length=0, axis="y")
    tidy(axis, grid="x")
    return figure


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
    bar = figure.colorbar(ScalarMappable(norm, SURFACE_COLOURS), ax=axis, shrink=0.8, pad=0.02, extend="max")
    bar.set_label("weighted number, lower is better")
    bar.outline.set_visible(False)
    return figure


def _shown_paths(results: StudyResults) -> list[str]:
    """Return the settings drawn as axes, in the space's order: all, or the most important ones."""
    paths = list(results.facts.space)
    ranked = sorted(paths, key=lambda path: -results.importances.get(path, 0.0))[:MOST_AXES]
    return [path for path in paths if path in ranked]


def _height(path: str, spec: Mapping[str, Any], record: TrialRecord) -> float:
    """Return the height of a trial on one axis: 0 to 1, kinds evenly spread, or the level below for `not used`."""
    if path not in record.params:
        return NOT_USED
    if spec["kind"] != "choice":
        return share_of_range(record.params[path], spec)
    options = [str(option) for option in spec["options"]]
    return options.index(str(record.params[path])) / max(len(options) - 1, 1)


def _parallel_axis(axis: Axes, x: int, spec: Mapping[str, Any]) -> None:
    """Draw one axis with the ends of its interval, or its kinds."""
    axis.plot([x, x], [0, 1], color=GREY, linewidth=1, zorder=3)
    if spec["kind"] == "choice":
        last = max(len(spec["options"]) - 1, 1)
        marks = [(place / last, number(option)) for place, option in enumerate(spec["options"])]
    else:
        marks = [(0.0, number(spec["low"])), (1.0, number(spec["high"]))]
    for y, text in marks:
        axis.text(
            x + 0.04, y, plain(text), fontsize=8.5, va="center", color=INK, zorder=6,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
        )  # fmt: skip
