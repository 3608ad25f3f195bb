"""What a study knows, as plain data: one record per trial, the facts all trials share, and what follows from them.

Nothing here knows Optuna or Ray. The journal is read into these records (`study.py`), the exports are computed from
them (`results.py`), and the report draws them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypedDict

from pydantic import JsonValue

from e2ray.config.base import Plain
from e2ray.config.search import Choice, Parameter, Value
from e2ray.records.study import Ranges, StudyNoise

State = Literal["waiting", "running", "complete", "pruned", "failed"]


class Cell(TypedDict):
    """A window read at a scale, with the fields of `records.study.CurveRow`."""

    window: int
    scale: float
    nll: float
    stderr: float | None
    tokens: int
    documents: int
    stride: int


class CurveCell(Cell):
    """A cell of a trial after `step` updates."""

    step: int


class YarnRead(TypedDict, total=False):
    """The untouched base read by YaRN: windows at scale W / L, and the objectives of the retrieval grid."""

    cells: list[Cell]
    retrieval: float | None
    answer_nll: float | None


class SearchedSetting(TypedDict, total=False):
    """A setting of a space: a range from `low` to `high`, or one of `options`; it applies where `when` holds."""

    kind: Literal["float", "int", "choice"]
    low: float
    high: float
    log: bool
    options: Sequence[Value]
    when: Mapping[str, Sequence[Value]]


def searched(parameter: Parameter) -> SearchedSetting:
    """Return a setting's searched range or options, as plain data."""
    when = {path: list(values) for path, values in parameter.when.items()}
    if isinstance(parameter, Choice):
        return {"kind": "choice", "options": list(parameter.options), "when": when}
    low, high, log = parameter.low, parameter.high, parameter.log
    return {"kind": parameter.kind, "low": low, "high": high, "log": log, "when": when}


class Note(TypedDict, total=False):
    """What the journal says of a trial at a step."""

    cells: list[Cell]
    tokens: int
    seconds: float
    loss: float | None
    stop: bool
    long: float
    short: float
    retrieval: float | None
    answer_nll: float | None
    value: float


TrialSettings = TypedDict("TrialSettings", {"positions": Plain, "train.lr": float}, total=False)


def section(settings: Mapping[str, JsonValue], name: str) -> Plain:
    """Return a section of plain settings, empty where it is not there."""
    value = settings.get(name)
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class TrialRecord:
    """One trial of a study.

    Attributes:
        number: Its number in the study, from 0, which exports and progress lines use.
        state: `complete` ran all its steps, `pruned` was stopped at a rung, `failed` died or returned NaN.
        baseline: The published method it repeats (a preset's name), or None for a sampled trial.
        repeat: 0, 1, ... for the paper's preset under several seeds, which is how noise is measured; else None.
        seed: Seed of its rows and draws; all trials but the repeats above 0 share one.
        params: Value of each searched setting, by its dotted path; a conditional one appears only where it applies.
            Empty for a baseline that the space cannot express.
        settings: The trial's `positions` section and learning rate, resolved.
        steps: Updates it would make in full.
        step: Updates made before the numbers below; less than `steps` for a pruned trial.
        long: Mean NLL over the windows beyond L, each read at scale W / L, nats per token.
        short: NLL at W = L and scale 1 minus the base model's, nats per token.
        retrieval: Share of passkeys found, 0 to 1, or None where the study does not weigh it.
        value: The weighted number that the study minimises, at `step`.
        tokens: Tokens trained on.
        seconds: Wall time of training and evaluation, as the trial's own worker measured it.
        reason: Why it failed, one line.
        curves: Cells of every evaluation it made: at each rung the windows at scale W / L, at the last step the whole
            surface where the study asks for it and no full trial was as good on both objectives when this one began.
        values: Weighted number at each rung reached, by step.
        answer_nll: Mean NLL of the tokens of a passkey after its question, nats, or None where it is not weighed.
    """

    number: int
    state: State
    baseline: str | None
    repeat: int | None
    seed: int
    params: dict[str, Value]
    settings: TrialSettings
    steps: int
    step: int
    long: float | None
    short: float | None
    retrieval: float | None
    value: float | None
    tokens: int
    seconds: float
    reason: str | None
    curves: list[CurveCell]
    values: dict[int, float]
    answer_nll: float | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing will be added to it."""
        return self.state in ("complete", "pruned", "failed")


def numbers_of(records: Iterable[TrialRecord], path: str) -> list[float]:
    """Return the trials' values of a numeric setting."""
    return [value for record in records if isinstance(value := record.params.get(path), int | float)]


@dataclass(frozen=True)
class StudyFacts:
    """What all trials of a study share.

    Attributes:
        name: Of the study.
        trials: Trials asked for.
        base_context_length: L, tokens.
        window: R, tokens of a training row.
        windows: W in tokens, the context lengths read by the long objective: those beyond L, if any.
        max_scale: G of the recipe.
        steps: Updates of a trial in full.
        batch_sequences: Rows of an update.
        rungs: Steps at which a trial may be stopped, ascending, without the last step.
        weights: Of the weighted number: {"long": 1.0, "short": 0.5, "retrieval": 0.0, "answer_nll": 0.0}.
        mode: `weighted`, or `pareto` where Optuna itself works on several objectives.
        space: What is searched, by dotted path.
        base: Cells of the untouched base model.
        base_retrieval: Share of passkeys that the untouched base model finds, or None where it is not weighed.
        base_answer_nll: Mean NLL of its answers' tokens, nats, or None.
        base_yarn: The same of the base read by YaRN; None where it was not measured.
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
    space: dict[str, SearchedSetting]
    base: list[Cell]
    documents: int
    seed: int
    base_retrieval: float | None = None
    base_answer_nll: float | None = None
    base_yarn: YarnRead | None = None
    removed_scaling: str | None = None


@dataclass(frozen=True)
class StudyResults:
    """What follows from the records of a study; everything the exports and the report say.

    Attributes:
        facts: What all trials share.
        records: All trials by number.
        noise: How far trials differ by their seed alone.
        front: Numbers of the trials on the Pareto front of (long, short), by rising `long`.
        chosen: Numbers of the trials behind best-*.yaml: `long-first`, `balanced`, `short-first`; absent where no trial
            qualifies.
        ranges: What good trials have in common, what a surrogate says, and how well rungs rank the trials.
        importances: Importance of each setting, by dotted path, for being among the best quarter of the complete
            trials; they sum to 1; empty if not computable.
        importance_spread: Lowest and highest importance of each of these with any one trial left out.
    """

    facts: StudyFacts
    records: list[TrialRecord]
    noise: StudyNoise
    front: list[int]
    chosen: dict[str, int]
    ranges: Ranges
    importances: dict[str, float]
    importance_spread: dict[str, tuple[float, float]] = field(default_factory=dict)

    def record(self, number: int) -> TrialRecord:
        """Return the trial of a number."""
        return next(record for record in self.records if record.number == number)
