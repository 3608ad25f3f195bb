"""What a study says while it runs: a line when a trial reaches a rung or ends, and a table of the best ones."""

import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from e2ray.data.pace import clock
from e2ray.search.record import State, StudyFacts, StudyResults, TrialRecord, section

WIDTH = 150  # characters of the table; logs have no width of their own
SHOWN = 5


def positions_in_words(positions: Mapping[str, JsonValue]) -> str:
    """Return a `positions` section in a few words: `power(-0.8) 13 % native, random_breaks(3), per step`."""
    scale, placement = section(positions, "scale"), section(positions, "placement")
    text = f"{scale['kind']}{_arguments(scale, ('max_scale', 'native_share'))}"
    if scale["kind"] == "fixed":
        text = f"fixed({scale['max_scale']:g})"
    if scale["native_share"]:
        text += f" {scale['native_share']:.0%} native"
    text += f", {placement['kind']}{_arguments(placement, ('jump',))}"
    jump = section(placement, "jump")
    if jump and jump["kind"] != "uniform":
        text += f" {jump['kind']}{_arguments(jump, ())}"
    text += ", per step" if positions["per"] == "step" else ""
    method = section(positions, "method")
    if method.get("kind", "linear") == "linear":  # earlier studies had no other
        return text
    heat = section(method, "temperature")
    degree = {"log": f" T {heat.get('coefficient', 0):.2g}", "none": " T 0"}.get(str(heat.get("kind")), "")
    lists = [key for key, value in method.items() if isinstance(value, list)]
    return f"{text}, {method['kind']}{_arguments(method, ('temperature', *lists))}{degree}"


def _arguments(settings: Mapping[str, JsonValue], besides: Sequence[str]) -> str:
    shown = [_short(value) for key, value in settings.items() if key not in ("kind", *besides)]
    return f"({', '.join(shown)})" if shown else ""


def _short(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "pinned" if value else "free"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def name_of(record: TrialRecord) -> str:
    """Return what a trial is: a published method by its name, with its seed where it is a repeat; else its draws."""
    if record.repeat:
        return f"{record.baseline} (seed {record.seed})"
    if record.baseline:
        return record.baseline
    return positions_in_words(record.settings["positions"]) if "positions" in record.settings else "?"


def line_of(record: TrialRecord, facts: StudyFacts, best: TrialRecord | None) -> str:
    """Return one line about a trial that reached a rung or ended."""
    head = f"trial {record.number} of {facts.trials} {record.state}"
    if record.state == "failed":
        return f"{head}: {record.reason}  [{name_of(record)}]"
    if record.state == "running":
        head = f"trial {record.number} of {facts.trials} goes on"
    text = f"{head} at step {record.step}: value {record.value:.4f} (long {record.long:.4f}, short {record.short:+.4f}"
    if record.retrieval is not None:
        text += f", found {record.retrieval:.0%}"
    if record.answer_nll is not None:
        text += f", answers {record.answer_nll:.3f}"
    text += f")  lr {record.settings['train.lr']:.2g}, {name_of(record)}"
    if best and record.finished:
        text += f"  | best {best.value:.4f} (trial {best.number})"
    return text


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial with the lowest weighted number; the paper's repeats do not count."""
    complete = [record for record in records if record.state == "complete" and not record.repeat]
    return min(complete, key=lambda record: (record.value, record.number), default=None)


def table(records: Sequence[TrialRecord], facts: StudyFacts, *, elapsed_s: float) -> str:
    """Return the state of a study as a table: its trials by state, the time so far, and the best ones."""
    counts = Counter(record.state for record in records)
    done = sum(counts[state] for state in ("complete", "pruned", "failed"))
    title = (
        f"{facts.name}: {done} of {facts.trials} trials ({counts['complete']} complete, {counts['pruned']} stopped "
        f"early, {counts['failed']} failed, {counts['running']} running), {clock(elapsed_s)} so far"
    )
    shown = Table(box=None, pad_edge=False)
    for column in ("trial", "state", "step", "value", "long", "short", "lr", "draws"):
        right = column in ("trial", "step", "value", "long", "short", "lr")
        shown.add_column(column, justify="right" if right else "left", no_wrap=column != "draws")
    complete = sorted(
        (r for r in records if r.state == "complete" and not r.repeat), key=lambda r: (r.value or 0.0, r.number)
    )
    for record in complete[:SHOWN] + [record for record in records if record.state == "running"]:
        numbers = [record.value, record.long, record.short]
        shown.add_row(
            str(record.number),
            record.state,
            f"{record.step}/{record.steps}",
            *("" if value is None else f"{value:.4f}" for value in numbers),
            f"{record.settings['train.lr']:.2g}" if record.settings else "",
            name_of(record),
        )
    text = io.StringIO()
    Console(file=text, width=WIDTH, color_system=None).print(shown)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([title, *lines])


def outcome(results: StudyResults) -> str:
    """Return the balanced trial and the paper's preset in one sentence."""
    if "balanced" not in results.chosen:
        return "No trial was completed."
    best, paper = results.record(results.chosen["balanced"]), results.record(0)
    text = f"Balanced: trial {best.number}, {name_of(best)}: long {best.long:.4f}, short {best.short:+.4f}"
    if paper.state == "complete" and best.number:
        text += f"; the paper's preset: long {paper.long:.4f}, short {paper.short:+.4f}"
    if results.noise.long is not None:
        text += f"; noise of one trial {results.noise.long:.4f} and {results.noise.short:.4f}"
    return text + " nats per token."


class Progress:
    """Shows a study while it runs, and asks for its exports now and then."""

    def __init__(
        self,
        records: Callable[[], list[TrialRecord]],
        facts: StudyFacts,
        *,
        show: Callable[[str], None],
        every_s: float,
        export: Callable[[], None],
        gauges: Callable[[dict[str, int], float | None], None],
    ) -> None:
        """Begin; `show` takes lines, `export` is called with every table, `gauges` with every change."""
        self.records, self.facts = records, facts
        self.show, self.every_s, self.export, self.gauges = show, every_s, export, gauges
        self.began = self.shown = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def told(self, number: int) -> None:
        """Show what the journal now says of a trial."""
        records = self.records()
        best = best_of(records)
        self.show(line_of(records[number], self.facts, best))
        states = Counter(record.state for record in records)
        self.gauges({state: states[state] for state in get_args(State)}, best.value if best else None)
        if time.monotonic() - self.shown >= self.every_s:
            self.shown = time.monotonic()
            self.show(table(records, self.facts, elapsed_s=self.elapsed_s))
            self.export()
