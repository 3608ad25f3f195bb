"""How the figures of runs are said, in pages, model cards and on the terminal alike; what a run has cost.

What was not measured is a dash, never a number.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from e2ray.config.run import FREE_ON_RESUME
from e2ray.evaluate.perplexity import Cell
from e2ray.report.run_files import Difference, RunRecord
from e2ray.report.run_folder import printable

DASH = "\N{EN DASH}"
MISSING = object()  # a setting that a run does not have


def nll_text(cell: Cell | None, *, spread: bool = True) -> str:
    """Return `3.412 (3.390 to 3.434)`, the NLL and its 95 % interval; `± 0.011`, a standard error, without one.

    Args:
        cell: None where it was not measured.
        spread: Whether to say more than the NLL.
    """
    if cell is None:
        return DASH
    if not spread:
        return f"{cell.nll:.3f}"
    if cell.low is not None and cell.high is not None:
        return f"{cell.nll:.3f} ({cell.low:.3f} to {cell.high:.3f})"
    return f"{cell.nll:.3f}" if cell.stderr is None else f"{cell.nll:.3f} ± {cell.stderr:.3f}"


def difference_text(found: Difference | None) -> str:
    """Return `+0.012 (-0.003 to +0.020)`, the interval where it is known."""
    return DASH if found is None else signed_text(found.nats, found.low, found.high)


def signed_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Return a difference with its sign, and its 95 % interval where it is known."""
    if value is None:
        return DASH
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


def score_text(row: Mapping[str, Any] | None) -> str:
    """Return `0.512 ± 0.014`, a suite's score and its standard error where that is known."""
    if row is None or row["value"] is None:
        return DASH
    stderr = row.get("stderr")
    return f"{row['value']:.3f}" if stderr is None else f"{row['value']:.3f} ± {stderr:.3f}"


def share_text(found: float, trials: int) -> str:
    """Return `75 % (3 of 4)`; a dash where nothing was asked."""
    return f"{found / trials:.0%} ({found:g} of {trials})".replace("%", " %", 1) if trials else DASH


def tokens_text(value: float | None) -> str:
    """Return a whole number with thousands marked, e.g. 4,096."""
    return DASH if value is None else f"{value:,.0f}"


def asked_retrieval(effective: Mapping[str, Any]) -> bool:
    """Return whether an effective length was judged by retrieval, too, and not by NLL alone."""
    asked = effective.get("retrieval_lengths") is not None
    return asked or any(row.get("retrieval") is not None for row in effective["lengths"])


def length_text(effective: Mapping[str, Any] | None) -> str:
    """Return `1,024 (512 to 2,048)`, how far a run reads and its 95 % interval."""
    if effective is None or (effective["effective"] is None and not effective["lengths"]):
        return DASH
    if effective["effective"] is None:
        covered = effective.get("retrieval_lengths")
        return "not even L" if covered is None or effective["lengths"][0]["context_length"] in covered else "none"
    low, high = effective.get("low"), effective.get("high")
    interval = "" if low is None or high is None else f" ({low:,} to {high:,})"
    return f"{effective['effective']:,}{interval}"


def time_text(seconds: float | None) -> str:
    """Return `38 s`, `12 min` or `3.2 h`."""
    if seconds is None:
        return DASH
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.3g} h"


@dataclass(frozen=True)
class Cost:
    """What a run has taken; None where it was not recorded.

    Attributes:
        steps: Updates made.
        tokens: Trained on.
        train_s: Seconds of training, from the first update to the last, evaluation and start not counted.
        whole_s: Seconds from the start of the command that ended the run to its end, all stages in it.
        tokens_per_second: tokens / train_s.
        peak_mib: Most memory of the first worker: its GPU's, or on CPUs what was resident of its process.
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
    started, ended = status.get("started_at"), status.get("ended_at")
    whole = None
    if started and ended:
        whole = (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
    if not lines:
        return Cost(None, None, None, whole, None, None)
    before = [0, *(line["tokens"] for line in lines[:-1])]
    seconds = sum(
        (line["tokens"] - start) / line["tokens_per_second"] for line, start in zip(lines, before, strict=True)
    )
    tokens = lines[-1]["tokens"]
    peak = max((line["peak_memory_mib"] for line in lines if "peak_memory_mib" in line), default=None)
    return Cost(lines[-1]["step"], tokens, seconds, whole, tokens / seconds, peak)


def flat(settings: Any, path: str = "") -> dict[str, Any]:
    """Return settings by dotted path, as `--set` names them; a list of plain values is one value."""
    if isinstance(settings, dict) and settings:
        items = [(str(key), value) for key, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(value, dict) for value in settings):
        items = [(str(place), value) for place, value in enumerate(settings)]
    else:
        return {path: settings}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{path}.{key}" if path else key)
    return found


def differing(records: Sequence[RunRecord]) -> list[tuple[str, list[Any], bool]]:
    """Return (dotted path, value of each run or MISSING, whether it decides the result) of all that differs.

    What decides the result comes first. Where and how fast a run ran (`FREE_ON_RESUME`), and versions and hardware,
    which stand under `environment`, come behind. The name is left out: it names the run in a report.
    """
    every = [
        flat(record.run.settings) | (flat({"environment": record.environment}) if record.environment else {})
        for record in records
    ]
    paths = dict.fromkeys(path for each in every for path in each if path != "name")
    found = []
    for path in paths:
        values = [each.get(path, MISSING) for each in every]
        if any(value != values[0] or (value is MISSING) != (values[0] is MISSING) for value in values):
            found.append((path, values, not _is_free(path)))
    return sorted(found, key=lambda entry: not entry[2])


def _is_free(path: str) -> bool:
    return any(path == free or path.startswith(f"{free}.") for free in (*FREE_ON_RESUME, "environment"))


def setting_text(value: Any) -> str:
    """Return a setting's value as a recipe has it."""
    if value is MISSING:
        return DASH
    return printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
