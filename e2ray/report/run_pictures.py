"""The pictures of a report on runs: NLL by window, each run's surface, each run's retrieval.

Runs keep their colour and mark; what was not measured is left out of a curve and hatched in a grid.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from e2ray.evaluate.perplexity import Cell
from e2ray.evaluate.removed import base_name, base_words
from e2ray.report.drawing import GREEN, PURPLE, new_figure, plain, tidy
from e2ray.report.evaluation import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILLION,
    draw_surface,
    explain_surfaces,
)
from e2ray.report.run_files import Difference, RunRecord, difference

LOOKS = [  # colour, mark and line of one run after another; behind the last they begin anew
    (colour, mark, line)
    for line in ("-", "--", "-.")
    for colour, mark in zip((BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY), ("o", "s", "^", "D", "v", "P"), strict=True)
]
SAME_BASE = 5e-4  # nats per token that two curves of one base may be apart, as GPUs round
CURVES = ("tuned", "base")


def draw_nll(records: Sequence[RunRecord]) -> Figure:
    """Return NLL by window: all curves on the left, differences document by document on the right.

    The differences are those of the tuned model to its base for one run, and to the first run for several.

    Args:
        records: Runs that may be compared.
    """
    figure = new_figure(4.6)
    left, right = figure.subplots(1, 2)
    windows = sorted({window for record in records for window in record.windows})
    for place, record in enumerate(records):
        _curve(left, _cells(record, "tuned", windows), f"{record.name}, at W/L", place)
    _bases(left, records, windows)
    _axis(left, records, windows, "Tuned and base")
    left.set_ylabel("NLL (nats per token), lower is better")
    first = records[0]
    if len(records) == 1:
        right.axhline(0, color=GREY, linewidth=1.5)
        served = "the base" if first.removed_scaling is None else "the same"
        for place, (scale, label) in enumerate(
            ((1.0, base_words(first.removed_scaling)), (None, f"{served} at W/L, untrained"))
        ):
            pairs = [(first.cell("tuned", w), first.cell("base", w, scale)) for w in windows]
            found = [difference((first, cell), (first, base)) for cell, base in pairs]
            _differences(right, windows, found, f"minus {label}", place)
        _axis(right, records, windows, "Tuned at W/L, minus its base")
    else:
        right.axhline(0, color=LOOKS[0][0], linewidth=1.5, label=plain(first.name))
        reference = [first.cell("tuned", window) for window in windows]
        for place, record in enumerate(records[1:], start=1):
            pairs = [(record.cell("tuned", w), base) for w, base in zip(windows, reference, strict=True)]
            found = [difference((record, cell), (first, base)) for cell, base in pairs]
            _differences(right, windows, found, record.name, place)
        _axis(right, records, windows, f"Tuned at W/L, minus {first.name}")
    right.set_ylabel("difference (nats per token)")
    for axis in (left, right):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8.5)
        else:
            axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
    return figure


def _cells(record: RunRecord, model: str, windows: Sequence[int], scale: float | None = None) -> list[Cell]:
    return [cell for window in windows if (cell := record.cell(model, window, scale))]


def _ends(cell: Cell) -> tuple[float, float]:
    """Return the ends of a cell's interval, of one standard error without one, or of nothing."""
    if cell.low is not None and cell.high is not None:
        return cell.low, cell.high
    return cell.nll - (cell.stderr or 0.0), cell.nll + (cell.stderr or 0.0)


def _curve(axis: Axes, cells: Sequence[Cell], label: str, place: int) -> None:
    if not cells:
        return
    colour, mark, line = LOOKS[place % len(LOOKS)]
    windows = [cell.window for cell in cells]
    axis.plot(
        windows,
        [cell.nll for cell in cells],
        color=colour,
        marker=mark,
        linestyle=line,
        label=plain(label),
        linewidth=2,
    )
    ends = [_ends(cell) for cell in cells]
    axis.fill_between(windows, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.13, lw=0)


def _bases(axis: Axes, records: Sequence[RunRecord], windows: Sequence[int]) -> None:
    """Draw the untouched base of each run, one that several share once."""
    drawn: list[list[Cell]] = []
    for place, record in enumerate(records):
        cells = _cells(record, "base", windows, 1.0)
        if not cells or any(_same(cells, other) for other in drawn):
            continue
        drawn.append(cells)
        shared = all(_same(cells, _cells(other, "base", windows, 1.0)) for other in records)
        colour = GREY if shared else LOOKS[place % len(LOOKS)][0]
        name = base_name(record.removed_scaling, untouched=True)
        label = name if shared else f"{record.name}: {name}"
        ends = [_ends(cell) for cell in cells]
        x = [cell.window for cell in cells]
        axis.plot(x, [c.nll for c in cells], color=colour, linestyle=":", marker="x", label=plain(label), linewidth=1.6)
        axis.fill_between(x, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.1, lw=0)


def _same(one: Sequence[Cell], other: Sequence[Cell]) -> bool:
    """Return whether two curves are of one base: equal wherever both were measured."""
    there = {cell.window: cell.nll for cell in other}
    return bool(there) and all(abs(cell.nll - there.get(cell.window, cell.nll)) <= SAME_BASE for cell in one)


def _differences(
    axis: Axes, windows: Sequence[int], found: Sequence[Difference | None], label: str, place: int
) -> None:
    colour, mark, line = LOOKS[place % len(LOOKS)]
    points = [(window, each) for window, each in zip(windows, found, strict=True) if each is not None]
    if not points:
        return
    ends = [(each.nats if end is None else end) for _, each in points for end in (each.low, each.high)]
    nats = [each.nats for _, each in points]
    below = [middle - low for middle, low in zip(nats, ends[::2], strict=True)]
    above = [high - middle for middle, high in zip(nats, ends[1::2], strict=True)]
    axis.errorbar(
        [window for window, _ in points], nats, yerr=(below, above), color=colour, marker=mark, linestyle=line,
        label=plain(label), linewidth=2, elinewidth=1.2, capsize=4,
    )  # fmt: skip


def _axis(axis: Axes, records: Sequence[RunRecord], windows: Sequence[int], title: str) -> None:
    lengths = sorted({record.base_context_length for record in records})
    for length in lengths:
        axis.axvline(length, color=GREY, linewidth=1, linestyle=":")
    axis.set_xscale("log", base=2)
    labels = [f"{window:,}\n= L" if window in lengths else f"{window:,}" for window in windows]
    axis.set_xticks(windows, labels, rotation=0 if len(windows) < 8 else 60)
    axis.minorticks_off()
    axis.set_xlabel("window W (tokens)")
    axis.margins(y=0.1)
    tidy(axis, plain(title), grid="y")


def draw_surfaces(record: RunRecord, scale_of: Sequence[RunRecord]) -> Figure:
    """Return a run's surfaces, tuned and base, over window and scale.

    Args:
        record: An evaluated run.
        scale_of: The runs it may be compared with, itself among them; their colours mean the same.
    """
    windows = record.windows
    scales = sorted(
        {cell.scale for cell in record.cells} | set((record.run.settings["evaluate"] or {}).get("scales") or ())
    )
    models = [model for model in CURVES if any(cell.model == model for cell in record.cells)]
    values = [cell.nll for each in scale_of for cell in each.cells]
    norm = Normalize(min(values), max(max(values), min(values) + 1e-6))
    figure = new_figure(max(3.6, 0.46 * len(windows) + 1.8))
    axes = list(figure.subplots(1, len(models), squeeze=False)[0])
    for axis, model in zip(axes, models, strict=True):
        draw_surface(axis, record.cells, model, windows, scales, record.base_context_length, norm)
        called = base_name(record.removed_scaling) if model == "base" else model
        axis.set_title(plain(f"{record.name}, {called}"), loc="left", fontsize=11, fontweight="bold", color=INK)
    explain_surfaces(figure, axes, norm)
    return figure
