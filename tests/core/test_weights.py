"""Checkpoints that are not whole: each is refused in one line that names a parameter, none is filled or cut."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from e2ray.config.base import SettingsError
from e2ray.core.weights import load_weights
from e2ray.testing.models import FAMILIES, logits, random_tokens, tiny_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return a function that saves a tiny model once per family and tying."""
    folders = {}

    def save(family, tied):
        if (family, tied) not in folders:
            folders[family, tied] = tmp_path_factory.mktemp("whole") / "model"
            tiny_model(family, tie_word_embeddings=tied).save_pretrained(folders[family, tied])
        return folders[family, tied]

    return save


@pytest.fixture
def folder(saved, tmp_path, request):
    family, tied = getattr(request, "param", ("llama", True))
    shutil.copytree(saved(family, tied), tmp_path / "model")
    return tmp_path / "model"


def load(folder):
    config = AutoConfig.from_pretrained(folder)
    return load_weights(str(folder), key="model.path x", config=config, revision=None, dtype=torch.float32)


def renamed(folder, rename):
    found = load_file(folder / "model.safetensors")
    save_file({rename(name): value for name, value in found.items()}, folder / "model.safetensors", {"format": "pt"})


def changed(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("folder", [(family, tied) for family in FAMILIES for tied in (True, False)], indirect=True)
def test_a_whole_checkpoint_is_loaded(folder, request):
    family, tied = request.node.callspec.params["folder"]
    wanted = tiny_model(family, tie_word_embeddings=tied)
    tokens = random_tokens(1, 12)
    assert torch.equal(logits(load(folder).eval(), tokens), logits(wanted, tokens))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "model._orig_mod.module.", "net.0."])
@pytest.mark.parametrize("folder", [("llama", True), ("qwen3", False)], indirect=True)
def test_names_of_a_wrapper_are_told_with_the_prefix(folder, prefix):
    renamed(folder, lambda name: prefix + name)
    with pytest.raises(SettingsError, match=rf"begin with '{prefix}'.*save the model that the wrapper holds"):
        load(folder)


@pytest.mark.parametrize(
    "lost", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("folder", [("llama", False), ("gemma3", False)], indirect=True)
def test_a_missing_parameter_is_named(folder, lost):
    found = load_file(folder / "model.safetensors")
    found.pop(lost)
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match=f"1 of its weights are missing, {lost} among them"):
        load(folder)


@pytest.mark.parametrize(("layers", "how"), [(1, "left over"), (3, "missing"), (40, "missing")])
def test_a_config_of_other_layers_is_refused(folder, layers, how):
    changed(folder, num_hidden_layers=layers)
    with pytest.raises(
        SettingsError, match=rf"of its weights are {how}.* model\.layers\.{'1' if layers == 1 else '10|2'}"
    ):
        load(folder)


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 96), ("intermediate_size", 90)])
def test_a_config_of_other_sizes_names_a_parameter_and_both_shapes(folder, key, value):
    changed(folder, **{key: value})
    with pytest.raises(SettingsError, match=rf"(embed_tokens|proj)\.weight has the shape \[.*wants \[.*{value}"):
        load(folder)


def test_what_is_left_over_is_named(folder):
    found = load_file(folder / "model.safetensors")
    save_file(found | {"model.extra.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SettingsError, match=r"left over.*model\.extra\.weight"):
        load(folder)


def test_frequencies_that_old_checkpoints_carry_are_no_weights(folder):
    found = load_file(folder / "model.safetensors")
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(found | old, folder / "model.safetensors", {"format": "pt"})
    load(folder)


def test_a_tied_head_with_values_of_its_own_is_kept_and_the_config_says_so(folder):
    found = load_file(folder / "model.safetensors")
    head = torch.randn_like(found["model.embed_tokens.weight"])
    save_file(found | {"lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    model = load(folder)
    assert torch.equal(model.lm_head.weight, head)
    assert model.config.tie_word_embeddings is False


@pytest.mark.parametrize("file", ["../other.safetensors", "/tmp/other.safetensors", "sub/a.safetensors", "..", ""])
def test_an_index_that_leaves_its_folder_is_refused(folder, file):
    shutil.copy(folder / "model.safetensors", folder.parent / "other.safetensors")
    names = list(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SettingsError, match="wanted a file of the same folder"):
        load(folder)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {"a": 1}}', '{"weight_map": []}'])
def test_a_damaged_index_is_refused(folder, index):
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(SettingsError, match=r"index\.json is damaged"):
        load(folder)


def test_adapters_beside_the_weights_are_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"holds adapter_config\.json.*merge it"):
        load(folder)


def test_damaged_weights_are_one_line(folder):
    (folder / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(SettingsError, match="its weights cannot be loaded"):
        load(folder)
