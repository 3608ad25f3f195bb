"""How far layers see is what the models themselves show: a token beyond the reach changes nothing, one within does."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MiniMaxConfig,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from e2ray.config.base import SettingsError
from e2ray.core.sight import check_sight, sight
from e2ray.testing.models import SIZES

TOKENS = 48
SLIDING, FULL, CHUNKED = "sliding_attention", "full_attention", "chunked_attention"
QWEN = {"use_sliding_window": True, "sliding_window": 8}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}
LLAMA4 = EXPERTS | {"intermediate_size_mlp": 64, "attention_chunk_size": 12, "head_dim": 16}
CONFINED = {
    "mistral": (MistralConfig, {"sliding_window": 8}, 15),
    "mistral of three layers": (MistralConfig, {"sliding_window": 5, "num_hidden_layers": 3}, 13),
    "mixtral": (MixtralConfig, EXPERTS | {"sliding_window": 8}, 15),
    "ministral": (MinistralConfig, {"sliding_window": 9, "head_dim": 16}, 17),
    "qwen2": (Qwen2Config, QWEN | {"max_window_layers": 0}, 15),
    "qwen3": (Qwen3Config, QWEN | {"max_window_layers": 0, "head_dim": 16}, 15),
    "gemma2": (Gemma2Config, {"sliding_window": 8, "layer_types": [SLIDING] * 2, "head_dim": 16}, 15),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 8, "layer_types": [SLIDING] * 2, "head_dim": 16}, 15),
    "gpt-oss": (GptOssConfig, EXPERTS | {"sliding_window": 8, "layer_types": [SLIDING] * 2, "head_dim": 16}, 15),
    "llama4": (Llama4TextConfig, LLAMA4 | {"layer_types": [CHUNKED] * 2}, 12),
    "minimax": (MiniMaxConfig, EXPERTS | {"sliding_window": 8, "layer_types": [FULL] * 2, "head_dim": 16}, 15),
    "mistral with layer types": (MistralConfig, {"sliding_window": 8, "layer_types": [FULL] * 2}, 15),
}
WHOLE = {
    "mistral without a window": (MistralConfig, {"sliding_window": None}),
    "a window that llama does not know": (LlamaConfig, {"sliding_window": 8}),
    "qwen2 that does not use its window": (Qwen2Config, {"sliding_window": 8, "max_window_layers": 0}),
    "qwen2 with one whole layer": (Qwen2Config, QWEN | {"max_window_layers": 1}),
    "gemma3": (Gemma3TextConfig, {"sliding_window": 8, "layer_types": [SLIDING, FULL], "head_dim": 16}),
    "llama4 with one whole layer": (Llama4TextConfig, LLAMA4 | {"layer_types": [CHUNKED, FULL]}),
}


def made(kind, changes):
    return kind(**SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}} | changes)


def moved(config, back, *, last=TOKENS - 1):
    """Return how far the logits of token `last` move when the token `back` places before it is another one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens = torch.arange(1, TOKENS + 1)[None]
    other = tokens.clone()
    other[0, last - back] = 90
    with torch.no_grad():
        return float((model(tokens).logits[0, last] - model(other).logits[0, last]).abs().max())


@pytest.mark.parametrize("name", CONFINED)
def test_nothing_beyond_the_reach_changes_a_logit_and_what_is_just_within_does(name):
    kind, changes, reach = CONFINED[name]
    config = made(kind, changes)
    assert sight(config).reach == reach
    assert moved(config, reach) == 0.0  # the token itself is the first of the reach
    assert moved(config, reach - 1) > 0.0


@pytest.mark.parametrize("name", WHOLE)
def test_one_layer_that_sees_everything_is_enough(name):
    config = made(*WHOLE[name])
    assert sight(config).reach is None
    assert moved(config, TOKENS - 1) > 0.0


def test_contexts_beyond_the_reach_are_refused_and_the_setting_is_named():
    config = made(MistralConfig, {"sliding_window": 32})
    wanted = (
        r"^model.path base: each of its 2 layers sees the nearest 32 tokens only, so nothing beyond 63 tokens can "
        r"change its logits, and evaluate.windows asks for 128; keep to 63 or choose a checkpoint with full attention$"
    )
    with pytest.raises(SettingsError, match=wanted):
        check_sight("base", config, {"positions": [64], "evaluate.windows": [64, 128]})
    chunks = made(Llama4TextConfig, LLAMA4 | {"layer_types": [CHUNKED] * 2})
    with pytest.raises(SettingsError, match="chunks of 12 tokens only, so nothing beyond 12 tokens"):
        check_sight("base", chunks, {"export.context_lengths": [13]})


def test_contexts_within_the_reach_and_beyond_a_window_are_told():
    config = made(MistralConfig, {"sliding_window": 32})
    line = check_sight("base", config, {"positions": [63]})
    assert line == (
        "model.path base: each of its 2 layers sees the nearest 32 tokens only, whatever the scale; what is farther "
        "back is handed on from layer to layer, over 63 tokens at most"
    )
    assert check_sight("base", config, {"positions": [32]}) is None


def test_local_layers_beside_global_ones_are_told_and_none_where_contexts_are_short():
    types = [SLIDING] * 5 + [FULL]
    config = made(Gemma3TextConfig, {"sliding_window": 16, "layer_types": types, "num_hidden_layers": 6})
    line = check_sight("base", config, {"positions": [1024]})
    assert line == (
        "model.path base: 5 of its 6 layers see the nearest 16 tokens only, whatever the scale; what is farther back "
        "in a context of 1,024 reaches the other 1 alone"
    )
    assert check_sight("base", config, {"positions": [16]}) is None
    assert check_sight("base", made(LlamaConfig, {}), {"positions": [10**6]}) is None
