"""retrieval.json: what a model finds in a long text, by task, context length and depth."""

from pydantic import Field

from e2ray.records.evaluation import AGAIN
from e2ray.records.record import Count, Length, Many, Nats, Part, Record, Scale, Share, Tokens, left_out


class RetrievalRow(Part):
    """The prompts of one cell of the grid."""

    model: str | None = left_out("`tuned` or `base`; a lane's rows are its own.")
    task: str = Field(description="What is asked for.")
    context_length: Length = Field(description="W, of a prompt, answer included.")
    depth: Share | None = Field(description="Share of the text before what is asked for; null for a task without one.")
    scale: Scale = Field(description="g the prompts were read at.")
    found: Count = Field(description="Answers found.")
    answer_nll: Nats | None = Field(None, description="Mean NLL of the answer's tokens behind the question.")
    trials: int = Field(ge=1, description="Prompts asked.")
    tokens: Tokens | None = Field(None, description="Of each prompt.")
    greedy: Count = Field(0, description="Prompts that were generated, too.")
    agreed: Count = Field(0, description="Of these, where generation and the forward pass said the same.")
    contained: Share | None = Field(None, description="Share of references that the generated text held.")


class Retrieval(Record):
    """retrieval.json."""

    what = "the retrieval of an evaluation"
    anew = AGAIN

    rows: Many[RetrievalRow] = Field(description="One per model, task, context length and depth.")
