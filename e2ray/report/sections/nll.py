"""NLL by window: tuned and base, and runs against each other, document by document."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from e2ray.config.methods import untrained_model
from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.removed import base_name, base_words
from e2ray.evaluate.verdict import lane_label, lanes_of
from e2ray.report.frame.curve import LOOKS, Known, Look, curve, window_axis
from e2ray.report.frame.drawing import GREY, new_figure, plain, tidy
from e2ray.report.frame.page import Column, Part, Point, Row, Table, Words, picture
from e2ray.report.frame.text import DASH, signed, whole
from e2ray.report.run_files import Difference, RunRecord, comparable, difference, together
from e2ray.report.sections.method import base_note, base_title, incomparable, names_of
from e2ray.report.sections.section import Line, RunSection

NOTHING = 1e-3  # nats per token; an axis of differences spans at least this on both sides of 0
SAME_BASE = 5e-4  # nats per token that two curves of one base may be apart, as GPUs round


def nll_text(cell: Cell | None, *, spread: bool = True) -> str:
    """Return `3.412 (3.390 to 3.434)`, the NLL and its 95 % interval; `± 0.011`, a standard error, without one.

    Args:
        cell: None where it was not measured.
        spread: Whether to say more than the NLL.
    """
    if cell is None:
        return DASH
    if not spread:
        return f"{cell.nll:.3f}"
    if cell.low is not None and cell.high is not None:
        return f"{cell.nll:.3f} ({cell.low:.3f} to {cell.high:.3f})"
    return f"{cell.nll:.3f}" if cell.stderr is None else f"{cell.nll:.3f} ± {cell.stderr:.3f}"


def difference_text(apart: Difference | None) -> str:
    """Return `+0.012 (-0.003 to +0.020)`, the interval where it is known."""
    return DASH if apart is None else signed(apart.nats, apart.low, apart.high)


def nll_table(records: Sequence[RunRecord], missing: Sequence[RunRecord] = ()) -> Table:
    """Return NLL by window of runs that may be compared.

    Args:
        records: One group of `comparable`; differences are formed against the first.
        missing: Runs without an evaluation, which have rows of dashes.
    """
    first, several = records[0], len(records) > 1
    name = base_title(records)
    lanes = lanes_of([cell for record in records for cell in record.cells])
    columns = [
        Column("window W", "number"), Column("run"), Column("tuned at W/L", "number"),
        *([Column(f"minus {first.name}", "number")] if several else []),
        Column(f"minus {name} at 1", "number"), Column("tuned at best", "number"),
        Column(f"{name} at 1", "number"), Column(f"{name} at W/L{_method(records, ', ')}", "number"),
        *(Column(f"{name} at W/L, {lane_label(lane)}", "number") for lane in lanes),
    ]  # fmt: skip
    rows = []
    for window in sorted({window for record in records for window in record.windows}):
        for record in records:
            cell, best = record.cell("tuned", window), record.best("tuned", window)
            base = record.cell("base", window, 1.0)
            compared = difference((record, cell), (first, first.cell("tuned", window)))
            cells = [
                whole(window),
                record.name,
                nll_text(cell),
                *(["" if record is first else difference_text(compared)] if several else []),
                difference_text(difference((record, cell), (record, base))),
                f"{nll_text(best, spread=False)} at {best.scale:g}" if best else DASH,
                nll_text(base, spread=False),
                nll_text(record.cell("base", window), spread=False),
                *(nll_text(record.cell(untrained_model(lane), window), spread=False) for lane in lanes),
            ]
            rows.append(Row(cells))
        rows += [Row([whole(window), record.name, *[DASH] * (len(columns) - 2)], "faint") for record in missing]
    caption = (
        "NLL, nats per token, with 95 % intervals over documents; W in tokens. At 1, W/L and best: the scales. "
        "Differences are of the tuned model at W/L, formed document by document: an interval without 0 tells the two "
        "apart, even where those of both overlap."
    )
    return Table(columns, rows, caption + base_note(records), compact=True)


def draw_nll(records: Sequence[RunRecord]) -> Figure:
    """Return NLL by window: all curves on the left, differences document by document on the right.

    The differences are those of the tuned model to its base for one run, and to the first run for several.

    Args:
        records: Runs that may be compared.
    """
    figure = new_figure(4.6)
    left, right = figure.subplots(1, 2)
    first, windows = records[0], sorted({window for record in records for window in record.windows})
    lengths = sorted({record.base_context_length for record in records})
    for axis in (left, right):
        window_axis(axis, windows, lengths)
    for index, record in enumerate(records):
        _curve(left, _cells(record, "tuned", windows), f"{record.name}, at W/L", LOOKS[index % len(LOOKS)])
    _bases(left, records, windows)
    method = _method(records, " ") if len(records) == 1 else ""
    if method:  # drawn beside the other methods
        untrained = f"{base_name(first.removed_scaling)} at W/L, untrained"
        _curve(left, _cells(first, "base", windows), f"{untrained}{method}", Look(GREY, "^", "--", 1.2))
        for lane in lanes_of(first.cells):
            label = f"{untrained} {lane_label(lane)}"
            _curve(left, _cells(first, untrained_model(lane), windows), label, Look(GREY, "v", "-", 1.2))
    tidy(left, "Tuned and base", grid="y")
    left.set_ylabel("NLL (nats per token), lower is better")
    if len(records) == 1:
        right.axhline(0, color=GREY, linewidth=1.5)
        served = "the base" if first.removed_scaling is None else "the same"
        _differences(right, windows, first, first, f"minus {base_words(first.removed_scaling)}", 0, ("base", 1.0))
        _differences(right, windows, first, first, f"minus {served} at W/L, untrained{method}", 1, ("base", None))
    else:
        right.axhline(0, color=LOOKS[0].colour, linewidth=1.5, label=plain(first.name))
        for index, record in enumerate(records[1:], start=1):
            _differences(right, windows, record, first, record.name, index, ("tuned", None))
    tidy(right, f"Tuned at W/L, minus {'its base' if len(records) == 1 else first.name}", grid="y")
    right.set_ylabel("difference (nats per token)")
    if np.ptp(right.get_ylim()) < 2 * NOTHING:
        right.set_ylim(-NOTHING, NOTHING)  # rounding is no difference
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(edgecolor="none", framealpha=0.85, fontsize=8.5)
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
    return figure


def _method(records: Sequence[RunRecord], before: str) -> str:
    """Return the method that all runs are read by, if the base was read by other methods, too; else nothing."""
    methods = {record.verdict.method for record in records if record.verdict and lanes_of(record.cells)}
    return f"{before}{methods.pop()}" if len(methods) == 1 else ""


def _cells(record: RunRecord, model: str, windows: Sequence[int], scale: float | None = None) -> list[Cell]:
    return [cell for window in windows if (cell := record.cell(model, window, scale))]


def _curve(axis: Axes, cells: Sequence[Cell], label: str, look: Look) -> None:
    """Draw cells with their intervals, with one standard error where they have none."""
    points: list[Known] = []
    for cell in cells:
        low, high = cell.low, cell.high
        if low is None or high is None:
            low, high = cell.nll - (cell.stderr or 0.0), cell.nll + (cell.stderr or 0.0)
        points.append((cell.window, cell.nll, low, high))
    if points:
        curve(axis, points, look, label=label, interval="band")


def _bases(axis: Axes, records: Sequence[RunRecord], windows: Sequence[int]) -> None:
    """Draw the untouched base of each run, one that several share once."""
    drawn: list[list[Cell]] = []
    for index, record in enumerate(records):
        cells = _cells(record, "base", windows, 1.0)
        if not cells or any(_same(cells, other) for other in drawn):
            continue
        drawn.append(cells)
        shared = all(_same(cells, _cells(other, "base", windows, 1.0)) for other in records)
        name = base_name(record.removed_scaling, untouched=True)
        colour = GREY if shared else LOOKS[index % len(LOOKS)].colour
        _curve(axis, cells, name if shared else f"{record.name}: {name}", Look(colour, "x", ":", 1.6))


def _same(one: Sequence[Cell], other: Sequence[Cell]) -> bool:
    """Return whether two curves are of one base: equal wherever both were measured."""
    there = {cell.window: cell.nll for cell in other}
    return bool(there) and all(abs(cell.nll - there.get(cell.window, cell.nll)) <= SAME_BASE for cell in one)


def _differences(
    axis: Axes,
    windows: Sequence[int],
    record: RunRecord,
    reference: RunRecord,
    label: str,
    index: int,
    against: tuple[str, float | None],
) -> None:
    """Draw a run's tuned model at W / L minus a model of the reference at a scale, window by window."""
    points: list[Known] = []
    for window in windows:
        cells = record.cell("tuned", window), reference.cell(against[0], window, against[1])
        apart = difference((record, cells[0]), (reference, cells[1]))
        if apart is not None:
            low, high = (apart.nats if end is None else end for end in (apart.low, apart.high))
            points.append((window, apart.nats, low, high))
    if points:
        curve(axis, points, LOOKS[index % len(LOOKS)], label=label, interval="bars")


def _parts(records: Sequence[RunRecord]) -> list[Part]:
    groups = comparable(records)
    missing = [record for record in records if not record.cells]
    parts: list[Part] = [Words(f"{point.head} {point.text}", warning=True) for point in incomparable(groups)]
    for index, group in enumerate(groups):
        first = "its base" if len(group) == 1 else group[0].name
        removed = any(record.removed_scaling for record in group)
        base = "base at scale 1" if removed else "untouched base at scale 1, which is all it was made for"
        caption = (
            f"Tuned at scale W/L, and the {base}. Right: the difference to {first}, document by document. Bands and "
            "bars are 95 % intervals over documents. Bands of models that read the same documents overlap for what "
            "these have in common, which the differences do not hold."
        )
        alt = f"NLL by window of {names_of(group)}, tuned and base"
        parts += [picture(draw_nll(group), alt, caption + base_note(group)), nll_table(group, [] if index else missing)]
    return parts


def _findings(records: Sequence[RunRecord]) -> list[Point]:
    """Return first what may not be compared, then comparisons, then each run's verdict."""
    groups = comparable(records)
    compared = [point for group in groups if len(group) > 1 for point in _compared(group)]
    return [*incomparable(groups), *compared, *(point for record in records for point in _of_run(record))]


def _compared(group: Sequence[RunRecord]) -> list[Point]:
    """Return which run is lowest at the longest window that all have at scale W / L, and at the base window."""
    windows = [window for window in group[0].windows if all(record.cell("tuned", window) for record in group)]
    if not windows:
        return [Point("No comparison:", f"{names_of(group)} have no window in common at scale W/L.", warning=True)]
    lengths = {record.base_context_length for record in group}
    points = [_lowest(group, max(windows), "the longest window that all have")]
    if len(lengths) == 1 and min(lengths) in windows and max(windows) > min(lengths):
        points.append(_lowest(group, min(lengths), "the base window"))
    return points


def _lowest(group: Sequence[RunRecord], window: int, what: str) -> Point:
    cells = {record.name: record.cell("tuned", window) for record in group}
    first, *rest = sorted(group, key=lambda record: cells[record.name].nll)  # type: ignore[union-attr]
    lowest = cells[first.name]
    assert lowest is not None, "the window is one that all have"
    words = []
    for record in rest:
        apart = difference((record, cells[record.name]), (first, lowest))
        assert apart is not None
        if apart.low is None:
            verdict = "spread unknown"
        else:
            verdict = "beyond the spread of the documents" if apart.told_apart else "not told apart"
        words.append(f"{record.name} is {difference_text(apart)}, {verdict}")
    return Point(
        f"{first.name} is lowest at {window:,} tokens,",
        f"{what}: {lowest.nll:.3f} nats per token at scale {lowest.scale:g} (W/L). Against it {'; '.join(words)}.",
    )


def _of_run(record: RunRecord) -> list[Point]:
    if not record.cells:
        text = f"{record.run.what_is_missing}. Its cells are missing below ({DASH})."
        return [Point(f"{record.name}:", text, warning=True)]
    first, *more = record.verdict.sentences if record.verdict and record.verdict.sentences else [""]
    points = [Point(f"{record.name}:", first, more=more)]
    if record.run.status.state != "succeeded":
        text = f"is {record.run.state}; its figures are those of an evaluation made before."
        points.append(Point(record.name, text, warning=True))
    return points


def _diff(one: RunRecord, other: RunRecord) -> list[Line]:
    lines = []
    for window in sorted({*one.windows, *other.windows}):
        left, right = one.cell("tuned", window), other.cell("tuned", window)
        apart = difference_text(difference((other, right), (one, left))) if together(one, other) else DASH
        lines.append((f"NLL at {window:,} tokens", nll_text(left), nll_text(right), apart))
    return lines


NLL = RunSection("NLL by window", "nll", _parts, _findings, diff=_diff)
