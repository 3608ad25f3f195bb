"""What is trained: an objective makes of a forward and a micro batch a loss to descend, and a figure of each row.

An objective knows nothing of optimizers, ranks and draws: the engine applies the draw, runs it on each micro batch, and
goes down its loss. The loss of a micro batch is averaged over ranks and micro batches, so where rows predict different
numbers of tokens an objective is told what one of them weighs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from e2ray.core.losses import next_token_nll, plain_ids, predicted, token_nll

Forward = Callable[..., Float[Tensor, "rows window vocabulary"]]  # of input_ids, and position_ids by keyword


@dataclass(frozen=True)
class MicroBatch:
    """Rows of one forward, on the device.

    Attributes:
        tokens: int64 [rows, window].
        places: Each token's index in its document where rows are packed, below 0 for one that fills a row; None where a
            row is one text.
        token_weight: What one predicted token weighs in the loss where rows are packed.
    """

    tokens: Int[Tensor, "rows window"]
    places: Int[Tensor, "rows window"] | None = None
    token_weight: float = 1.0


class Objective(Protocol):
    """One thing to train for."""

    def __call__(self, forward: Forward, batch: MicroBatch) -> tuple[Float[Tensor, " rows"], Float[Tensor, ""]]:
        """Return each row's mean NLL, float32, and the loss."""


def next_token(forward: Forward, batch: MicroBatch) -> tuple[Float[Tensor, " rows"], Float[Tensor, ""]]:
    """Return the NLL of rows of one text each, and their mean."""
    nll = next_token_nll(forward(batch.tokens), batch.tokens)
    return nll, nll.mean()


def packed_next_token(forward: Forward, batch: MicroBatch) -> tuple[Float[Tensor, " rows"], Float[Tensor, ""]]:
    """Return each packed row's mean NLL over what it predicts, and the weighted sum of all.

    The ids restart with every document, by which transformers keeps documents apart (`core/proof.py` proves it).
    """
    assert batch.places is not None, "packed rows say where their tokens stand"
    logits = forward(batch.tokens, position_ids=plain_ids(batch.places))
    wanted = predicted(batch.places)
    nll = token_nll(logits, batch.tokens) * wanted
    return nll.sum(dim=1) / wanted.sum(dim=1).clamp(min=1), nll.sum() * batch.token_weight


def objective_of(*, packed: bool) -> Objective:
    """Return what a training of such rows descends."""
    return packed_next_token if packed else next_token
