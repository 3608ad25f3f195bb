"""Traits of a base that make its context hard to extend, found on its modules and config."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from e2ray.core.extending import MANY, hard_traits
from e2ray.testing.models import FAMILIES, tiny_model

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 20, "head_dim": 8}


def built(kind, **changes):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(kind(**SMALL, num_attention_heads=4, **changes))


@pytest.mark.parametrize(
    ("model", "length", "wanted"),
    [
        ((LlamaConfig, {"num_key_value_heads": 4}), 8192, []),
        ((LlamaConfig, {"num_key_value_heads": 2}), 8192, ["4 query heads share 2 key heads"]),
        ((LlamaConfig, {"num_key_value_heads": 4}), 4096, ["pretrained on 4,096 tokens"]),
        (
            (Qwen3Config, {"num_key_value_heads": 2}),
            4096,
            ["queries and keys are normalised", "4 query heads share 2 key heads", "pretrained on 4,096 tokens"],
        ),
        ((MistralConfig, {"num_key_value_heads": 4, "sliding_window": 64}), 8192, ["layers with a sliding window"]),
        ((MistralConfig, {"num_key_value_heads": 4, "sliding_window": None}), 8192, []),
    ],
)
def test_each_trait_is_found_and_none_where_there_is_none(model, length, wanted):
    kind, changes = model
    found = hard_traits(built(kind, **changes), length)
    assert found == wanted and (len(found) >= MANY) is (kind is Qwen3Config)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_asked(family):
    assert set(map(type, hard_traits(tiny_model(family), 512))) == {str}
