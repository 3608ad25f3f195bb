"""What a training minimises: a reader and a batch in, a loss and figures of each row out.

The engine knows no particular one; one that needs more than the forward, such as a teacher, is made with it. The loss
is what one micro batch adds to the mean over all rows and ranks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray.config.train import ObjectiveSettings
from e2ray.core.head import FusedHead
from e2ray.core.losses import predicted, token_kl, token_nll
from e2ray.core.reach import reaches
from e2ray.train.batch import Batch

Forward = Callable[..., Float[Tensor, "rows window vocabulary"]]  # of input_ids, and position_ids by keyword


@dataclass(frozen=True)
class Reader:
    """What a model says of tokens: its logits, or what they cost alone, which may need no logits.

    Attributes:
        forward: Gives logits.
        head: The model's, where its loss is computed without holding logits.
    """

    forward: Forward
    head: FusedHead | None = None

    def __call__(
        self, tokens: Int[Tensor, "rows window"], **given: Tensor | int
    ) -> Float[Tensor, "rows window vocabulary"]:
        """Return the logits; `given` are further arguments of the forward."""
        return self.forward(tokens, **given)

    def nll(self, tokens: Int[Tensor, "rows window"], **given: Tensor | int) -> Float[Tensor, "rows predictions"]:
        """Return the NLL of every token but each row's first, float32."""
        if self.head is None:
            return token_nll(self.forward(tokens, **given), tokens)
        with self.head.scoring(tokens):
            return self.forward(tokens, **given)


@dataclass(frozen=True)
class Outcome:
    """What an objective returns.

    Attributes:
        nll: float32 [rows], each row's mean NLL over what it predicts, whatever is minimised.
        loss: What is minimised.
        figures: Further means of each row, float32 [rows], by the name they are logged under.
    """

    nll: Float[Tensor, " rows"]
    loss: Float[Tensor, ""]
    figures: Mapping[str, Float[Tensor, " rows"]] = field(default_factory=dict)


class Objective(Protocol):
    """One thing to train for."""

    def __call__(self, read: Reader, batch: Batch) -> Outcome:
        """Return the outcome of one forward's examples."""


def next_token(read: Reader, batch: Batch) -> Outcome:
    """Return the NLL of rows of one text each, and their mean."""
    nll = read.nll(batch.tokens, **batch.given).mean(dim=1)
    return Outcome(nll, nll.mean())


def packed_next_token(read: Reader, batch: Batch) -> Outcome:
    """Return each packed row's mean NLL over what it predicts, and the weighted sum of all."""
    assert batch.token_index is not None, "packed rows say where their tokens stand"
    nll = read.nll(batch.tokens, **batch.given) * predicted(batch.token_index)
    return Outcome(batch.by_row(nll), batch.total(nll))


class Mixture:
    """Next token and self-distillation, mixed by weights, each token by how rare its reach is.

    The teacher is the base reading the same row at scale 1 without a shift: the row is short, so it knows the answer.
    Per token KL(teacher || student). Related distillations are arXiv:2604.14339 and arXiv:2604.06070; the weights
    follow EXACT (arXiv:2605.10544), over drawn distances.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        *,
        teacher: Forward | None = None,
        weights: Float[Tensor, " buckets"] | None = None,
    ) -> None:
        """Take what is mixed.

        The teacher is the base at scale 1, without a gradient; a distillation asks for it. Weights are those of tokens
        by their reach, as `core.reach.weights` gives them; None weighs all alike.
        """
        assert teacher is not None or not settings.distill, "a distillation has a teacher"
        self.settings, self.teacher, self.weights = settings, teacher, weights

    def __call__(self, read: Reader, batch: Batch) -> Outcome:
        """Return each row's NLL, its distance from the teacher, and the mixed loss."""
        taught = logits = None
        if self.teacher is not None and self.settings.distill:
            with torch.no_grad():
                taught = self.teacher(batch.tokens, **batch.given)
            logits = read(batch.tokens, **batch.given)
        mask = None if batch.token_index is None else predicted(batch.token_index)
        weights = self._weights(batch)
        nll = read.nll(batch.tokens, **batch.given) if logits is None else token_nll(logits, batch.tokens)
        nll = nll if mask is None else nll * mask
        loss = self.settings.next_token * batch.total(nll * weights)
        figures = {}
        if taught is not None and logits is not None:
            apart = token_kl(logits, taught)
            apart = apart if mask is None else apart * mask
            loss = loss + self.settings.distill * batch.total(apart * weights)
            figures["distill_loss"] = batch.by_row(apart)
        return Outcome(batch.by_row(nll), loss, figures)

    def _weights(self, batch: Batch) -> Float[Tensor, "rows predictions"] | float:
        if self.weights is None:
            return 1.0
        return self.weights[reaches(batch.draw.offsets, batch.token_index)]


def objective_of(*, packed: bool) -> Objective:
    """Return the next-token objective of such rows, the default of a training."""
    return packed_next_token if packed else next_token
