"""Two runs side by side on a terminal: the settings that differ, and their figures with the difference."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from e2ray.report.page import Column, Row, Table
from e2ray.report.run_files import RunRecord, comparable, difference, read_run
from e2ray.report.run_folder import RunFolder, printable
from e2ray.report.run_tables import metric_text, settings_table
from e2ray.report.run_terms import (
    DASH,
    asked_retrieval,
    cost,
    difference_text,
    length_text,
    nll_text,
    score_text,
    share_text,
    signed_text,
    time_text,
    tokens_text,
)
from e2ray.report.run_words import incomparable

WIDE = 160  # columns where nobody's terminal says how many it has
Line = tuple[str, str, str, str]  # figure, of one run, of the other, difference


def show_diff(runs: Sequence[RunFolder]) -> None:
    """Print what differs between two runs.

    Args:
        runs: What `open_runs` returns of two folders.

    Raises:
        SettingsError: If a file of a run is damaged.
    """
    one, other = (read_run(run) for run in runs)
    console = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False, emoji=False)
    for point in incomparable(comparable([one, other])):
        console.print(Text(f"{point.head} {point.text}", style="yellow"))
    for record in (one, other):
        if not record.cells:
            console.print(Text(f"{record.name}: {record.run.what_is_missing}", style="yellow"))
    settings = settings_table([one, other])
    console.print(grid(settings) if settings else "No setting differs.")
    console.print(grid(figures(one, other)))


def grid(table: Table) -> Grid:
    """Return a table of a page for the terminal; no cell is cut, and nothing in one is taken for markup."""
    shown = Grid(caption=Text(table.caption), caption_justify="left")
    for column in table.columns:
        justify = "right" if column.style == "number" else "left"
        shown.add_column(Text(column.title), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in table.rows:
        shown.add_row(*map(Text, row.cells), style="dim" if row.style == "faint" else "")
    return shown


def figures(one: RunRecord, other: RunRecord) -> Table:
    """Return the figures of two runs side by side: NLL, reach, retrieval, suites and cost."""
    lines = [*_nll(one, other), *_reach(one, other), *_retrieval(one, other), *_suites(one, other), *_cost(one, other)]
    columns = [
        Column("figure"), Column(one.name, "number"), Column(other.name, "number"),
        Column(f"{other.name} - {one.name}", "number"),
    ]  # fmt: skip
    caption = (
        "NLL in nats per token, tuned at scale W/L, with 95 % intervals over documents, ± one standard error where "
        "there are none; differences document by document, where both scored the same ones. Lengths in tokens. A dash: "
        "not measured, or not to be compared."
    )
    return Table(columns, [Row(line) for line in lines], caption)


def _nll(one: RunRecord, other: RunRecord) -> list[Line]:
    together = len(comparable([one, other])) == 1
    lines = []
    for window in sorted({*one.windows, *other.windows}):
        left, right = one.cell("tuned", window), other.cell("tuned", window)
        apart = difference_text(difference((other, right), (one, left))) if together else DASH
        lines.append((f"NLL at {window:,} tokens", nll_text(left), nll_text(right), apart))
    return lines


def _reach(one: RunRecord, other: RunRecord) -> list[Line]:
    found = one.effective, other.effective
    claimed = [None if each is None else each["claimed"] for each in found]
    lines = [("claimed length", tokens_text(claimed[0]), tokens_text(claimed[1]), _minus(claimed))]
    by_nll = [each is not None and not asked_retrieval(each) for each in found]
    texts = [length_text(each) + (", by NLL alone" if alone else "") for each, alone in zip(found, by_nll, strict=True)]
    lengths = [None if each is None else each["effective"] for each in found]
    apart = _minus(lengths) if by_nll[0] == by_nll[1] else DASH
    return [*lines, ("effective length", texts[0], texts[1], apart)]


def _minus(values: Sequence[float | None]) -> str:
    left, right = values
    return DASH if left is None or right is None else f"{right - left:+,.0f}"


def _retrieval(one: RunRecord, other: RunRecord) -> list[Line]:
    tasks = dict.fromkeys(row["task"] for record in (one, other) for row in record.retrieval)
    lines = []
    for task in tasks:
        counts = [_counts(record, task) for record in (one, other)]
        shares = [found / trials if trials else None for found, trials in counts]
        left, right = shares
        apart = DASH if left is None or right is None else f"{100 * (right - left):+.0f} points"
        texts = [share_text(*each) for each in counts]
        lines.append((f"found, {printable(task.replace('_', ' '))}", texts[0], texts[1], apart))
    return lines


def _counts(record: RunRecord, task: str) -> tuple[float, int]:
    rows = [row for row in record.retrieval if (row["model"], row["task"]) == ("tuned", task)]
    return sum(row["found"] for row in rows), sum(row["trials"] for row in rows)


def _suites(one: RunRecord, other: RunRecord) -> list[Line]:
    def tuned(record: RunRecord) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["task"], metric_text(row)): row for row in record.suites if row["model"] == "tuned"}

    left, right = tuned(one), tuned(other)
    lines = []
    for key in dict.fromkeys((*left, *right)):
        rows = left.get(key), right.get(key)
        values = [None if row is None else row["value"] for row in rows]
        apart = None if values[0] is None or values[1] is None else values[1] - values[0]
        name = printable(", ".join(map(str, key)))
        lines.append((name, score_text(rows[0]), score_text(rows[1]), signed_text(apart)))
    return lines


def _cost(one: RunRecord, other: RunRecord) -> list[Line]:
    left, right = cost(one), cost(other)
    lines = []
    for name, key, text in (
        ("tokens trained on", "tokens", tokens_text),
        ("training", "train_s", time_text),
        ("tokens per second", "tokens_per_second", tokens_text),
        ("whole run", "whole_s", time_text),
    ):
        values = [getattr(each, key) for each in (left, right)]
        apart = _minus(values) + (" s" if text is time_text and None not in values else "")
        lines.append((name, text(values[0]), text(values[1]), apart))
    return lines
