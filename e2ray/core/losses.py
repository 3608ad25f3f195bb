"""Next-token losses in float32 that never hold whole logits in float32.

With a vocabulary of 150k tokens a float32 copy of a batch's logits, its softmax and its gradient outweigh the
model. Here one chunk of predictions at a time is cast to float32, and again in the backward pass, so that beside
the logits only their gradient, in their own dtype, is held whole.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

Chunk = tuple[slice, slice]
CHUNK_ELEMENTS = 2**24  # logits cast up at a time: 64 MiB in float32


def next_token_nll(
    logits: Float[Tensor, "batch tokens vocabulary"], tokens: Int[Tensor, "batch tokens"]
) -> Float[Tensor, " batch"]:
    """Return the mean NLL of each row over its tokens - 1 predictions.

    Args:
        logits: Of any floating type; logits at t predict token t + 1, the last ones are not used.
        tokens: The row's tokens, int64.

    Returns:
        float32 [batch], nats per token, differentiable once in `logits`.

    Raises:
        ValueError: If the shapes disagree or rows have fewer than two tokens.
    """
    return token_nll(logits, tokens).mean(dim=1)


def predicted(token_index: Int[Tensor, "batch tokens"]) -> Bool[Tensor, "batch predictions"]:
    """Return which tokens after each row's first are predicted: all but the first of a document and padding.

    Args:
        token_index: A token's index in its document; below 0 for padding.

    Returns:
        bool [batch, tokens - 1].
    """
    return token_index[:, 1:] > 0


def plain_ids(token_index: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """Return the position ids a model is given for packed rows: they restart at 0 with every document.

    Padding is a document of its own. transformers sees a new document wherever an id does not follow the one before,
    and masks each document from the others.
    """
    return torch.where(token_index < 0, -1 - token_index, token_index)


def token_nll(
    logits: Float[Tensor, "batch tokens vocabulary"], tokens: Int[Tensor, "batch tokens"]
) -> Float[Tensor, "batch predictions"]:
    """Return the NLL of every token but each row's first.

    Args:
        logits: Of any floating type; logits at t predict token t + 1, the last ones are not used.
        tokens: The row's tokens, int64.

    Returns:
        float32 [batch, tokens - 1], nats, differentiable once in `logits`.

    Raises:
        ValueError: If the shapes disagree or rows have fewer than two tokens.
    """
    if logits.ndim != 3 or logits.shape[:2] != tokens.shape or tokens.shape[1] < 2:
        raise ValueError(
            f"logits must be [batch, tokens, vocabulary] and tokens [batch, tokens] with at least 2 tokens, got "
            f"{list(logits.shape)} and {list(tokens.shape)}"
        )
    return _TokenNll.apply(logits, tokens[:, 1:])


def token_kl(
    logits: Float[Tensor, "batch tokens vocabulary"], teacher: Float[Tensor, "batch tokens vocabulary"]
) -> Float[Tensor, "batch predictions"]:
    """Return KL(teacher || student) of every token but each row's first, from the logits that predict it.

    Args:
        logits: The student's, of any floating type.
        teacher: Of the same shape; no gradient reaches it.

    Returns:
        float32 [batch, tokens - 1], nats, differentiable once in `logits`.

    Raises:
        ValueError: If the shapes disagree or rows have fewer than two tokens.
    """
    if logits.shape != teacher.shape or logits.ndim != 3 or logits.shape[1] < 2:
        raise ValueError(
            "logits of student and teacher must be [batch, tokens, vocabulary] with at least 2 tokens, got "
            f"{list(logits.shape)} and {list(teacher.shape)}"
        )
    return _TokenKl.apply(logits, teacher.detach())


def _descent(logits: Tensor, gradient: Tensor, less: Callable[[Tensor, Chunk], Tensor]) -> Tensor:
    """Return the gradient in the logits: softmax(logits) minus the target, times that of each prediction."""
    result = torch.empty_like(logits)
    result[:, -1] = 0
    for chunk in _chunks(logits):
        part = less(logits[chunk].float().softmax(dim=-1), chunk)
        result[chunk] = part.mul_(gradient[chunk].unsqueeze(-1))
    return result


def _chunks(logits: Tensor) -> Iterator[Chunk]:
    """Yield (rows, predictions) that cover all but each row's last logits, whole rows where they are small."""
    num_rows, num_tokens, vocab_size = logits.shape
    rows = max(1, CHUNK_ELEMENTS // (num_tokens * vocab_size))
    width = max(1, CHUNK_ELEMENTS // vocab_size)
    for row in range(0, num_rows, rows):
        for start in range(0, num_tokens - 1, width):
            yield slice(row, row + rows), slice(start, min(start + width, num_tokens - 1))


class _TokenNll(torch.autograd.Function):
    """Cross-entropy by chunks; its gradient, softmax(logits) - onehot(targets), is computed in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, targets: Tensor) -> Tensor:
        nll = torch.empty(targets.shape, dtype=torch.float32, device=logits.device)
        for chunk in _chunks(logits):
            part = logits[chunk].float().flatten(0, 1)
            nll[chunk] = F.cross_entropy(part, targets[chunk].flatten(), reduction="none").view_as(nll[chunk])
        ctx.save_for_backward(logits, targets)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, targets = ctx.saved_tensors  # type: ignore[attr-defined]

        def less_onehot(probabilities: Tensor, chunk: Chunk) -> Tensor:
            index = targets[chunk].unsqueeze(-1)
            return probabilities.scatter_(-1, index, probabilities.gather(-1, index) - 1)

        return _descent(logits, gradient, less_onehot), None


class _TokenKl(torch.autograd.Function):
    """KL divergence by chunks; its gradient, softmax(student) - softmax(teacher), is computed in the backward pass."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, teacher: Tensor) -> Tensor:
        apart = torch.empty(*logits.shape[:1], logits.shape[1] - 1, dtype=torch.float32, device=logits.device)
        for chunk in _chunks(logits):
            student, target = logits[chunk].float().log_softmax(dim=-1), teacher[chunk].float().log_softmax(dim=-1)
            apart[chunk] = (target.exp() * (target - student)).sum(dim=-1)
        ctx.save_for_backward(logits, teacher)
        return apart

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, teacher = ctx.saved_tensors  # type: ignore[attr-defined]

        def less_taught(probabilities: Tensor, chunk: Chunk) -> Tensor:
            return probabilities.sub_(teacher[chunk].float().softmax(dim=-1))

        return _descent(logits, gradient, less_taught), None
