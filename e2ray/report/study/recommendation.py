"""What to train with: the table of the chosen trials, the paper's preset and the base."""

from collections.abc import Sequence

from e2ray.evaluate.removed import base_name, base_words
from e2ray.report.frame.page import Column, Part, Row, Table, Words
from e2ray.report.sections.draws import settings_words
from e2ray.report.study.against import findings
from e2ray.report.study.section import study_section
from e2ray.report.study.terms import TITLES, answered, asked_objectives, measured_trials, paper_trial, with_noise
from e2ray.search.objectives import long_of
from e2ray.search.record import StudyResults, TrialRecord
from e2ray.search.results import KEPT_GAIN_SHARE, base_long

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
        found = [getattr(record, name) for record in same if getattr(record, name) is not None]
        noise = getattr(results.noise, name)
        error = None if noise is None else noise / len(same) ** 0.5
        answers.append(answered(name, sum(found) / len(found) if found else None, error))
    cells = [
        f"paper's preset, mean of {len(same)} seeds", ", ".join(str(record.number) for record in same),
        "the same; ± is the standard error of the mean", means[0], means[1], *answers, means[2],
    ]  # fmt: skip
    return [Row(cells)]


def _untrained_rows(results: StudyResults, asked: Sequence[str]) -> list[Row]:
    """Return the rows of the base model: its mean NLL over the study's windows, each read as suits it best, and YaRN's.

    A study of earlier versions has no figures of YaRN, and so no row.
    """
    facts, mean = results.facts, base_long(results.facts)
    found = {
        base_name(facts.removed_scaling, untouched=True): (
            "no training, each window at scale 1 or W/L, the better one",
            "missing" if mean is None else f"{mean:.3f}",
            {name: getattr(facts, f"base_{name}") for name in asked},
        )
    }
    if facts.base_yarn:
        long = long_of(facts.base_yarn["cells"], facts.windows, facts.base_context_length)
        found["untrained YaRN"] = ("no training, each window at scale W/L", f"{long:.3f}", facts.base_yarn)
    return [
        Row([name, "", words, long, "0 by definition", *(answered(key, known.get(key)) for key in asked), ""], "faint")
        for name, (words, long, known) in found.items()
    ]


RECOMMENDATION = study_section("What to train with", "recommendation", tables=recommendation, findings=findings)
