"""What a run leaves while it trains: metrics.jsonl, skipped.jsonl, status.json and progress lines.

Only rank 0 of the workers and the driver write here. A line of a jsonl file is flushed when it is written; lines
after the checkpoint that a restart continues from, and a line torn by a kill, are removed when it starts; each carries
a seal (`e2ray.records.sealed`). A number that is not finite is null in them and left out of trackers.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from e2ray import files
from e2ray.config.base import SettingsError, brief
from e2ray.data.pace import clock
from e2ray.records.folders import RunFolder
from e2ray.records.record import Line
from e2ray.records.run import Environment, MetricsLine, SkippedRow, SkippedStep, State, Status, Training
from e2ray.records.sealed import End, seal, sealed, without_seal
from e2ray.train.trackers import Trackers

METRICS, SKIPPED, STATUS = RunFolder.metrics.name, RunFolder.skipped.name, RunFolder.status.name
LONGEST_METRICS = 2**16  # bytes of a line
LINES: dict[str, type[Line]] = {METRICS: MetricsLine, SKIPPED: SkippedStep}
STATUS_ADVICE = Status.anew
KILLED = "its process was killed, or the machine went down"


def now() -> str:
    """Return the time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_status(folder: Path, **changes: object) -> None:
    """Update status.json: `state`, `step`, `error`, `started_at`, `ended_at`, and a `result` line at the end.

    Raises:
        SettingsError: If the present file is not of a run, or it cannot be written.
    """
    (read_status(folder) or _new_status()).changed(**changes).write(folder / STATUS)


def _new_status() -> Status:
    return Status(state="running", step=0, error=None, started_at=now(), ended_at=None)


def end_status(folder: Path, state: State, error: object) -> None:
    """Write how a run ended as far as the file system allows, without an error: one is on its way already.

    Where there is no room for a new file, the old one is overwritten in place.
    """
    changes = {"state": state, "error": brief(" ".join(str(error).split())), "ended_at": now()}
    try:
        write_status(folder, **changes)
        return
    except (OSError, SettingsError):
        status = _new_status()
    with suppress(OSError, SettingsError):
        status = read_status(folder) or status
    with suppress(OSError), (folder / STATUS).open("rb+", buffering=0) as file:
        file.write(json.dumps(status.changed(**changes).content()).encode())
        file.truncate()


def read_status(folder: Path) -> Status | None:
    """Return status.json of a run, or None where there is none.

    Raises:
        SettingsError: If it cannot be read, or is not of a run.
    """
    return Status.find(folder / STATUS)


def settle(folder: Path) -> str | None:
    """Write into a status that says `running` that the run was killed, and return a line that says so.

    The caller holds the run's lock, so nothing runs.
    """
    status = read_status(folder)
    if status is None or status.state != "running":
        return None
    end_status(folder, "failed", KILLED)
    return f"{folder}: ended at step {status.step} without a word: {KILLED}"


def was_killed(folder: Path, status: Status | None) -> bool:
    """Return whether a status says `running` though no process holds the run: one was killed and could not say so."""
    return status is not None and status.state == "running" and files.is_locked(RunFolder(folder).lock) is False


def note_training(folder: Path, facts: Training) -> None:
    """Put into environment.json what the training runs on."""
    path = RunFolder(folder).environment
    (Environment.find(path) or Environment()).changed(training=facts).write(path)


def training_facts(folder: Path) -> Training | None:
    """Return what `note_training` has put there, None where the run has not begun to train."""
    known = Environment.find(RunFolder(folder).environment)
    return known.training if known else None


def prune_lines(path: Path, step: int) -> End:
    """Keep only whole lines of a jsonl file up to `step`, and return where the file then ends.

    Raises:
        SettingsError: If a line is not what was written.
    """
    if not path.exists():
        return End()
    lines, whole = LINES[path.name].lines(path)
    kept = [value for line, value in zip(lines, whole.values, strict=True) if line.step <= step]
    text, end = sealed([json.dumps(value) for value in kept])
    files.write_text(path, text)
    return end


def read_metrics(folder: Path) -> list[MetricsLine]:
    """Return the whole lines of metrics.jsonl; one that is just being written is left out.

    Raises:
        SettingsError: If a line is not what was written.
    """
    return MetricsLine.lines(folder / METRICS)[0]


def newest_metrics(folder: Path) -> MetricsLine | None:
    """Return the last whole line of metrics.jsonl for display, whatever its seal; None without one.

    Only the end of the file is read, since a long run's is large.
    """
    path = folder / METRICS
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LONGEST_METRICS))
        *_, before, _ = (b"", *file.read().split(b"\n"))
    with suppress(ValueError):
        value = json.loads(before)
        return MetricsLine.parse(without_seal(value) if isinstance(value, dict) else value, where=path)
    return None


def progress_line(metrics: MetricsLine, *, step: int, steps: int, seconds_per_step: float) -> str:
    """Return `step 120/1200  loss 3.412  45,120 tokens/s  scale 8.4  ETA 2:31`."""
    return f"step {step}/{steps}  {figures(metrics)}  ETA {clock((steps - step) * seconds_per_step)}"


def figures(metrics: MetricsLine) -> str:
    """Return `loss 3.412  45,120 tokens/s  scale 8.4` of a logged step, and how many steps were skipped, if any."""
    parts = [
        "loss -" if metrics.loss is None else f"loss {metrics.loss:.3f}",
        f"{metrics.tokens_per_second:,.0f} tokens/s",
        *([] if metrics.mfu is None else [f"{100 * metrics.mfu:.0f} % MFU"]),
        "scale -" if metrics.scale_mean is None else f"scale {metrics.scale_mean:.1f}",
    ]
    return "  ".join([*parts, f"{metrics.skipped_steps} skipped"] if metrics.skipped_steps else parts)


def note_skipped(folder: Path, step: int, rows: Sequence[SkippedRow]) -> str:
    """Write a skipped step's line into skipped.jsonl and return what to say about it.

    Steps count from 1, as in metrics.jsonl; rows are the global batch's in order, as `ledger.rows_of` gives them.
    """
    is_norm = all(row.loss is not None for row in rows)
    skipped = SkippedStep(step=step, not_finite="gradient norm" if is_norm else "loss", rows=tuple(rows))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SKIPPED
    line, _ = seal(skipped.text(), SkippedStep.lines(path)[1].end)
    with files.naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line)
    numbers = ", ".join(str(row.row) for row in rows[:8])
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    wrong = skipped.not_finite
    return f"step {step}: skipped, its {wrong} is no finite number; rows {numbers}{more}: {path}"


class Recorder:
    """Rank 0's writer of the run's files."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        steps: int,
        progress_s: float,
        show: Callable[[str], None] | None = print,
        trackers: Trackers | None = None,
    ) -> None:
        """Open the files; `show` gets a progress line every `progress_s` seconds, `trackers` every logged step."""
        self.end = prune_lines(folder / METRICS, start_step)
        prune_lines(folder / SKIPPED, start_step)
        self.folder, self.steps, self.progress_s = folder, steps, progress_s
        self.show, self.trackers = show, trackers or Trackers(())
        self.metrics: MetricsLine | None = None
        self.began, self.start_step = time.perf_counter(), start_step
        self.shown = self.began
        self.file = (folder / METRICS).open("a", encoding="utf-8")

    def report(self, metrics: MetricsLine) -> None:
        """Write a logged step everywhere it belongs."""
        self.metrics = metrics
        line, self.end = seal(metrics.text(), self.end)
        with files.naming(self.folder / METRICS):
            self.file.write(line)
            self.file.flush()
        self.trackers.log(metrics.plain(), metrics.step)
        write_status(self.folder, step=metrics.step)

    def skipped(self, step: int, rows: Sequence[SkippedRow]) -> None:
        """Write down a step that changed nothing, and say so."""
        line = note_skipped(self.folder, step, rows)
        if self.show:
            self.show(line)

    def progress(self, step: int) -> None:
        """Show a line if it is time for one."""
        elapsed = time.perf_counter()
        due = elapsed - self.shown >= self.progress_s or step == self.steps
        if self.show and self.metrics and due:
            self.shown = elapsed
            per_step = (elapsed - self.began) / (step - self.start_step)
            self.show(progress_line(self.metrics, step=step, steps=self.steps, seconds_per_step=per_step))

    def close(self, *, failed: bool = False) -> None:
        """Flush and close the files; `failed` where an error ends the training."""
        self.trackers.close(failed=failed)
        with files.naming(self.folder / METRICS):
            self.file.close()
