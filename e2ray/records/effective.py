"""effective.json: up to which length a model reads."""

from typing import Literal

from pydantic import Field

from e2ray.records.evaluation import AGAIN
from e2ray.records.record import Length, Many, Nats, Part, Record, Scale, Share, Tokens

Criterion = Literal["last_tokens", "sliding"]


class LengthRow(Part):
    """How one context length was judged."""

    context_length: Length = Field(description="W.")
    scale: Scale = Field(description="The scale it is judged at: the best by the mean over whole documents.")
    criterion: Criterion = Field(
        "sliding", description="NLL of what: the last tokens of windows, or sliding windows over whole documents."
    )
    nll: Nats = Field(description="That NLL.")
    nll_low: Nats | None = Field(None, description="Lower end of its 95 % interval over documents.")
    nll_high: Nats | None = Field(None, description="Upper end.")
    rise: Nats = Field(description="Over the same of L.")
    rise_low: Nats | None = Field(None, description="Lower end of its 95 % interval.")
    rise_high: Nats | None = Field(None, description="Upper end.")
    retrieval: Share | None = Field(None, description="Share of answers found; null where none was asked.")
    reads: bool = Field(description="Whether the length counts as read by itself.")


class Effective(Record):
    """effective.json."""

    what = "the effective length"
    anew = AGAIN

    claimed: Length | None = Field(description="Longest length measured.")
    tolerance: Nats = Field(description="Rise over L that still counts as read.")
    threshold: Share = Field(description="Share of answers found that counts as read.")
    model: str = Field("tuned", description="Whose cells were read.")
    criterion: Criterion | Literal["mixed"] | None = Field(None, description="`mixed` where lengths differ.")
    last: Tokens | None = Field(None, description="How many last tokens; null where none were judged by them.")
    retrieval_lengths: Many[Length] | None = Field(None, description="Windows that retrieval covered, if asked.")
    effective: Length | None = Field(description="Longest length read; null where none is, or L was not measured.")
    low: Tokens | None = Field(None, description="Lower end of its 95 % interval; 0 where no length is read.")
    high: Tokens | None = Field(None, description="Upper end.")
    lengths: Many[LengthRow] = Field(description="One row per window from L on, ascending.")
