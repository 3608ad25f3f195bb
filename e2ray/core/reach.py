"""How far a token's visible context reaches under a draw, and what tokens weigh if every reach shall count the same.

A draw of short rows shows most tokens a short context, even where it shifts: tokens in front of the jump see none of
it. EXACT (arXiv:2605.10544, of which the abstract was read) weighs a token by how rare the reach of its context is.
Here the reach is the drawn one, in tokens of the long text that the row stands for, and the weights are ours: tokens
are put into buckets by powers of two, all buckets weigh the same in sum, and no token more than `MOST`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray.config.positions import PositionSettings
from e2ray.core.positions import draw

BUCKETS = 48  # powers of two; more than any position
ROWS = 2048  # that are drawn to see how often each reach comes up
MOST = 8.0  # weight of a token at most, in terms of the mean


def reaches(
    offsets: Int[Tensor, "rows window"], places: Int[Tensor, "rows window"] | None = None
) -> Int[Tensor, "rows predictions"]:
    """Return for each predicted token k, where its context spans 2^k to 2^(k+1) - 1 tokens.

    Args:
        offsets: Of the draw, by a token's index in its document.
        places: Each token's index in its document where rows are packed; None where a row is one text.

    Returns:
        int64 [rows, window - 1], 0 to BUCKETS - 1; 0 for what only fills a row.
    """
    index = torch.arange(offsets.shape[1], device=offsets.device).expand_as(offsets) if places is None else places
    known = index.clamp(min=0)
    spans = known + offsets.gather(1, known) - offsets[:, :1] + 1
    return torch.log2(spans[:, :-1].double()).floor().long().clamp(0, BUCKETS - 1)


def weights(settings: PositionSettings, *, seed: int, window: int, base_context_length: int) -> Float[Tensor, " k"]:
    """Return what a token weighs by the bucket of its reach, float32 [BUCKETS], with a mean of 1 over drawn tokens.

    Args:
        settings: The draws of the training, of rows of one text each.
        seed: Of the run; other rows are drawn than those that are trained on.
        window: Tokens of a row.
        base_context_length: L in tokens.
    """
    drawn = draw(
        settings, seed=seed + 1, step=0, indices=range(ROWS), window=window, base_context_length=base_context_length
    )
    counts = torch.bincount(reaches(drawn.offsets).flatten(), minlength=BUCKETS).double()
    share = counts / counts.sum()
    found = torch.where(share > 0, 1 / (share.clamp(min=1e-12) * (share > 0).sum()), torch.ones_like(share))
    found = found.clamp(max=MOST)
    return (found / (found * share).sum()).float()
