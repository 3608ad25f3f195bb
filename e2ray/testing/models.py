"""Tiny random models of the families that the hook is proven on; nothing is downloaded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from e2ray.core.rope import find_rotary_modules, frequency_buffers

VOCAB_SIZE = 97
SLIDING_WINDOW = 16  # of the Mistral and of Gemma3's local layers
SIZES: Mapping[str, object] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,  # sharp attention, so that a wrong position is far outside every tolerance
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS: Mapping[str, tuple[type[PreTrainedConfig], Mapping[str, object]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 16}),
    "mistral": (MistralConfig, {"sliding_window": SLIDING_WINDOW}),
    "gemma": (GemmaConfig, {"head_dim": 16}),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 16,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}
FAMILIES = sorted(CONFIGS)


LLAMA3: Mapping[str, object] = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SCALED: Mapping[str, Mapping[str, object]] = {
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
}


def tiny_config(family: str, *, factor: float | None = None, **changes: object) -> PreTrainedConfig:
    """Return the config of a family; `factor` writes transformers' own linear scaling into it, for global layers."""
    kind, own = CONFIGS[family]
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": 10_000.0}
    scaled: dict[str, object] = rope if factor is None else rope | {"rope_type": "linear", "factor": factor}
    if family == "gemma3":
        scaled = {"full_attention": scaled, "sliding_attention": rope}
    return kind(**{**SIZES, **own, "rope_parameters": scaled, **changes})


def tiny_model(family: str, *, seed: int = 0, **options: object) -> PreTrainedModel:
    """Return a random model in evaluation mode; the same seed gives the same weights whatever the config's rope."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family, **options)).eval()  # type: ignore[arg-type]


def random_tokens(*shape: int, seed: int = 1) -> Tensor:
    """Return token ids, int64."""
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, tokens: Tensor, **options: object) -> Tensor:
    """Return logits without gradients and without a cache, as in training."""
    with torch.no_grad():
        output: Tensor = model(tokens, use_cache=False, **options).logits
    return output


@contextmanager
def inverse_frequencies_divided(model: nn.Module, scale: float) -> Iterator[None]:
    """Divide a model's inverse frequencies in place within the block, as transformers' linear scaling does."""
    saved = [
        (buffer, buffer.clone())
        for module in find_rotary_modules(model)
        for buffer in frequency_buffers(module).values()
    ]
    try:
        for buffer, _ in saved:
            buffer.div_(scale)
        yield
    finally:
        for buffer, before in saved:
            buffer.copy_(before)
