"""scales.json of a run or an export: which scale reads each context length best."""

from typing import Annotated

from pydantic import AfterValidator, Field

from e2ray.records.evaluation import AGAIN
from e2ray.records.record import Length, Many, Nats, Part, Record, Scale, ascending, left_out


class ScaleRow(Part):
    """What was found at one context length."""

    context_length: Length = Field(description="W.")
    served: Scale = Field(
        description="What export and generation use: the best measured scale where it is better than W / L beyond the "
        "spread of the documents, else W / L."
    )
    scale: Scale | None = Field(None, description="Best measured scale.")
    nll: Nats | None = Field(None, description="NLL there.")
    paper_scale: Scale | None = Field(None, description="max(1, W / L).")
    paper_nll: Nats | None = Field(None, description="NLL there; null where it was not measured.")
    gain: Nats | None = Field(None, description="`paper_nll` minus `nll`.")
    gain_low: Nats | None = Field(None, description="Lower end of its 95 % interval over documents.")
    gain_high: Nats | None = Field(None, description="Upper end.")


class Scales(Record):
    """scales.json."""

    what = "base_context_length and lengths, each with context_length and served, as `e2ray evaluate` writes them"
    anew = AGAIN

    base_context_length: Length = Field(description="L.")
    model: str = Field("tuned", description="Whose cells were read.")
    lengths: Annotated[Many[ScaleRow], AfterValidator(ascending("context_length"))] = Field(
        description="One row per measured context length, ascending; beyond the last one W / L serves."
    )
    weights_digest: str | None = left_out("Names the weights that were measured.")
