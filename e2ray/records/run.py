"""The files of a run while it goes: status.json, environment.json, the lines of metrics.jsonl and skipped.jsonl."""

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator

from e2ray.records.record import Count, Line, Many, Nats, Part, Record, Scale, Seconds, Sparse, Tokens, left_out

State = Literal["running", "succeeded", "failed", "preempted"]
REWRITTEN = "remove it, what runs next writes it anew"


class Status(Record):
    """status.json: how far a run, study, comparison or base came."""

    what = "a run's status"
    anew = REWRITTEN

    state: State = Field(description="What became of it; `running` holds only while a process has the lock.")
    step: Count = Field(description="Updates behind the newest line of metrics.jsonl.")
    error: str | None = Field(description="What it ended with; null where nothing went wrong.")
    started_at: str | None = Field(None, description="ISO 8601, UTC.")
    ended_at: str | None = Field(None, description="ISO 8601, UTC; null while it runs.")
    result: str | None = left_out("One line on what was found and where it lies.")


class Hardware(Part):
    """Of the machine that wrote the file."""

    machine: str = Field(description="Its kind.")
    cpus: Count = Field(description="Cores the process may use.")
    memory_gib: float = Field(description="Its memory.", json_schema_extra={"unit": "GiB"})
    gpus: Many[str] = Field(description="Names of its GPUs.")


class Training(Part):
    """What the training runs on."""

    device: str = Field(description="`cuda` or `cpu`.")
    dtype: str = Field(description="Of the weights.")
    attention: str = Field(description="Its implementation in transformers.")


class Environment(Sparse, Record):
    """environment.json: versions, git commit and hardware; a base's tells of its training alone."""

    what = "versions and hardware of a run"
    anew = REWRITTEN

    versions: dict[str, str | None] = Field(default_factory=dict, description="Of the libraries, by name.")
    python: str | None = Field(None, description="Version of Python.")
    commit: str | None = Field(None, description="Of e2ray's checkout, `-dirty` behind changes; null outside of one.")
    hardware: Hardware | None = Field(None, description="Of the driver's machine.")
    training: Training | None = Field(None, description="What the training runs on, once it does.")

    @field_validator("training")
    @classmethod
    def _is_there(cls, training: Training | None) -> Training | None:
        if training is None:
            raise ValueError("is null, wanted an object")
        return training


class MetricsLine(Sparse, Line):
    """A line of metrics.jsonl: a logged step. What an objective or a measurement tells beside it has its own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    what = "a logged step"
    anew = "put the file back from a copy, or remove it: the run does not need it"

    tokens: Tokens = Field(description="Read so far, those of skipped steps among them.")
    loss: Nats | None = Field(None, description="Mean over the rows since the last line; null without a finite one.")
    lr: float | None = Field(None, description="Learning rate.")
    grad_norm: float | None = Field(None, description="Gradient norm of the last step; null if it was skipped.")
    tokens_per_second: float = Field(description="Of all ranks since the last line, saves and looks left out.")
    scale_mean: Scale | None = Field(None, description="Mean scale of the rows.")
    loss_by_scale: dict[str, Nats] = Field(
        default_factory=dict, description="Mean loss of the rows by the power of two at or above their scale."
    )
    mfu: float | None = Field(
        None,
        ge=0,
        description="Share of the GPUs' bf16 operations that training needs; null where their peak is not known.",
    )
    data_wait_s: Seconds | None = Field(None, description="Mean wait for data of a step and rank.")
    skipped_steps: Count = Field(0, description="Steps so far that changed nothing.")
    peak_memory_mib: float | None = Field(None, description="Most memory of the first rank's process so far.")
    watch_nll: dict[str, Nats | None] | None = Field(None, description="NLL on held-out text by window, if watched.")
    price_at_base: Nats | None = Field(None, description="Of these the one at L minus the untouched model's.")


class SkippedRow(Part):
    """A row of a step that changed nothing."""

    row: Count = Field(description="Its number among all rows.")
    loss: Nats | None = Field(description="Its mean NLL; null where that is no finite number.")
    scale: Scale = Field(description="g it was drawn.")
    places: Many[Count] = Field(description="Where in a document the shift changes.")
    shifts: Many[int] = Field(description="To how many tokens.")


class SkippedStep(Line):
    """A line of skipped.jsonl: a step whose loss or gradient norm was no finite number."""

    what = "a skipped step"
    anew = MetricsLine.anew

    step: Count = Field(description="Its number, from 1.")
    not_finite: Literal["loss", "gradient norm"] = Field(description="What was no finite number.")
    rows: Many[SkippedRow] = Field(description="Of the global batch, in order.")


class TrackerNumbers(Record):
    """trackers.json: the run's number in each tracker, by kind and place, so that it goes on there."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str | None]

    what = "a run's numbers in its trackers"
    anew = "remove it to begin new ones"
    vouched = False
