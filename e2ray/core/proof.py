"""The proof that positions are what a draw says, run on the loaded model before a run's first step.

A wrong position does not stop a training: the loss still falls while attention is cut, angles are rounded or the
scale has no effect. So the very forward pass that is trained, engine and checkpointing included, has to show that
it does what the draws ask for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from e2ray.config.base import SettingsError
from e2ray.core.rope import RotaryHook, frequency_buffers

# A power of two, by which float32 numbers are divided without rounding: both sides of the proof are then equal.
PROOF_SCALE = 4.0
PROOF_PREFIX = 4


def prove(
    forward: Callable[[Int[Tensor, "one tokens"]], Float[Tensor, "one tokens vocabulary"]],
    hook: RotaryHook,
    model: nn.Module,
    *,
    vocab_size: int,
    tokens: int = 64,
    device: str | torch.device,
) -> None:
    """Prove on the loaded model that positions are what a draw says, in the mode that is trained.

    Inverse frequencies are float32; scale 1 without offsets equals the untouched model; a scale equals its
    frequencies and temperature written into the modules, as a config's would be; a scale and a shift behind a prefix
    each change the logits; under both the last token still depends on the first. "Equal" allows four times what two
    runs of the untouched model differ by: 0 on all but non-deterministic ones. The hook is cleared afterwards.

    Args:
        forward: Logits of token ids, int64 [1, tokens] without mask and positions, as in a training step.
        hook: The model's hook.
        model: The module that holds the rotary modules; may be an engine.
        vocab_size: Tokens to choose from.
        tokens: Length of the text, cut to the model's sliding window; at least 8.
        device: Where `forward` wants its tokens.

    Raises:
        SettingsError: Naming the proof that failed.
    """
    _demand_float32(hook, model)
    ids = _proof_tokens(model, vocab_size, tokens)
    other = ids.clone()
    other[0, 0] = (ids[0, 0] + 1) % vocab_size
    shift = _shift(ids.shape[1], device)

    def logits(
        scale: float | None, offsets: Tensor | None = None, text: Tensor = ids
    ) -> Float[Tensor, "tokens vocabulary"]:
        hook.clear()
        if scale is not None:
            hook.set(scale, offsets)
        try:
            with seeded(0, device):  # the same dropout each time
                return forward(text.to(device))[0].detach().float()
        finally:
            hook.clear()

    untouched = logits(None)
    _demand(bool(untouched.isfinite().all()), "its logits are not finite", model)
    noise = 4 * _difference(untouched, logits(None))
    scaled, shifted = logits(PROOF_SCALE), logits(1.0, shift)
    with hook.in_place(PROOF_SCALE):
        divided = logits(None)
    both, both_other = logits(PROOF_SCALE, shift), logits(PROOF_SCALE, shift, other)
    identity = _difference(untouched, logits(1.0, torch.zeros_like(shift)))
    _demand(identity <= noise, f"scale 1 without offsets changes its logits by {identity:.2g}", model)
    reference = _difference(scaled, divided)
    _demand(reference <= noise, f"scale {PROOF_SCALE} differs from its frequencies in place by {reference:.2g}", model)
    _demand(_difference(scaled, untouched) > noise, "a scale does not change its logits", model)
    _demand(_difference(shifted, untouched) > noise, "a shift behind a prefix does not change its logits", model)
    reach = _difference(both[-1], both_other[-1])
    _demand(reach > noise, "the last token does not depend on the first under a scale and a shift", model)


def _shift(tokens: int, device: str | torch.device) -> Int[Tensor, "one tokens"]:
    """Return offsets that move every token after the prefix by four times the length of the text."""
    shift = torch.zeros(1, tokens, dtype=torch.int64, device=device)
    shift[:, PROOF_PREFIX:] = 4 * tokens
    return shift


def _demand_float32(hook: RotaryHook, model: nn.Module) -> None:
    for module in hook.rotary_modules:
        for name, buffer in frequency_buffers(module).items():
            _demand(buffer.dtype == torch.float32, f"its {name} is {buffer.dtype}, wanted float32", model)


def prove_apart(
    forward: Callable[[Int[Tensor, "two tokens"], Int[Tensor, "two tokens"]], Float[Tensor, "two tokens vocabulary"]],
    hook: RotaryHook,
    model: nn.Module,
    *,
    vocab_size: int,
    tokens: int = 64,
    device: str | torch.device,
) -> None:
    """Prove on the loaded model that documents in packed rows do not see each other, under a scale and a shift.

    In two rows of two documents each, other tokens in a first document change its own logits and nothing in the second
    or in the other row; in a second document, the last token still depends on the first. The hook is cleared
    afterwards.

    Args:
        forward: Logits of token ids and of position ids that restart with a document, both int64 [2, tokens].
        hook: The model's hook.
        model: The module that holds the rotary modules; may be an engine.
        vocab_size: Tokens to choose from.
        tokens: Length of the text, cut to the model's sliding window; at least 8.
        device: Where `forward` wants its tokens.

    Raises:
        SettingsError: Naming the proof that failed.
    """
    text = _proof_tokens(model, vocab_size, tokens).repeat(2, 1)
    length = text.shape[1]
    cuts = (length // 2 - 1, length // 4)  # the second document is the longer one, so that its ids are not the first's
    ids = torch.stack([torch.cat([torch.arange(cut), torch.arange(length - cut)]) for cut in cuts]).to(device)
    shift = _shift(length, device)

    def logits(*changed: int) -> Float[Tensor, "two tokens vocabulary"]:
        other = text.clone()
        if changed:
            other[changed] = (text[changed] + 1) % vocab_size
        with hook.applied(PROOF_SCALE, shift), seeded(0, device):
            return forward(other.to(device), ids).detach().float()

    whole = logits()
    noise = 4 * _difference(whole, logits())
    for row, cut in enumerate(cuts):
        first, second = logits(row, 0), logits(row, cut)
        leak = _difference(first[row, cut:], whole[row, cut:])
        _demand(leak <= noise, f"a packed document sees the one before it, its logits change by {leak:.2g}", model)
        leak = max(_difference(each[1 - row], whole[1 - row]) for each in (first, second))
        _demand(leak <= noise, f"a packed row sees another one, its logits change by {leak:.2g}", model)
        starts = (first[row, cut - 1] - whole[row, cut - 1], second[row, -1] - whole[row, -1])
        for apart in starts:
            _demand(float(apart.abs().max()) > noise, "a packed document does not see its own start", model)


@contextmanager
def seeded(seed: int, device: str | torch.device) -> Iterator[None]:
    """Seed torch within the block and restore the global random state afterwards."""
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs that are not forked too
        for gpu in devices:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


def _demand(holds: bool, complaint: str, model: nn.Module) -> None:
    if not holds:
        raise SettingsError(
            f"proof of positions failed on {type(model).__name__}: {complaint}; "
            "this model cannot be trained with scaled positions, choose another model or model.attention"
        )


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _proof_tokens(model: nn.Module, vocab_size: int, tokens: int) -> Int[Tensor, "one tokens"]:
    """Return fixed random tokens, few enough that every layer sees the first one from the last."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            for key in ("sliding_window", "attention_chunk_size"):
                tokens = min(tokens, getattr(module.config.get_text_config(), key, None) or tokens)
    if tokens < 2 * PROOF_PREFIX:
        raise ValueError(f"the proof needs at least {2 * PROOF_PREFIX} tokens within the sliding window, got {tokens}")
    return torch.randint(vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
