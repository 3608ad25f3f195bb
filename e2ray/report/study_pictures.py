"""Pictures of a study's results: the Pareto front, the surfaces of best and paper, progress, and the rungs.

Each function returns a figure, or None where the study holds nothing to draw. What was not measured is drawn as
missing, and outliers that would flatten the rest are drawn at the edge as triangles.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from e2ray.core.scales import paper_scale
from e2ray.evaluate.removed import base_name
from e2ray.report.frame.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    SURFACE_COLOURS,
    VERMILLION,
    new_figure,
    plain,
    tidy,
)
from e2ray.report.frame.heat import missing_cell
from e2ray.report.frame.labels import label_points
from e2ray.report.study_terms import (
    Grid,
    asked_objectives,
    best_trial,
    last_rows,
    measured_trials,
    method,
    numbers_of,
    paper_trial,
    upper_limit,
)
from e2ray.search.record import StudyResults, TrialRecord


def draw_pareto(results: StudyResults) -> Figure | None:
    """Return long against short of all full trials, with a second panel near the front where the first crowds it."""
    trials = measured_trials(results)
    if not trials:
        return None
    figure = new_figure(5.0)
    region = _best_region(results)
    axes = figure.subplots(1, 2 if region else 1, squeeze=False)[0]
    for axis in axes:
        _pareto_points(axis, results, trials)
        axis.set_xlabel("long: mean NLL over the windows (nats), lower is better")
    axes[0].set_ylabel("short: NLL rise at L (nats), lower is better")
    tidy(axes[0], "All full trials")
    if region:
        x_low, x_high, y_low, y_high = region
        axes[1].set(xlim=(x_low, x_high), ylim=(y_low, y_high))
        axes[1].xaxis.set_major_locator(MaxNLocator(6))
        tidy(axes[1], "The dotted box")
        axes[0].add_patch(
            Rectangle((x_low, y_low), x_high - x_low, y_high - y_low, fill=False, edgecolor=GREY, linestyle=":")
        )
    figure.legend(handles=_pareto_legend(results), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    obstacles = [*zip(numbers_of(trials, "long"), numbers_of(trials, "short"), strict=True), *_drawn_lines(results)]
    chosen, methods = _chosen_labels(results), _method_labels(trials)
    label_points(axes[0], methods if region else chosen + methods, obstacles=obstacles)
    if region:
        label_points(axes[1], chosen + methods, obstacles=obstacles)
    return figure


def _best_region(results: StudyResults) -> tuple[float, float, float, float] | None:
    """Return the box round long-first, balanced, those as good as the best one and the paper's preset.

    None where it fills the picture anyway.
    """
    trials, paper = measured_trials(results), paper_trial(results)
    wanted = {results.chosen[name] for name in ("long-first", "balanced") if name in results.chosen}
    near = [record for record in trials if record.number in wanted]
    near += [paper] if paper is not None else []
    if near and results.noise.value is not None:
        most = min(numbers_of(trials, "value")) + results.noise.value
        near += [record for record in trials if record.value is not None and record.value <= most]
    if not near:
        return None
    points, everything = (np.array([numbers_of(some, "long"), numbers_of(some, "short")]).T for some in (near, trials))
    pad = np.maximum(0.2 * np.ptp(points, axis=0), 0.01)
    low, high = points.min(axis=0) - pad, points.max(axis=0) + pad
    if np.prod((high - low) / np.maximum(np.ptp(everything, axis=0), 1e-9)) > 0.5:
        return None
    return float(low[0]), float(high[0]), float(low[1]), float(high[1])


def _pareto_points(axis: Axes, results: StudyResults, trials: Sequence[TrialRecord]) -> None:
    """Draw the points by kind, the front's line, the chosen ones' rings and the paper's error bars."""
    sampled = [record for record in trials if record.baseline is None]
    published = [record for record in trials if record.baseline is not None]
    axis.plot(numbers_of(sampled, "long"), numbers_of(sampled, "short"), "o", color=BLUE, markersize=5, alpha=0.75)
    axis.plot(numbers_of(published, "long"), numbers_of(published, "short"), "s", color=VERMILLION, markersize=6)
    front = [results.record(found) for found in results.front]
    x, y = numbers_of(front, "long"), numbers_of(front, "short")
    if asked_objectives(results):  # then the front is a surface, and a line through it would mean nothing
        axis.plot(x, y, "o", markersize=8, markerfacecolor="none", markeredgecolor=INK, zorder=4)
    else:
        axis.plot(x, y, color=INK, linewidth=1.2, zorder=1)
    picked = [results.record(found) for found in dict.fromkeys(results.chosen.values())]
    axis.plot(
        numbers_of(picked, "long"), numbers_of(picked, "short"), "o", markersize=12, markerfacecolor="none",
        markeredgecolor=GREEN, markeredgewidth=2.2, zorder=6,
    )  # fmt: skip
    paper, noise = paper_trial(results), results.noise
    if paper is not None and noise.long is not None and noise.short is not None:
        axis.errorbar(
            numbers_of([paper], "long"), numbers_of([paper], "short"), xerr=[noise.long], yerr=[noise.short],
            color=VERMILLION, capsize=3, elinewidth=1.4, zorder=5,
        )  # fmt: skip
    axis.margins(0.08)


def _pareto_legend(results: StudyResults) -> list[Line2D]:
    """Return the legend's entries: only what the picture holds."""
    noise = "± noise on the paper's preset" if results.noise.long is not None else "noise unknown"
    return [
        Line2D([], [], marker="o", color=BLUE, linestyle="none", label="sampled"),
        Line2D([], [], marker="s", color=VERMILLION, linestyle="none", label=f"published method ({noise})"),
        Line2D([], [], marker="o", markersize=8, markerfacecolor="none", markeredgecolor=INK, linestyle="none",
               label="Pareto front, answers counted in")
        if asked_objectives(results)
        else Line2D([], [], color=INK, linewidth=1.2, label="Pareto front"),
        Line2D([], [], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=GREEN, markeredgewidth=2.2,
               linestyle="none", label="chosen"),
    ]  # fmt: skip


Label = tuple[float, float, str]


def _chosen_labels(results: StudyResults) -> list[Label]:
    names: dict[int, list[str]] = {}
    for name, found in results.chosen.items():
        names.setdefault(found, []).append(name)
    return [_label(results.record(n), f"{', '.join(named)} (trial {n})") for n, named in names.items()]


def _method_labels(trials: Sequence[TrialRecord]) -> list[Label]:
    """Return the labels of published methods; further seeds of the paper's preset go unlabelled."""
    return [_label(r, method(r.baseline)) for r in trials if r.baseline is not None and not r.repeat]


def _label(record: TrialRecord, text: str) -> Label:
    return numbers_of([record], "long")[0], numbers_of([record], "short")[0], text


def _drawn_lines(results: StudyResults) -> list[tuple[float, float]]:
    """Return points along the front's line and the paper's error bars, which labels should not cover."""
    points: list[tuple[float, float]] = []
    paper, noise = paper_trial(results), results.noise
    if paper is not None and noise.long is not None and noise.short is not None:
        x, y = numbers_of([paper], "long")[0], numbers_of([paper], "short")[0]
        for share in np.linspace(-1, 1, 9):
            points += [(x + share * noise.long, y), (x, y + share * noise.short)]
    front = [results.record(found) for found in results.front]
    if front and not asked_objectives(results):
        at, places = np.linspace(0, len(front) - 1, 40 * len(front)), range(len(front))
        along = (np.interp(at, places, numbers_of(front, name)) for name in ("long", "short"))
        points += [(float(a), float(b)) for a, b in zip(*along, strict=True)]
    return points


def draw_surfaces(results: StudyResults) -> Figure | None:
    """Return NLL by window of best, paper and base, then both surfaces and their difference."""
    best, paper = best_trial(results), paper_trial(results)
    if best is None or not best.curves:
        return None
    paper = None if paper is None or paper.number == best.number or not paper.curves else paper
    grids = [(f"best (trial {best.number})", last_rows(best))]
    if paper is not None:
        grids.append((f"paper's preset (trial {paper.number})", last_rows(paper)))
    windows = sorted({window for _, grid in grids for window, _ in grid})
    scales = sorted({scale for _, grid in grids for _, scale in grid})
    lower = max(2.6, 0.42 * len(windows) + 1.2)
    figure = new_figure(3.8 + lower)
    cells = "bpd" if paper is not None else "b"
    mosaic: dict[str, Axes] = figure.subplot_mosaic([["c"] * len(cells), list(cells)], height_ratios=[3.6, lower])
    _window_curves(mosaic["c"], results, grids)
    axes = [mosaic[name] for name in cells]
    values = [nll for _, grid in grids for nll, _ in grid.values()]
    norm = Normalize(min(values), max(max(values), min(values) + 1e-6))
    for axis, (name, grid) in zip(axes, grids, strict=False):
        shown = _array({key: nll for key, (nll, _) in grid.items()}, windows, scales)
        _surface(axis, shown, windows, scales, results, name, SURFACE_COLOURS, norm, "{:.2f}")
    if paper is not None:
        left, right = grids[0][1], grids[1][1]
        change = {key: left[key][0] - right[key][0] for key in left if key in right}
        reach = max(max((abs(value) for value in change.values()), default=0.0), 1e-6)
        shown = _array(change, windows, scales)
        _surface(
            axes[2], shown, windows, scales, results, "best minus paper", "RdBu_r", TwoSlopeNorm(0, -reach, reach),
            "{:+.2f}",
        )  # fmt: skip
    axes[0].set_ylabel("window W (tokens)")
    figure.legend(handles=_surface_legend(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _surface_legend() -> list[Patch]:
    return [
        Patch(facecolor="none", edgecolor=INK, linewidth=1.8, label="scale W/L, as the study reads a window"),
        Patch(facecolor="white", edgecolor=GREY, hatch="////", label="not measured"),
    ]


def _window_curves(axis: Axes, results: StudyResults, grids: Sequence[tuple[str, Grid]]) -> None:
    """Draw NLL by window, each window at W/L, and the base also untouched."""
    length = results.facts.base_context_length
    base: Grid = {(r["window"], round(r["scale"], 6)): (r["nll"], r["stderr"]) for r in results.facts.base}
    series = [(f"{name}, g = W/L", grid, colour, marker, "-", False)
              for (name, grid), colour, marker in zip(grids, (BLUE, VERMILLION), "os", strict=False)]  # fmt: skip
    name, at_1 = (base_name(results.facts.removed_scaling, untouched=each) for each in (False, True))
    series.append((f"{name}, g = W/L without training", base, ORANGE, "^", "--", False))
    series.append((f"{at_1} (g = 1)", base, GREY, "D", "--", True))
    ticks = set()
    for label, grid, colour, marker, style, untouched in series:
        points = [
            (window, *row) for (window, scale), row in sorted(grid.items())
            if abs(scale - (1.0 if untouched else paper_scale(window, length))) < 1e-6
        ]  # fmt: skip
        if not points:
            continue
        ticks |= {window for window, _, _ in points}
        axis.errorbar(
            [window for window, _, _ in points], [nll for _, nll, _ in points],
            yerr=[error or 0.0 for _, _, error in points], label=plain(label), color=colour, marker=marker,
            linestyle=style, markersize=5, linewidth=1.8, elinewidth=0.9, capsize=3,
        )  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [f"{window}\n= L" if window == length else str(window) for window in sorted(ticks)])
    axis.minorticks_off()
    axis.set_xlabel("window W (tokens)")
    axis.set_ylabel("NLL (nats), ± 1 standard\nerror over documents")
    tidy(axis, "NLL by window", grid="y")
    axis.legend(frameon=False, fontsize=9)
    axis.margins(y=0.12)


def _array(cells: dict[tuple[int, float], float], windows: Sequence[int], scales: Sequence[float]) -> np.ndarray:
    """Return cells as an array [windows, scales], NaN where a cell was not measured."""
    return np.array([[cells.get((window, scale), np.nan) for scale in scales] for window in windows])


def _surface(
    axis: Axes,
    shown: np.ndarray,
    windows: Sequence[int],
    scales: Sequence[float],
    results: StudyResults,
    title: str,
    colours: str,
    norm: Normalize,
    form: str,
) -> None:
    """Draw one grid with its numbers; cells that were not measured are hatched, those at W/L framed."""
    image = axis.imshow(shown, cmap=colours, norm=norm, aspect="auto", origin="lower")
    size = 8.5 if len(scales) <= 6 else 6
    for (row, column), value in np.ndenumerate(shown):
        if np.isnan(value):
            missing_cell(axis, column, row)
        else:
            red, green, blue, _ = image.cmap(norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            colour = "white" if dark else INK
            axis.text(column, row, form.format(value), ha="center", va="center", fontsize=size, color=colour)
        if abs(scales[column] - paper_scale(windows[row], results.facts.base_context_length)) < 1e-6:
            axis.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, linewidth=1.8))
    axis.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
    axis.set_yticks(range(len(windows)), [str(window) for window in windows])
    axis.set_xlabel("scale g")
    axis.set_title(plain(title), loc="left", fontsize=10.5, fontweight="bold")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def draw_progress(results: StudyResults) -> Figure | None:
    """Return the weighted number of each full trial and the best so far, by trial and by tokens spent."""
    trials = [record for record in measured_trials(results) if not record.repeat]
    if not trials:
        return None
    figure = new_figure(4.2)
    axes = figure.subplots(1, 2, sharey=True)
    spent = list(accumulate(record.tokens for record in results.records))
    spent_by = {record.number: tokens / 1e6 for record, tokens in zip(results.records, spent, strict=True)}
    top = upper_limit([record.value for record in trials if record.value is not None])
    best = list(accumulate((record.value or 0.0 for record in trials), min))
    paper, noise = paper_trial(results), results.noise.value
    for axis, x, name in (
        (axes[0], {record.number: float(record.number) for record in results.records}, "trial number"),
        (axes[1], spent_by, "tokens trained on, all trials so far (millions)"),
    ):
        for kind, colour, marker in ((False, BLUE, "o"), (True, VERMILLION, "s")):
            shown = [record for record in trials if (record.baseline is not None) == kind]
            _with_edge(axis, [x[r.number] for r in shown], [r.value or 0.0 for r in shown], top, colour, marker)
        last = max(x.values())
        axis.step([*(x[r.number] for r in trials), last], [*best, best[-1]], where="post", color=INK, linewidth=1.8)
        stopped = [x[record.number] for record in results.records if record.state in ("pruned", "failed")]
        axis.plot(stopped, [0.015] * len(stopped), "|", color=GREY, markersize=8, transform=axis.get_xaxis_transform())
        if paper is not None and paper.value is not None:
            axis.axhline(paper.value, color=VERMILLION, linewidth=1, linestyle="--")
            if noise:
                axis.axhspan(paper.value - noise, paper.value + noise, color=VERMILLION, alpha=0.15, linewidth=0)
        axis.set_xlabel(name)
        tidy(axis)
    low = min(best[-1], paper.value if paper is not None and paper.value is not None else best[-1])
    axes[0].set_ylim(low - 0.08 * max(top - low, 1e-3), top + 0.05 * max(top - low, 1e-3))
    axes[0].set_ylabel("weighted number, lower is better")
    handles = [
        Line2D([], [], color=INK, linewidth=1.8, label="best so far"),
        Line2D([], [], marker="o", color=BLUE, linestyle="none", label="sampled"),
        Line2D([], [], marker="s", color=VERMILLION, linestyle="none", label="published method"),
        Line2D([], [], color=VERMILLION, linestyle="--", label="paper's preset" + (" ± noise" if noise else "")),
        Line2D([], [], marker="|", color=GREY, linestyle="none", markersize=8, label="stopped early or failed"),
        Line2D([], [], marker="^", color=GREY, linestyle="none", label="above the picture"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _with_edge(axis: Axes, x: Sequence[float], y: Sequence[float], top: float, colour: str, marker: str) -> None:
    """Draw points; those above `top` stand at the upper edge as triangles."""
    inside = [(a, b) for a, b in zip(x, y, strict=True) if b <= top]
    above = [a for a, b in zip(x, y, strict=True) if b > top]
    axis.plot([a for a, _ in inside], [b for _, b in inside], marker, color=colour, markersize=4.5, alpha=0.75)
    axis.plot(above, [top] * len(above), "^", color=colour, markersize=5, alpha=0.75)


def draw_rungs(results: StudyResults) -> Figure | None:
    """Return each trial's weighted number by step; stopped trials end at their rung."""
    lines = {record.number: sorted(record.values.items()) for record in results.records if record.values}
    if not any(len(line) > 1 for line in lines.values()) and len(lines) < 2:
        return None
    figure = new_figure(4.4)
    axis = figure.subplots()
    best, paper = best_trial(results), paper_trial(results)
    special = {record.number: style for record, style in ((paper, VERMILLION), (best, INK)) if record is not None}
    for found, line in lines.items():
        pruned = results.record(found).state == "pruned"
        colour = special.get(found, GREY if pruned else SKY)
        thick = found in special
        steps, values = [step for step, _ in line], [value for _, value in line]
        axis.plot(steps, values, color=colour, linewidth=2.4 if thick else 0.8, zorder=5 if thick else 2,
                  alpha=1 if thick else 0.8, marker="o" if thick else None, markersize=4)  # fmt: skip
        if pruned:
            axis.plot(steps[-1:], values[-1:], "x", color=GREY, markersize=5, zorder=3)
    everything = [value for line in lines.values() for _, value in line]
    low, top = min(everything), upper_limit(everything)
    axis.set_ylim(low - 0.06 * max(top - low, 1e-3), top + 0.06 * max(top - low, 1e-3))
    steps = sorted({step for line in lines.values() for step, _ in line})
    axis.set_xticks(steps, [str(step) for step in steps])
    axis.set_xlabel("updates")
    axis.set_ylabel("weighted number, lower is better")
    tidy(axis)
    handles = [
        Line2D([], [], color=INK, linewidth=2.4, label="balanced best"),
        Line2D([], [], color=VERMILLION, linewidth=2.4, label="paper's preset"),
        Line2D([], [], color=SKY, linewidth=1.2, label="other full trials"),
        Line2D([], [], color=GREY, linewidth=1.2, marker="x", markersize=5, label="stopped early"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
