"""Next-token losses in float32 that never hold whole logits in float32.

With a vocabulary of 150k tokens a float32 copy of a batch's logits, its softmax and its gradient outweigh the
model. Here one chunk of predictions at a time is cast to float32, and again in the backward pass, so that beside
the logits only their gradient, in their own dtype, is held whole. With the head in it (`head_nll`) neither is.
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


def head_nll(
    hidden: Float[Tensor, "batch tokens width"],
    weight: Float[Tensor, "vocabulary width"],
    bias: Float[Tensor, " vocabulary"] | None,
    tokens: Int[Tensor, "batch tokens"],
) -> Float[Tensor, "batch predictions"]:
    """Return the NLL of every token but each row's first, from what a model's head reads; logits are never held whole.

    One chunk of logits at a time is computed, in the dtype of `hidden`, and again in the backward pass; the gradient of
    the head's weight is added up in float32.

    Args:
        hidden: States at t, from which token t + 1 is predicted; the last ones are not used.
        weight: Of the head.
        bias: Of the head, None where it has none.
        tokens: The row's tokens, int64.

    Returns:
        float32 [batch, tokens - 1], nats, differentiable once in `hidden`, `weight` and `bias`.
    """
    return _HeadNll.apply(hidden[:, :-1], weight, bias, tokens[:, 1:])


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


class _HeadNll(torch.autograd.Function):
    """Cross-entropy behind a linear layer, a chunk of tokens of all rows at a time."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        nll = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        flat = nll.view(-1)
        states, wanted = hidden.flatten(0, 1), targets.flatten()
        for part in _parts(states, weight):
            logits = F.linear(states[part], weight, bias).float()
            flat[part] = F.cross_entropy(logits, wanted[part], reduction="none")
        ctx.save_for_backward(hidden, weight, bias, targets)  # type: ignore[arg-type]
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors  # type: ignore[attr-defined]
        needs = ctx.needs_input_grad  # type: ignore[attr-defined]
        states, wanted, share = hidden.flatten(0, 1), targets.flatten(), gradient.flatten()
        of_states = torch.empty_like(states)
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if needs[2] else None
        for part in _parts(states, weight):
            apart = F.linear(states[part], weight, bias).float().softmax(dim=-1)
            index = wanted[part].unsqueeze(-1)
            apart.scatter_(-1, index, apart.gather(-1, index) - 1)
            of_logits = apart.mul_(share[part].unsqueeze(-1)).to(states.dtype)
            of_states[part] = of_logits @ weight
            if of_weight is not None:
                of_weight += of_logits.t() @ states[part]
            if of_bias is not None:
                of_bias += of_logits.sum(dim=0, dtype=torch.float32)
        given = (of_weight, of_bias)
        return of_states.view_as(hidden), *(each if each is None else each.to(weight.dtype) for each in given), None


def _parts(states: Tensor, weight: Tensor) -> Iterator[slice]:
    """Yield stretches of tokens whose logits are one chunk."""
    width = max(1, CHUNK_ELEMENTS // len(weight))
    for start in range(0, len(states), width):
        yield slice(start, start + width)


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
