"""The ranges to train with, and what a surrogate of all trials says of them: picture, tables and findings."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from e2ray.records.study import Interval, Range
from e2ray.report.frame.drawing import BLUE, GREY, INK, PALE, VERMILLION, new_figure, plain, tidy
from e2ray.report.frame.page import Column, Part, Point, Row, Table
from e2ray.report.frame.text import nats, number, plural, share_words
from e2ray.report.study.section import Drawing, study_section
from e2ray.report.study.terms import range_words, ranges_by_space, searched_words, share_of_range, short_name
from e2ray.search.record import SearchedSetting, StudyResults, numbers_of
from e2ray.search.results import MIN_TRIALS, text_of
from e2ray.search.surrogate import COVERED, FEWEST_TRIALS, WIDEST

HIDDEN_FROM = 3  # stopped trials beyond every full one before this is reported


def ranges(results: StudyResults) -> list[Part]:
    """Return the table of the ranges; nothing where no trial ran in full."""
    parameters = ranges_by_space(results)
    if not parameters:
        return []
    rows = []
    for path, row in parameters.items():
        spec = results.facts.space.get(path, SearchedSetting())
        words = "undetermined" if row.undetermined else range_words(row)
        importance = row.importance
        share = "unknown" if importance is None else share_words(importance, list(row.importance_spread or ()) or None)
        cells = [path, searched_words(spec), words, str(row.trials), share]
        rows.append(Row(cells, "faint" if row.undetermined else ""))
    columns = [
        Column("Setting"), Column("Searched", "wide"), Column("Train with"), Column("Trials", "number"),
        Column("Importance", "number"),
    ]  # fmt: skip
    within = results.ranges.within
    near = plural(results.ranges.trials, "trial")
    caption = (
        "Train with: the central 80 %, or how often each kind was found, among the trials within one noise of the "
        f"best; here {near}, one noise being {nats(within)} nats of the weighted number. Undetermined: fewer than "
        f"{MIN_TRIALS} of them use the setting. The sampler looks mostly where trials came out well, so counts of "
        "kinds follow it too."
        if within is not None
        else "Undetermined throughout: without the noise nobody can say which trials are as good as the best."
    )
    return [Table(columns, rows, caption), *_surrogate(results)]


def _surrogate(results: StudyResults) -> list[Part]:
    """Return the table of what a surrogate of all full trials says; nothing without one."""
    fit = results.ranges.surrogate
    if fit is None:
        return []
    rows = []
    for path in results.facts.space:
        row = fit.parameters.get(path)
        if row is None:
            rows.append(Row([path, "no full trial has it", "", "", ""], "faint"))
            continue
        words = ", ".join(map(number, row.kinds)) if row.kinds is not None else range_words(row)
        cells = [path, words, _percent(row.share), _percent(row.held), "yes" if row.determined else "no"]
        rows.append(Row(cells, "" if row.determined else "faint"))
    columns = [
        Column("Setting"), Column("Predicted within one noise", "wide"), Column("Of what was searched", "number"),
        Column("Held by refits", "number"), Column("Determined"),
    ]  # fmt: skip
    ranks = fit.left_out_spearman
    correlation = "not computable" if ranks is None else f"{ranks:.2f}"
    caption = (
        f"A Gaussian process fitted to {plural(fit.trials, 'trial')}, {fit.full} of them in full: where its "
        "prediction of the number at the end stays within one noise of the lowest, all other settings as in the best "
        "trial, and where no trial was. Held by refits: the share of the fits with one trial left out whose interval "
        f"has the best place. Determined: at most {WIDEST:.0%} of what was searched, in at least {COVERED:.0%} of the "
        f"refits, too, held by as many, tried by at least {FEWEST_TRIALS} trials, and left-out trials bear the "
        f"surrogate out: {fit.coverage:.0%} of them lie where nine of ten should, and their rank correlation with "
        f"the prediction is {correlation}."
    )
    return [Table(columns, rows, caption)]


def _percent(share: float | None) -> str:
    return "missing" if share is None else f"{100 * share:.0f} %"


def ranges_findings(results: StudyResults) -> list[Point]:
    """Return what to train with, what is undetermined, and which ends only stopped trials have seen."""
    return [*_ranges(results), *_hidden_by_stopping(results)]


def _ranges(results: StudyResults) -> list[Point]:
    head, parameters = "Ranges to train with.", ranges_by_space(results)
    within, trials = results.ranges.within, results.ranges.trials
    if results.ranges.best is None:
        return [Point(head, "None: no trial ran in full.", warning=True)]
    if within is None:
        text = "None: without the noise nobody can say which trials are as good as the best."
        return [Point(head, text, warning=True)]
    known = {path: row for path, row in parameters.items() if not row.undetermined}
    words = "; ".join(f"{short_name(path)}: {range_words(row)}" for path, row in known.items())
    text = (
        f"{words[:1].upper()}{words[1:]}. That is the central 80 %, or the kinds found with their number, among the "
        f"{plural(trials, 'full trial')} within one noise ({nats(within)} nats of the weighted number) of the best."
    )
    points = [Point(head, text)] if known else []
    open_ones = [short_name(path) for path in parameters if path not in known]
    if open_ones:
        text = (
            f"{', '.join(open_ones)}: of the {plural(trials, 'full trial')} within one noise ({nats(within)} nats) of "
            f"the best, fewer than {MIN_TRIALS} use them, so the study recommends no range."
        )
        points.append(Point("Undetermined.", text, warning=True))
    return points


def _hidden_by_stopping(results: StudyResults) -> list[Point]:
    """Return which ends of the searched intervals only stopped trials have seen; empty where there are none."""
    sampled = [record for record in results.records if record.baseline is None]
    texts = []
    for path, parameter in results.facts.space.items():
        if parameter["kind"] == "choice":
            continue
        full, stopped = (
            numbers_of((record for record in sampled if record.state == state), path)
            for state in ("complete", "pruned")
        )
        if not full:
            continue
        for words, end, beyond in (
            ("above", max(full), [value for value in stopped if value > max(full)]),
            ("below", min(full), [value for value in stopped if value < min(full)]),
        ):
            if len(beyond) >= HIDDEN_FROM:
                texts.append(f"{short_name(path)} {words} {number(end)} ({plural(len(beyond), 'trial')})")
    if not texts:
        return []
    return [
        Point(
            "Hidden by early stopping.",
            f"All trials with {'; with '.join(texts)} were stopped early. What such settings give at full length was "
            "not measured, so ranges, importances and the choice of trials leave them out.",
            warning=True,
        )
    ]


def draw_ranges(results: StudyResults) -> Figure | None:
    """Return the recommended interval of each number inside the searched one, and the count of each kind.

    Below each is the surrogate's interval, where there is one.
    """
    rows, intervals = ranges_by_space(results), results.ranges.surrogate.parameters if results.ranges.surrogate else {}
    space = results.facts.space
    numbers = [path for path in rows if space[path]["kind"] != "choice"]
    kinds = [path for path in rows if space[path]["kind"] == "choice"]
    if results.ranges.best is None:
        return None
    bars = sum((1 if rows[path].undetermined else len(space[path]["options"])) + 0.7 for path in kinds)
    heights = [*([0.62 * len(numbers) + 0.8] if numbers else []), *([0.27 * bars + 0.9] if kinds else [])]
    figure = new_figure(sum(heights) + 0.5)
    axes = list(figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0])
    if numbers:
        _number_rows(axis := axes.pop(0), [(path, space[path], rows[path]) for path in numbers])
        _surrogate_numbers(axis, [(space[path], intervals.get(path)) for path in numbers])
    if kinds:
        _kind_rows(axes.pop(0), [(path, space[path], rows[path]) for path in kinds], intervals)
    handles = [
        Patch(facecolor=PALE, label="searched"),
        Patch(facecolor=BLUE, label="recommended (central 80 %), or trials of that kind"),
        Patch(facecolor="white", edgecolor=GREY, hatch="////", label="undetermined: under five trials"),
    ]
    if intervals:
        handles += [
            Patch(facecolor=VERMILLION, label="surrogate: determined"),
            Patch(facecolor="white", edgecolor=VERMILLION, label="surrogate: not determined"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _number_rows(axis: Axes, rows: Sequence[tuple[str, SearchedSetting, Range]]) -> None:
    """Draw one bar per number on its own axis from the searched low (0) to the searched high (1)."""
    for y, (_, spec, row) in enumerate(rows):
        if row.undetermined or row.low is None or row.high is None:
            axis.barh(y, 1, height=0.5, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.5)
            note = f"undetermined ({plural(row.trials, 'trial')})"
            axis.text(0.5, y, note, ha="center", va="center", fontsize=9, color=INK, bbox={"color": "white", "pad": 1})
        else:
            axis.barh(y, 1, height=0.5, color=PALE)
            low, high = share_of_range(row.low, spec), share_of_range(row.high, spec)
            axis.barh(y, max(high - low, 0.006), left=low, height=0.5, color=BLUE)
            text = range_words(row)
            inside = high - low > 0.25
            side = (low + high) / 2 if inside else high + 0.012 if high < 0.75 else low - 0.012
            aligned = "center" if inside else "left" if high < 0.75 else "right"
            axis.text(side, y, text, ha=aligned, va="center", fontsize=9.5, color="white" if inside else INK)
        axis.text(-0.012, y, number(spec["low"]), ha="right", va="center", fontsize=9, color=INK)
        axis.text(1.012, y, number(spec["high"]), ha="left", va="center", fontsize=9, color=INK)
    names = [plain(short_name(path)) + (" (log)" if spec.get("log") else "") for path, spec, _ in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=10)
    axis.tick_params(length=0, pad=52, axis="y")
    axis.set_xticks([])
    axis.set(xlim=(-0.002, 1.075), ylim=(len(rows) - 0.5, -0.5))
    axis.spines[:].set_visible(False)
    axis.set_title("Numbers", loc="left", fontsize=11, fontweight="bold")


def _surrogate_numbers(axis: Axes, rows: Sequence[tuple[SearchedSetting, Interval | None]]) -> None:
    """Draw below each number's bar a slim one, where the surrogate's prediction stays within one noise of the best."""
    for y, (spec, row) in enumerate(rows):
        if row is None or not isinstance(row.low, int | float) or not isinstance(row.high, int | float):
            continue
        low, high = share_of_range(row.low, spec), share_of_range(row.high, spec)
        face = VERMILLION if row.determined else "white"
        width = max(high - low, 0.006)
        axis.barh(y + 0.34, width, left=low, height=0.11, facecolor=face, edgecolor=VERMILLION, linewidth=0.8)


def _kinds_words(row: Interval | None) -> str:
    """Return which options of a setting the surrogate keeps, if not all of them."""
    if row is None or row.share == 1:
        return ""
    left = ", ".join(number(option) for option in row.kinds or ())
    return f"surrogate: {left}{'' if row.determined else ', not determined'}"


def _kind_rows(
    axis: Axes, rows: Sequence[tuple[str, SearchedSetting, Range]], intervals: Mapping[str, Interval | None]
) -> None:
    """Draw how many of the trials near the best chose each option, options of none included."""
    y, ticks, names = 0.0, [], []
    most = max((count for _, _, row in rows for count in (row.kinds or {}).values()), default=1)
    for path, spec, row in rows:
        if row.undetermined:
            axis.barh(y, 1.05 * most, height=0.7, facecolor="white", edgecolor=GREY, hatch="////", linewidth=0.5)
            note = f"undetermined ({plural(row.trials, 'trial')})"
            box = {"color": "white", "pad": 1}
            words = _kinds_words(intervals.get(path))
            axis.text(most / (4 if words else 2), y, note, ha="center", va="center", fontsize=9, bbox=box)
            if words:
                interval = intervals.get(path)
                colour = VERMILLION if interval and interval.determined else INK
                axis.text(most / 2, y, words, ha="left", va="center", fontsize=9, color=colour, bbox=box)
            ticks.append(y)
            names.append(plain(short_name(path)))
            y += 1.7
            continue
        for option in spec["options"]:
            count = (row.kinds or {}).get(text_of(option), 0)
            axis.barh(y, count, height=0.7, color=BLUE)
            axis.text(count + 0.01 * most, y, str(count), va="center", fontsize=9, color=INK)
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
    if all(row.undetermined for _, _, row in rows):
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
