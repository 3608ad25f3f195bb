"""How far a base reads by itself, found on held-out text before anything is trained.

All methods divide by L, and a config may claim more than its weights read, or less. So the same last tokens of a few
documents are read at scale 1 after contexts of up to 2 L, and the longest that reads no worse than the best one says
how far the base reads. Worse means by more than a tolerance and, over the documents, by more than chance.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from e2ray.core.rope import RotaryHook
from e2ray.data.pace import Pace, Progress
from e2ray.evaluate.by_length import token_nlls
from e2ray.evaluate.intervals import CONFIDENCE, resampled
from e2ray.evaluate.perplexity import if_it_fits
from e2ray.records.base_length import BaseLength, WindowRead

SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of L, the windows that are measured
SHORTEST = 8  # tokens of a window
DOCUMENTS, FEWEST = 16, 4  # that are read at most; that a window should have, else it is left out where others have
TOKENS = 2**18  # that are read in all, unless two documents need more, the fewest that show more than chance
TOO_SHORT = "no held-out document is long enough"
TOLERANCE = 0.02  # nats per token that a window may read worse than the best one


def base_windows(base_context_length: int, lengths: Sequence[int]) -> tuple[int, ...]:
    """Return the windows to measure, in tokens: those that `FEWEST` documents fill, or all if there are fewer.

    Args:
        base_context_length: L in tokens.
        lengths: Of the documents, in tokens.
    """
    windows = sorted({round(base_context_length * share) for share in SHARES})
    enough = sorted(lengths, reverse=True)[: min(FEWEST, len(lengths))]
    return tuple(window for window in windows if enough and SHORTEST <= window <= enough[-1])


def measure_base(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    *,
    base_context_length: int,
    batch_tokens: int,
    device: torch.device | str,
    progress: Progress | None = None,
) -> BaseLength:
    """Return how far a base reads at scale 1.

    Args:
        model: The base.
        hook: Its rotary hook, not applied.
        documents: Held-out documents, integer tokens each; the first ones that fill the longest window are read.
        base_context_length: L in tokens, as the recipe or the config claims it.
        batch_tokens: Tokens of one forward, at least.
        device: Where the model is.
        progress: Takes one line before the first window and one for each.
    """
    windows = base_windows(base_context_length, [len(document) for document in documents])
    nothing = BaseLength(claimed=base_context_length, measured=None, is_longest=False, reason=TOO_SHORT, rows=())
    if len(windows) < 2:
        return nothing
    most = max(2, min(DOCUMENTS, TOKENS // sum(windows)))
    chosen = [document[: windows[-1]] for document in documents if len(document) >= windows[-1]][:most]
    scored = max(1, windows[0] // 2)
    means: dict[int, Float[np.ndarray, " documents"]] = {}
    reason, total = None, sum(windows) * len(chosen)
    with Pace(progress, "base: reading", total=total, unit="tokens") as pace:
        pace.tell(f"base: reading {len(chosen)} documents at {', '.join(f'{w:,}' for w in windows)} tokens each")
        for window in windows:
            ends, size = [document[-window:] for document in chosen], max(batch_tokens, window)
            read = partial(token_nlls, model, hook, ends, window=window, scale=1.0, batch_tokens=size, device=device)
            nll = if_it_fits(partial(read, pace=pace))
            if nll is None:
                reason = f"{window} tokens do not fit into memory"
                break
            mean = nll[:, -scored:].mean(axis=1, dtype=np.float64)
            if not np.isfinite(mean).all():
                reason = f"its NLL at {window} tokens is no finite number"
                break
            means[window] = mean
            pace.tell(f"base: NLL {mean.mean():.3f} at {window:,} tokens")
    if len(means) < 2:
        return nothing.changed(reason=reason)
    rows = compared(means)
    measured = read_up_to(rows)
    return BaseLength(
        claimed=base_context_length,
        measured=measured,
        is_longest=measured == rows[-1].window,
        reason=reason,
        rows=tuple(rows),
        documents=len(chosen),
        scored=scored,
    )


def compared(means: Mapping[int, Float[np.ndarray, " documents"]]) -> list[WindowRead]:
    """Return a row for each window from each document's mean NLL."""
    best = min(means, key=lambda window: float(means[window].mean()))
    rows = []
    for window, nll in means.items():
        behind, low = nll - means[best], None
        if len(behind) > 1:
            low = float(np.quantile(behind[resampled(len(behind))].mean(axis=1), (1 - CONFIDENCE) / 2))
        rows.append(WindowRead(window=window, nll=float(nll.mean()), low=low))
    return rows


def read_up_to(rows: Sequence[WindowRead]) -> int:
    """Return the longest window up to which, from the best one on, no window reads worse than the best."""
    best = min(rows, key=lambda row: row.nll)
    reached = best.window
    for row in sorted(rows, key=lambda row: row.window):
        if row.window > reached:
            if row.nll > best.nll + TOLERANCE and (row.low is None or row.low > 0):
                break
            reached = row.window
    return reached


def told(base: BaseLength) -> str:
    """Return one line on how far the base reads, a warning where it claims more."""
    claimed, measured = base.claimed, base.measured
    if measured is None:
        return f"base: how far it reads was not measured, since {base.reason} (L {claimed:,})"
    figures = ", ".join(f"{row.window}: {row.nll:.3f}" for row in base.rows)
    more = " at least" if base.is_longest else ""
    line = f"base: reads {measured:,} tokens{more} at scale 1 (NLL by window {figures})"
    if measured >= claimed or base.is_longest:
        return line + (f"; {base.reason}" if base.reason else "")
    if (base.documents or 0) < 2:
        return f"{line}, L is {claimed:,}; of one document, which tells nothing apart from chance"
    return (
        f"warning: {line}, L is {claimed:,}; all scales are measured by L, so set model.base_context_length to "
        f"{measured}"
    )
