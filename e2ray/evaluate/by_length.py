"""NLL by context length, all lengths of a scale from one forward pass.

In a causal model the predictions after the first w tokens of a longer window are those of a window of w tokens. So
one pass over a document's first W tokens gives every shorter context length at that scale, too: NLL on the last S
tokens of each length, and NLL by bucket of positions between one length and the next. A length w beyond the base
window is served at a scale of its own, so there are as many passes as scales, not as many as lengths.

Source: position buckets as in the one-pass form of the sliding-window protocol (PI, arXiv:2306.15595).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.data.pace import Pace, Progress
from e2ray.evaluate.intervals import ratio_interval
from e2ray.evaluate.perplexity import OUT_OF_MEMORY, DivergedWeights, if_it_fits
from e2ray.evaluate.scoring import evaluating, forward_nll
from e2ray.records.lengths import LengthCell


@dataclass(frozen=True, eq=False)
class LengthPass:
    """The NLLs of one pass of a model over the beginning of each document.

    Attributes:
        model: `tuned`, `base` or a lane's name.
        scale: g >= 1.
        documents: int64 [documents], their numbers among all that are scored.
        nll: float32 [documents, window - 1], the NLL of every token but the first.
    """

    model: str
    scale: float
    documents: np.ndarray
    nll: np.ndarray

    @property
    def window(self) -> int:
        """W in tokens."""
        return self.nll.shape[1] + 1


def length_passes(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    *,
    windows: Sequence[int],
    scales: Sequence[float],
    batch_tokens: int,
    device: torch.device | str,
    name: str,
    numbers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[LengthPass]:
    """Return one pass per scale, over as many of each document's first tokens as the longest window that fits.

    Where the longest does not fit into memory, the next shorter one is tried; one line reports what is left out.

    Args:
        model: A causal language model of transformers; it is in evaluation mode during the call.
        hook: The rotary hook of `model`, not applied.
        documents: Integer tokens of shape [length] each, none shorter than the longest window.
        windows: W in tokens, at least 2.
        scales: g, each at least 1.
        batch_tokens: Tokens of one forward, at least one window.
        device: Where the model is.
        name: Written into the results.
        numbers: The documents' numbers among those that all workers score together; None counts them here.
        progress: Takes the lines.

    Raises:
        SettingsError: If a document is shorter than the longest window.
    """
    passes: list[LengthPass] = []
    which = np.arange(len(documents)) if numbers is None else np.asarray(numbers)
    longest = max(windows)
    tokens = longest * len(documents)
    with Pace(progress, f"{name}: reading by length", total=len(scales) * tokens, unit="tokens") as pace:
        for number, scale in enumerate(scales):
            read = partial(token_nlls, model, hook, documents, scale=scale, batch_tokens=batch_tokens, device=device)
            nll = None
            for window in sorted(windows, reverse=True):
                pace.done = number * tokens
                nll = if_it_fits(partial(read, window=window, pace=pace))
                if nll is not None:
                    passes.append(LengthPass(name, float(scale), which, nll))
                    break
            reached = 0 if nll is None else nll.shape[1] + 1
            if reached < longest:
                beyond = f" beyond {reached} tokens" if reached else ""
                pace.tell(f"{name}: NLL by length at scale {scale:g}{beyond} left out: {OUT_OF_MEMORY}")
    return passes


def merged_passes(parts: Sequence[Sequence[LengthPass]]) -> list[LengthPass]:
    """Return the passes over documents that several workers scored, in the documents' order.

    A scale that one of the workers had to leave out is left out, and so is everything beyond the shortest of their
    windows.
    """
    together = []
    for first in parts[0]:
        whole = [one for part in parts for one in part if (one.model, one.scale) == (first.model, first.scale)]
        if len(whole) < len(parts):
            continue
        numbers = np.concatenate([one.documents for one in whole])
        order = np.argsort(numbers)
        reached = min(one.window for one in whole)
        nll = np.concatenate([one.nll[:, : reached - 1] for one in whole])[order]
        together.append(LengthPass(first.model, first.scale, numbers[order], nll))
    return together


def token_nlls(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    *,
    window: int,
    scale: float,
    batch_tokens: int,
    device: torch.device | str,
    pace: Pace | None = None,
) -> np.ndarray:
    """Return float32 [documents, window - 1]: the NLL of every token but the first of each document's first `window`.

    Args:
        model: A causal language model of transformers; it is in evaluation mode during the call.
        hook: The rotary hook of `model`, not applied.
        documents: Integer tokens of shape [length] each, none shorter than `window`.
        window: W in tokens, at least 2.
        scale: g >= 1, the divisor of positions.
        batch_tokens: Tokens of one forward, at least one window.
        device: Where the model is.
        pace: Counts the tokens read.

    Raises:
        SettingsError: If a document is shorter than the window.
    """
    shortest = min(map(len, documents))
    if shortest < window:
        raise SettingsError(f"evaluation: a document has {shortest} tokens, wanted at least the window of {window}")
    size = max(1, batch_tokens // window)
    batches = []
    with evaluating(model), hook.applied(float(scale)):
        for first in range(0, len(documents), size):
            rows = np.stack([document[:window] for document in documents[first : first + size]])
            batches.append(forward_nll(model, torch.from_numpy(rows.astype(np.int64)).to(device)).cpu().numpy())
            if pace is not None:
                pace.add(rows.size)
    return np.concatenate(batches)


def length_cells(nll: np.ndarray, lengths: Sequence[int], *, last: int, scale: float, model: str) -> list[LengthCell]:
    """Return one cell per context length of one pass.

    Args:
        nll: float32 [documents, window - 1], as `token_nlls` returns it; entry t is token t + 1.
        lengths: w in tokens, increasing, 2 to window.
        last: S >= 1, tokens at the end of each context; w - 1 where that is less.
        scale: g of the pass.
        model: Name of the model of the pass.

    Raises:
        DivergedWeights: If an NLL is not finite.
        ValueError: If a length is out of range.
    """
    longest = nll.shape[1] + 1
    if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 2 or lengths[-1] > longest:
        raise ValueError(f"lengths must be increasing and lie in [2, {longest}], got {list(lengths)}")
    values = nll.astype(np.float64)
    cells = []
    before = 1
    for length in lengths:
        scored = min(last, length - 1)
        sums = values[:, length - 1 - scored : length - 1].sum(axis=1)
        counts = np.full(len(values), scored)
        mean = float(sums.sum() / counts.sum())
        bucket = float(values[:, before - 1 : length - 1].mean())
        if not math.isfinite(mean) or not math.isfinite(bucket):
            wrong = bucket if math.isfinite(mean) else mean
            raise DivergedWeights(
                f"{model} model, context length {length}, scale {scale:g}: NLL is {wrong}, wanted a finite number; the "
                "weights have diverged, train with a lower train.lr"
            )
        low, high = ratio_interval(sums, counts) or (None, None)
        cells.append(
            LengthCell(
                model=model,
                context_length=length,
                scale=float(scale),
                nll=mean,
                low=low,
                high=high,
                bucket_nll=bucket,
                tokens=int(counts.sum()),
                documents=len(values),
                last=scored,
            )
        )
        before = length
    return cells
