"""Tiny random models of the families the hook is proven on; nothing is downloaded."""

from contextlib import contextmanager

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from e2ray.core.rope import find_rotary_modules, frequency_buffers

VOCAB_SIZE = 97
SLIDING_WINDOW = 16  # of the Mistral and of Gemma3's local layers
SIZES = {
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
CONFIGS = {
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


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SCALED = {
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


def tiny_config(family, *, factor=None, **changes):
    """Return a config; `factor` writes transformers' own linear scaling into it, for global layers."""
    kind, own = CONFIGS[family]
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    scaled = rope if factor is None else rope | {"rope_type": "linear", "factor": factor}
    if family == "gemma3":
        scaled = {"full_attention": scaled, "sliding_attention": rope}
    return kind(**SIZES | own | {"rope_parameters": scaled} | changes)


def tiny_model(family, *, seed=0, **options):
    """Return a random model in evaluation mode; the same seed gives the same weights whatever the config's rope."""
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(tiny_config(family, **options)).eval()


def random_tokens(*shape, seed=1):
    """Return token ids, int64."""
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def logits(model, tokens, **kwargs):
    """Return logits without gradients and without a cache, the state of training."""
    with torch.no_grad():
        return model(tokens, use_cache=False, **kwargs).logits


@contextmanager
def inverse_frequencies_divided(model, scale):
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
