"""Every trial in one table, and why the failed ones failed."""

from collections import Counter

from e2ray.report.frame.page import Column, Point, Row, Table
from e2ray.report.frame.text import count, duration, nats, plural
from e2ray.report.sections.draws import settings_words
from e2ray.report.study.section import study_section
from e2ray.report.study.terms import TITLES, answered, asked_objectives, best_trial, trial_name
from e2ray.search.record import StudyResults

FOLDED_FROM = 60  # trials; a longer table is folded


def all_trials(results: StudyResults) -> Table:
    """Return the table of all trials; a failed one with its reason."""
    asked = asked_objectives(results)
    columns = [
        Column("Trial", "number"), Column("Method"), Column("State"), Column("Updates", "number"),
        Column("Long", "number"), Column("Short", "number"), *(Column(TITLES[name], "number") for name in asked),
        Column("Value", "number"), Column("Tokens", "number"), Column("Time", "number"), Column("Settings", "wide"),
    ]  # fmt: skip
    rows = []
    best = best_trial(results)
    for record in results.records:
        words = settings_words(record.settings)
        if record.state == "failed":
            words = f"Failed: {record.reason or 'no reason recorded'}. {words}"
        cells = [
            str(record.number), trial_name(record), record.state, f"{record.step} / {record.steps}",
            _nll(record.long), _nll(record.short, "+"), *(answered(name, getattr(record, name)) for name in asked),
            _nll(record.value), count(record.tokens), duration(record.seconds), words,
        ]  # fmt: skip
        marked = best is not None and record.number == best.number
        rows.append(Row(cells, "marked" if marked else "" if record.state == "complete" else "faint"))
    caption = (
        "Numbers of a trial that was stopped early belong to the updates it made. The balanced best is marked. Noise "
        f"of a single full trial: long {nats(results.noise.long)}, short {nats(results.noise.short)}, value "
        f"{nats(results.noise.value)}{' nats' if results.noise.long is not None else ''}."
    )
    folded = f"Show all {len(rows)} trials" if len(rows) > FOLDED_FROM else None
    return Table(columns, rows, caption, compact=True, folded=folded)


def _nll(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}"


def _findings(results: StudyResults) -> list[Point]:
    failed = [record for record in results.records if record.state == "failed"]
    if not failed:
        return [Point("What failed.", "No trial failed.")]
    reasons = Counter(record.reason or "no reason recorded" for record in failed)
    causes = "; ".join(f"{reason} ({plural(times, 'trial')})" for reason, times in reasons.most_common(5))
    rest = f"; and {len(reasons) - 5} further reasons" if len(reasons) > 5 else ""
    which = ", ".join(str(record.number) for record in failed[:10]) + (", ..." if len(failed) > 10 else "")
    return [Point("What failed.", f"{plural(len(failed), 'trial')} (number {which}): {causes}{rest}.", warning=True)]


TRIALS = study_section("All trials", "trials", tables=lambda results: [all_trials(results)], findings=_findings)
