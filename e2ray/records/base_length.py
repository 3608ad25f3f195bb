"""base-length.json: how far a base reads by itself."""

from pydantic import Field

from e2ray.records.record import Count, Length, Many, Nats, Part, Record, Tokens, left_out


class WindowRead(Part):
    """The base at one window and scale 1."""

    window: Length = Field(description="Tokens read.")
    nll: Nats = Field(description="Over the same last tokens.")
    low: Nats | None = Field(
        description="Lower end of the 95 % interval of its distance from the best window; null for one document."
    )


class BaseLength(Record):
    """base-length.json."""

    what = "how far the base reads"
    anew = "remove it, and it is measured anew"

    claimed: Length = Field(description="L, as the recipe or the model's config has it.")
    measured: Length | None = Field(description="Longest window that is read; null where no two could be compared.")
    is_longest: bool = Field(description="Whether nothing longer was measured.")
    reason: str | None = Field(None, description="Why no longer window was measured; null where all were.")
    rows: Many[WindowRead] = Field(description="One per window, ascending.")
    documents: Count | None = left_out("Documents read.")
    scored: Tokens | None = left_out("Last tokens of each that were scored.")
