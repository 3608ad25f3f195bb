"""The files that a study exports for programs: pareto.json and ranges.json, and the rows of its tables."""

from typing import Literal

from pydantic import Field, JsonValue

from e2ray.records.record import (
    Count,
    Length,
    Many,
    Nats,
    Number,
    Part,
    Plain,
    Record,
    Scale,
    Seconds,
    Share,
    Sparse,
    Tokens,
    left_out,
)

AGAIN = "`e2ray tune --resume` writes it anew from the journal"


class StudyNoise(Part):
    """How far trials differ by their seed alone: the paper's preset, repeated; null under two runs."""

    runs: Count = Field(description="Complete repeats it comes from.")
    long: Nats | None = Field(description="Standard deviation of the long objective.")
    short: Nats | None = Field(description="Of the short one.")
    value: Nats | None = Field(description="Of the weighted number.")
    retrieval: float | None = Field(description="Of the share of passkeys found.")
    answer_nll: Nats | None = Field(description="Of the mean NLL of answers.")


class Point(Part):
    """A trial on the Pareto front."""

    number: Count = Field(description="Of the trial.")
    long: Nats | None = Field(description="Mean NLL over the windows beyond L, each at W / L.")
    short: Nats | None = Field(description="NLL at L and scale 1 minus the base's.")
    retrieval: Share | None = Field(description="Share of passkeys found; null where it is not weighed.")
    answer_nll: Nats | None = Field(description="Mean NLL of a passkey's tokens; null where it is not weighed.")
    value: Nats | None = Field(description="The weighted number.")
    baseline: str | None = Field(description="The published method it repeats; null for a sampled one.")
    params: Plain = Field(description="Value of each searched setting, by its path.")
    settings: Plain = Field(description="Its `positions` and learning rate.")


class Pareto(Record):
    """export/pareto.json of a study."""

    what = "the Pareto front of a study"
    anew = AGAIN
    vouched = False

    study: str = Field(description="Its name.")
    objectives: dict[str, Literal["minimise", "maximise"]] = Field(description="By name.")
    weights: dict[str, float] = Field(description="Of the weighted number, by objective.")
    noise: StudyNoise = Field(description="Of a trial.")
    base: dict[str, float | None] = Field(description="The untouched base, by objective.")
    front: Many[Point] = Field(description="By rising long objective.")
    chosen: dict[str, int] = Field(description="Trials behind best-*.yaml, by role.")


class Searched(Part):
    """What a study searched of a setting."""

    low: Number | None = left_out("Least value.")
    high: Number | None = left_out("Largest value.")
    log: bool | None = left_out("Whether in powers.")
    options: Many[JsonValue] | None = left_out("Of a choice.")


class Range(Sparse):
    """What the good trials have in common in one setting."""

    kind: Literal["float", "int", "choice"] = Field(description="Of its values.")
    trials: Count = Field(description="Good trials that have it.")
    undetermined: bool = Field(description="Whether these are too few to tell.")
    low: Number | None = Field(None, description="Lower end of their central 80 %; null if undetermined or a choice.")
    high: Number | None = Field(None, description="Upper end.")
    kinds: dict[str, int] | None = Field(None, description="Of a choice, how many have each option; else null.")
    searched: Searched = Field(description="What was searched.")
    importance: float | None = Field(None, description="For being among the best quarter, 0 to 1; null if unknown.")
    importance_spread: Many[float] | None = Field(
        None, description="Lowest and highest of it with any one trial left out."
    )


class Interval(Part):
    """What the surrogate says of one setting."""

    low: JsonValue = left_out("Lower end of where the prediction stays within one noise of the best.")
    high: JsonValue = left_out("Upper end.")
    kinds: Many[JsonValue] | None = left_out("Of a choice, the options where it does.")
    trials: Count = Field(description="Trials that have the setting.")
    share: float = Field(description="Of the range or the options that this is.")
    held: Share = Field(description="Of refits with one trial left out: whose interval holds the best place of all.")
    narrow: Share = Field(description="Of these refits: whose interval is narrow.")
    determined: bool = Field(description="Whether the study determines the setting.")


class SurrogateFound(Part):
    """What a surrogate fitted to all trials says."""

    trials: Count = Field(description="Trials it is fitted to.")
    full: Count = Field(description="Of them complete.")
    left_out_spearman: float | None = Field(description="Rank correlation of left-out trials with what is predicted.")
    coverage: Share = Field(description="Of left-out trials inside the interval predicted for nine of ten.")
    parameters: dict[str, Interval | None] = Field(description="By path; null where no full trial has the setting.")


class RungRow(Part):
    """How well the numbers at a rung rank the trials that ran to the end."""

    step: Count = Field(description="Of the rung.")
    spearman: float | None = Field(description="Rank correlation with the final numbers; null under three trials.")
    trials: Count = Field(description="Trials behind it.")
    sampled_spearman: float | None = Field(None, description="The same of sampled trials alone.")
    sampled_trials: Count = Field(0, description="Trials behind that.")


class Ranges(Record):
    """export/ranges.json of a study."""

    what = "the ranges of a study"
    anew = AGAIN
    vouched = False

    within: Nats | None = Field(description="Distance from the best trial that counts as good: one noise.")
    best: int | None = Field(description="Number of the best trial.")
    trials: Count = Field(description="Good trials.")
    parameters: dict[str, Range] = Field(description="By the setting's path.")
    surrogate: SurrogateFound | None = Field(None, description="Null with too few trials.")
    seeds: Count = Field(0, description="Repeats the noise comes from.")
    rungs: Many[RungRow] = Field((), description="One per rung.")


class CurveRow(Part):
    """A row of export/curves.parquet: one cell of one evaluation of a trial."""

    number: Count = Field(description="Of the trial.")
    step: Count = Field(description="Updates behind it.")
    window: Length = Field(description="W.")
    scale: Scale = Field(description="g.")
    nll: Nats = Field(description="NLL.")
    stderr: Nats | None = Field(description="Standard error over documents.")
    tokens: Tokens = Field(description="Tokens scored.")
    documents: Count = Field(description="Documents scored.")
    stride: Length = Field(description="S.")


class TrialRow(Part):
    """A row of export/trials.parquet and trials.csv; behind these columns `param:<path>`, one per searched setting."""

    number: Count = Field(description="Of the trial.")
    state: str = Field(description="`complete`, `pruned` or `failed`, or what it is doing.")
    baseline: str | None = Field(description="The published method it repeats; empty for a sampled one.")
    repeat: int | None = Field(description="Which repeat of the paper's preset; empty for others.")
    seed: int = Field(description="Of its rows and draws.")
    long: Nats | None = Field(description="Mean NLL over the windows beyond L, each at W / L.")
    short: Nats | None = Field(description="NLL at L and scale 1 minus the base's.")
    retrieval: Share | None = Field(description="Share of passkeys found.")
    answer_nll: Nats | None = Field(description="Mean NLL of a passkey's tokens.")
    value: Nats | None = Field(description="The weighted number, at `step`.")
    step: Count = Field(description="Updates made.")
    steps: Count = Field(description="Updates it would make in full.")
    tokens: Tokens = Field(description="Trained on.")
    seconds: Seconds = Field(description="Training and evaluation.")
    reason: str | None = Field(description="Why it failed.")
    scale_kind: str | None = Field(description="`positions.scale.kind`.")
    max_scale: float | None = Field(description="Largest scale drawn.")
    native_share: float | None = Field(description="Share of draws at scale 1.")
    placement_kind: str | None = Field(description="`positions.placement.kind`.")
    per: str | None = Field(description="`positions.per`.")
    lr: float | None = Field(description="Learning rate.")
    positions: str | None = Field(description="The whole section as JSON.")
