"""Two runs side by side on a terminal: the settings that differ, and their figures with the difference."""

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from e2ray.config.retrieval import RetrievalSettings
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
SAME_PROMPTS = ("digits", "seed")  # settings of retrieval that decide what one cell asks
Line = tuple[str, str, str, str]  # figure, of one run, of the other, difference
Cells = dict[float | None, tuple[float, int]]  # depth -> answers found, trials


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
    for reason in undiffered(one, other):
        console.print(Text(reason, style="yellow"))
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
    """Return the figures of two runs side by side: NLL, reach, retrieval, suites and cost.

    Differences of what a model can do are formed only where `comparable` puts both runs into one group; those of
    retrieval for each context length, over the cells that both runs have.
    """
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


def undiffered(one: RunRecord, other: RunRecord) -> list[str]:
    """Return why figures that both runs have get no difference, or count only some cells, a line for each reason."""
    if not _together(one, other):
        lacking = [record.name for record in (one, other) if not record.cells]
        why = f"{' and '.join(lacking)} {'have' if len(lacking) > 1 else 'has'} no evaluation" if lacking else (
            "they did not score the same tokens of the same documents in the same way"
        )  # fmt: skip
        return [f"No difference of NLL, reach, retrieval or suites is formed between these runs: {why}."]
    if not (one.retrieval and other.retrieval):
        return []
    if apart := _other_prompts(one, other):
        return [f"No difference of retrieval is formed, other prompts were asked: {apart}."]
    alone, partly = [], []
    for task, length in _asked(one, other):
        cells = [_cells(record, task, length) for record in (one, other)]
        name = f"{_task_text(task)} at {length:,}"
        if all(cells) and not cells[0].keys() & cells[1].keys():
            alone.append(name)
        elif all(cells) and cells[0].keys() != cells[1].keys():
            partly.append(name)
    return [
        f"{what} ({', '.join(names)})."
        for what, names in (
            ("No difference of retrieval is formed where the runs have no depth in common", alone),
            ("Retrieval counts only the depths that both runs have where one has more", partly),
        )
        if names
    ]


def _together(one: RunRecord, other: RunRecord) -> bool:
    """Return whether what both runs measured may be compared."""
    return any(len(group) == 2 for group in comparable([one, other]))


def _nll(one: RunRecord, other: RunRecord) -> list[Line]:
    together = _together(one, other)
    lines = []
    for window in sorted({*one.windows, *other.windows}):
        left, right = one.cell("tuned", window), other.cell("tuned", window)
        apart = difference_text(difference((other, right), (one, left))) if together else DASH
        lines.append((f"NLL at {window:,} tokens", nll_text(left), nll_text(right), apart))
    return lines


def _reach(one: RunRecord, other: RunRecord) -> list[Line]:
    together = _together(one, other)
    found = one.effective, other.effective
    claimed = [None if each is None else each["claimed"] for each in found]
    apart = _minus(claimed) if together else DASH
    lines = [("claimed length", tokens_text(claimed[0]), tokens_text(claimed[1]), apart)]
    by_nll = [each is not None and not asked_retrieval(each) for each in found]
    texts = [length_text(each) + (", by NLL alone" if alone else "") for each, alone in zip(found, by_nll, strict=True)]
    lengths = [None if each is None else each["effective"] for each in found]
    apart = _minus(lengths) if together and by_nll[0] == by_nll[1] else DASH
    return [*lines, ("effective length", texts[0], texts[1], apart)]


def _minus(values: Sequence[float | None]) -> str:
    left, right = values
    return DASH if left is None or right is None else f"{right - left:+,.0f}"


def _retrieval(one: RunRecord, other: RunRecord) -> list[Line]:
    together = _together(one, other) and not _other_prompts(one, other)
    lines = []
    for task, length in _asked(one, other):
        left, right = (_cells(record, task, length) for record in (one, other))
        both = left.keys() & right.keys()
        apart = DASH
        if together and both:
            left, right = ({depth: cells[depth] for depth in both} for cells in (left, right))
            apart = f"{100 * (_share(right) - _share(left)):+.0f} points"
        texts = [share_text(*_counts(cells)) for cells in (left, right)]
        lines.append((f"found, {_task_text(task)} at {length:,} tokens", texts[0], texts[1], apart))
    return lines


def _asked(one: RunRecord, other: RunRecord) -> list[tuple[str, int]]:
    """Return (task, context length) of all that either run was asked, tasks in the order of the first that has them."""
    rows = [row for record in (one, other) for row in record.retrieval if row["model"] == "tuned"]
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return sorted({(row["task"], row["context_length"]) for row in rows}, key=lambda key: (tasks.index(key[0]), key[1]))


def _cells(record: RunRecord, task: str, length: int) -> Cells:
    return {
        row["depth"]: (row["found"], row["trials"])
        for row in record.retrieval
        if (row["model"], row["task"], row["context_length"]) == ("tuned", task, length) and row["trials"]
    }


def _counts(cells: Cells) -> tuple[float, int]:
    return sum(found for found, _ in cells.values()), sum(trials for _, trials in cells.values())


def _share(cells: Cells) -> float:
    found, trials = _counts(cells)
    return found / trials


def _task_text(task: str) -> str:
    return printable(task.replace("_", " "))


def _other_prompts(one: RunRecord, other: RunRecord) -> str:
    """Return which settings of retrieval have the runs answer other prompts in cells of one name, or nothing."""
    values = []
    for record in (one, other):
        asked = (record.run.settings["evaluate"] or {}).get("retrieval") or {}
        values.append({key: asked.get(key, RetrievalSettings.model_fields[key].default) for key in SAME_PROMPTS})
    left, right = values
    return ", ".join(
        f"evaluate.retrieval.{key} {left[key]} and {right[key]}" for key in SAME_PROMPTS if left[key] != right[key]
    )


def _suites(one: RunRecord, other: RunRecord) -> list[Line]:
    def tuned(record: RunRecord) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["task"], metric_text(row)): row for row in record.suites if row["model"] == "tuned"}

    left, right, together = tuned(one), tuned(other), _together(one, other)
    lines = []
    for key in dict.fromkeys((*left, *right)):
        rows = left.get(key), right.get(key)
        before, behind = (None if row is None else row["value"] for row in rows)
        apart = None if before is None or behind is None or not together else behind - before
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
