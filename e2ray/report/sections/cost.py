"""What a run has cost: updates, tokens, time, memory and machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from e2ray.report.frame.page import Column, Row, Table
from e2ray.report.frame.text import DASH, duration, less, printable, whole
from e2ray.report.run_files import RunRecord
from e2ray.report.sections.section import Line, RunSection


@dataclass(frozen=True)
class Cost:
    """What a run has taken; None where it was not recorded.

    Attributes:
        steps: Updates made.
        tokens: Trained on.
        train_s: Seconds of training, from the first update to the last, evaluation and start not counted.
        whole_s: Seconds from the start of the command that ended the run to its end, all its stages included.
        tokens_per_second: tokens / train_s.
        peak_mib: Most memory of the first worker: its GPU's, or on CPUs its process's resident memory.
    """

    steps: int | None
    tokens: int | None
    train_s: float | None
    whole_s: float | None
    tokens_per_second: float | None
    peak_mib: float | None


def cost(record: RunRecord) -> Cost:
    """Return what a run has taken, from its metrics and its status."""
    status, lines = record.run.status, record.metrics
    whole_s = None
    if status.started_at and status.ended_at:
        took = datetime.fromisoformat(status.ended_at) - datetime.fromisoformat(status.started_at)
        whole_s = took.total_seconds()
    if not lines:
        return Cost(None, None, None, whole_s, None, None)
    before = [0, *(line.tokens for line in lines[:-1])]
    seconds = sum((line.tokens - start) / line.tokens_per_second for line, start in zip(lines, before, strict=True))
    tokens = lines[-1].tokens
    peak = max((line.peak_memory_mib for line in lines if line.peak_memory_mib is not None), default=None)
    return Cost(lines[-1].step, tokens, seconds, whole_s, tokens / seconds, peak)


def _parts(records: Sequence[RunRecord]) -> list[Table]:
    columns = [
        Column("run"), Column("steps", "number"), Column("tokens", "number"), Column("training", "number"),
        Column("tokens per second", "number"), Column("peak memory", "number"), Column("workers", "number"),
        Column("hardware"), Column("whole run", "number"),
    ]  # fmt: skip
    rows = []
    for record in records:
        taken = cost(record)
        memory = DASH if taken.peak_mib is None else f"{taken.peak_mib:,.0f} MiB"
        cells = [
            record.name, whole(taken.steps), whole(taken.tokens), duration(taken.train_s),
            whole(taken.tokens_per_second), memory, str(record.run.settings["cluster"]["num_workers"]),
            _hardware(record), duration(taken.whole_s),
        ]  # fmt: skip
        rows.append(Row(cells))
    caption = (
        "Training: from the first update to the last, without start-up and evaluation. Peak memory is that of the "
        "first worker: its GPU's, or on CPUs its process's. Whole run: the command that ended the run, all stages in "
        "it; those whose results stood already, such as a shared base, took no time."
    )
    return [Table(columns, rows, caption)]


def _hardware(record: RunRecord) -> str:
    hardware = record.environment.hardware if record.environment else None
    if not hardware:
        return DASH
    gpus = hardware.gpus
    return f"{len(gpus)} x {printable(gpus[0])}" if gpus else f"{hardware.cpus} CPUs"


def _diff(one: RunRecord, other: RunRecord) -> list[Line]:
    left, right = cost(one), cost(other)
    lines = []
    for name, key, text in (
        ("tokens trained on", "tokens", whole),
        ("training", "train_s", duration),
        ("tokens per second", "tokens_per_second", whole),
        ("whole run", "whole_s", duration),
    ):
        values = getattr(left, key), getattr(right, key)
        apart = less(values) + (" s" if text is duration and None not in values else "")
        lines.append((name, text(values[0]), text(values[1]), apart))
    return lines


COST = RunSection("Cost", "cost", _parts, diff=_diff)
