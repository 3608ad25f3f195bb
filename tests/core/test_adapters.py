"""Adapters and tensors trained in full: what is trained is what is merged and written, whatever shares its tensor."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from e2ray.config.base import SettingsError
from e2ray.config.model import LoraSettings
from e2ray.core.adapters import shared_modules, with_adapters
from e2ray.core.model import merged
from e2ray.testing.models import FAMILIES, logits, random_tokens, tiny_model

CHOICES = {
    "both ends": (("embed_tokens", "lm_head"), ()),
    "embeddings": (("embed_tokens",), ()),
    "head": (("lm_head",), ()),
    "inner and embeddings": (("q_proj", "embed_tokens"), ()),
    "inner, embeddings in full": (("q_proj",), ("embed_tokens",)),
    "inner, head and norms in full": (("v_proj",), ("lm_head", "norm")),
    "head beside embeddings in full": (("o_proj", "lm_head"), ("embed_tokens",)),
    "a target inside of what is trained in full": (("down_proj", "q_proj"), ("mlp", "embed_tokens")),
}
SHARING = "ignore:model.lora.targets.* (share a weight|lie in):UserWarning"


def trained(model):
    """Make three large updates of whatever may be trained."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-2)
    tokens = random_tokens(2, 16)
    for _ in range(3):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.filterwarnings(SHARING)
@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_written_model_is_the_trained_one(family, tied, choice, tmp_path):
    targets, trainable = CHOICES[choice]
    base = tiny_model(family, tie_word_embeddings=tied)
    tokens = random_tokens(1, 20)
    before = logits(base, tokens)
    model = trained(with_adapters(base, LoraSettings(rank=4, alpha=8.0, targets=targets, trainable=trainable)))
    wanted = logits(model, tokens)
    assert (wanted - before).abs().max() > 0.1
    merged(model).save_pretrained(tmp_path)
    written = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(written, tokens), wanted, rtol=0, atol=1e-4)  # merging adds up in another order


def test_modules_that_share_are_found_by_their_tensors_not_by_the_config():
    model = tiny_model("llama", tie_word_embeddings=False)
    assert shared_modules(model) == {}
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    second.up_proj.weight = first.up_proj.weight
    name, other = "model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"
    assert shared_modules(model) == {name: other, other: name}


def test_any_shared_tensor_is_trained_itself_and_told():
    model = tiny_model("qwen2", tie_word_embeddings=False)
    first, second = model.model.layers[0].mlp, model.model.layers[1].mlp
    second.up_proj.weight = first.up_proj.weight
    with pytest.warns(
        UserWarning, match=r"model\.lora\.targets: model\.layers\.0\.mlp\.up_proj \(with model\.layers\.1"
    ):
        model = with_adapters(model, LoraSettings(rank=2, targets=("up_proj", "q_proj")))
    wanted = logits(trained(model), random_tokens(1, 9))
    plain = merged(model)
    torch.testing.assert_close(logits(plain, random_tokens(1, 9)), wanted, rtol=0, atol=1e-4)
    assert plain.model.layers[1].mlp.up_proj.weight is plain.model.layers[0].mlp.up_proj.weight


@pytest.mark.parametrize("within", ["self_attn", "layers", "model"])
def test_targets_inside_of_what_is_trained_in_full_are_told(within):
    settings = LoraSettings(rank=2, targets=("q_proj", "v_proj"), trainable=(within,))
    with pytest.warns(
        UserWarning, match=r"q_proj, .* and 1 more lie in model\.lora\.trainable, so they are trained in"
    ):
        model = with_adapters(tiny_model("llama"), settings)
    names = [name for name, each in model.named_parameters() if each.requires_grad]
    assert names and not any("lora_" in name for name in names)


@pytest.mark.parametrize("name", ["act_fn", "rotary_emb"])
def test_modules_without_weights_cannot_be_trained(name):
    with pytest.raises(SettingsError, match=rf"model\.lora\.trainable: \S*{name} has no weights to train"):
        with_adapters(tiny_model("llama"), LoraSettings(rank=2, targets=("q_proj",), trainable=(name,)))


def test_what_is_not_named_stays_as_it_was():
    model = with_adapters(tiny_model("llama"), LoraSettings(rank=2, targets=("q_proj",), trainable=("norm",)))
    names = {name for name, each in model.named_parameters() if each.requires_grad}
    assert all(("lora_" in name and ".q_proj." in name) or ".norm." in name for name in names)
    assert len(names) == 2 * 2 + 1


@pytest.mark.parametrize(("key", "name"), [("targets", "query"), ("trainable", "embed_token"), ("targets", "proj")])
def test_a_name_that_matches_nothing_is_told_with_those_there_are(key, name):
    with pytest.raises(SettingsError, match=rf"model\.lora\.{key}: LlamaForCausalLM has no module '{name}'.*q_proj"):
        with_adapters(tiny_model("llama"), LoraSettings(**{key: (name,)}))


@pytest.mark.parametrize("name", ["norm", "self_attn", "act_fn"])
def test_a_module_that_can_have_no_adapter_is_told(name):
    with pytest.raises(SettingsError, match=r"model\.lora\.targets: Target module .*name linear modules or embeddings"):
        with_adapters(tiny_model("llama"), LoraSettings(targets=(name,)))
