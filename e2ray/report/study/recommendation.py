"""What to train with: the chosen trials in a table, and the best against the paper's preset in plain words."""

import statistics
from collections.abc import Sequence

from e2ray.core.scales import paper_scale
from e2ray.evaluate.removed import base_name, base_words
from e2ray.report.frame.page import Column, Part, Point, Row, Table, Words
from e2ray.report.frame.text import plus_minus
from e2ray.report.sections.draws import settings_words
from e2ray.report.study.section import study_section
from e2ray.report.study.terms import (
    TITLES,
    Difference,
    answered,
    asked_objectives,
    best_trial,
    difference,
    difference_words,
    last_rows,
    measured_trials,
    method,
    paper_trial,
    with_noise,
)
from e2ray.search.objectives import long_of
from e2ray.search.record import StudyResults, TrialRecord
from e2ray.search.results import KEPT_GAIN_SHARE, base_long, compared


def findings(results: StudyResults) -> list[Point]:
    """Return what the balanced best is, and how it compares with the paper's preset and other methods."""
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
        f"{conclusion(long, short)} The balanced best is, on long, {difference_words(long)}; on short, "
        f"{difference_words(short)}.",
        warning="beyond" not in (long.grade, short.grade),
        more=[
            f"The preset is trial {paper.number} ({settings_words(paper.settings)}): {_both(paper, results)}."
            f"{_other_seeds(paper, best)}"
        ],
    )
    luck = Point(
        "Luck of the best.",
        f"The best of {len(compared(results.records))} full trials owes part of its lead to luck, which the noise of "
        "one trial does not hold.",
        more=["Retrain it under new seeds, in full and on documents the study never saw, before you rely on it."],
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
    """Return the verdict of both differences together on a trial against the paper's preset."""
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
    groups: dict[str, list[str]] = {}
    rise = False
    for window in sorted({results.facts.base_context_length, *results.facts.windows}):
        left, right = (_at_paper_scale(record, window, results) for record in (best, paper))
        if left is None or right is None:
            groups.setdefault("not measured at", []).append(str(window))
            continue
        apart = difference(left, right, _noise_at(results, window))
        side = "lower" if apart.nats < 0 else "higher"
        rise |= apart.grade == "beyond" and apart.nats > 0
        words = {
            "unknown": f"{side}, noise unknown, at",
            "within": "within the noise at",
            "hint": f"{side}, a hint, at",
        }
        groups.setdefault(words.get(apart.grade, f"{side}, beyond the noise, at"), []).append(
            f"{window} ({apart.nats:+.3f})"
        )
    text = "; ".join(f"{words} {', '.join(places)}" for words, places in groups.items())
    unknown = any("noise unknown" in words for words in groups)
    return [
        Point(
            "By window.",
            f"Balanced best minus the paper's preset, nats, each window at scale W/L: {text}.",
            warning=rise,
            more=[] if unknown else ["The noise is that of a difference of two single trials at that window."],
        )
    ]


def _at_paper_scale(record: TrialRecord, window: int, results: StudyResults) -> float | None:
    scale = paper_scale(window, results.facts.base_context_length)
    cell = last_rows(record).get((window, round(scale, 6)))
    return None if cell is None else cell[0]


def _noise_at(results: StudyResults, window: int) -> float | None:
    """Return the sample standard deviation of the paper's preset over its seeds at one window, nats per token."""
    repeats = [record for record in measured_trials(results) if record.repeat is not None]
    nlls = [_at_paper_scale(record, window, results) for record in repeats]
    values = [nll for nll in nlls if nll is not None]
    return statistics.stdev(values) if len(values) > 1 else None


def _best_published(results: StudyResults, best: TrialRecord, paper: TrialRecord) -> list[Point]:
    """Return how the best compares with the best published method, if that is not the paper's preset."""
    published = [record for record in measured_trials(results) if record.baseline and not record.repeat]
    rival = min(published, key=lambda record: (record.value, record.number), default=None)
    if rival is None or rival.number in (best.number, paper.number):
        return []
    assert best.value is not None and rival.value is not None
    apart = difference(best.value, rival.value, results.noise.value)
    return [
        Point(
            "Against the best published method.",
            f"That is {method(rival.baseline or '')} (trial {rival.number}) with {_both(rival, results)}. The balanced "
            f"best's weighted number is {difference_words(apart)}.",
        )
    ]


ORDER = ("long-first", "balanced", "short-first")


def recommendation(results: StudyResults) -> list[Part]:
    """Return the table of the chosen trials, the paper's preset and the base."""
    asked = asked_objectives(results)
    columns = [
        Column("Choice"), Column("Trial", "number"), Column("Settings", "wide"), Column("Long", "number"),
        Column("Short", "number"), *(Column(TITLES[name], "number") for name in asked), Column("Value", "number"),
    ]  # fmt: skip
    names: dict[int, list[str]] = {}
    for name in sorted(results.chosen, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        names.setdefault(results.chosen[name], []).append(name)
    rows = [_choice_row(results, ", ".join(same), results.record(n), asked) for n, same in names.items()]
    paper = paper_trial(results)
    if paper is not None:
        rows.append(_choice_row(results, "paper's preset", paper, asked))
        rows += _mean_of_repeats(results, paper, asked)
    rows += _untrained_rows(results, asked)
    the_base = base_words(results.facts.removed_scaling)
    caption = (
        "Chosen trials stand in best-<choice>.yaml beside this page, ready for training; best.yaml is the balanced "
        "one. Balanced has the lowest weighted number of those on the Pareto front that beat the paper's preset on "
        "both objectives, or of the whole front where none does; short-first the lowest short among those "
        f"that keep at least {100 * KEPT_GAIN_SHARE:.0f} % of long-first's gain over {the_base}. Long: mean "
        f"NLL over the windows, each at scale W/L; short: NLL rise at L over {the_base}; nats per token"
        f"{', ± noise of a trial' if results.noise.long is not None else '; the noise of a trial is unknown'}."
    )
    parts: list[Part] = [Table(columns, rows, caption)]
    if not names:
        parts.insert(0, Words("No trial ran in full, so the study recommends nothing.", warning=True))
    return parts


def _choice_row(results: StudyResults, name: str, record: TrialRecord, asked: Sequence[str]) -> Row:
    noise = results.noise
    cells = [
        name, str(record.number), settings_words(record.settings), with_noise(record.long, noise.long),
        with_noise(record.short, noise.short, signed=True),
        *(answered(name, getattr(record, name), getattr(noise, name)) for name in asked),
        with_noise(record.value, noise.value),
    ]  # fmt: skip
    return Row(cells, "marked" if "balanced" in name else "")


def _mean_of_repeats(results: StudyResults, paper: TrialRecord, asked: Sequence[str]) -> list[Row]:
    """Return the row of the paper's preset averaged over its seeds, where there are several."""
    same = [record for record in measured_trials(results) if record.repeat is not None]
    if len(same) < 2:
        return []
    means = []
    for name, signed in (("long", False), ("short", True), ("value", False)):
        noise = getattr(results.noise, name)
        mean = sum(getattr(record, name) for record in same) / len(same)
        means.append(with_noise(mean, None if noise is None else noise / len(same) ** 0.5, signed=signed))
    answers = []
    for name in asked:
        values = [getattr(record, name) for record in same if getattr(record, name) is not None]
        noise = getattr(results.noise, name)
        error = None if noise is None else noise / len(same) ** 0.5
        answers.append(answered(name, sum(values) / len(values) if values else None, error))
    cells = [
        f"paper's preset, mean of {len(same)} seeds", ", ".join(str(record.number) for record in same),
        "the same; ± is the standard error of the mean", means[0], means[1], *answers, means[2],
    ]  # fmt: skip
    return [Row(cells)]


def _untrained_rows(results: StudyResults, asked: Sequence[str]) -> list[Row]:
    """Return the rows of the base model: its mean NLL over the study's windows, each read as suits it best, and YaRN's.

    A study of an earlier version has no figures of YaRN, and so no row.
    """
    facts, mean = results.facts, base_long(results.facts)
    bases: dict[str, tuple[str, str, dict[str, float | None]]] = {
        base_name(facts.removed_scaling, untouched=True): (
            "no training, each window at scale 1 or W/L, the better one",
            "missing" if mean is None else f"{mean:.3f}",
            {name: getattr(facts, f"base_{name}") for name in asked},
        )
    }
    if facts.base_yarn:
        long = long_of(facts.base_yarn["cells"], facts.windows, facts.base_context_length)
        known = {"retrieval": facts.base_yarn.get("retrieval"), "answer_nll": facts.base_yarn.get("answer_nll")}
        bases["untrained YaRN"] = ("no training, each window at scale W/L", f"{long:.3f}", known)
    return [
        Row([name, "", words, long, "0 by definition", *(answered(key, known.get(key)) for key in asked), ""], "faint")
        for name, (words, long, known) in bases.items()
    ]


RECOMMENDATION = study_section("What to train with", "recommendation", tables=recommendation, findings=findings)
