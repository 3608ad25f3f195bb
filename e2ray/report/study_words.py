"""The findings that open a study's report, in plain words: what was searched, what came out, and how sure it is.

Each finding carries its noise, or says that it is unknown; what a study cannot tell is said too.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from e2ray.evaluate.removed import base_words
from e2ray.report.frame.page import Point
from e2ray.report.frame.text import count, duration, nats, number, plural, plus_minus, share_words
from e2ray.report.sections.draws import settings_words
from e2ray.report.study_terms import (
    Difference,
    best_trial,
    correlation_words,
    difference,
    difference_words,
    last_rows,
    measured_trials,
    method,
    paper_trial,
    range_words,
    ranges_by_space,
    short_name,
)
from e2ray.search.record import StudyResults, TrialRecord
from e2ray.search.results import MIN_TRIALS, compared

HIDDEN_FROM = 3  # stopped trials beyond every full one before it is told
FEW_RUNS = 10  # a standard deviation of fewer is rough


def findings(results: StudyResults) -> list[Point]:
    """Return the findings that open the report, each with its noise."""
    return [
        _searched(results),
        _noise(results),
        *_best_against_paper(results),
        _importances(results),
        *_ranges(results),
        _short_budget(results),
        *_hidden_by_stopping(results),
        _failures(results),
    ]


def _searched(results: StudyResults) -> Point:
    facts, states = results.facts, Counter[str](record.state for record in results.records)
    words = {"complete": "ran in full", "pruned": "stopped early", "failed": "failed"}
    ended = ", ".join(f"{states[state]} {word}" for state, word in words.items())
    left = facts.trials - sum(states[state] for state in words)
    budget = facts.steps * facts.batch_sequences * facts.window
    return Point(
        "What was searched.",
        f"{plural(facts.trials, 'trial')} over {plural(len(facts.space), 'setting')}: {ended}"
        f"{f'; {left} not ended yet, so this report is provisional' if left > 0 else ''}. A full trial makes "
        f"{facts.steps} updates of {facts.batch_sequences} rows of {facts.window} tokens, {count(budget)} tokens; "
        f"all trials together trained on {count(sum(record.tokens for record in results.records))} tokens in "
        f"{duration(sum(record.seconds for record in results.records))} of work. Long is the mean NLL "
        f"over windows of {_listed(facts.windows)} tokens, a window W at scale W/L; short the rise of the NLL at "
        f"L = {facts.base_context_length} over that of {base_words(facts.removed_scaling)}. Lower is better.",
        warning=left > 0,
    )


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in values)


def _noise(results: StudyResults) -> Point:
    noise = results.noise
    if noise.runs < 2 or noise.long is None or noise.short is None:
        return Point(
            "Noise unknown.",
            f"The paper's preset ran in full under {plural(noise.runs, 'seed')}, and noise needs two. No difference "
            "between trials in this report is a finding.",
            warning=True,
        )
    rough = f" {noise.runs} runs tell it only roughly." if noise.runs < FEW_RUNS else ""
    return Point(
        "Noise.",
        f"The paper's preset under {noise.runs} seeds scatters by {nats(noise.long)} nats (long) and "
        f"{nats(noise.short)} nats (short), one standard deviation; a ± is that, if not said otherwise. "
        f"So two single trials differ by chance alone by {nats(math.sqrt(2) * noise.long)} and "
        f"{nats(math.sqrt(2) * noise.short)} nats.{rough}",
    )


def _best_against_paper(results: StudyResults) -> list[Point]:
    best, paper = best_trial(results), paper_trial(results)
    if best is None:
        return [Point("No result.", "No trial ran in full, so there is nothing to recommend.", warning=True)]
    head, noise = "Balanced best.", results.noise
    own = f"Trial {best.number} ({settings_words(best.settings)}): {_both(best, results)}."
    if paper is None:
        text = f"{own} The paper's preset did not run in full, so there is nothing to compare it with."
        return [Point(head, text, warning=True)]
    if best.number == paper.number:
        return [Point(head, f"{own} That is the paper's preset itself: nothing that was searched came out above it.")]
    assert best.long is not None and best.short is not None and paper.long is not None and paper.short is not None
    long, short = difference(best.long, paper.long, noise.long), difference(best.short, paper.short, noise.short)
    against = Point(
        "Against the paper's preset.",
        f"Trial {paper.number} ({settings_words(paper.settings)}): {_both(paper, results)}. The balanced best is, on "
        f"long, {difference_words(long)}; on short, {difference_words(short)}. {conclusion(long, short)}"
        f"{_other_seeds(paper, best)}",
        warning="beyond" not in (long.grade, short.grade),
    )
    luck = Point(
        "Luck of the best.",
        f"The best of {len(compared(results.records))} full trials owes part of its lead to luck, which the noise of "
        "one trial does not hold. Retrain it under new seeds, in full and on documents the study never saw, before "
        "you rely on it.",
    )
    return [Point(head, own), against, *_by_window(results, best, paper), *_best_published(results, best, paper), luck]


def _both(record: TrialRecord, results: StudyResults) -> str:
    """Return long and short of a trial with their noise."""
    noise = results.noise
    text = f"long {plus_minus(record.long, noise.long)}, short {plus_minus(record.short, noise.short, signed=True)}"
    if record.answer_nll is not None:
        text += f", answers {plus_minus(record.answer_nll, noise.answer_nll)}"
    if record.retrieval is None:
        return text
    spread = "" if noise.retrieval is None else f" ± {100 * noise.retrieval:.1f}"
    return f"{text}, {100 * record.retrieval:.1f}{spread} % of the passkeys found"


def _other_seeds(paper: TrialRecord, best: TrialRecord) -> str:
    if paper.seed == best.seed:
        return ""
    return f" The two saw other rows (seeds {paper.seed} and {best.seed})."


def conclusion(long: Difference, short: Difference) -> str:
    """Return what both differences together allow to say of a trial against the paper's preset."""
    if "unknown" in (long.grade, short.grade):
        return "Whether it is better cannot be said without the noise."
    better = [name for name, d in (("long", long), ("short", short)) if d.grade == "beyond" and d.nats < 0]
    worse = [name for name, d in (("long", long), ("short", short)) if d.grade == "beyond" and d.nats > 0]
    if len(better) == 2:
        return "It is better on both, beyond the noise."
    if better and worse:
        return f"It is a trade: better on {better[0]} and worse on {worse[0]}, both beyond the noise."
    if better:
        return f"It is better on {better[0]} beyond the noise; on the other it is not shown to be better or worse."
    if worse:
        return f"It is worse on {' and on '.join(worse)} beyond the noise, and not shown to be better on anything."
    return "It is not shown to be better or worse."


def _by_window(results: StudyResults, best: TrialRecord, paper: TrialRecord) -> list[Point]:
    """Return where the best reads better and worse than the paper's preset, which a mean over windows hides."""
    told: dict[str, list[str]] = {}
    rise = False
    for window in sorted({results.facts.base_context_length, *results.facts.windows}):
        left, right = (_at_paper_scale(record, window, results) for record in (best, paper))
        if left is None or right is None:
            told.setdefault("not measured at", []).append(str(window))
            continue
        found = difference(left, right, _noise_at(results, window))
        side = "lower" if found.nats < 0 else "higher"
        rise |= found.grade == "beyond" and found.nats > 0
        words = {
            "unknown": f"{side}, noise unknown, at",
            "within": "within the noise at",
            "hint": f"{side}, a hint, at",
        }
        told.setdefault(words.get(found.grade, f"{side}, beyond the noise, at"), []).append(
            f"{window} ({found.nats:+.3f})"
        )
    text = "; ".join(f"{words} {', '.join(places)}" for words, places in told.items())
    unknown = any("noise unknown" in words for words in told)
    return [
        Point(
            "By window.",
            f"Balanced best minus the paper's preset, nats, each window at scale W/L: {text}."
            f"{'' if unknown else ' The noise is that of a difference of two single trials at that window.'}",
            warning=rise,
        )
    ]


def _at_paper_scale(record: TrialRecord, window: int, results: StudyResults) -> float | None:
    scale = max(1.0, window / results.facts.base_context_length)
    cell = last_rows(record).get((window, round(scale, 6)))
    return None if cell is None else cell[0]


def _noise_at(results: StudyResults, window: int) -> float | None:
    """Return the sample standard deviation of the paper's preset over its seeds at one window, nats per token."""
    repeats = [record for record in measured_trials(results) if record.repeat is not None]
    found = [_at_paper_scale(record, window, results) for record in repeats]
    values = [nll for nll in found if nll is not None]
    return statistics.stdev(values) if len(values) > 1 else None


def _best_published(results: StudyResults, best: TrialRecord, paper: TrialRecord) -> list[Point]:
    """Return how the best stands against the best published method, where that is not the paper's preset."""
    published = [record for record in measured_trials(results) if record.baseline and not record.repeat]
    rival = min(published, key=lambda record: (record.value, record.number), default=None)
    if rival is None or rival.number in (best.number, paper.number):
        return []
    assert best.value is not None and rival.value is not None
    found = difference(best.value, rival.value, results.noise.value)
    return [
        Point(
            "Against the best published method.",
            f"That is {method(rival.baseline or '')} (trial {rival.number}) with {_both(rival, results)}. The balanced "
            f"best's weighted number is {difference_words(found)}.",
        )
    ]


def _importances(results: StudyResults) -> Point:
    head, trials = "Settings that matter.", len(measured_trials(results))
    if not results.importances:
        return Point(head, f"Not computable: {plural(trials, 'trial')} ran in full.", warning=True)
    ordered = sorted(results.importances.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(
        f"{short_name(path)} {share_words(share, results.importance_spread.get(path))}" for path, share in ordered[:4]
    )
    rest = f"; the other {len(ordered) - 4} share the rest" if len(ordered) > 4 else ""
    known = (
        "In brackets the lowest and the highest share with any one trial left out; where these overlap, the order says "
        "nothing."
        if results.importance_spread
        else "Their own error was not measured, so take their order for a hint."
    )
    return Point(
        head,
        f"What tells the best quarter of {plural(trials, 'full trial')} from the rest: {told}{rest}. {known}",
    )


def _ranges(results: StudyResults) -> list[Point]:
    head, parameters = "Ranges to train with.", ranges_by_space(results)
    within, trials = results.ranges.get("within"), results.ranges.get("trials") or 0
    if results.ranges.get("best") is None:
        return [Point(head, "None: no trial ran in full.", warning=True)]
    if within is None:
        text = "None: without the noise nobody can say which trials are as good as the best."
        return [Point(head, text, warning=True)]
    known = {path: row for path, row in parameters.items() if not row["undetermined"]}
    told = "; ".join(f"{short_name(path)}: {range_words(row)}" for path, row in known.items())
    text = (
        f"{told[:1].upper()}{told[1:]}. That is the central 80 %, or the kinds found with their number, among the "
        f"{plural(trials, 'full trial')} within one noise ({nats(within)} nats of the weighted number) of the best."
    )
    points = [Point(head, text)] if known else []
    open_ones = [short_name(path) for path in parameters if path not in known]
    if open_ones:
        text = (
            f"{', '.join(open_ones)}: of the {plural(trials, 'full trial')} within one noise ({nats(within)} nats) of "
            f"the best, fewer than {MIN_TRIALS} use them, so the study recommends no range."
        )
        points.append(Point("Undetermined.", text, warning=True))
    return points


def _short_budget(results: StudyResults) -> Point:
    head = "Can a shorter budget be trusted?"
    rows: Sequence[Mapping[str, Any]] = results.correlations
    if not rows:
        return Point(head, "Not measured: no trial was read before its end.", warning=True)
    told = []
    for row in rows:
        found = row.get("spearman")
        figure = "" if found is None or not math.isfinite(found) else f"rank correlation {found:.2f}, "
        told.append(f"after {row['step']} updates: {figure}{plural(row['trials'], 'trial')}, {correlation_words(row)}")
    return Point(
        head,
        f"Order of the trials at a rung against their order after {results.facts.steps} updates: {'; '.join(told)}. "
        f"Only trials that went on to the end count, so the weak ones that were stopped do not. Nothing here tells "
        f"how the order would change beyond {results.facts.steps} updates.",
        warning=not any(correlation_words(row).startswith("orders the trials much") for row in rows),
    )


def _hidden_by_stopping(results: StudyResults) -> list[Point]:
    """Return which ends of the searched intervals were seen by stopped trials alone; empty where there are none."""
    sampled = [record for record in results.records if record.baseline is None]
    told = []
    for path, parameter in results.facts.space.items():
        if parameter["kind"] == "choice":
            continue
        full, stopped = (
            [record.params[path] for record in sampled if record.state == state and path in record.params]
            for state in ("complete", "pruned")
        )
        if not full:
            continue
        for words, end, beyond in (
            ("above", max(full), [value for value in stopped if value > max(full)]),
            ("below", min(full), [value for value in stopped if value < min(full)]),
        ):
            if len(beyond) >= HIDDEN_FROM:
                told.append(f"{short_name(path)} {words} {number(end)} ({plural(len(beyond), 'trial')})")
    if not told:
        return []
    return [
        Point(
            "Hidden by early stopping.",
            f"All trials with {'; with '.join(told)} were stopped early. What such settings give at full length was "
            "not measured, so ranges, importances and the choice of trials leave them out.",
            warning=True,
        )
    ]


def _failures(results: StudyResults) -> Point:
    failed = [record for record in results.records if record.state == "failed"]
    if not failed:
        return Point("What failed.", "No trial failed.")
    reasons = Counter(record.reason or "no reason recorded" for record in failed)
    told = "; ".join(f"{reason} ({plural(times, 'trial')})" for reason, times in reasons.most_common(5))
    rest = f"; and {len(reasons) - 5} further reasons" if len(reasons) > 5 else ""
    which = _listed(record.number for record in failed[:10]) + (", ..." if len(failed) > 10 else "")
    return Point("What failed.", f"{plural(len(failed), 'trial')} (number {which}): {told}{rest}.", warning=True)
