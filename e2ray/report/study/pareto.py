"""Long against short of all full trials, and the Pareto front."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from e2ray.report.frame.drawing import BLUE, GREEN, GREY, INK, VERMILLION, new_figure, tidy
from e2ray.report.frame.labels import label_points
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import asked_objectives, measured_trials, method, numbers_of, paper_trial
from e2ray.search.record import StudyResults, TrialRecord

Label = tuple[float, float, str]


def draw_pareto(results: StudyResults) -> Figure | None:
    """Return long against short of all full trials, with a second panel that enlarges a crowded front."""
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
    """Return the box around long-first, balanced, the trials as good as the best one and the paper's preset.

    None where it fills the picture anyway.
    """
    trials, paper = measured_trials(results), paper_trial(results)
    numbers = {results.chosen[name] for name in ("long-first", "balanced") if name in results.chosen}
    near = [record for record in trials if record.number in numbers]
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
    front = [results.record(number) for number in results.front]
    x, y = numbers_of(front, "long"), numbers_of(front, "short")
    if asked_objectives(results):  # then the front is a surface, and a line through it would mean nothing
        axis.plot(x, y, "o", markersize=8, markerfacecolor="none", markeredgecolor=INK, zorder=4)
    else:
        axis.plot(x, y, color=INK, linewidth=1.2, zorder=1)
    picked = [results.record(number) for number in dict.fromkeys(results.chosen.values())]
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
    """Return the legend's entries: only what is in the picture."""
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


def _chosen_labels(results: StudyResults) -> list[Label]:
    names: dict[int, list[str]] = {}
    for name, number in results.chosen.items():
        names.setdefault(number, []).append(name)
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
    front = [results.record(number) for number in results.front]
    if front and not asked_objectives(results):
        at, ranks = np.linspace(0, len(front) - 1, 40 * len(front)), range(len(front))
        along = (np.interp(at, ranks, numbers_of(front, name)) for name in ("long", "short"))
        points += [(float(a), float(b)) for a, b in zip(*along, strict=True)]
    return points


def _note(results: StudyResults) -> str:
    return "" if results.noise.long is not None else " The noise is unknown, so no error bars are drawn."


PARETO = study_section(
    "Pareto front",
    "pareto",
    Drawing(
        "pareto",
        draw_pareto,
        "Scatter plot of all full trials, long objective against short objective, with the Pareto front",
        "Every trial that ran in full; lower left is better. On the front no other trial is better on both. Trials "
        "that were stopped early are not in it: their numbers belong to fewer updates. Unlabelled squares are further "
        "seeds of the paper's preset.",
        note=_note,
    ),
)
