"""evaluation.json: NLL over window x scale of the base and the tuned model, and what it says."""

from pydantic import Field

from e2ray.records.record import Count, Length, Many, Nats, Part, Plain, Record, Scale, Share, Tokens, left_out, renamed

AGAIN = "run `e2ray evaluate` again"


class Cell(Part):
    """One cell of the surface: a model read in windows of one length at one scale."""

    model: str = Field(
        description="`tuned`, `base`, or `base_` and a method: the base as that reads it without training."
    )
    window: Length = Field(description="W, of a window.")
    scale: Scale = Field(description="g, the divisor of positions.")
    nll: Nats = Field(description="NLL over all scored tokens.")
    perplexity: float = Field(description="exp(nll).")
    tokens: Tokens = Field(description="Tokens scored.")
    documents: Count = Field(description="Documents they come from.")
    stride: Length = Field(description="Tokens a window moved on: S, or W - 1 where S is larger.")
    stderr: Nats | None = Field(description="Standard error of `nll` over documents; null for one document.")
    low: Nats | None = Field(None, description="Lower end of its 95 % interval over documents; null if unknown.")
    high: Nats | None = Field(None, description="Upper end.")


class WindowRow(Part):
    """What the cells of one window say. Gains are base minus tuned; what was not measured is null."""

    window: Length = Field(description="W.")
    paper_scale: Scale = Field(description="max(1, W / L).")
    tuned: Nats | None = Field(None, description="The tuned model at W / L.")
    tuned_best: Nats | None = Field(None, description="The tuned model at its best measured scale.")
    tuned_best_scale: Scale | None = Field(None, description="That scale.")
    base_untouched: Nats | None = Field(None, description="The base at scale 1.")
    base_untrained: Nats | None = Field(None, description="The base at W / L: the method without training.")
    base_best: Nats | None = Field(None, description="The base at its best measured scale.")
    base_best_scale: Scale | None = Field(None, description="That scale.")
    gain_over_untouched: Nats | None = Field(None, description="`base_untouched` minus `tuned`.")
    gain_over_untrained: Nats | None = Field(None, description="`base_untrained` minus `tuned`.")
    gain_over_base_best: Nats | None = Field(None, description="`base_best` minus `tuned`.")
    best_over_paper_scale: Nats | None = Field(None, description="`tuned` minus `tuned_best`.")
    untrained: dict[str, Nats | None] | None = left_out(
        "The base at W / L by the further methods of evaluate.untrained, by their kind."
    )


class ShortCost(Part):
    """What the training costs at W = L and scale 1."""

    window: Length = Field(description="L.")
    tuned: Nats | None = Field(description="The tuned model.")
    base: Nats | None = Field(description="The base.")
    rise: Nats | None = Field(description="`tuned` minus `base`.")


class UnscaledRow(Part):
    """The tuned model beyond L without raising the scale."""

    window: Length = Field(description="W.")
    tuned_unscaled: Nats | None = Field(description="At scale 1.")
    rise_over_base_window: Nats | None = Field(description="Over the tuned model at L and scale 1.")
    rise_over_paper_scale: Nats | None = Field(description="Over the tuned model at W / L.")


class Protocol(Part):
    """How text was scored, and which."""

    method: str = Field(description="In words.")
    stride: Length | None = Field(description="Largest stride of all cells.")
    documents: Count | None = Field(description="Documents scored.")
    tokens: Tokens | None = Field(description="Tokens scored, the same in every cell.")
    bos: str = Field(description="What is put before a text, in words.")
    read_tolerance_nats: Nats = Field(description="Rise of a longer window that still counts as read.")
    tokenizer_hash: str | None = left_out("Of the tokenizer; NLLs under another one are not comparable.")
    documents_digest: str | None = left_out("Of the scored tokens; only evaluations of the same are compared.")
    weights_digest: str | None = left_out("Names the tuned model's weights.")


class RemovedScaling(Record):
    """removed_scaling.json: how far a base's logits within L move when its own scaling is removed."""

    what = "what removing the base's scaling did"
    anew = "remove it, and it is measured anew"

    scaling: str = Field(description="Rope type of the scaling.")
    factor: float | None = Field(description="Of the scaling; null where it names none.")
    tokens: Tokens = Field(description="Tokens whose logits were compared.")
    mean_difference: float = Field(description="Mean absolute difference of logits.")
    changed_argmax: Share = Field(description="Share of tokens after which another one is the likeliest.")


class Verdict(Part):
    """What the cells say about the tuned model against the base."""

    base_context_length: Length = Field(description="L.")
    windows: Many[WindowRow] = Field((), description="One row per window, ascending.")
    below_base_everywhere: bool | None = Field(
        None, description="Whether the tuned model at W / L is below both bases at every window beyond L."
    )
    short_cost: ShortCost | None = Field(None, description="At L.")
    unscaled: Many[UnscaledRow] = Field((), description="One row per window beyond L.")
    reads_unscaled: bool | None = Field(None, description="Whether it reads beyond L at scale 1, within the tolerance.")
    method: str = Field("linear", description="What both models are read by at a scale, as a label.")
    protocol: Protocol = Field(description="How it was measured.")
    removed_scaling: RemovedScaling | None = Field(None, description="Null where the base is the checkpoint itself.")
    sentences: Many[str] = Field(description="The same in plain words.")


class Evaluation(Record):
    """evaluation.json of a run."""

    what = "an evaluation"
    anew = AGAIN

    rows: Many[Cell] = Field(min_length=1, description="All cells.")
    verdict: Verdict = Field(description="What they say.")

    @classmethod
    def of_older(cls, fields: Plain) -> Plain:
        """Return the fields by today's names: earlier versions knew linear scaling alone, and named it so."""
        older = {"base_linear": "base_untrained", "gain_over_linear": "gain_over_untrained"}
        verdict = fields.get("verdict")
        windows = verdict.get("windows") if isinstance(verdict, dict) else None
        if not isinstance(verdict, dict) or not isinstance(windows, list):
            return fields
        return fields | {"verdict": verdict | {"windows": [renamed(row, older) for row in windows]}}
