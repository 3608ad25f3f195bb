"""NLL over (window x scale) on whole held-out documents.

A window of W tokens slides over a document by S tokens. The first
window scores all its predictions, every later one only its last S tokens, and the last one is moved back so that
it ends with the document; every token after a document's first is scored exactly once. The NLL of a cell is the
sum over all scored tokens divided by their number, never a mean of window means, and every cell scores the same
tokens of the same documents, so that all differences are the model's. Positions are plain; the scale comes from
the rotary hook.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from e2ray.config.base import SettingsError
from e2ray.core.losses import token_nll
from e2ray.core.rope import RotaryHook

BOS_POLICY = "no token is added; the first token of a document is context only and never scored"

Progress = Callable[[str], None]


class DivergedWeights(SettingsError):
    """A model's NLL is no finite number."""


@dataclass(frozen=True)
class Cell:
    """One cell of the surface: a model read in windows of `window` tokens at one scale.

    Attributes:
        model: `tuned` or `base`.
        window: W, tokens of a window.
        scale: g >= 1, the divisor of positions.
        nll: Nats per token, over all scored tokens.
        perplexity: exp(nll).
        tokens: Tokens scored.
        documents: Documents they come from.
        stride: Tokens a window moved on: S, or W - 1 where S is larger (a window holds W - 1 predictions).
        stderr: Standard error of `nll` over documents, in nats; None for one document, which shows no spread.
    """

    model: str
    window: int
    scale: float
    nll: float
    perplexity: float
    tokens: int
    documents: int
    stride: int
    stderr: float | None

    def row(self) -> dict[str, Any]:
        """Return the cell as a plain mapping, the row of evaluation.json and evaluation.parquet."""
        return asdict(self)


@dataclass(frozen=True)
class Span:
    """One window over a document: it begins at token `start` and its last `scored` tokens are scored."""

    document: int
    start: int
    scored: int


def default_windows(base_context_length: int, max_scale: float) -> tuple[int, ...]:
    """Return the windows L, 2L, 4L, ... up to max_scale * L, in tokens."""
    return tuple(int(base_context_length * scale) for scale in default_scales(max_scale))


def default_scales(max_scale: float) -> tuple[float, ...]:
    """Return the scales 1, 2, 4, ... up to `max_scale`."""
    if max_scale < 1:
        raise ValueError(f"max_scale must be at least 1, got {max_scale}")
    return tuple(2.0**power for power in range(math.floor(math.log2(max_scale)) + 1))


def default_stride(base_context_length: int) -> int:
    """Return min(256, L / 4), at least 1: the protocol of PI, YaRN and E2-LLM."""
    return min(256, max(1, base_context_length // 4))


def paper_scale(window: int, base_context_length: int) -> float:
    """Return the scale at which the paper serves a window: W / L, at least 1."""
    return max(1.0, window / base_context_length)


def reachable_windows(
    documents: Sequence[np.ndarray], windows: Sequence[int], *, cut: int | None, progress: Progress | None = None
) -> tuple[int, ...]:
    """Return the windows that at least one document fills, and tell the others in one line.

    Args:
        documents: Held-out documents, integer tokens of shape [length].
        windows: W in tokens.
        cut: Tokens of a document that are scored, from its start; None for whole documents.
        progress: Takes the line.

    Raises:
        SettingsError: If no document fills the smallest window.
    """
    longest = max((_cut_length(document, cut) for document in documents), default=0)
    reachable = tuple(window for window in windows if window <= longest)
    if not reachable:
        raise SettingsError(_too_short(documents, min(windows), cut))
    missing = [window for window in windows if window > longest]
    if missing and progress:
        progress(
            f"left out: windows {', '.join(map(str, missing))}; the longest held-out document has {longest} tokens"
            + (f" (evaluate.document_tokens cuts them to {cut})" if cut is not None and cut <= longest else "")
        )
    return reachable


def select_documents(
    documents: Sequence[np.ndarray], *, minimum_tokens: int, limit: int, cut: int | None, skip: int = 0
) -> list[np.ndarray]:
    """Return the documents that every cell scores: `limit` of at least `minimum_tokens` tokens, after the first `skip`.

    Args:
        documents: Held-out documents, integer tokens of shape [length].
        minimum_tokens: The largest window asked for.
        limit: Documents returned at most.
        cut: Tokens kept of each, from its start; None keeps them whole.
        skip: Long enough documents that are left out.

    Raises:
        SettingsError: If no document is long enough, or `skip` leaves none.
    """
    chosen = [documents[index][:cut] for index in long_enough([len(d) for d in documents], minimum_tokens, cut)]
    if not chosen:
        raise SettingsError(_too_short(documents, minimum_tokens, cut))
    if len(chosen) <= skip:
        raise SettingsError(
            f"evaluate.skip_documents: {skip} leaves none of the {len(chosen)} held-out documents of at least "
            f"{minimum_tokens} tokens; lower it or raise data.validation_share"
        )
    return chosen[skip : skip + limit]


def long_enough(lengths: Sequence[int], minimum_tokens: int, cut: int | None) -> list[int]:
    """Return the indices of the documents that `select_documents` chooses among, by their lengths in tokens."""
    return [i for i, length in enumerate(lengths) if (length if cut is None else min(length, cut)) >= minimum_tokens]


def _cut_length(document: np.ndarray, cut: int | None) -> int:
    return len(document) if cut is None else min(cut, len(document))


def _too_short(documents: Sequence[np.ndarray], wanted: int, cut: int | None) -> str:
    if not documents:
        return "evaluation: no held-out documents; raise data.validation_share or name data.validation_corpus"
    if cut is not None and cut < wanted:
        return (
            f"evaluate.document_tokens: cuts documents to {cut} tokens, wanted at least the window of {wanted}; raise "
            "it or lower evaluate.windows"
        )
    longest = max(map(len, documents))
    return (
        f"evaluation: the longest of {len(documents)} held-out documents has {longest} tokens, wanted at least "
        f"{wanted}; lower evaluate.windows or name longer documents in data.validation_corpus"
    )


def surface(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    *,
    windows: Sequence[int],
    scales: Sequence[float],
    stride: int,
    batch_tokens: int,
    device: torch.device | str,
    name: str,
    progress: Progress | None = None,
) -> list[Cell]:
    """Return one cell per window and scale; a window longer than a document is left out and told in one line.

    Args:
        model: A causal language model of transformers in its own precision; it is put into evaluation mode meanwhile.
        hook: The rotary hook of `model`, not applied.
        documents: Integer tokens of shape [length] each, as `select_documents` returns them.
        windows: W in tokens, each at least 2.
        scales: g, each at least 1.
        stride: S, tokens a window moves on.
        batch_tokens: Tokens of one forward, at least one window.
        device: Where the model stands.
        name: `tuned` or `base`, written into the cells.
        progress: Takes one line per cell.

    Raises:
        SettingsError: If there are no documents.
        DivergedWeights: If an NLL is not finite.
    """
    if not documents:
        raise SettingsError(_too_short(documents, 2, None))
    shortest = min(map(len, documents))
    cells = []
    was_training = model.training
    model.eval()
    try:
        for window in windows:
            if window > shortest:
                _tell(progress, f"{name}: window {window} left out; the shortest document has {shortest} tokens")
                continue
            for scale in scales:
                cell = _measure(model, hook, documents, window, scale, stride, batch_tokens, device, name)
                _tell(progress, f"{name}: window {window}, scale {scale:g}: NLL {cell.nll:.4f} nats per token")
                cells.append(cell)
    finally:
        model.train(was_training)
    return cells


def _tell(progress: Progress | None, line: str) -> None:
    if progress is not None:
        progress(line)


def _measure(
    model: nn.Module,
    hook: RotaryHook,
    documents: Sequence[np.ndarray],
    window: int,
    scale: float,
    stride: int,
    batch_tokens: int,
    device: torch.device | str,
    name: str,
) -> Cell:
    step = min(stride, window - 1)
    sums = np.zeros(len(documents))
    with torch.no_grad(), hook.applied(float(scale)):
        for batch in _batches(documents, window, step, batch_tokens):
            for span, nll in zip(batch, _score(model, documents, batch, window, device), strict=True):
                sums[span.document] += nll
    counts = np.array([len(document) - 1 for document in documents])
    nll = float(sums.sum() / counts.sum())
    if not math.isfinite(nll):
        raise DivergedWeights(
            f"{name} model, window {window}, scale {scale:g}: NLL is {nll}, wanted a finite number; the weights have "
            "diverged, train with a lower train.lr"
        )
    return Cell(
        model=name,
        window=window,
        scale=float(scale),
        nll=nll,
        perplexity=math.exp(nll),
        tokens=int(counts.sum()),
        documents=len(documents),
        stride=step,
        stderr=ratio_stderr(sums, counts),
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
    model: nn.Module, documents: Sequence[np.ndarray], batch: list[Span], window: int, device: torch.device | str
) -> list[float]:
    """Return the summed NLL of each span's scored tokens, in nats, added up in float64."""
    rows = np.stack([documents[span.document][span.start : span.start + window] for span in batch])
    tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
    keep = max(span.scored for span in batch) + 1  # the last `keep` positions predict the last `keep` - 1 tokens
    logits: Float[Tensor, "batch keep vocab"] = model(input_ids=tokens, use_cache=False, logits_to_keep=keep).logits
    nll = token_nll(logits, tokens[:, -keep:]).double()
    column = torch.arange(keep - 1, device=nll.device)
    scored = torch.tensor([span.scored for span in batch], device=nll.device)
    return torch.where(column >= (keep - 1) - scored[:, None], nll, 0.0).sum(dim=1).tolist()


def ratio_stderr(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the standard error of sum(sums) / sum(counts) when documents are the independent draws.

    The usual linearised estimator of a ratio: documents differ in length and all their tokens share one author, so
    tokens are no independent draws. None for a single document.
    """
    num_documents = len(sums)
    if num_documents < 2:
        return None
    residuals = sums - sums.sum() / counts.sum() * counts
    return float(math.sqrt(num_documents / (num_documents - 1) * (residuals**2).sum()) / counts.sum())
