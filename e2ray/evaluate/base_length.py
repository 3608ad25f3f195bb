"""How far a base reads by itself, found on held-out text before anything is trained.

All methods divide by L, and a config may claim more than its weights read, or less. So NLL is measured at scale 1 with
windows up to 2 L, all over the same tokens; the longest that reads no worse than the best one says how far it reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from e2ray.core.rope import RotaryHook
from e2ray.evaluate.perplexity import document_sums

FILE = "base-length.json"
SHARES = (0.125, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of L, the windows that are measured
SHORTEST = 8  # tokens of a window
DOCUMENTS = 4
TOLERANCE = 0.02  # nats per token that a window may read worse than the best one


def base_windows(base_context_length: int, longest_document: int) -> tuple[int, ...]:
    """Return the windows to measure, in tokens, those that a document fills."""
    wanted = {round(base_context_length * share) for share in SHARES}
    return tuple(sorted(window for window in wanted if SHORTEST <= window <= longest_document))


def measure_base(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    *,
    base_context_length: int,
    batch_tokens: int,
    device: Any,
) -> dict[str, Any]:
    """Return how far a base reads at scale 1, plain data.

    Args:
        model: The base.
        hook: Its rotary hook, not applied.
        documents: Held-out documents, integer tokens each; the longest few are read.
        base_context_length: L in tokens, as the recipe or the config claims it.
        batch_tokens: Tokens of one forward, at least.
        device: Where the model stands.

    Returns:
        `claimed` (L), `measured` (the longest window that is read, None where no two windows could be compared),
        `is_longest` (whether nothing longer was measured) and `rows` (`window`, `nll` of each).
    """
    longest = max((len(document) for document in documents), default=0)
    windows = base_windows(base_context_length, longest)
    found: dict[str, Any] = {"claimed": base_context_length, "measured": None, "is_longest": False, "rows": []}
    if len(windows) < 2:
        return found
    chosen = [document[: windows[-1]] for document in documents if len(document) >= windows[-1]][:DOCUMENTS]
    sums = document_sums(
        model,
        hook,
        chosen,
        windows=windows,
        scales=[1.0],
        stride=max(1, base_context_length // 8),
        batch_tokens=max(batch_tokens, windows[-1]),
        device=device,
        name="base",
    )
    rows = [{"window": one.window, "nll": one.end.mean if one.end else one.mean} for one in sums]
    measured = read_up_to(rows)
    return found | {"measured": measured, "is_longest": measured == rows[-1]["window"], "rows": rows}


def read_up_to(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the longest window that reads as well as the best one, or worse by `TOLERANCE` at most."""
    best = min(row["nll"] for row in rows)
    return max(int(row["window"]) for row in rows if row["nll"] <= best + TOLERANCE)


def told(found: Mapping[str, Any]) -> str:
    """Return what was found in one line, a warning where more is claimed than is read."""
    claimed, measured = found["claimed"], found["measured"]
    if measured is None:
        return f"base: how far it reads was not measured, since no held-out document is long enough (L {claimed})"
    figures = ", ".join(f"{row['window']}: {row['nll']:.3f}" for row in found["rows"])
    more = " at least" if found["is_longest"] else ""
    line = f"base: reads {measured:,} tokens{more} at scale 1 (NLL by window {figures})"
    if measured >= claimed:
        return line
    return (
        f"warning: {line}, L is {claimed:,}; all scales are measured by L, so set model.base_context_length to "
        f"{measured}"
    )
