"""The files of a comparison: one per lane and seed, and comparison.json."""

from pydantic import Field

from e2ray.records.record import Count, Length, Many, Nats, Part, Plain, Record, Scale, Seconds, Share, Tokens, left_out
from e2ray.records.retrieval import RetrievalRow


class LaneSums(Part):
    """One window of a lane at one scale, document by document."""

    window: Length = Field(description="W.")
    scale: Scale = Field(description="g.")
    served: bool = Field(description="Whether the lane serves the window at this scale.")
    nll: Many[float] = Field(
        description="Of each document, over its scored tokens.", json_schema_extra={"unit": "nats"}
    )
    tokens: Many[Tokens] = Field(description="Of each document, scored.")


class Lane(Record):
    """lanes/<lane>-<seed>.json: what one job of a comparison has found."""

    what = "what a lane has left"
    anew = "remove the file, and that job is done again"

    lane: str = Field(description="Its name.")
    seed: Count = Field(description="Of rows and draws; 0 without training.")
    tokens: Tokens = Field(description="Trained on.")
    train_s: Seconds = Field(description="What the training took.")
    steps: Count = Field(description="Updates made; 0 without training.")
    peak_mib: float | None = Field(description="Most memory of the process; null if unknown.")
    sums: Many[LaneSums] = Field(description="One per window and scale.")
    retrieval: Many[RetrievalRow] = Field(description="One per task, context length and depth.")
    missing: Many[str] = Field(description="Lines on what has no figure.")
    told: Plain | None = Field(None, description="What it trains with where its name does not say it, else null.")
    failed: str | None = left_out("Why it has no figures at all.")
    seconds: Seconds = Field(0.0, description="What the whole job took.")


class Difference(Part):
    """A paired difference; null where one side is missing."""

    mean: Nats | None = Field(description="Over all tokens.")
    low: Nats | None = Field(description="Lower end of its 95 % interval over documents.")
    high: Nats | None = Field(description="Upper end.")


class Spread(Part):
    """A mean over seeds."""

    mean: Nats | None = Field(description="Null where a seed is missing.")
    half: Nats | None = Field(description="Half of its 95 % interval over seeds; null for one seed.")


class LaneWindow(Spread):
    """A lane at one window, at the scale it is served with."""

    unscaled: Nats | None = Field(description="At scale 1.")
    over_paper: Nats | None = Field(description="Minus the paper's preset.")
    low: Nats | None = Field(description="Lower end of that difference's 95 % interval over documents.")
    high: Nats | None = Field(description="Upper end.")
    over_yarn: Difference | None = left_out("Minus untrained YaRN, where that lane is among them.")


class FoundShare(Part):
    """What a lane finds of a task at one context length."""

    share: Share = Field(description="Of answers found, over all seeds and depths.")
    low: float = Field(description="Lower end of its 95 % interval (Wilson).")
    high: float = Field(description="Upper end.")
    trials: Count = Field(description="Prompts asked.")


class LaneRow(Part):
    """One lane over all its seeds."""

    lane: str = Field(description="Its name in the recipe.")
    name: str = Field(description="What it is called.")
    seeds: Many[Count] = Field(description="That were trained.")
    nll: dict[str, LaneWindow] = Field(description="By window.")
    long: Spread = Field(description="Mean over the windows beyond L.")
    short: Spread = Field(description="At L, minus the base.")
    retrieval: dict[str, dict[str, FoundShare]] = Field(description="By task and context length.")
    tokens: Tokens = Field(description="Trained on.")
    train_s: Seconds | None = Field(description="Median over seeds; null without training.")
    step_s: Seconds | None = Field(description="The same of a step.")
    peak_mib: float | None = Field(description="Most memory of a job.")


class Winner(Part):
    """The best lane of a window; null where nothing was measured."""

    window: Length = Field(description="W.")
    lane: str | None = Field(description="The best one.")
    nll: Nats | None = Field(description="Its NLL.")
    next: str | None = Field(description="The next one.")
    behind: Difference | None = Field(description="The next minus the best.")
    apart: bool | None = Field(description="Whether that interval lies above 0.")


class ComparisonProtocol(Part):
    """How text was scored."""

    stride: Length | None = Field(description="S, tokens that a window moved on.")
    documents: Count = Field(description="Documents scored.")
    tokens: Tokens = Field(description="Tokens scored.")
    bos: str = Field(description="What is put before a text, in words.")
    missing: Many[str] = Field(description="A line for whatever a job could not do.")


class Comparison(Record):
    """comparison.json."""

    what = "a comparison"
    anew = "run `e2ray compare` again, which makes it of the lanes' files"
    vouched = False

    base_context_length: Length = Field(description="L.")
    protocol: ComparisonProtocol = Field(description="How it was measured.")
    rows: Many[LaneRow] = Field(description="One per lane.")
    best: Many[Winner] = Field((), description="One per window.")
