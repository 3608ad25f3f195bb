"""The ranges to train with, and what a surrogate of all trials says of them: picture, tables and findings."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from e2ray.report.frame.drawing import BLUE, GREY, INK, PALE, VERMILLION, new_figure, plain, tidy
from e2ray.report.frame.text import number, plural
from e2ray.report.study.axes import share_of_range
from e2ray.report.study.ranges_words import ranges, ranges_findings
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import range_words, ranges_by_space, short_name
from e2ray.search.record import StudyResults
from e2ray.search.results import text_of


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


RANGES = study_section(
    "Ranges",
    "ranges",
    Drawing(
        "ranges",
        draw_ranges,
        "Bars of the recommended interval inside the searched interval for each setting, and counts of kinds",
        "Each number on its own axis from the searched low to the searched high, logarithmic where it says log; dark "
        "is the central 80 % of the trials within one noise of the best. Hatched: fewer than five such trials use the "
        "setting, so it is undetermined. The slim bar below, or the words: where a surrogate fitted to all trials "
        "predicts no more than one noise above the best; filled where the trials bear that out.",
        "No trial ran in full, so there are no ranges.",
    ),
    tables=ranges,
    findings=ranges_findings,
)
