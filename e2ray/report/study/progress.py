"""The progress of the search, trial by trial, and how the order of the trials changed with the budget."""

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from e2ray.report.frame.drawing import BLUE, GREY, INK, SKY, VERMILLION, new_figure, tidy
from e2ray.report.frame.page import Column, Part, Point, Row, Table
from e2ray.report.frame.text import plural
from e2ray.report.study.section import NO_FULL_TRIAL, Drawing, study_section
from e2ray.report.study.terms import best_trial, correlation_words, measured_trials, paper_trial, upper_limit
from e2ray.search.record import StudyResults


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
    """Draw points; those above `top` are triangles at the upper edge."""
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
    for number, line in lines.items():
        pruned = results.record(number).state == "pruned"
        colour = special.get(number, GREY if pruned else SKY)
        thick = number in special
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


def correlations(results: StudyResults) -> list[Part]:
    """Return the table of rank correlations; nothing where there are no rungs."""
    if not results.ranges.rungs:
        return []
    columns = [
        Column("After updates", "number"), Column("Rank correlation", "number"), Column("Trials", "number"),
        Column("Reading", "wide"), Column("Sampled trials alone", "number"), Column("Trials", "number"),
    ]  # fmt: skip
    rows = []
    for row in results.ranges.rungs:
        shown, alone = (
            "not computable" if value is None else f"{value:.2f}" for value in (row.spearman, row.sampled_spearman)
        )
        cells = [str(row.step), shown, str(row.trials), correlation_words(row), alone, str(row.sampled_trials)]
        rows.append(Row(cells))
    caption = (
        f"Spearman's rank correlation of the weighted number at a rung with the one after {results.facts.steps} "
        "updates, over the trials that reached the end; 1: the same order, 0: no relation. Chance alone exceeds 1.96 "
        "divided by the square root of (trials - 1) in one of twenty cases. The published methods differ widely and "
        "are easy to rank; without them stand the sampled trials alone."
    )
    return [Table(columns, rows, caption)]


def _findings(results: StudyResults) -> list[Point]:
    head = "Can a shorter budget be trusted?"
    rows = results.ranges.rungs
    if not rows:
        return [Point(head, "Not measured: no trial was read before its end.", warning=True)]
    texts = []
    for row in rows:
        figure = "" if row.spearman is None else f"rank correlation {row.spearman:.2f}, "
        texts.append(f"after {row.step} updates: {figure}{plural(row.trials, 'trial')}, {correlation_words(row)}")
    return [
        Point(
            head,
            f"Order of the trials at a rung against their order after {results.facts.steps} updates: "
            f"{'; '.join(texts)}.",
            warning=not any(correlation_words(row).startswith("orders the trials much") for row in rows),
            more=[
                "Only trials that went on to the end count, so the weak ones that were stopped do not.",
                f"Nothing here tells how the order would change beyond {results.facts.steps} updates.",
            ],
        )
    ]


PROGRESS = study_section(
    "Progress and rungs",
    "progress",
    Drawing(
        "progress",
        draw_progress,
        "Weighted number of each full trial and the best so far, by trial number and by tokens",
        "Only trials that ran in full count for the best so far. Tokens are added in the order of trial numbers; "
        "trials that ran side by side ended in another order. Ticks at the bottom are trials stopped early or failed.",
        NO_FULL_TRIAL,
    ),
    Drawing(
        "rungs",
        draw_rungs,
        "Weighted number of each trial at each rung",
        "Each line is a trial, read at the rungs and at its last update; a cross ends a trial that was stopped early. "
        "Lines that cross show how the order changes with the budget.",
        "No trial was read before its end, so there is nothing to draw.",
    ),
    tables=correlations,
    findings=_findings,
)
