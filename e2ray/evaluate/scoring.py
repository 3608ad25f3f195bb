"""NLL of every token of a forward pass, with the logits of a few tokens at a time.

At 64k tokens and a vocabulary of 128k the logits of one row alone take 32 GiB in float32, many times the model. So
the layers run once and the model's own head computes one slice of positions after the other, so that what it does
beside the matrix (soft caps, logit scales) is kept.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from e2ray.core.losses import CHUNK_ELEMENTS


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode within the block, then back into its former mode."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@torch.no_grad()
def forward_nll(
    model: nn.Module, tokens: Int[Tensor, "batch tokens"], *, keep: int | None = None, chunk_elements: int = 0
) -> Float[Tensor, "batch predictions"]:
    """Return the NLL of the last `keep` tokens of every row, each given all tokens before it.

    Args:
        model: A causal language model of transformers whose `forward` takes `logits_to_keep`, in evaluation mode.
        tokens: int64, on the model's device, at least two per row.
        keep: Tokens scored, 1 to tokens - 1; None scores all but the first.
        chunk_elements: Logits held at a time, in elements; 0 takes 2^24, which is 64 MiB in float32.

    Returns:
        float32 [batch, keep], nats.

    Raises:
        ValueError: If `keep` is out of range.
    """
    keep = _kept(tokens, keep)
    nll = torch.empty(tokens.shape[0], keep, dtype=torch.float32, device=tokens.device)

    def note(start: int, end: int, logits: Tensor, targets: Tensor) -> None:
        nll[:, start:end] = _nll(logits, targets)

    _each_slice(model, tokens, keep, chunk_elements, note)
    return nll


@torch.no_grad()
def forward_answers(
    model: nn.Module, tokens: Int[Tensor, "batch tokens"], *, keep: int | None = None, chunk_elements: int = 0
) -> tuple[Float[Tensor, "batch predictions"], Bool[Tensor, "batch predictions"]]:
    """Return what `forward_nll` does, and whether each token is the likeliest one after those before it."""
    keep = _kept(tokens, keep)
    nll = torch.empty(tokens.shape[0], keep, dtype=torch.float32, device=tokens.device)
    greedy = torch.empty(tokens.shape[0], keep, dtype=torch.bool, device=tokens.device)

    def note(start: int, end: int, logits: Tensor, targets: Tensor) -> None:
        nll[:, start:end] = _nll(logits, targets)
        greedy[:, start:end] = logits.argmax(dim=-1) == targets

    _each_slice(model, tokens, keep, chunk_elements, note)
    return nll, greedy


@torch.no_grad()
def next_log_probabilities(
    model: nn.Module, tokens: Int[Tensor, "batch tokens"], lengths: Sequence[int]
) -> Float[Tensor, "batch vocabulary"]:
    """Return the log-probability of every token of the vocabulary after the first `lengths[row]` of each row, float32.

    Later tokens of a row are padding and have no effect.
    """
    rows = []
    with _layers_done(model, tokens):
        for row, length in enumerate(lengths):
            position = torch.tensor([length - 1], device=tokens.device)
            logits = model(input_ids=tokens, use_cache=False, logits_to_keep=position).logits
            rows.append(logits[row, 0].float().log_softmax(dim=-1))
    return torch.stack(rows)


def _kept(tokens: Tensor, keep: int | None) -> int:
    num_tokens = tokens.shape[1]
    keep = num_tokens - 1 if keep is None else keep
    if not 1 <= keep < num_tokens:
        raise ValueError(f"keep must lie in [1, {num_tokens - 1}] (the row's predictions), got {keep}")
    return keep


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def _each_slice(
    model: nn.Module,
    tokens: Tensor,
    keep: int,
    chunk_elements: int,
    note: Callable[[int, int, Tensor, Tensor], None],
) -> None:
    """Call `note` with the start and end of each slice of the last `keep` tokens, its logits and its tokens."""
    num_rows, num_tokens = tokens.shape
    first = num_tokens - 1 - keep
    with _layers_done(model, tokens):
        vocab_size: int = model.config.vocab_size  # type: ignore[union-attr,assignment]
        width = max(1, (chunk_elements or CHUNK_ELEMENTS) // (num_rows * vocab_size))
        for start in range(0, keep, width):
            end = min(keep, start + width)
            positions = torch.arange(first + start, first + end, device=tokens.device)
            logits = model(input_ids=tokens, use_cache=False, logits_to_keep=positions).logits
            note(start, end, logits, tokens[:, first + start + 1 : first + end + 1])


@contextmanager
def _layers_done(model: nn.Module, tokens: Int[Tensor, "batch tokens"]) -> Iterator[None]:
    """Run a model's layers on `tokens` once; within the block its forward reuses their output.

    Raises:
        ValueError: If the model has no layers apart from its head.
    """
    unwrapped = getattr(model, "get_base_model", None)  # peft's
    inner: nn.Module = unwrapped() if unwrapped else model
    layers = getattr(inner, "base_model", inner)
    if layers is inner:
        raise ValueError(f"{type(model).__name__} has no layers apart from its head; give a causal language model")
    output = layers(input_ids=tokens, use_cache=False)
    layers.forward = lambda *args, **kwargs: output  # shadows the method of its class
    try:
        yield
    finally:
        del layers.forward
