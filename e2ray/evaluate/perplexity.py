"""NLL over (window x scale) on whole held-out documents.

A window of W tokens slides over a document by S tokens. The first
window scores all its predictions, every later one only its last S tokens, and the last one is moved back so that
it ends with the document; every token after a document's first is scored exactly once. The NLL of a cell is the
sum over all scored tokens divided by their number, never a mean of window means, and every cell scores the same
tokens of the same documents, so that all differences are the model's. Positions are plain; the scale comes from
the rotary hook.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.data.pace import Pace, Progress
from e2ray.evaluate.documents import too_short
from e2ray.evaluate.intervals import ratio_interval, ratio_stderr
from e2ray.evaluate.scoring import forward_nll
from e2ray.records.evaluation import Cell

BOS_POLICY = "no token is added; the first token of a document is context only and never scored"

MAX_NLL = math.log(sys.float_info.max)  # nats, whose perplexity is the largest float
OUT_OF_MEMORY = "it does not fit into memory; lower evaluate.batch_tokens or give the workers more"


class DivergedWeights(SettingsError):
    """A model's NLL or its perplexity is no finite number."""


@dataclass(frozen=True, eq=False)
class Sums:
    """What one cell's documents sum up to, one entry per document.

    Attributes:
        model: `tuned` or `base`.
        window: W, tokens of a window.
        scale: g >= 1.
        stride: Tokens a window moved on.
        documents: int64 [documents], their numbers among all that are scored.
        nll: float64 [documents], nats over a document's scored tokens.
        tokens: int64 [documents], tokens scored.
        end_nll: float64 [documents], nats over those of them that windows of every size score among their last S: the
            same tokens in all cells, each behind at least W - S others. None where that was not kept.
        end_tokens: int64 [documents], their number.
    """

    model: str
    window: int
    scale: float
    stride: int
    documents: np.ndarray
    nll: np.ndarray
    tokens: np.ndarray
    end_nll: np.ndarray | None = None
    end_tokens: np.ndarray | None = None

    @property
    def key(self) -> tuple[str, int, float]:
        """What tells a cell from the others."""
        return self.model, self.window, self.scale

    @property
    def mean(self) -> float:
        """Nats per token over all documents."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def end(self) -> "Sums | None":
        """The sums over nothing but the tokens of `end_nll`, None where that was not kept."""
        if self.end_nll is None or self.end_tokens is None:
            return None
        return replace(self, nll=self.end_nll, tokens=self.end_tokens)


@dataclass(frozen=True)
class Span:
    """One window over a document: it begins at token `start` and its last `scored` tokens are scored."""

    document: int
    start: int
    scored: int


def default_stride(base_context_length: int) -> int:
    """Return min(256, L / 4), at least 1: the protocol of PI, YaRN and E2-LLM."""
    return min(256, max(1, base_context_length // 4))


def surface(model: nn.Module, hook: RotaryHook, documents: Sequence[np.ndarray], **options: Any) -> list[Cell]:
    """Return one cell per window and scale: `cell` of each of the sums that `document_sums` finds with these options.

    Raises:
        SettingsError: If there are no documents.
        DivergedWeights: If an NLL is not finite.
    """
    return [cell(sums) for sums in document_sums(model, hook, documents, **options)]


def document_sums(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    *,
    windows: Sequence[int],
    scales: Sequence[float] | Callable[[int], Sequence[float]],
    stride: int,
    batch_tokens: int,
    device: torch.device | str,
    name: str,
    numbers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> list[Sums]:
    """Return each document's summed NLL per window and scale.

    A window that a document does not fill, or that does not fit into memory, is left out and told in one line.

    Args:
        model: A causal language model of transformers in its own precision; it is put into evaluation mode meanwhile.
        hook: The rotary hook of `model`, not applied.
        documents: Integer tokens of shape [length] each, as `select_documents` returns them.
        windows: W in tokens, each at least 2.
        scales: g, each at least 1; a function tells those of a window.
        stride: S, tokens a window moves on.
        batch_tokens: Tokens of one forward, at least one window.
        device: Where the model stands.
        name: `tuned` or `base`, written into the results.
        numbers: The documents' numbers among those that all workers score together; None counts them here.
        progress: Takes one line per window and scale, and within one how far all of them are.

    Raises:
        SettingsError: If there are no documents.
        DivergedWeights: If an NLL is not finite.
    """
    if not documents:
        raise SettingsError(too_short(documents, 2, None))
    shortest = min(map(len, documents))
    longest = max((window for window in windows if window <= shortest), default=2)
    border = longest - min(stride, longest - 1)  # from this token on, every window scores with its last S
    counts = np.array([len(document) for document in documents])
    lengths, reachable = counts.tolist(), [window for window in windows if window <= shortest]
    asked = [(window, float(g)) for window in reachable for g in (scales(window) if callable(scales) else scales)]
    total = sum(tokens_read(lengths, window, stride) for window, _ in asked)
    found = []
    was_training = model.training
    model.eval()
    try:
        with Pace(progress, f"{name}: reading", total=total, unit="tokens") as pace:
            for window, scale in asked:
                try:
                    nll, end_nll = _measure(
                        model, hook, documents, window, scale, stride, batch_tokens, device, border=border, pace=pace
                    )
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    pace.tell(f"{name}: window {window}, scale {scale:g} left out: {OUT_OF_MEMORY}")
                    continue
                sums = Sums(
                    model=name,
                    window=window,
                    scale=scale,
                    stride=min(stride, window - 1),
                    documents=np.arange(len(documents)) if numbers is None else np.asarray(numbers),
                    nll=nll,
                    tokens=counts - 1,
                    end_nll=end_nll,
                    end_tokens=counts - border,
                )
                _refuse_diverged(sums)
                pace.tell(f"{name}: window {window}, scale {scale:g}: NLL {sums.mean:.4f} nats per token")
                found.append(sums)
            for window in windows:
                if window > shortest:
                    pace.tell(f"{name}: window {window} left out; the shortest document has {shortest} tokens")
    finally:
        model.train(was_training)
    return found


def tokens_read(lengths: Sequence[int], window: int, stride: int) -> int:
    """Return the tokens that all windows over documents of some lengths hold together, each at least `window` long."""
    step = min(stride, window - 1)
    return window * sum(1 + math.ceil((length - window) / step) for length in lengths)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device or the machine has too little memory for a tensor."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def merged(parts: Sequence[Sequence[Sums]]) -> list[Sums]:
    """Return the sums of documents that several workers scored, in the documents' order.

    A cell that one of the workers had to leave out is left out: all cells score one set of documents.
    """
    together = []
    for first in parts[0]:
        same = [[sums for sums in part if sums.key == first.key] for part in parts]
        if not all(same):
            continue
        whole = [sums for (sums,) in same]
        order = np.argsort(np.concatenate([sums.documents for sums in whole]))
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(sums, name) for sums in whole])[order]
            for name in ("documents", "nll", "tokens", "end_nll", "end_tokens")
        }
        together.append(replace(first, **joined))
    return together


def cell(sums: Sums) -> Cell:
    """Return the token-weighted NLL over all documents, with its standard error and interval over documents."""
    nll = sums.mean
    low, high = ratio_interval(sums.nll, sums.tokens) or (None, None)
    return Cell(
        model=sums.model,
        window=sums.window,
        scale=sums.scale,
        nll=nll,
        perplexity=math.exp(nll),
        tokens=int(sums.tokens.sum()),
        documents=len(sums.documents),
        stride=sums.stride,
        stderr=ratio_stderr(sums.nll, sums.tokens),
        low=low,
        high=high,
    )


def _measure(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    window: int,
    scale: float,
    stride: int,
    batch_tokens: int,
    device: torch.device | str,
    *,
    border: int,
    pace: Pace,
) -> np.ndarray:
    """Return float64 [2, documents]: nats over all scored tokens, and over those from `border` on."""
    sums = np.zeros((2, len(documents)))
    with torch.no_grad(), hook.applied(float(scale)):
        for batch in _batches(documents, window, min(stride, window - 1), batch_tokens):
            scored = _score(model, documents, batch, window, device, border=border)
            for span, nll in zip(batch, scored, strict=True):
                sums[:, span.document] += nll
            pace.add(window * len(batch))
    return sums


def _refuse_diverged(sums: Sums) -> None:
    if not sums.mean <= MAX_NLL:
        raise DivergedWeights(
            f"{sums.model} model, window {sums.window}, scale {sums.scale:g}: NLL is {sums.mean}, wanted a number "
            "whose perplexity is finite; the weights have diverged, train with a lower train.lr"
        )


def spans(length: int, *, window: int, step: int, document: int = 0) -> Iterator[Span]:
    """Yield the windows over a document of `length` >= `window` tokens; 1 <= `step` < `window`.

    Each token after the first is scored by exactly one of them, with at least `window` - `step` tokens of context
    behind the first window.
    """
    yield Span(document, 0, window - 1)
    end = window
    while end < length:
        scored = min(step, length - end)
        end += scored
        yield Span(document, end - window, scored)


def _batches(documents: Sequence[np.ndarray], window: int, step: int, batch_tokens: int) -> Iterator[list[Span]]:
    """Yield batches of windows of all documents; those that score equally many tokens stand together.

    The logits of a batch are computed for its largest number of scored tokens, so a first window beside later ones
    would make all of them pay for W tokens.
    """
    everything = [
        span
        for index, document in enumerate(documents)
        for span in spans(len(document), window=window, step=step, document=index)
    ]
    everything.sort(key=lambda span: (-span.scored, span.document, span.start))
    size = max(1, batch_tokens // window)
    batch: list[Span] = []
    for span in everything:
        first_beside_later = bool(batch) and batch[0].scored == window - 1 and span.scored < window - 1
        if len(batch) == size or first_beside_later:
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch


def _score(
    model: nn.Module,
    documents: Sequence[np.ndarray],
    batch: list[Span],
    window: int,
    device: torch.device | str,
    *,
    border: int,
) -> list[list[float]]:
    """Return of each span the summed NLL of its scored tokens, and of those from `border` on, in nats and float64."""
    rows = np.stack([documents[span.document][span.start : span.start + window] for span in batch])
    tokens: Int[Tensor, "batch window"] = torch.from_numpy(rows.astype(np.int64)).to(device)
    keep = max(span.scored for span in batch)
    nll = forward_nll(model, tokens, keep=keep).double()
    column = torch.arange(keep, device=nll.device)
    scored = torch.tensor([span.scored for span in batch], device=nll.device)
    first = torch.tensor([span.start + window - keep for span in batch], device=nll.device)
    nll = torch.where(column >= keep - scored[:, None], nll, 0.0)
    ends = torch.where(first[:, None] + column >= border, nll, 0.0)
    return torch.stack([nll.sum(dim=1), ends.sum(dim=1)], dim=1).tolist()
