"""What is measured after training, and what is written for serving."""

from typing import Literal

from pydantic import Field, field_validator

from e2ray.config.base import LARGEST_SCALE, Settings, each_once, increasing
from e2ray.config.methods import UntrainedLane
from e2ray.config.retrieval import RetrievalSettings
from e2ray.config.suites import SuiteSettings


class EvaluateSettings(Settings):
    """The surface of NLL over (window x scale), for the tuned model and the untouched base."""

    windows: tuple[int, ...] | None = Field(
        None, strict=False, min_length=1, description="W in tokens; null: L, 2L, 4L, ... up to max_scale * L."
    )
    scales: tuple[float, ...] | None = Field(
        None, strict=False, min_length=1, description="g; null: 1, 2, 4, ... up to max_scale."
    )
    untrained: tuple[UntrainedLane, ...] = Field(
        (),
        strict=False,
        description="Extensions that need no training, by which the base is read too, each window at the scale W / L; "
        "the run's own method is read anyway.",
    )
    documents: int = Field(32, ge=1, description="Held-out documents scored at most.")
    skip_documents: int = Field(
        0, ge=0, description="Held-out documents left out before the first one scored, e.g. those a search chose by."
    )
    document_tokens: int | None = Field(
        None, ge=2, description="Tokens of a document that are scored, from its start; null: the whole document."
    )
    stride: int | None = Field(
        None, ge=1, description="Tokens a window moves on; null: min(256, L / 4), the protocol of PI, YaRN and E2-LLM."
    )
    loss_gap: float = Field(
        3.0,
        gt=0,
        description="Nats that the tuned model's NLL may lie above its last training loss at the same scale; beyond, "
        "the run fails, since the model evaluated cannot be the one trained. Raise it for held-out text unlike the "
        "rows.",
    )
    least_loss_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of its last training loss at the same scale that the tuned model's NLL has at least; below, "
        "the run fails, since the model must see its answers. Lower it for held-out text that is easier than the rows.",
    )
    batch_tokens: int = Field(16_384, ge=1, description="Tokens of one forward, at least one window.")
    retrieval: RetrievalSettings | None = Field(None, description="The retrieval grid; null leaves it out.")
    suites: SuiteSettings | None = Field(None, description="Tasks of published suites; null leaves them out.")

    _increasing = field_validator("windows", "scales")(increasing(1))
    _each_once = field_validator("untrained")(each_once)

    @field_validator("windows")
    @classmethod
    def _predictable(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and value[0] < 2:
            raise ValueError(f"must be at least 2 tokens, got {value[0]}")
        return value

    @field_validator("scales")
    @classmethod
    def _readable(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if value is not None and value[-1] > LARGEST_SCALE:
            raise ValueError(f"must be at most {LARGEST_SCALE}, got {value[-1]:g}")
        return value


LONGEST_CONTEXT = 2**24  # tokens; float32, in which positions are scaled, has no larger whole numbers one by one


class ExportSettings(Settings):
    """Context lengths that get a serving profile."""

    context_lengths: tuple[int, ...] | None = Field(
        None, strict=False, min_length=1, description="W in tokens; null: L, 2L, 4L, ... up to max_scale * L."
    )
    scale: Literal["measured", "paper"] = Field(
        "measured",
        description="measured: a length that evaluation read better at another scale, beyond the spread of its "
        "documents, is served at that one, all others at W / L; paper: all at W / L.",
    )

    _increasing = field_validator("context_lengths")(increasing(2))

    @field_validator("context_lengths")
    @classmethod
    def _exact(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and value[-1] > LONGEST_CONTEXT:
            raise ValueError(
                f"must be at most {LONGEST_CONTEXT}, beyond which positions are not exact, got {value[-1]}"
            )
        return value
