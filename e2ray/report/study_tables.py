"""The tables of a study's report, and how everything on the page was measured.

What was not measured is called missing or unknown, never left to look like a number.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from e2ray.evaluate.removed import base_name, base_words
from e2ray.report.frame.page import Code, Column, Part, Point, Points, Row, Table, Words
from e2ray.report.frame.text import count, duration, nats, number, plural, plus_minus, share_words
from e2ray.report.sections.draws import settings_words
from e2ray.report.study_terms import (
    asked_objectives,
    best_trial,
    correlation_words,
    measured_trials,
    method,
    paper_trial,
    range_words,
    ranges_by_space,
    short_name,
    trial_name,
)
from e2ray.search.objectives import long_of
from e2ray.search.record import StudyResults, TrialRecord
from e2ray.search.results import KEPT_GAIN_SHARE, MIN_TRIALS, base_long
from e2ray.search.surrogate import COVERED, FEWEST_TRIALS, WIDEST

TITLES = {"retrieval": "Passkeys", "answer_nll": "Answers"}
ORDER = ("long-first", "balanced", "short-first")
FOLDED_FROM = 60  # trials; a longer table hides behind a line


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
        name, str(record.number), settings_words(record.settings), _with_noise(record.long, noise.long),
        _with_noise(record.short, noise.short, signed=True),
        *(_answered(name, getattr(record, name), getattr(noise, name)) for name in asked),
        _with_noise(record.value, noise.value),
    ]  # fmt: skip
    return Row(cells, "marked" if "balanced" in name else "")


def _with_noise(value: float | None, noise: float | None, *, signed: bool = False) -> str:
    """Return a cell: the number, with its noise where that was measured; the caption says where it was not."""
    if value is not None and noise is None:
        return f"{value:{'+' if signed else ''}.3f}"
    return plus_minus(value, noise, signed=signed)


def _mean_of_repeats(results: StudyResults, paper: TrialRecord, asked: Sequence[str]) -> list[Row]:
    """Return the row of the paper's preset averaged over its seeds, where there are several."""
    same = [record for record in measured_trials(results) if record.repeat is not None]
    if len(same) < 2:
        return []
    means = []
    for name, signed in (("long", False), ("short", True), ("value", False)):
        noise = getattr(results.noise, name)
        mean = sum(getattr(record, name) for record in same) / len(same)
        means.append(_with_noise(mean, None if noise is None else noise / len(same) ** 0.5, signed=signed))
    answers = []
    for name in asked:
        found = [getattr(record, name) for record in same if getattr(record, name) is not None]
        noise = getattr(results.noise, name)
        error = None if noise is None else noise / len(same) ** 0.5
        answers.append(_answered(name, sum(found) / len(found) if found else None, error))
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
        Row([name, "", words, long, "0 by definition", *(_answered(key, known.get(key)) for key in asked), ""], "faint")
        for name, (words, long, known) in found.items()
    ]


def _answered(name: str, found: float | None, noise: float | None = None) -> str:
    """Return a cell of an objective of the retrieval grid."""
    if name == "retrieval":
        return _share(found, noise)
    return "missing" if found is None else _with_noise(found, noise)


def _share(found: float | None, noise: float | None = None) -> str:
    if found is None:
        return "missing"
    return f"{100 * found:.0f} %" if noise is None else f"{100 * found:.1f} ± {100 * noise:.1f} %"


def ranges(results: StudyResults) -> list[Part]:
    """Return the table of the ranges; nothing where no trial ran in full."""
    parameters = ranges_by_space(results)
    if not parameters:
        return []
    rows = []
    for path, row in parameters.items():
        spec = results.facts.space.get(path, {})
        found = "undetermined" if row["undetermined"] else range_words(row)
        importance = row.get("importance")
        share = "unknown" if importance is None else share_words(importance, row.get("importance_spread"))
        cells = [path, searched_words(spec), found, str(row["trials"]), share]
        rows.append(Row(cells, "faint" if row["undetermined"] else ""))
    columns = [
        Column("Setting"), Column("Searched", "wide"), Column("Train with"), Column("Trials", "number"),
        Column("Importance", "number"),
    ]  # fmt: skip
    within = results.ranges.get("within")
    near = plural(results.ranges.get("trials") or 0, "trial")
    caption = (
        "Train with: the central 80 %, or how often each kind was found, among the trials within one noise of the "
        f"best; here {near}, one noise being {nats(within)} nats of the weighted number. Undetermined: fewer than "
        f"{MIN_TRIALS} of them use the setting. The sampler looks mostly where trials came out well, so counts of "
        "kinds follow it too."
        if within is not None
        else "Undetermined throughout: without the noise nobody can say which trials are as good as the best."
    )
    return [Table(columns, rows, caption), *_surrogate(results)]


def _surrogate(results: StudyResults) -> list[Part]:
    """Return the table of what a surrogate of all full trials says; nothing without one."""
    found = results.ranges.get("surrogate")
    if found is None:
        return []
    rows = []
    for path in results.facts.space:
        row = found["parameters"].get(path)
        if row is None:
            rows.append(Row([path, "no full trial has it", "", "", ""], "faint"))
            continue
        words = ", ".join(map(number, row["kinds"])) if "kinds" in row else range_words(row)
        cells = [path, words, _share(row["share"]), _share(row["held"]), "yes" if row["determined"] else "no"]
        rows.append(Row(cells, "" if row["determined"] else "faint"))
    columns = [
        Column("Setting"), Column("Predicted within one noise", "wide"), Column("Of what was searched", "number"),
        Column("Held by refits", "number"), Column("Determined"),
    ]  # fmt: skip
    ranks = found["left_out_spearman"]
    said = "not computable" if ranks is None else f"{ranks:.2f}"
    caption = (
        f"A Gaussian process fitted to {plural(found['trials'], 'trial')}, {found['full']} of them in full: where its "
        "prediction of the number at the end stays within one noise of the lowest, all other settings as in the best "
        "trial, and where no trial was. Held by refits: the share of the fits with one trial left out whose interval "
        f"has the best place. Determined: at most {WIDEST:.0%} of what was searched, in at least {COVERED:.0%} of the "
        f"refits, too, held by as many, tried by at least {FEWEST_TRIALS} trials, and left-out trials bear the "
        f"surrogate out: {found['coverage']:.0%} of them lie where nine of ten should, and their rank correlation with "
        f"the prediction is {said}."
    )
    return [Table(columns, rows, caption)]


def searched_words(spec: Mapping[str, Any]) -> str:
    """Return what was searched of a setting: `0.0003 to 0.003, log`, its options, and when it applies."""
    if not spec:
        return "not in the space"
    if spec["kind"] == "choice":
        words = ", ".join(number(option) for option in spec["options"])
    else:
        words = f"{number(spec['low'])} to {number(spec['high'])}" + (", log" if spec.get("log") else "")
        words += ", whole" if spec["kind"] == "int" else ""
    when = spec.get("when") or {}
    told = [f"{short_name(path)} is {' or '.join(number(value) for value in values)}" for path, values in when.items()]
    return f"{words}; where {' and '.join(told)}" if told else words


def correlations(results: StudyResults) -> list[Part]:
    """Return the table of rank correlations; nothing where there are no rungs."""
    if not results.correlations:
        return []
    columns = [
        Column("After updates", "number"), Column("Rank correlation", "number"), Column("Trials", "number"),
        Column("Reading", "wide"), Column("Sampled trials alone", "number"), Column("Trials", "number"),
    ]  # fmt: skip
    rows = []
    for row in results.correlations:
        shown, alone = (
            f"{found:.2f}" if isinstance(found, int | float) and found == found else "not computable"
            for found in (row.get("spearman"), row.get("sampled_spearman"))
        )
        cells = [str(row["step"]), shown, str(row["trials"]), correlation_words(row)]
        rows.append(Row([*cells, alone, str(row.get("sampled_trials", 0))]))
    caption = (
        f"Spearman's rank correlation of the weighted number at a rung with the one after {results.facts.steps} "
        "updates, over the trials that reached the end; 1: the same order, 0: no relation. Chance alone exceeds 1.96 "
        "divided by the square root of (trials - 1) in one of twenty cases. The published methods differ widely and "
        "are easy to rank; without them stand the sampled trials alone."
    )
    return [Table(columns, rows, caption)]


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
            _nll(record.long), _nll(record.short, "+"), *(_answered(name, getattr(record, name)) for name in asked),
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


def measurement(results: StudyResults, journal_command: str) -> list[Part]:
    """Return how everything on the page was measured."""
    facts, noise = results.facts, results.noise
    weights = facts.weights
    terms = [f"{weights.get('long', 0):g} * long", f"{weights.get('short', 0):g} * short"]
    if weights.get("retrieval"):
        terms.append(f"{weights['retrieval']:g} * (1 - share of passkeys found)")
    if weights.get("answer_nll"):
        terms.append(f"{weights['answer_nll']:g} * NLL of a passkey's tokens behind its question")
    rungs = f"Trials were read after {_steps(facts.rungs)} updates, where weak ones were stopped." if facts.rungs else (
        "No trial was stopped early."
    )  # fmt: skip
    published = [method(record.baseline) for record in results.records if record.baseline and not record.repeat]
    seeds = sorted({record.seed for record in results.records if record.repeat is not None})
    sampler = "minimised by itself" if facts.mode == "weighted" else (
        "used for rungs, slices and ranges; the search itself minimised the objectives side by side"
    )  # fmt: skip
    items = [
        Point(
            "Reading.",
            f"{_protocol(facts.base)} {plural(facts.documents, 'held-out document')}, the same for all trials; NLL is "
            "weighted by tokens, never a mean of windows. Positions are plain; only the scale differs.",
        ),
        Point(
            "Objectives.",
            f"Long is the mean of the NLL over the windows {_steps(facts.windows)}, each read at scale W/L. Short is "
            f"the NLL at {facts.base_context_length} tokens and scale 1 minus that of "
            f"{base_words(facts.removed_scaling)}.",
        ),
        Point("Weighted number.", f"value = {' + '.join(terms)}, {sampler}."),
        Point(
            "Common random numbers.",
            f"All trials see the same rows and documents (seed {facts.seed}); only the repeats of the paper's preset "
            f"change the seed{f' ({_steps(seeds)})' if len(seeds) > 1 else ''}.",
        ),
        Point(
            "Noise.",
            f"Sample standard deviation of the paper's preset over {plural(noise.runs, 'complete run')} that "
            "differ only in the seed of rows and draws. A difference of two single trials has sqrt(2) times that; up "
            "to it two trials are not told apart, up to twice of it the difference is called a hint.",
        ),
        Point(
            "Budget.",
            f"{facts.steps} updates of {facts.batch_sequences} rows of {facts.window} tokens per full trial. {rungs}",
        ),
        Point(
            "Published methods.",
            f"{', '.join(published) or 'None'} ran in the same trainer with the same tokens. PI here is a fixed scale "
            "on short rows; as published it trains on rows of the full window.",
        ),
    ]
    return [Points(items), Words("To look at every trial in Optuna's dashboard:"), Code(journal_command)]


def _steps(values: Sequence[int]) -> str:
    *first, last = [str(value) for value in values]
    return f"{', '.join(first)} and {last}" if first else last


def _protocol(base: Sequence[Mapping[str, Any]]) -> str:
    """Return the reading protocol as the base model's rows tell it."""
    if not base:
        return "Sliding window over"
    stride, tokens = max(row["stride"] for row in base), max(row["tokens"] for row in base)
    return f"Sliding window with stride {stride}, {count(tokens)} scored tokens of"
