"""Extensions of a RoPE model that need no training, for comparison: linear, NTK, dynamic NTK and YaRN.

The frequencies are those that transformers gives a model whose config asks for the scaling (NTK, which it does not
know, is its default type at a larger base frequency), put into the loaded model for a while. So what is compared is
what people serve, and the weights are loaded once.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from e2ray.config.base import SettingsError
from e2ray.core.rope import find_rotary_modules

Extension = Literal["linear", "ntk", "dynamic_ntk", "yarn"]
EXTENSIONS: tuple[Extension, ...] = get_args(Extension)


@contextmanager
def extended(
    model: nn.Module, kind: Extension, *, scale: float, base_context_length: int, window: int | None = None
) -> Iterator[None]:
    """Read as the model does under an untrained extension within the block, then as before.

    Args:
        model: A causal language model of transformers with plain RoPE, all layers alike.
        kind: `linear` (positions / scale, arXiv:2306.15595), `ntk` (base frequency b * scale^(d / (d - 2))),
            `dynamic_ntk` (the same, growing with the text: b * (scale * W / L - (scale - 1))^(d / (d - 2))), `yarn`
            (arXiv:2309.00071: ramp between 1 and 32 rotations, cosines and sines times 0.1 ln(scale) + 1).
        scale: g >= 1; for `dynamic_ntk` the factor of the longest text served.
        base_context_length: L in tokens.
        window: W in tokens, for `dynamic_ntk`.

    Raises:
        SettingsError: If the model carries a scaling already, or its layers differ.
        ValueError: If a scale is below 1 or `dynamic_ntk` is not told the window.
    """
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    if kind == "dynamic_ntk" and window is None:
        raise ValueError("dynamic_ntk needs the window, got None")
    modules: list[Any] = list(find_rotary_modules(model))
    for module in modules:
        found = getattr(module, "rope_type", None)
        if found != "default":
            found = found if isinstance(found, str) else "one per layer type"
            raise SettingsError(
                f"untrained {kind}: the model's rope is {found}, wanted plain RoPE in all layers; leave {kind} out"
            )
    before = [(module.inv_freq, module.inv_freq.clone(), module.attention_scaling) for module in modules]
    try:
        for module in modules:
            frequencies, attention = _frequencies(module, kind, scale, base_context_length, window)
            module.inv_freq.copy_(frequencies)
            module.attention_scaling = attention
        yield
    finally:
        for module, (buffer, frequencies, attention) in zip(modules, before, strict=True):
            buffer.copy_(frequencies)
            module.attention_scaling = attention


def _frequencies(
    module: Any, kind: Extension, scale: float, base_context_length: int, window: int | None
) -> tuple[torch.Tensor, float]:
    """Return a rotary module's inverse frequencies and attention factor under an extension."""
    config = copy.copy(module.config)
    plain = dict(config.rope_parameters)
    dimension = 2 * module.inv_freq.shape[0]
    if kind == "ntk":
        grown = float(plain["rope_theta"]) * scale ** (dimension / (dimension - 2))
        powers = torch.arange(0, dimension, 2, dtype=torch.float32) / dimension
        return 1.0 / grown**powers, 1.0
    config.max_position_embeddings = base_context_length
    name = {"dynamic_ntk": "dynamic"}.get(kind, kind)
    config.rope_parameters = plain | {"rope_type": name, "factor": float(scale)}
    if kind == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = base_context_length
    length = {"seq_len": window} if kind == "dynamic_ntk" else {}
    return ROPE_INIT_FUNCTIONS[name](config, torch.device("cpu"), **length)
