"""NLL by window and scale of the best trial and the paper's preset."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from e2ray.core.scales import paper_scale
from e2ray.evaluate.removed import base_name
from e2ray.report.frame.curve import Known, Look, curve, window_axis
from e2ray.report.frame.drawing import BLUE, GREY, ORANGE, VERMILLION, new_figure, spanning, tidy
from e2ray.report.frame.heat import marks
from e2ray.report.frame.text import nats
from e2ray.report.sections.surface import draw_surface
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import Grid, best_trial, last_rows, paper_trial
from e2ray.search.record import StudyResults


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
    norm = spanning([nll for _, grid in grids for nll, _ in grid.values()])
    length = results.facts.base_context_length
    for axis, (name, grid) in zip(axes, grids, strict=False):
        shown = {key: nll for key, (nll, _) in grid.items()}
        draw_surface(axis, shown, windows, scales, length, norm, title=name, starred=False)
    if paper is not None:
        left, right = grids[0][1], grids[1][1]
        change = {key: left[key][0] - right[key][0] for key in left if key in right}
        reach = max(max((abs(value) for value in change.values()), default=0.0), 1e-6)
        draw_surface(
            axes[2], change, windows, scales, length, TwoSlopeNorm(0, -reach, reach), title="best minus paper",
            form="{:+.2f}", starred=False, colours="RdBu_r",
        )  # fmt: skip
    axes[0].set_ylabel("window W (tokens)")
    key = marks("scale W/L, as the study reads a window")
    figure.legend(handles=key, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _window_curves(axis: Axes, results: StudyResults, grids: Sequence[tuple[str, Grid]]) -> None:
    """Draw NLL by window, each window at W/L, and the base also untouched."""
    length = results.facts.base_context_length
    base: Grid = {(r["window"], round(r["scale"], 6)): (r["nll"], r["stderr"]) for r in results.facts.base}
    series = [
        (f"{name}, g = W/L", grid, Look(colour, mark, width=1.8, size=5), False)
        for (name, grid), colour, mark in zip(grids, (BLUE, VERMILLION), "os", strict=False)
    ]
    name, at_1 = (base_name(results.facts.removed_scaling, untouched=each) for each in (False, True))
    series.append((f"{name}, g = W/L without training", base, Look(ORANGE, "^", "--", 1.8, 5), False))
    series.append((f"{at_1} (g = 1)", base, Look(GREY, "D", "--", 1.8, 5), True))
    drawn: list[tuple[list[Known], Look, str]] = []
    for label, grid, look, untouched in series:
        points: list[Known] = [
            (window, nll, nll - (error or 0.0), nll + (error or 0.0))
            for (window, scale), (nll, error) in sorted(grid.items())
            if abs(scale - (1.0 if untouched else paper_scale(window, length))) < 1e-6
        ]
        if points:
            drawn.append((points, look, label))
    window_axis(axis, sorted({int(window) for points, *_ in drawn for window, *_ in points}), [length])
    for points, look, label in drawn:
        curve(axis, points, look, label=label, interval="bars")
    axis.set_ylabel("NLL (nats), ± 1 standard\nerror over documents")
    tidy(axis, "NLL by window", grid="y")
    axis.legend(frameon=False, fontsize=9)


def _note(results: StudyResults) -> str:
    best, paper = best_trial(results), paper_trial(results)
    if paper is None:
        return " The paper's preset did not run in full, so it is missing."
    if best is not None and best.number == paper.number:
        return " The best is the paper's preset itself, so there is no difference to draw."
    if results.noise.long is None:
        return " Blue: best is better. The noise is unknown, so no cell of the difference is a finding."
    return (
        f" Blue: best is better. For scale: two single trials differ by chance by {nats(2**0.5 * results.noise.long)} "
        "nats in the mean over windows, and by more in a single cell."
    )


SURFACES = study_section(
    "Best against the paper's preset",
    "surfaces",
    Drawing(
        "surfaces",
        draw_surfaces,
        "NLL by window of the best trial, the paper's preset and the base model, and surfaces of NLL over window and "
        "scale of both and their difference",
        "NLL of single trials at their last update; error bars are over documents, not over seeds. Below: each window "
        "read at each scale.",
        "No full trial has measured curves, so there is nothing to draw.",
        _note,
    ),
)
