"""Is the model that was evaluated the one that was trained? Its NLL on held-out text against its last training losses.

The two are of different text, so they are never equal; but a model that was written wrongly, or is read with other
positions or another tokenizer than in training, is off by nats, and one that sees its answers is near 0.
"""

import math
from collections.abc import Sequence

from e2ray.evaluate.perplexity import Cell
from e2ray.records.run import MetricsLine

LAST_SHARE = 0.1  # of the updates, whose losses count


class ImplausibleError(RuntimeError):
    """The evaluated model cannot be the one that was trained; its message is one line."""


def refuse_implausible(
    cells: Sequence[Cell],
    metrics: Sequence[MetricsLine],
    *,
    window: int,
    loss_gap: float,
    least_loss_share: float,
) -> bool:
    """Raise ImplausibleError if the tuned model's NLL is far from its training loss at the same scale.

    Compared is the window of training, or the shortest one measured beyond it, at each scale of which both are known.

    Args:
        cells: Of the surface.
        metrics: Lines of metrics.jsonl.
        window: R, tokens of a training row.
        loss_gap: Nats that the NLL may be above the training loss, at least 0.
        least_loss_share: Share of the training loss that the NLL has at least, 0 to 1.

    Returns:
        Whether anything could be compared.
    """
    losses = _last_losses(metrics)
    tuned = [cell for cell in cells if cell.model == "tuned" and cell.window >= window]
    shortest = min((cell.window for cell in tuned), default=None)
    pairs = [(cell, losses.get(scale_bucket(cell.scale))) for cell in tuned if cell.window == shortest]
    for cell, loss in pairs:
        if loss is None or least_loss_share * loss <= cell.nll <= loss + loss_gap:
            continue
        way_out = (
            f"so unlike the rows, raise evaluate.loss_gap ({loss_gap:g} nats)"
            if cell.nll > loss
            else f"so much easier than the rows, lower evaluate.least_loss_share ({least_loss_share:g})"
        )
        raise ImplausibleError(
            f"the tuned model cannot be the one that was trained: at scale {cell.scale:g} its NLL in windows of "
            f"{cell.window} tokens is {cell.nll:.3f}, its last training loss was {loss:.3f}; if the held-out text is "
            f"{way_out}"
        )
    return any(loss is not None for _, loss in pairs)


def scale_bucket(scale: float) -> str:
    """Return the name that metrics give to a scale's losses: the next power of two that is not smaller."""
    return str(2 ** max(0, math.ceil(math.log2(scale))))


def _last_losses(metrics: Sequence[MetricsLine]) -> dict[str, float]:
    """Return the mean loss of each bucket of scales over the last lines."""
    if not metrics:
        return {}
    first = metrics[-1].step * (1 - LAST_SHARE)
    by_bucket: dict[str, list[float]] = {}
    for line in metrics:
        if line.step > first:
            for bucket, loss in line.loss_by_scale.items():
                by_bucket.setdefault(bucket, []).append(loss)
    return {bucket: sum(losses) / len(losses) for bucket, losses in by_bucket.items()}
