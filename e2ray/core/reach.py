"""How far a token's visible context reaches under a draw, and weights of tokens that make every reach count the same.

A draw of short rows shows most tokens a short context, even where it shifts: tokens before the jump see none of it.
EXACT (arXiv:2605.10544, of which the abstract was read) weights a token by how rare the reach of its context is. Here
the reach is the drawn one, in tokens of the long text that the row represents, and the weights are ours: tokens are put
into buckets by powers of two, all buckets have the same total weight, and no token has more than `MOST`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray.config.positions import PositionSettings
from e2ray.core.positions import draw

BUCKETS = 48  # powers of two; more than any position
ROWS, SEED = 4096, 0x7265_6163  # rows that are drawn to see how often each reach comes up, none of a training's
MOST = 8.0  # weight of a token at most


def reaches(
    offsets: Int[Tensor, "rows window"], token_index: Int[Tensor, "rows window"] | None = None
) -> Int[Tensor, "rows predictions"]:
    """Return k for each predicted token whose context spans 2^k to 2^(k+1) - 1 tokens.

    Args:
        offsets: Of the draw, by a token's index in its document.
        token_index: Each token's index in its document where rows are packed; None where a row is one text.

    Returns:
        int64 [rows, window - 1], 0 to BUCKETS - 1; 0 for padding.
    """
    index = (
        torch.arange(offsets.shape[1], device=offsets.device).expand_as(offsets) if token_index is None else token_index
    )
    known = index.clamp(min=0)
    spans = known + offsets.gather(1, known) - offsets[:, :1] + 1
    return torch.log2(spans[:, :-1].double()).floor().long().clamp(0, BUCKETS - 1)


def weights(settings: PositionSettings, *, window: int, base_context_length: int) -> Float[Tensor, " k"]:
    """Return the weight of a token by the bucket of its reach, float32 [BUCKETS].

    The mean over drawn tokens is 1, as far as `MOST` allows. The weights do not depend on the seed of a run, so that
    trainings of several seeds minimise the same loss.

    Args:
        settings: The draws of the training, of rows of one text each.
        window: Tokens of a row.
        base_context_length: L in tokens.
    """
    each = settings.model_copy(update={"per": "sequence"})  # one shared by the step would be the only draw
    drawn = draw(each, seed=SEED, step=0, indices=range(ROWS), window=window, base_context_length=base_context_length)
    counts = torch.bincount(reaches(drawn.offsets).flatten(), minlength=BUCKETS).double()
    share = counts / counts.sum()
    weight = torch.where(share > 0, 1 / share.clamp(min=1e-12), 0.0)
    for _ in range(BUCKETS):  # what the bound takes from the rarest goes to the others
        weight = (weight / (weight * share).sum()).clamp(max=MOST)
    return torch.where(share > 0, weight, MOST).float()  # so rare that no row here has it
