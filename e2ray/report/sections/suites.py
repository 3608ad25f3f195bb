"""Scores of published suites, base beside tuned, and which tasks have none."""

from collections.abc import Sequence

from e2ray.records.suites import Score
from e2ray.report.frame.page import Column, Part, Point, Row, Table, Words
from e2ray.report.frame.text import DASH, printable, signed, whole
from e2ray.report.run_files import RunRecord, together
from e2ray.report.sections.method import base_note, base_title
from e2ray.report.sections.section import Line, RunSection


def score_text(row: Score | None) -> str:
    """Return `0.512 ± 0.014`, a suite's score and its standard error where that is known."""
    if row is None:
        return DASH
    return f"{row.value:.3f}" if row.stderr is None else f"{row.value:.3f} ± {row.stderr:.3f}"


def metric_text(row: Score) -> str:
    """Return a score's metric, followed by the filter of answers if there is one."""
    return printable(row.metric + (f", {row.filter}" if row.filter and row.filter != "none" else ""))


def suites_table(records: Sequence[RunRecord]) -> Table:
    """Return the scores of the suites, base beside tuned; a task without any is a row of dashes."""
    columns = [
        Column("task"), Column("metric"), Column("run"), Column(base_title(records), "number"),
        Column("tuned", "number"),
        Column("tuned - base", "number"), Column("samples", "number"), Column("truncated", "number"),
    ]  # fmt: skip
    rows = []
    scores = {(row.task, metric_text(row), record.name, row.model): row for record in records for row in record.suites}
    scored = {task for task, *_ in scores}
    without = [(row.task, DASH) for record in records for row in record.suites_missing if row.task not in scored]
    for task, metric in dict.fromkeys([*(key[:2] for key in scores), *without]):
        for record in records:
            base, tuned = (scores.get((task, metric, record.name, model)) for model in ("base", "tuned"))
            known = tuned or base
            cells = [
                printable(task), metric, record.name, score_text(base), score_text(tuned), _apart(base, tuned),
                whole(known.documents if known else None), whole(known.truncated if known else None),
            ]  # fmt: skip
            rows.append(Row(cells, "" if known else "faint"))
    caption = "± is one standard error, as the suite gives it. Truncated: items that were cut to fit."
    return Table(columns, rows, caption + base_note(records))


def _apart(before: Score | None, after: Score | None) -> str:
    """Return the second score minus the first."""
    if before is None or after is None:
        return DASH
    return signed(after.value - before.value)


def _parts(records: Sequence[RunRecord]) -> list[Part]:
    if not any(record.suites or record.suites_missing for record in records):
        return []
    return [suites_table(records), *_no_scores(records)]


def _no_scores(records: Sequence[RunRecord]) -> list[Words]:
    words = []
    for record in records:
        models: dict[tuple[str, str], list[str]] = {}  # most often base and tuned lack a score for one reason
        for row in record.suites_missing:
            models.setdefault((row.task, row.reason), []).append(str(row.model))
        words += [
            Words(f"{record.name}, {' and '.join(which)}: {task} has no score: {reason}", warning=True)
            for (task, reason), which in models.items()
        ]
    return words


def _findings(records: Sequence[RunRecord]) -> list[Point]:
    points = []
    for record in records:
        cut = dict.fromkeys(row.task for row in record.suites if row.truncated)
        if cut and record.cells:
            text = f"texts of {', '.join(map(printable, cut))} were cut to fit; the scores are of what was left."
            points.append(Point(f"{record.name}:", text, warning=True))
    return points


def _diff(one: RunRecord, other: RunRecord) -> list[Line]:
    left, right = (
        {(row.task, metric_text(row)): row for row in record.suites if row.model == "tuned"} for record in (one, other)
    )
    lines = []
    for key in dict.fromkeys((*left, *right)):
        before, after = left.get(key), right.get(key)
        apart = _apart(before, after) if together(one, other) else DASH
        lines.append((printable(", ".join(map(str, key))), score_text(before), score_text(after), apart))
    return lines


SUITES = RunSection("Suites", "suites", _parts, _findings, diff=_diff)
