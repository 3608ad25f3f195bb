"""NLL while a model trained, at L and at longer windows, step by step."""

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from e2ray.records.run import MetricsLine
from e2ray.report.frame.curve import LOOKS, curve
from e2ray.report.frame.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION, new_figure, tidy
from e2ray.report.frame.labels import label_ends
from e2ray.report.frame.page import Picture, picture
from e2ray.report.run_files import RunRecord
from e2ray.report.sections.section import RunSection

COLOURS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE)


def watched_lines(metrics: Sequence[MetricsLine]) -> list[MetricsLine]:
    """Return the lines of metrics.jsonl that hold a look at held-out documents."""
    return [line for line in metrics if line.watch_nll]


def draw_watched(metrics: Sequence[MetricsLine]) -> Figure:
    """Return the curves, one for each window.

    Args:
        metrics: Lines of metrics.jsonl, of which at least one holds a look.
    """
    looks = watched_lines(metrics)
    figure = new_figure(3.4)
    axis = figure.subplots()
    ends = []
    for window, colour in zip(sorted(map(int, looks[0].watch_nll or ())), COLOURS, strict=False):
        points = [(line.step, (line.watch_nll or {})[str(window)]) for line in looks]
        known = [(step, nll) for step, nll in points if nll is not None]
        if known:
            curve(axis, known, replace(LOOKS[0], colour=colour, width=1.8, size=3))
            ends.append((*known[-1], f"{window:,} tokens", colour))
    last = max(step for step, *_ in ends) if ends else 1
    axis.set_xlim(0, last * 1.22)
    axis.axvline(last, color=GREY, linewidth=0.6, linestyle=":")
    axis.set_xlabel("update")
    axis.set_ylabel("NLL (nats per token)")
    tidy(axis, "Held-out text while it trained, each window at the scale it is served with")
    label_ends(axis, ends)
    return figure


def _parts(records: Sequence[RunRecord]) -> list[Picture]:
    parts = []
    for record in records:
        looks = watched_lines(record.metrics)
        if not looks:
            continue
        price = looks[-1].price_at_base
        note = "" if price is None else f" At the last look NLL at L was {price:+.3f} nats against the base."
        alt = f"NLL of {record.name} on held-out text while it trained, by window"
        caption = f"{record.name}: every window scores the same last tokens of the same few documents.{note}"
        parts.append(picture(draw_watched(record.metrics), alt, caption))
    return parts


WATCHED = RunSection("While it trained", "watched", _parts)
