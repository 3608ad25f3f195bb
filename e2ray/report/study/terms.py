"""How a study's settings, numbers and differences are written, in its report's words, tables and pictures alike.

A difference is always given together with the noise of a difference between two single trials, which is sqrt(2)
times the noise of one. Up to that noise it is no finding, up to twice that a hint. Where the noise was not measured,
no difference is a finding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from e2ray.config.methods import NAMED
from e2ray.config.search import PAPER
from e2ray.records.study import Interval, Range, RungRow
from e2ray.report.frame.text import nats, number, plural, plus_minus
from e2ray.search.objectives import ASKED
from e2ray.search.ranks import chance_correlation
from e2ray.search.record import SearchedSetting, StudyResults, TrialRecord

HINT = 2.0  # a difference up to this many times its noise is a hint, a larger one a finding
FEW_TRIALS = 10  # a rank correlation of fewer says little
TITLES = {"retrieval": "Passkeys", "answer_nll": "Answers"}
TRUSTED = 0.8  # a rank correlation from which a rung's order is called trustworthy


Grid = dict[tuple[int, float], tuple[float, float | None]]  # NLL and its standard error by (window, scale)


@dataclass(frozen=True)
class Difference:
    """One trial's number minus another's, in nats, with the noise of such a difference (None: unknown)."""

    nats: float
    noise: float | None

    @property
    def grade(self) -> Literal["unknown", "within", "hint", "beyond"]:
        """How sure it is."""
        if self.noise is None:
            return "unknown"
        if abs(self.nats) <= self.noise:
            return "within"
        return "hint" if abs(self.nats) <= HINT * self.noise else "beyond"


def difference(left: float, right: float, noise: float | None) -> Difference:
    """Return `left` minus `right` of two single trials whose noise has standard deviation `noise`."""
    return Difference(left - right, None if noise is None else math.sqrt(2) * noise)


def difference_words(apart: Difference) -> str:
    """Return a difference in words, with how sure it is."""
    size = f"{nats(abs(apart.nats))} nats {'lower' if apart.nats < 0 else 'higher'}"
    if apart.noise is None:
        return f"{size}, noise unknown: not a finding yet"
    if apart.grade == "within":
        return f"{size}, within the noise of a difference (± {nats(apart.noise)}): not told apart"
    ratio = abs(apart.nats) / apart.noise if apart.noise else math.inf
    times = f"{f'{ratio:.1f}' if ratio < 10 else 'over 10'} times the noise of a difference"
    return f"{size}, {times}: {'a hint, no proof' if apart.grade == 'hint' else 'beyond the noise'}"


def short_name(path: str) -> str:
    """Return a setting's name without the section that every trial shares: scale.kind, learning rate."""
    return "learning rate" if path == "train.lr" else path.removeprefix("positions.").removeprefix("train.")


def method(name: str) -> str:
    """Return the name of a published method as its authors write it."""
    return NAMED[name].label if name in NAMED else name


def trial_name(record: TrialRecord) -> str:
    """Return a trial's name in tables: its method, with the repeat's number if it repeats one, or `sampled`."""
    if record.baseline is None:
        return "sampled"
    return method(record.baseline) + (f", repeat {record.repeat}" if record.repeat else "")


def asked_objectives(results: StudyResults) -> list[str]:
    """Return the objectives of the retrieval grid that trials have."""
    return [name for name in ASKED if any(getattr(record, name) is not None for record in results.records)]


def ranges_by_space(results: StudyResults) -> dict[str, Range]:
    """Return the rows of ranges.json in the order of the space."""
    parameters = results.ranges.parameters
    return {path: parameters[path] for path in results.facts.space if path in parameters}


def range_words(row: Range | Interval) -> str:
    """Return a row of ranges.json: `0.001 to 0.002`, or `power (7), beta (3)`."""
    if isinstance(row.kinds, Mapping):
        ordered = sorted(row.kinds.items(), key=lambda item: (-item[1], str(item[0])))
        return ", ".join(f"{number(kind)} ({count})" for kind, count in ordered) or "none found"
    if row.low is None or row.high is None:
        return "none found"
    low, high = number(row.low), number(row.high)
    return f"about {low}" if low == high and row.low != row.high else low if low == high else f"{low} to {high}"


def correlation_words(row: RungRow) -> str:
    """Return what a rung's rank correlation with the final order means."""
    correlation, trials = row.spearman, row.trials
    if correlation is None:
        return "not computable"
    if abs(correlation) <= chance_correlation(trials):
        return f"not told apart from chance with {plural(trials, 'trial')}"
    words = "orders the trials much as the end does" if correlation >= TRUSTED else "orders many trials another way"
    return f"{words}; few trials, so rough" if trials < FEW_TRIALS else words


def measured(record: TrialRecord) -> bool:
    """Return whether a trial ran in full and has all its numbers."""
    numbers = (record.long, record.short, record.value)
    return record.state == "complete" and all(value is not None and math.isfinite(value) for value in numbers)


def measured_trials(results: StudyResults) -> list[TrialRecord]:
    """Return the trials that ran in full, by number; the paper's preset under further seeds among them."""
    return [record for record in results.records if measured(record)]


def paper_trial(results: StudyResults) -> TrialRecord | None:
    """Return the paper's preset under the study's own seed, else under the first seed that ran in full."""
    trials = [record for record in measured_trials(results) if record.baseline == PAPER or record.repeat is not None]
    return min(trials, key=lambda record: (record.repeat or 0, record.number), default=None)


def best_trial(results: StudyResults) -> TrialRecord | None:
    """Return the balanced choice, else the trial with the lowest weighted number, repeats left out."""
    if "balanced" in results.chosen:
        return results.record(results.chosen["balanced"])
    trials = [record for record in measured_trials(results) if not record.repeat]
    return min(trials, key=lambda record: (record.value, record.number), default=None)


def numbers_of(records: Sequence[TrialRecord], name: str) -> list[float]:
    """Return one number of full trials: `long`, `short` or `value`."""
    return [float(getattr(record, name)) for record in records]


def last_rows(record: TrialRecord) -> Grid:
    """Return a trial's NLL and its standard error by (window, scale) at the last step it was read at."""
    last = max((row["step"] for row in record.curves), default=None)
    return {(r["window"], round(r["scale"], 6)): (r["nll"], r["stderr"]) for r in record.curves if r["step"] == last}


def searched_words(spec: SearchedSetting) -> str:
    """Return a setting's searched range, `0.0003 to 0.003, log`, or its options, and when it applies."""
    if not spec:
        return "not in the space"
    if spec["kind"] == "choice":
        words = ", ".join(number(option) for option in spec["options"])
    else:
        words = f"{number(spec['low'])} to {number(spec['high'])}" + (", log" if spec.get("log") else "")
        words += ", whole" if spec["kind"] == "int" else ""
    when = spec.get("when") or {}
    cases = [f"{short_name(path)} is {' or '.join(number(value) for value in values)}" for path, values in when.items()]
    return f"{words}; where {' and '.join(cases)}" if cases else words


def with_noise(value: float | None, noise: float | None, *, signed: bool = False) -> str:
    """Return a cell: the number, with its noise where that was measured; the caption says where it was not."""
    if value is not None and noise is None:
        return f"{value:{'+' if signed else ''}.3f}"
    return plus_minus(value, noise, signed=signed)


def answered(name: str, value: float | None, noise: float | None = None) -> str:
    """Return a cell of an objective of the retrieval grid."""
    if name == "retrieval":
        return _share(value, noise)
    return "missing" if value is None else with_noise(value, noise)


def _share(share: float | None, noise: float | None = None) -> str:
    if share is None:
        return "missing"
    return f"{100 * share:.0f} %" if noise is None else f"{100 * share:.1f} ± {100 * noise:.1f} %"


def share_of_range(value: float, spec: SearchedSetting) -> float:
    """Return the place of a number in its searched interval, 0 to 1, logarithmic where the search is."""
    low, high = spec["low"], spec["high"]
    if low == high:
        return 0.5
    if spec.get("log"):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def upper_limit(values: Sequence[float]) -> float:
    """Return the top of an axis that shows the low values well and cuts far outliers off."""
    low, middle, high = (float(q) for q in np.quantile(values, (0.0, 0.5, 1.0)))
    return min(high, low + 2.5 * max(middle - low, 1e-3))
