"""The picture of a comparison: NLL by window of every lane, and what each costs at L against what it reads beyond."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from e2ray.config.compare import UNTOUCHED
from e2ray.records.comparison import LaneRow
from e2ray.report.frame.curve import Look, curve, window_axis
from e2ray.report.frame.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, new_figure, tidy
from e2ray.report.frame.labels import label_ends, label_points

MOST_NAMED = 18  # lanes; of more a picture names the best
OWN_COLOURS = (GREEN, PURPLE, ORANGE, "#8B5A2B", "#5F6B8A")
LOOKS = {
    "base": Look(INK),
    "e2llm": Look(BLUE),
    "pi_long": Look(VERMILLION),
    "best": Look(ORANGE),
    "yarn": Look(SKY, line="--"),
}


def named(rows: Sequence[LaneRow], windows: Sequence[int]) -> list[str]:
    """Return the lanes that a picture names: all of a few; of many those of `LOOKS`, and the best ones.

    Best are those of the lowest NLL at each window, and the three that read best beyond L.
    """
    if len(rows) <= MOST_NAMED:
        return [row.lane for row in rows]
    chosen = {row.lane for row in rows if row.lane in LOOKS}
    for window in windows:
        chosen |= set(_ranked((row.lane, row.nll[str(window)].mean) for row in rows)[:1])
    chosen |= set(_ranked((row.lane, row.long.mean) for row in rows)[:3])
    return [row.lane for row in rows if row.lane in chosen]


def _ranked(nll: Iterable[tuple[str, float | None]]) -> list[str]:
    """Return the lanes that have a figure, lowest first."""
    known = [(lane, value) for lane, value in nll if value is not None]
    return [lane for lane, _ in sorted(known, key=lambda pair: pair[1])]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def draw(rows: Sequence[LaneRow], base_context_length: int, windows: Sequence[int]) -> Figure:
    """Return the picture.

    With many lanes the unnamed ones are grey, and what is far above the named ones is cut off.
    """
    many, shown = len(rows) > MOST_NAMED, named(rows, windows)
    figure = new_figure(6.4 if many else 5.2)
    curves, trade = figure.subplots(1, 2, width_ratios=[3, 2])
    window_axis(curves, list(windows), [base_context_length])
    ends, trades = [], []
    colours = dict(zip((lane for lane in shown if lane not in LOOKS), cycle(OWN_COLOURS), strict=False))
    for row in rows:
        points = [(w, mean) for w in windows if (mean := row.nll[str(w)].mean) is not None]
        if not points:
            continue
        look = LOOKS.get(row.lane, Look(GREY, line="-" if row.train_s is not None else "--", width=1.0))
        if many and row.lane in colours:
            look = replace(look, colour=colours[row.lane], width=2.0)
        alpha = 1.0 if row.lane in shown else 0.45
        curve(curves, points, replace(look, size=3), alpha=alpha)
        short, long = row.short.mean, row.long.mean
        if short is not None and long is not None:
            trade.plot(short, long, "o", markersize=5, color=look.colour, alpha=alpha)
        if row.lane in shown:
            ends.append((*points[-1], row.name, look.colour))
            if short is not None and long is not None:
                trades.append((short, long, row.name))
    longest = max((len(name) for *_, name, _ in ends), default=0)
    curves.set_xlim(windows[0] / 1.2, windows[-1] * (2 ** (longest / 12) if many else 3.6))
    if many:
        _cut_off(curves, trade, rows, shown, windows)
        ends = [end for end in ends if end[1] <= curves.get_ylim()[1]]
        trades = [point for point in trades if point[1] <= trade.get_ylim()[1]]
    curves.set_ylabel("NLL (nats per token), lower is better")
    tidy(curves, "Each lane at the scale it is served with")
    trade.set_xlabel(f"NLL rise at L = {base_context_length:,} (nats)")
    trade.set_ylabel("mean NLL beyond L (nats)")
    if not many:
        trade.margins(x=0.22, y=0.12)
    trade.xaxis.set_major_locator(MaxNLocator(5))  # signed numbers of three digits: more of them touch
    tidy(trade, "Short against long")
    label_ends(curves, ends)
    label_points(trade, trades, obstacles=[], fontsize=7)
    return figure


def _cut_off(curves: Axes, trade: Axes, rows: Sequence[LaneRow], shown: Sequence[str], windows: Sequence[int]) -> None:
    """End both axes a little above the named lanes, the untouched base left out."""
    known = [row for row in rows if row.lane in shown and row.lane != UNTOUCHED]
    nll = _known(row.nll[str(w)].mean for row in known for w in windows)
    curves.set_ylim(min(nll) - 0.05 * (max(nll) - min(nll)), max(nll) + 0.1 * (max(nll) - min(nll)))
    long, short = _known(row.long.mean for row in known), _known(row.short.mean for row in known)
    if long and short:
        room, side = max(long) - min(long) or 0.1, max(short) - min(short) or 0.1
        trade.set_ylim(min(long) - 0.15 * room, max(long) + 0.15 * room)
        trade.set_xlim(min(short) - 0.15 * side, max(short) + 0.45 * side)
