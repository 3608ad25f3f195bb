"""Does a serving profile give the model that was trained? Loaded back from the disk and compared, in fp32.

A profile is a few numbers in a JSON file, and servers read such numbers each in its own way: a missing key falls
back to a default without a word. So every profile of an export is loaded with plain transformers, as its users
will, and compared with the rotary hook that the model was trained with.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from e2ray.config.base import SettingsError
from e2ray.core.model import non_finite
from e2ray.core.rope import RotaryHook, find_rotary_modules
from e2ray.evaluate.documents import Progress
from e2ray.evaluate.perplexity import paper_scale
from e2ray.files import read_json

MAX_LOGIT_DIFFERENCE = 1e-4
COMPARED_TOKENS = 512  # of a forward; positions beyond are compared at the rotary modules
POSITIONS_PER_CHUNK = 65_536
# Angles of both sides are float32: some six roundings of 2**-24 each, relative to the angle itself.
ROTARY_TOLERANCE = 2e-6
ANGLE_TOLERANCE = 5e-7


@dataclass(frozen=True)
class Check:
    """What loading one profile back has shown.

    Attributes:
        context_length: W in tokens.
        scale: g the hook was set to.
        tokens: Random tokens of the forward pass.
        max_logit_difference: Largest absolute difference of logits, fp32.
        max_rotary_difference: Largest difference of cosines and sines over all positions 0 to W - 1.
    """

    context_length: int
    scale: float
    tokens: int
    max_logit_difference: float
    max_rotary_difference: float


def profile_folder(folder: Path, context_length: int) -> Path:
    """Return where a context length's profile lies in an export."""
    return folder / "serving" / str(context_length)


def served_scale(context_length: int, base_context_length: int) -> float:
    """Return W / L, at least 1, rounded up so that scale * L reaches W in floating point.

    Servers compare W with that product and would refuse a context length one rounding too long.
    """
    scale = paper_scale(context_length, base_context_length)
    return scale if scale * base_context_length >= context_length else math.nextafter(scale, math.inf)


def verify(
    folder: str | Path,
    *,
    base_context_length: int,
    context_lengths: Sequence[int],
    scales: Mapping[int, float] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Check]:
    """Load every profile of an export back with plain transformers and compare it with the rotary hook, in fp32.

    Compared are the logits of random tokens (at most 512 of them) and the cosines and sines of every rotary
    module at all positions from 0 to W - 1, where float32 angles allow a difference that grows with the angle.

    Args:
        folder: An export; its files are what is checked.
        base_context_length: L in tokens.
        context_lengths: W in tokens.
        scales: g by W; W / L where it names none.
        seed: Of the random tokens.
        progress: Takes one line per profile.

    Raises:
        FileNotFoundError: If a profile is not there.
        SettingsError: If a weight is not finite, or a profile differs from the hook at its scale.
    """
    folder = Path(folder)
    chosen = {length: served_scale(length, base_context_length) for length in context_lengths} | dict(scales or {})
    overrides = {
        length: read_json(profile_folder(folder, length) / "config_override.json", wanted="a serving profile")
        for length in context_lengths
    }
    with _without_bars():
        model = _load(folder, {})
        wrong = non_finite(model, torch.float32)
        if wrong:
            raise SettingsError(f"{folder}: {wrong} holds numbers that are not finite; export a model that is whole")
        hook = RotaryHook(model)
        texts, wanted = {}, {}
        for length in context_lengths:
            texts[length] = _random_tokens(model.config.vocab_size, min(length, COMPARED_TOKENS), seed)
            with hook.applied(chosen[length]):
                wanted[length] = _logits(model, texts[length])
        del model  # the hook keeps the rotary modules, the weights go
        checks = []
        for length, override in overrides.items():
            try:
                served = _load(folder, override)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise SettingsError(
                    f"serving/{length}: transformers cannot load it ({type(error).__name__}: {error}); refused"
                ) from None
            check = _compare(served, hook, length, chosen[length], texts[length], wanted[length])
            checks.append(check)
            if progress is not None:
                progress(
                    f"serving/{length}: scale {check.scale:g}, logits equal to the hook's within "
                    f"{check.max_logit_difference:.1e}"
                )
            del served
    return checks


def _compare(
    served: PreTrainedModel,
    hook: RotaryHook,
    length: int,
    scale: float,
    tokens: Int[Tensor, "one tokens"],
    wanted: Float[Tensor, "tokens vocab"],
) -> Check:
    with hook.applied(scale):
        rotary = max(
            _rotary_difference(module, reference, length, scale, f"serving/{length}")
            for module, reference in zip(find_rotary_modules(served), hook.rotary_modules, strict=True)
        )
    difference = float((_logits(served, tokens) - wanted).abs().max())
    if not difference <= MAX_LOGIT_DIFFERENCE:
        raise SettingsError(
            f"serving/{length}: loaded back, its logits differ from the trained model's at scale {scale:g} by "
            f"{difference:.2g}, wanted at most {MAX_LOGIT_DIFFERENCE:g}; refused. Scales that are powers of two round "
            "alike: choose such a multiple of the base context length"
        )
    return Check(length, scale, tokens.shape[1], difference, rotary)


@torch.no_grad()
def _rotary_difference(served: nn.Module, reference: nn.Module, length: int, scale: float, name: str) -> float:
    """Return the largest difference of cosines and sines at positions 0 to `length` - 1, all layer types.

    Raises:
        SettingsError: If they differ by more than float32 angles explain.
    """
    largest = 0.0
    layer_types = [{"layer_type": kind} for kind in getattr(served, "layer_types", ())] or [{}]
    like = torch.zeros(1, 1)
    for start in range(0, length, POSITIONS_PER_CHUNK):
        ids = torch.arange(start, min(length, start + POSITIONS_PER_CHUNK))[None]
        allowed = ROTARY_TOLERANCE + ANGLE_TOLERANCE * ids[0, :, None] / scale
        for kind in layer_types:
            for one, other in zip(served(like, ids, **kind), reference(like, ids, **kind), strict=True):
                difference = (one[0] - other[0]).abs()
                if not bool((difference <= allowed).all()):
                    position = start + int((difference - allowed).amax(dim=1).argmax())
                    raise SettingsError(
                        f"{name}: loaded back, its rotation at position {position} differs from the trained model's "
                        f"at scale {scale:g} by {float(difference.max()):.2g}; refused"
                    )
                largest = max(largest, float(difference.max()))
    return largest


def _load(folder: Path, override: Mapping[str, Any]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **override)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    return model.eval()


def _random_tokens(vocab_size: int, tokens: int, seed: int) -> Int[Tensor, "one tokens"]:
    return torch.randint(vocab_size, (1, tokens), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def _logits(model: PreTrainedModel, tokens: Int[Tensor, "one tokens"]) -> Float[Tensor, "tokens vocab"]:
    return model(input_ids=tokens, use_cache=False).logits[0].float()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar per loading; what was set before holds again afterwards."""
    drawn = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if drawn:
            transformers_logging.enable_progress_bar()
