"""The rows of a run's other tables: evaluation-documents.parquet and evaluation-lengths.parquet."""

from pydantic import Field

from e2ray.records.record import Count, Length, Nats, Part, Scale, Tokens


class DocumentRow(Part):
    """A row of evaluation-documents.parquet: one document in one cell."""

    model: str = Field(description="`tuned`, `base`, or `base_METHOD` of the base read by a method without training.")
    window: Length = Field(description="W.")
    scale: Scale = Field(description="g.")
    document: Count = Field(description="Its number among all that are scored.")
    nll: float = Field(description="Over its scored tokens.", json_schema_extra={"unit": "nats"})
    tokens: Tokens = Field(description="Tokens scored.")


class LengthCell(Part):
    """A row of evaluation-lengths.parquet: what a model predicts at the end of a context of one length."""

    model: str = Field(description="`tuned` or `base`.")
    context_length: Length = Field(description="w.")
    scale: Scale = Field(description="g.")
    nll: Nats = Field(description="Over the last `last` of the first w tokens of each document.")
    low: Nats | None = Field(description="Lower end of its 95 % interval over documents; null for one document.")
    high: Nats | None = Field(description="Upper end.")
    bucket_nll: Nats = Field(description="Over all positions from the length before (0 before the first) up to w.")
    tokens: Tokens = Field(description="That `nll` is the mean of.")
    documents: Count = Field(description="Documents they come from.")
    last: Tokens = Field(description="S, at most w - 1.")
