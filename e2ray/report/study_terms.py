"""How a study's settings, numbers and differences are said, in its report's words, tables and pictures alike.

A difference is always said together with the noise of a difference between two single trials, which is sqrt(2)
times the noise of one. Up to that noise it is no finding, up to twice of it a hint. Where the noise was not measured,
no difference is a finding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from e2ray.config.search import PAPER
from e2ray.search.objectives import ASKED
from e2ray.search.ranks import chance_correlation
from e2ray.search.record import StudyResults, TrialRecord

METHODS = {
    "e2llm": "E²-LLM",
    "pose": "PoSE",
    "randpos": "RandPos",
    "cream": "CREAM",
    "clex": "CLEX",
    "endprompt": "EndPrompt",
    "pi": "PI",
    "native": "native",
}
HINT = 2.0  # a difference up to so many times its noise is a hint, a larger one a finding
FEW_TRIALS = 10  # a rank correlation of fewer says little
TRUSTED = 0.8  # a rank correlation from which a rung's order is called trustworthy


Grid = dict[tuple[int, float], tuple[float, float | None]]  # NLL and its standard error by (window, scale)


@dataclass(frozen=True)
class Difference:
    """One trial's number minus another's, in nats, with the noise of such a difference (None: unknown)."""

    nats: float
    noise: float | None

    @property
    def grade(self) -> Literal["unknown", "within", "hint", "beyond"]:
        """What may be said of it."""
        if self.noise is None:
            return "unknown"
        if abs(self.nats) <= self.noise:
            return "within"
        return "hint" if abs(self.nats) <= HINT * self.noise else "beyond"


def difference(left: float, right: float, noise: float | None) -> Difference:
    """Return `left` minus `right` of two single trials whose noise has standard deviation `noise`."""
    return Difference(left - right, None if noise is None else math.sqrt(2) * noise)


def difference_words(found: Difference) -> str:
    """Return a difference with what its noise allows to say of it."""
    size = f"{nats(abs(found.nats))} nats {'lower' if found.nats < 0 else 'higher'}"
    if found.noise is None:
        return f"{size}, noise unknown: not a finding yet"
    if found.grade == "within":
        return f"{size}, within the noise of a difference (± {nats(found.noise)}): not told apart"
    ratio = abs(found.nats) / found.noise if found.noise else math.inf
    times = f"{f'{ratio:.1f}' if ratio < 10 else 'over 10'} times the noise of a difference"
    return f"{size}, {times}: {'a hint, no proof' if found.grade == 'hint' else 'beyond the noise'}"


def nats(value: float | None) -> str:
    """Return a number of nats with three decimals, a small one with four, or one digit where those would hide it."""
    if value is None:
        return "unknown"
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.3f}"
    return f"{value:.4f}" if abs(value) >= 0.0001 else f"{value:.0e}"


def plus_minus(value: float | None, noise: float | None, *, signed: bool = False) -> str:
    """Return `3.512 ± 0.004`; `(noise unknown)` where it was not measured, `missing` for no value."""
    if value is None:
        return "missing"
    return f"{value:{'+' if signed else ''}.3f} " + ("(noise unknown)" if noise is None else f"± {nats(noise)}")


def number(value: Any) -> str:
    """Return the value of a setting: 0.13, 16, 1.4e-3, yes, random breaks."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return str(value).replace("_", " ")
    if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def count(value: float) -> str:
    """Return a number of tokens: 950, 12.3 k, 1.23 M, 4.5 G."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / min(size, 1e3 if unit == ' k' else size):.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """Return a time: 12 s, 4.5 min, 3.2 h."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def plural(number_of: int, noun: str) -> str:
    """Return `3 trials`, `1 trial`, `no trial`."""
    return f"{number_of or 'no'} {noun}{'s' if number_of > 1 else ''}"


def share_words(share: float, interval: tuple[float, float] | list[float] | None) -> str:
    """Return a share with its lowest and highest value, where these are known: `31 % (24 to 40)`."""
    known = "" if interval is None else f" ({100 * interval[0]:.0f} to {100 * interval[1]:.0f})"
    return f"{100 * share:.0f} %{known}"


def short_name(path: str) -> str:
    """Return a setting's name without the section that every trial shares: scale.kind, learning rate."""
    return "learning rate" if path == "train.lr" else path.removeprefix("positions.").removeprefix("train.")


def method(name: str) -> str:
    """Return the name of a published method as its authors write it."""
    return METHODS.get(name, name)


def trial_name(record: TrialRecord) -> str:
    """Return what a trial is called in tables: its method, the seed's number where it repeats one, or `sampled`."""
    if record.baseline is None:
        return "sampled"
    return method(record.baseline) + (f", repeat {record.repeat}" if record.repeat else "")


def asked_objectives(results: StudyResults) -> list[str]:
    """Return the objectives of the retrieval grid that trials have."""
    return [name for name in ASKED if any(getattr(record, name) is not None for record in results.records)]


def settings_words(settings: Mapping[str, Any]) -> str:
    """Return a trial's settings: `scale: power, exponent -0.8, 13 % native; placement: ...; per sequence; lr ...`."""
    positions = settings.get("positions") or {}
    parts = []
    if "scale" in positions:
        scale = dict(positions["scale"])
        native = scale.pop("native_share", 0)
        words = _section_words(scale, {"max_scale": "at" if scale.get("kind") == "fixed" else "up to"})
        parts.append(f"scale: {words}" + (f", {100 * native:.3g} % native" if native else ""))
    if "placement" in positions:
        placement = dict(positions["placement"])
        jump = placement.pop("jump", None)
        words = _section_words(placement, {"num_breaks": "", "prefix": "", "num_chunks": ""})
        parts.append(f"placement: {words}" + (f", jump {_section_words(jump, {})}" if jump else ""))
    if "per" in positions:
        parts.append(f"per {number(positions['per'])}")
    method = dict(positions.get("method") or {"kind": "linear"})
    if method["kind"] != "linear":
        heat = method.pop("temperature", None) or {}
        method = {key: value for key, value in method.items() if not isinstance(value, list | tuple)}
        told = f", temperature {_section_words(heat, {'coefficient': ''})}" if heat else ""
        parts.append(f"read by {_section_words(method, {'max_scale': 'listed at'})}{told}")
    rest = [(path.removeprefix("train."), value) for path, value in settings.items() if path != "positions"]
    return "; ".join(parts + [f"{name} {number(value)}" for name, value in rest])


def _section_words(section: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return a section's kind and its values; a flag is named if set, a list of scales keeps its weights."""
    words = [number(section["kind"])] if "kind" in section else []
    for key, value in section.items():
        name = names.get(key, key.replace("_", " "))
        if key == "kind" or value is False:
            continue
        if value is True:
            words.append(name)
        elif key == "choices":
            words += [f"{number(c['scale'])} (weight {number(c['weight'])})" for c in value]
        else:
            words.append(f"{name} {number(value)}".strip())
    return ", ".join(words)


def ranges_by_space(results: StudyResults) -> dict[str, dict[str, Any]]:
    """Return the rows of ranges.json in the order of the space; empty where no trial ran in full."""
    parameters = results.ranges.get("parameters") or {}
    return {path: parameters[path] for path in results.facts.space if path in parameters}


def range_words(row: Mapping[str, Any]) -> str:
    """Return a row of ranges.json: `0.001 to 0.002`, or `power (7), beta (3)`."""
    if row.get("kinds") is not None:
        ordered = sorted(row["kinds"].items(), key=lambda item: (-item[1], str(item[0])))
        return ", ".join(f"{number(kind)} ({found})" for kind, found in ordered) or "none found"
    if row.get("low") is None or row.get("high") is None:
        return "none found"
    low, high = number(row["low"]), number(row["high"])
    return f"about {low}" if low == high and row["low"] != row["high"] else low if low == high else f"{low} to {high}"


def correlation_words(row: Mapping[str, Any]) -> str:
    """Return what a rung's rank correlation with the final order says."""
    found, trials = row.get("spearman"), row["trials"]
    if found is None or not math.isfinite(found):
        return "not computable"
    if abs(found) <= chance_correlation(trials):
        return f"not told apart from chance with {plural(trials, 'trial')}"
    words = "orders the trials much as the end does" if found >= TRUSTED else "orders many trials another way"
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
    found = [record for record in measured_trials(results) if record.baseline == PAPER or record.repeat is not None]
    return min(found, key=lambda record: (record.repeat or 0, record.number), default=None)


def best_trial(results: StudyResults) -> TrialRecord | None:
    """Return the balanced choice, else the trial with the lowest weighted number, repeats left out."""
    if "balanced" in results.chosen:
        return results.record(results.chosen["balanced"])
    found = [record for record in measured_trials(results) if not record.repeat]
    return min(found, key=lambda record: (record.value, record.number), default=None)


def numbers_of(records: Sequence[TrialRecord], name: str) -> list[float]:
    """Return one number of full trials: `long`, `short` or `value`."""
    return [float(getattr(record, name)) for record in records]


def last_rows(record: TrialRecord) -> Grid:
    """Return a trial's NLL and its standard error by (window, scale) at the last step it was read at."""
    last = max((row["step"] for row in record.curves), default=None)
    return {(r["window"], round(r["scale"], 6)): (r["nll"], r["stderr"]) for r in record.curves if r["step"] == last}
