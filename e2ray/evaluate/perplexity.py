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
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook
from e2ray.data.pace import Pace, Progress
from e2ray.evaluate.documents import too_short
from e2ray.evaluate.intervals import ratio_interval, ratio_stderr
from e2ray.evaluate.scoring import evaluating, forward_nll
from e2ray.records.evaluation import Cell

Read = TypeVar("Read")

BOS_POLICY = "no token is added; the first token of a document is context only and never scored"

MAX_NLL = math.log(sys.float_info.max)  # nats, whose perplexity is the largest float
OUT_OF_MEMORY = "it does not fit into memory; lower evaluate.batch_tokens or give the workers more"


class DivergedWeights(SettingsError):
    """A model's NLL or its perplexity is not a finite number."""


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums of one cell, one entry per document.

    Attributes:
        model: `tuned` or `base`.
        window: W, tokens of a window.
        scale: g >= 1.
        stride: Tokens by which a window moves on.
        documents: int64 [documents], their numbers among all that are scored.
        nll: float64 [documents], nats over a document's scored tokens.
        tokens: int64 [documents], tokens scored.
        end_nll: float64 [documents], nats over those of them that windows of every size score among their last S: the
            same tokens in all cells, each after at least W - S others. None where that was not kept.
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
        """The key of a cell: model, window and scale."""
        return self.model, self.window, self.scale

    @property
    def mean(self) -> float:
        """Nats per token over all documents."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def end(self) -> "Sums | None":
        """The sums over only the tokens of `end_nll`, None where that was not kept."""
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
    """Return each document's summed NLL per window and scale; what does not fit is left out and reported in one line.

    Args:
        model: A causal language model of transformers in its own precision; it is in evaluation mode during the call.
        hook: The rotary hook of `model`, not applied.
        documents: Integer tokens of shape [length] each, as `select_documents` returns them.
        windows: W in tokens, each at least 2.
        scales: g, each at least 1; a function returns those of a window.
        stride: S, tokens by which a window moves on.
        batch_tokens: Tokens of one forward, at least one window.
        device: Where the model is.
        name: `tuned` or `base`, written into the results.
        numbers: The documents' numbers among those that all workers score together; None counts them here.
        progress: Takes one line per window and scale, and within one how far all of them are.

    Raises:
        SettingsError: If there are no documents.
        DivergedWeights: If an NLL is not finite.
    """
    if not documents:
        raise SettingsError(too_short(documents, 2, None))
    lengths = [len(document) for document in documents]
    shortest = min(lengths)
    reachable = [window for window in windows if window <= shortest]
    longest = max(reachable, default=2)
    border = longest - min(stride, longest - 1)  # from this token on, every window scores with its last S
    named = np.arange(len(documents)) if numbers is None else np.asarray(numbers)
    asked = [(window, float(g)) for window in reachable for g in (scales(window) if callable(scales) else scales)]
    total = sum(tokens_read(lengths, window, stride) for window, _ in asked)
    cells = []
    with evaluating(model), Pace(progress, f"{name}: reading", total=total, unit="tokens") as pace:
        reader = _Reader(model, hook, documents, stride, batch_tokens, device, name, named, border, pace)
        for window, scale in asked:
            sums = if_it_fits(partial(reader.sums, window, scale))
            if sums is None:
                pace.tell(f"{name}: window {window}, scale {scale:g} left out: {OUT_OF_MEMORY}")
                continue
            pace.tell(f"{name}: window {window}, scale {scale:g}: NLL {sums.mean:.4f} nats per token")
            cells.append(sums)
        for window in windows:
            if window > shortest:
                pace.tell(f"{name}: window {window} left out; the shortest document has {shortest} tokens")
    return cells


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads documents in windows of any length at any scale; tokens from `border` on are also summed by themselves."""

    model: nn.Module
    hook: RotaryHook
    documents: Sequence[np.ndarray]
    stride: int
    batch_tokens: int
    device: torch.device | str
    name: str
    numbers: np.ndarray
    border: int
    pace: Pace

    def sums(self, window: int, scale: float) -> Sums:
        """Return the sums of the documents.

        Raises:
            DivergedWeights: If the NLL is not finite.
        """
        stride = min(self.stride, window - 1)
        nll = np.zeros((2, len(self.documents)))  # over all scored tokens, and over those from `border` on
        with torch.no_grad(), self.hook.applied(scale):
            for batch in _batches(self.documents, window, stride, self.batch_tokens):
                scored = _score(self.model, self.documents, batch, window, self.device, border=self.border)
                for span, both in zip(batch, scored, strict=True):
                    nll[:, span.document] += both
                self.pace.add(window * len(batch))
        counts = np.array([len(document) for document in self.documents])
        sums = Sums(
            model=self.name,
            window=window,
            scale=scale,
            stride=stride,
            documents=self.numbers,
            nll=nll[0],
            tokens=counts - 1,
            end_nll=nll[1],
            end_tokens=counts - self.border,
        )
        if not sums.mean <= MAX_NLL:
            raise DivergedWeights(
                f"{sums.model} model, window {window}, scale {scale:g}: NLL is {sums.mean}, wanted a number "
                "whose perplexity is finite; the weights have diverged, train with a lower train.lr"
            )
        return sums


def tokens_read(lengths: Sequence[int], window: int, stride: int) -> int:
    """Return the number of tokens in all windows over documents of these lengths, each at least `window`."""
    step = min(stride, window - 1)
    return window * sum(1 + math.ceil((length - window) / step) for length in lengths)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that a device or the machine has too little memory for a tensor."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def if_it_fits(read: Callable[[], Read]) -> Read | None:
    """Return the result of a reading, None where it does not fit into memory."""
    try:
        return read()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    return None


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
        names = ("documents", "nll", "tokens", "end_nll", "end_tokens")
        documents, nll, tokens, end_nll, end_tokens = (
            np.concatenate([getattr(sums, name) for sums in whole])[order] for name in names
        )
        together.append(
            replace(first, documents=documents, nll=nll, tokens=tokens, end_nll=end_nll, end_tokens=end_tokens)
        )
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


def spans(length: int, *, window: int, step: int, document: int = 0) -> Iterator[Span]:
    """Yield the windows over a document of `length` >= `window` tokens; 1 <= `step` < `window`.

    Each token after the first is scored by exactly one of them, with at least `window` - `step` tokens of context
    after the first window.
    """
    yield Span(document, 0, window - 1)
    end = window
    while end < length:
        scored = min(step, length - end)
        end += scored
        yield Span(document, end - window, scored)


def _batches(documents: Sequence[np.ndarray], window: int, step: int, batch_tokens: int) -> Iterator[list[Span]]:
    """Yield batches of windows of all documents; those that score equally many tokens are together.

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
    """Return for each span the summed NLL of its scored tokens, and of those from `border` on, in nats and float64."""
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
