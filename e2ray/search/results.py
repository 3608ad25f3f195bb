"""What follows from the records of a study: noise, Pareto front, trials worth a recipe, ranges, rank correlations.

Pure computation on plain data, so that the exports and the report say the same whatever process computes them, and
the same again after a resume. Only trials that ran all their steps are compared: the number of a stopped trial
belongs to an earlier step. The repeats of the paper's preset under other seeds (`repeat` above 0) measure the noise
and nothing else, since no other trial had a second try. Ties go to the lower trial number.
"""

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from e2ray.core.scales import paper_scale
from e2ray.records.study import Range, Ranges, RungRow, Searched, StudyNoise, SurrogateFound
from e2ray.search.objectives import ASKED, minimised
from e2ray.search.ranks import spearman
from e2ray.search.record import SearchedSetting, StudyFacts, StudyResults, TrialRecord, numbers_of
from e2ray.search.surrogate import Trial, intervals

KEPT_GAIN_SHARE = 0.8  # of long-first's gain over the base, kept by short-first
CENTRAL_SHARE = 0.8  # of the good trials' values, inside a range
MIN_TRIALS = 5  # good trials under which a range is undetermined
MIN_RANKED = 3  # trials under which a rank correlation says nothing
MAXIMISED = ("retrieval",)
ROUNDING = 1e-9  # relative slack before an interpolated number counts as past the whole number next to it


def results(
    records: Iterable[TrialRecord],
    facts: StudyFacts,
    importances: Mapping[str, float],
    importance_spread: Mapping[str, tuple[float, float]] | None = None,
    *,
    with_surrogate: bool = True,
) -> StudyResults:
    """Return everything that the exports and the report say about a study, its trials in any order and any state.

    Importances sum to 1, by dotted path, and are empty where they cannot be computed; their spread is the lowest and
    highest of each with any one trial left out. A surrogate takes seconds to fit.
    """
    ordered = sorted(records, key=lambda record: record.number)
    measured = noise(ordered)
    points = front(ordered)
    return StudyResults(
        facts=facts,
        records=ordered,
        noise=measured,
        front=points,
        chosen=choose(ordered, facts, points),
        ranges=ranges(ordered, facts, measured, importances, importance_spread).changed(
            surrogate=surrogate(ordered, facts, measured) if with_surrogate else None,
            seeds=measured.runs,
            rungs=correlations(ordered, facts),
        ),
        importances=dict(importances),
        importance_spread=dict(importance_spread or {}),
    )


def compared(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that compete with each other, by number: the complete ones without the repeats above 0."""
    competing = [record for record in records if record.state == "complete" and not record.repeat]
    return sorted(competing, key=lambda record: record.number)


def noise(records: Iterable[TrialRecord]) -> StudyNoise:
    """Return the sample standard deviations (n - 1) over the complete repeats of the paper's preset."""
    repeats = [record for record in records if record.state == "complete" and record.repeat is not None]

    def deviation(name: str) -> float | None:
        values = [getattr(record, name) for record in repeats]
        return statistics.stdev(values) if len(values) > 1 and None not in values else None

    names = ("long", "short", "value", *ASKED)
    return StudyNoise.model_validate({"runs": len(repeats), **{name: deviation(name) for name in names}})


def objectives_of(records: Iterable[TrialRecord], objectives: Sequence[str] = ("long", "short")) -> tuple[str, ...]:
    """Return the objectives of the front: those given, and those of the retrieval grid that competing trials have."""
    competing = compared(records)
    asked = [name for name in ASKED if any(getattr(record, name) is not None for record in competing)]
    return tuple(dict.fromkeys([*objectives, *asked]))


def front(records: Iterable[TrialRecord], *, objectives: Sequence[str] = ("long", "short")) -> list[int]:
    """Return the numbers of the competing trials that no other one beats, by rising first objective.

    A trial beats another if it is at least as good in every objective and better in one; so trials with equal
    objectives are all on the front, or all off it. A trial that lacks an objective is left out. `answer_nll` and
    `retrieval`, where measured, join the objectives; all are minimised but the latter.
    """
    records = list(records)
    names = objectives_of(records, objectives)
    candidates = [r for r in compared(records) if all(getattr(r, name) is not None for name in names)]
    if not candidates:
        return []
    signs = np.array([-1.0 if name in MAXIMISED else 1.0 for name in names])
    points = signs * np.array([[getattr(record, name) for name in names] for record in candidates], dtype=np.float64)
    kept = [
        (tuple(point), record.number)
        for point, record in zip(points, candidates, strict=True)
        if not np.any(np.all(points <= point, axis=1) & np.any(points < point, axis=1))
    ]
    return [number for _, number in sorted(kept)]


def weighted(record: TrialRecord, weights: Mapping[str, float]) -> float:
    """Return a complete trial's weighted number, see `config.search.Weights`."""
    assert record.long is not None and record.short is not None, f"trial {record.number} is not complete"
    value = weights["long"] * record.long + weights["short"] * record.short
    known = {name: getattr(record, name) for name in ASKED if name in weights}
    return value + sum(weights[name] * minimised(name, number) for name, number in known.items() if number is not None)


def base_long(facts: StudyFacts) -> float | None:
    """Return the untouched base model's long objective, nats per token, each window read as suits it best.

    That is the mean over the study's windows of the lower of its NLL at scale 1 and at scale W / L; None if one of
    these was not measured.
    """
    best = []
    for window in facts.windows:
        nlls = [_base_nll(facts, window, scale) for scale in (1.0, paper_scale(window, facts.base_context_length))]
        if None in nlls:
            return None
        best.append(min(nll for nll in nlls if nll is not None))
    return statistics.fmean(best) if best else None


def _base_nll(facts: StudyFacts, window: int, scale: float) -> float | None:
    for row in facts.base:
        if row["window"] == window and math.isclose(row["scale"], scale):
            return row["nll"]
    return None


def choose(records: Iterable[TrialRecord], facts: StudyFacts, front: Sequence[int]) -> dict[str, int]:
    """Return the trials behind best-*.yaml: number by role, a role that no trial fills left out.

    `long-first` has the lowest long objective of the front; `balanced` the lowest weighted number of those that are
    better than the paper's preset in both objectives, or of all where none is; `short-first` the lowest short objective
    among those that keep at least `KEPT_GAIN_SHARE` of long-first's gain in `long` over the untouched base
    (`base_long`); there is none where long-first gains nothing, or the base was not measured.
    """
    by_number = {record.number: record for record in records}
    points = [by_number[number] for number in sorted(front)]
    if not points:
        return {}
    first = min(points, key=lambda record: (record.long, record.short))
    chosen = {
        "long-first": first.number,
        "balanced": min(_past_the_paper(by_number, points), key=lambda r: weighted(r, facts.weights)).number,
    }
    base = base_long(facts)
    assert first.long is not None
    if base is not None and base > first.long:
        most = base - KEPT_GAIN_SHARE * (base - first.long)
        # first itself is among them by definition, whatever the last bit of `most`
        keeping = [r for r in points if r is first or (r.long is not None and r.long <= most)]
        chosen["short-first"] = min(keeping, key=lambda record: (record.short, record.long)).number
    return chosen


def _past_the_paper(by_number: Mapping[int, TrialRecord], points: list[TrialRecord]) -> list[TrialRecord]:
    """Return the points that beat the paper's preset, on the same rows, in both objectives; or all of them.

    Where passkeys were asked for, a point must be as good at them, too.
    """
    paper = next((r for r in by_number.values() if r.repeat == 0 and r.state == "complete"), None)
    if paper is None or paper.long is None or paper.short is None:
        return points
    past = [r for r in points if (r.long or 0.0) < paper.long and (r.short or 0.0) < paper.short]
    if paper.retrieval is not None:
        past = [r for r in past if (r.retrieval or 0.0) >= paper.retrieval]
    if paper.answer_nll is not None:
        past = [r for r in past if r.answer_nll is not None and r.answer_nll <= paper.answer_nll]
    return past or points


def ranges(
    records: Iterable[TrialRecord],
    facts: StudyFacts,
    noise: StudyNoise,
    importances: Mapping[str, float],
    importance_spread: Mapping[str, tuple[float, float]] | None = None,
) -> Ranges:
    """Return for each searched setting what the good trials have in common.

    Good are the competing trials whose weighted number is within one noise standard deviation of the best one's. A
    setting that fewer than `MIN_TRIALS` of them have is undetermined; whole numbers are rounded outwards.
    """
    candidates = [record for record in compared(records) if record.value is not None]
    best = min(candidates, key=_value, default=None)
    good: list[TrialRecord] = []
    if best is not None and noise.value is not None:
        good = [record for record in candidates if _value(record) <= _value(best) + noise.value]
    spread = importance_spread or {}
    return Ranges(
        within=noise.value,
        best=best.number if best else None,
        trials=len(good),
        parameters={
            path: _range(path, good, facts.space[path]).changed(
                importance=importances.get(path), importance_spread=spread.get(path)
            )
            for path in sorted(facts.space)
        },
    )


def surrogate(records: Iterable[TrialRecord], facts: StudyFacts, noise: StudyNoise) -> SurrogateFound | None:
    """Return what a surrogate fitted to all trials says of each setting, as `surrogate.intervals` gives it.

    None without the noise or with too few full trials. Baselines that the space cannot express are left out.
    """
    if noise.value is None:
        return None
    candidates = [record for record in records if record.state in ("complete", "pruned") and not record.repeat]
    known = [
        Trial(
            record.params,
            record.value if record.state == "complete" else None,
            {step / record.steps: value for step, value in record.values.items() if step < record.steps},
        )
        for record in sorted(candidates, key=lambda record: record.number)
        if record.params and record.value is not None
    ]
    return intervals(facts.space, known, within=noise.value)


def _value(record: TrialRecord) -> float:
    assert record.value is not None, f"trial {record.number} has no weighted number"
    return record.value


def _range(path: str, good: Sequence[TrialRecord], parameter: SearchedSetting) -> Range:
    values = [record.params[path] for record in good if path in record.params]
    kind, trials, undetermined = parameter["kind"], len(values), len(values) < MIN_TRIALS
    if kind == "choice":
        counts = Counter(text_of(value) for value in values)
        ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        options = Searched(options=tuple(parameter["options"]))
        kinds = None if undetermined else ordered
        return Range(kind=kind, trials=trials, undetermined=undetermined, kinds=kinds, searched=options)
    log, numbers = bool(parameter.get("log")), numbers_of(good, path)
    low, high = (None, None) if undetermined else central(numbers, log=log, whole=kind == "int")
    searched = Searched(low=parameter["low"], high=parameter["high"], log=log)
    return Range(kind=kind, trials=trials, undetermined=undetermined, low=low, high=high, searched=searched)


def central(values: Sequence[float], *, log: bool, whole: bool) -> tuple[float, float]:
    """Return the central 80 % of at least one number: their 10th and 90th percentile, linear between neighbours.

    Where `log`, all are above 0 and it is linear between their logarithms; where `whole`, ends are rounded outwards.
    """
    numbers = np.asarray(values, dtype=np.float64)
    shares = ((1 - CENTRAL_SHARE) / 2, (1 + CENTRAL_SHARE) / 2)
    ends = np.exp(np.quantile(np.log(numbers), shares)) if log else np.quantile(numbers, shares)
    low, high = (float(end) for end in np.clip(ends, numbers.min(), numbers.max()))  # exp(log(x)) may miss x
    if not whole:
        return low, high
    return math.floor(low + ROUNDING * abs(low)), math.ceil(high - ROUNDING * abs(high))


def text_of(value: object) -> str:
    """Return an option of a choice as text: words as they are, all else as JSON writes it (`true`, `8`, `null`)."""
    return value if isinstance(value, str) else json.dumps(value)


def correlations(records: Iterable[TrialRecord], facts: StudyFacts) -> list[RungRow]:
    """Return per rung how well its weighted numbers rank the trials that ran to the end.

    `spearman` of `trials`; `sampled_spearman` of the `sampled_trials` among them, without the published methods, whose
    wide differences are easy to rank. Each is None under `MIN_RANKED` trials, or where all values are equal. Trials
    that were stopped have no final number, so this holds for those that were let through.
    """
    complete = [record for record in compared(records) if record.value is not None]
    rows = []
    for step in facts.rungs:
        at_rung = [record for record in complete if step in record.values]
        sampled = [record for record in at_rung if record.baseline is None]
        row = RungRow(
            step=step,
            spearman=_ranked(at_rung, step),
            trials=len(at_rung),
            sampled_spearman=_ranked(sampled, step),
            sampled_trials=len(sampled),
        )
        rows.append(row)
    return rows


def _ranked(records: Sequence[TrialRecord], step: int) -> float | None:
    if len(records) < MIN_RANKED:
        return None
    return spearman([record.values[step] for record in records], [_value(record) for record in records])
