"""What a study knows, as plain data: one record per trial, the facts all trials share, and what follows from them.

Nothing here knows Optuna or Ray. The journal is read into these records (`study.py`), the exports are computed from
them (`results.py`), and the report draws them.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["waiting", "running", "complete", "pruned", "failed"]


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study.

    Attributes:
        number: Its number in the study, from 0; exports and the progress lines call it by that.
        state: `complete` ran all its steps, `pruned` was stopped at a rung, `failed` died or returned NaN.
        baseline: The published method it repeats (a preset's name), or None for a sampled trial.
        repeat: 0, 1, ... for the paper's preset under several seeds, which is how noise is measured; else None.
        seed: Seed of its rows and draws; all trials but the repeats above 0 share one.
        params: Value of each searched setting, by its dotted path; a conditional one appears only where it applies.
            Empty for a baseline that the space cannot express.
        settings: The trial's `positions` section and learning rate, resolved: {"positions": {...}, "train.lr": 1e-3}.
        steps: Updates it would make in full.
        step: Updates behind the numbers below; less than `steps` for a pruned trial.
        long: Mean NLL over the windows beyond L, each read at scale W / L, nats per token.
        short: NLL at W = L and scale 1 minus the base model's, nats per token.
        retrieval: Share of passkeys found, 0 to 1, or None where the study does not weigh it.
        value: The weighted number that the study minimises, at `step`.
        tokens: Tokens trained on.
        seconds: Wall time of training and evaluation, as the trial's own worker measured it.
        reason: Why it failed, one line.
        curves: Rows {step, window, scale, nll, stderr, tokens, documents, stride} of every evaluation it made: at each
            rung the windows at scale W / L, at the last step the whole surface where the study asks for it and no full
            trial was as good on both objectives when this one began.
        values: Weighted number at each rung reached, by step.
        answer_nll: Mean NLL of the tokens of a passkey behind its question, nats, or None where it is not weighed.
    """

    number: int
    state: State
    baseline: str | None
    repeat: int | None
    seed: int
    params: dict[str, Any]
    settings: dict[str, Any]
    steps: int
    step: int
    long: float | None
    short: float | None
    retrieval: float | None
    value: float | None
    tokens: int
    seconds: float
    reason: str | None
    curves: list[dict[str, Any]]
    values: dict[int, float]
    answer_nll: float | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing will be added to it."""
        return self.state in ("complete", "pruned", "failed")


@dataclass(frozen=True)
class StudyFacts:
    """What all trials of a study share.

    Attributes:
        name: Of the study.
        trials: Trials asked for.
        base_context_length: L, tokens.
        window: R, tokens of a training row.
        windows: W in tokens, the context lengths read by the long objective: beyond L, where any is.
        max_scale: G of the recipe.
        steps: Updates of a trial in full.
        batch_sequences: Rows of an update.
        rungs: Steps at which a trial may be stopped, ascending, without the last step.
        weights: Of the weighted number: {"long": 1.0, "short": 0.5, "retrieval": 0.0, "answer_nll": 0.0}.
        mode: `weighted`, or `pareto` where Optuna itself works on several objectives.
        space: By dotted path: {"kind": "float" | "int" | "choice", "low", "high", "log", "options", "when"}.
        base: Rows {window, scale, nll, stderr, tokens, documents, stride} of the untouched base model.
        base_retrieval: Share of passkeys that the untouched base model finds, or None where it is not weighed.
        base_answer_nll: Mean NLL of its answers' tokens, nats, or None.
        base_yarn: The same of the base read by YaRN: `cells` at scale W / L, `retrieval` and `answer_nll`; empty where
            it was not measured.
        removed_scaling: Rope type that was removed from the base; None where it is the checkpoint itself.
        documents: Held-out documents scored.
        seed: Seed of the rows and draws.
    """

    name: str
    trials: int
    base_context_length: int
    window: int
    windows: tuple[int, ...]
    max_scale: float
    steps: int
    batch_sequences: int
    rungs: tuple[int, ...]
    weights: dict[str, float]
    mode: str
    space: dict[str, dict[str, Any]]
    base: list[dict[str, Any]]
    documents: int
    seed: int
    base_retrieval: float | None = None
    base_answer_nll: float | None = None
    base_yarn: dict[str, Any] = field(default_factory=dict)
    removed_scaling: str | None = None


@dataclass(frozen=True)
class Noise:
    """How far trials differ that differ only in the seed of rows and draws: the paper's preset, repeated.

    Attributes:
        runs: Complete repeats it comes from.
        long: Sample standard deviation of the long objective, nats per token; None under two runs.
        short: Of the short objective.
        value: Of the weighted number.
        retrieval: Of the share of passkeys found.
        answer_nll: Of the mean NLL of answers.
    """

    runs: int
    long: float | None
    short: float | None
    value: float | None
    retrieval: float | None = None
    answer_nll: float | None = None


@dataclass(frozen=True)
class StudyResults:
    """What follows from the records of a study; everything the exports and the report say.

    Attributes:
        facts: What all trials share.
        records: All trials by number.
        noise: Of one trial.
        front: Numbers of the trials on the Pareto front of (long, short), by rising `long`.
        chosen: Numbers of the trials behind best-*.yaml: `long-first`, `balanced`, `short-first`; absent where no trial
            qualifies.
        ranges: The content of ranges.json, under `parameters` by dotted path: {"kind", "trials", "undetermined",
            "low", "high" or "kinds" (kind -> count), "importance", "importance_spread"}, beside `within` (nats: the
            noise SD used), `best` (number), `trials` (within it) and `surrogate` (what `surrogate.intervals` says, or
            None).
        correlations: One {"step", "spearman", "trials", "sampled_spearman", "sampled_trials"} per rung: rank
            correlation of its values with the final ones, of all trials that ran to the end and of the sampled ones.
        importances: Importance of each setting, by dotted path, for being among the best quarter of the complete
            trials; they sum to 1; empty if not computable.
        importance_spread: Lowest and highest importance of each of these with any one trial left out.
    """

    facts: StudyFacts
    records: list[TrialRecord]
    noise: Noise
    front: list[int]
    chosen: dict[str, int]
    ranges: dict[str, Any]
    correlations: list[dict[str, Any]]
    importances: dict[str, float]
    importance_spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    def record(self, number: int) -> TrialRecord:
        """Return the trial of a number."""
        return next(record for record in self.records if record.number == number)
