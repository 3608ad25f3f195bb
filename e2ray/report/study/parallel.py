"""One line per full trial through all its settings.

A setting that a trial does not use has no value; the line passes there through a level of its own.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from e2ray.report.frame.drawing import GREY, INK, SURFACE_COLOURS, colour_bar, new_figure, plain
from e2ray.report.frame.text import number
from e2ray.report.study.axes import share_of_range, upper_limit
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import best_trial, measured_trials, short_name
from e2ray.search.record import StudyResults, TrialRecord

MOST_AXES = 14  # of parallel coordinates; more cannot be told apart
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


def _note(results: StudyResults) -> str:
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
        _note,
    ),
)
