"""What was searched, with what noise, and how everything on the page was measured."""

import math
from collections import Counter
from collections.abc import Sequence

from e2ray.evaluate.removed import base_words
from e2ray.report.frame.page import Code, Part, Point, Points, Words
from e2ray.report.frame.text import count, duration, nats, plural
from e2ray.report.study.section import StudySection, study_section
from e2ray.report.study.terms import method
from e2ray.search.record import Cell, StudyResults

FEW_RUNS = 10  # a standard deviation of fewer is rough


def _searched(results: StudyResults) -> Point:
    facts, states = results.facts, Counter[str](record.state for record in results.records)
    words = {"complete": "ran in full", "pruned": "stopped early", "failed": "failed"}
    ended = ", ".join(f"{states[state]} {word}" for state, word in words.items())
    left = facts.trials - sum(states[state] for state in words)
    budget = facts.steps * facts.batch_sequences * facts.window
    tokens, seconds = (sum(getattr(record, name) for record in results.records) for name in ("tokens", "seconds"))
    return Point(
        "What was searched.",
        f"{plural(facts.trials, 'trial')} over {plural(len(facts.space), 'setting')}: {ended}"
        f"{f'; {left} not ended yet, so this report is provisional' if left > 0 else ''}.",
        warning=left > 0,
        more=[
            f"A full trial makes {facts.steps} updates of {facts.batch_sequences} rows of {facts.window} tokens, "
            f"{count(budget)} tokens; all trials together trained on {count(tokens)} tokens in {duration(seconds)} of "
            "work.",
            f"Long is the mean NLL over windows of {', '.join(map(str, facts.windows))} tokens, a window W at scale "
            f"W/L; short the rise of the NLL at L = {facts.base_context_length} over that of "
            f"{base_words(facts.removed_scaling)}. Lower is better.",
        ],
    )


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
        f"{nats(noise.short)} nats (short), one standard deviation.{rough}",
        more=[
            "A ± is that, if not said otherwise.",
            f"Two single trials differ by chance alone by {nats(math.sqrt(2) * noise.long)} and "
            f"{nats(math.sqrt(2) * noise.short)} nats.",
        ],
    )


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


def _protocol(base: Sequence[Cell]) -> str:
    """Return the reading protocol by the base model's rows."""
    if not base:
        return "Sliding window over"
    stride, tokens = max(row["stride"] for row in base), max(row["tokens"] for row in base)
    return f"Sliding window with stride {stride}, {count(tokens)} scored tokens of"


SEARCHED = study_section(
    "What was searched", "searched", findings=lambda results: [_searched(results), _noise(results)]
)
METHOD = StudySection(
    "How it was measured", "method", lambda reported: measurement(reported.results, reported.journal_command)
)
