"""What a base folder holds travels to the model trained from it, but for weights, code and pickles, which are named."""

import json

import pytest

from e2ray.config.model import LlamaModel, PretrainedModel
from e2ray.train.beside import base_folder, base_name, card_fields, take_along

CARD = """---
license: llama3.1
license_name: a licence
language: [en, de]
tags: [facebook, llama]
datasets: [a/b]
model-index: [{name: base, results: []}]
widget: [{text: hi}]
---

# The base
"""
TRAVELS = {
    "LICENSE": "the licence",
    "NOTICE": "notice",
    "USE_POLICY.md": "policy",
    "generation_config.json": json.dumps({"temperature": 0.6, "do_sample": False}),
    "params/params.json": "{}",
    "preprocessor_config.json": "{}",
    "images/logo.svg": "<svg/>",
    "LICENSE.de.txt": "Lizenz",
    "README.go.md": "in another language",
}
LEFT = {
    "modeling_own.py": "code",
    "setup.sh": "code",
    "original/consolidated.00.pth": "weights or an archive",
    "model-Q4.GGUF": "weights or an archive",
    "onnx/model.onnx": "weights or an archive",
    "pytorch_model.bin": "weights or an archive",
    "optimizer.pkl": "a pickle",
    "backup.tar.gz": "weights or an archive",
    "consolidated.safetensors": "weights or an archive",
    "mtp.safetensors": "weights or an archive",
}
ANEW = ["config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt", "model.safetensors"]


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "Some-Base-8B"
    for name, content in {**TRAVELS, **dict.fromkeys((*LEFT, *ANEW), "x"), "README.md": CARD}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("secret")
    return folder


@pytest.fixture
def target(tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / "model" / name).write_text("new")
    return tmp_path / "model"


def test_all_but_weights_code_and_pickles_travels_as_it_is(base, target):
    take_along(base, target)
    for name, content in TRAVELS.items():
        assert (target / name).read_text() == content
    assert (target / "README.base.md").read_text() == CARD
    found = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert found == {*TRAVELS, "README.base.md", "config.json", "tokenizer.json"}
    assert (target / "config.json").read_text() == (target / "tokenizer.json").read_text() == "new"


def test_what_stays_behind_is_named_with_the_reason(base, target):
    (base / "my.index.json").write_text("{}")
    (base / "more").symlink_to(target)
    told = take_along(base, target)
    left = LEFT | {".git": "hidden", "my.index.json": "an index of weights", "more": "a link to a folder"}
    assert sorted(told) == sorted(f"{name}: {kind}, stays with the base model" for name, kind in left.items())


def test_names_of_an_export_travel_from_a_base_that_is_none(base, target):
    for name in ("scales.json", "evaluation.png", "serving/config.pbtxt"):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    take_along(base, target)
    assert all(
        (target / name).read_text() == name for name in ("scales.json", "evaluation.png", "serving/config.pbtxt")
    )


def test_weights_that_the_index_lists_are_those_that_were_trained(base, target):
    (base / "model.safetensors").unlink()
    for name in ("model-1-of-2.safetensors", "model-2-of-2.safetensors"):
        (base / name).write_text("x")
    listed = {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    told = take_along(base, target)
    assert [line for line in told if "safetensors" in line] == [
        f"{name}.safetensors: weights or an archive, stays with the base model" for name in ("consolidated", "mtp")
    ]


def test_the_card_of_a_bases_own_base_stays_beside_it(base, target):
    (base / "README.base.md").write_text("the card of the first one")
    take_along(base, target)
    assert (target / "README.base.md").read_text() == CARD
    assert (target / "README.base.base.md").read_text() == "the card of the first one"


def test_an_export_of_ours_as_a_base_gives_no_profiles_of_its_own(base, target):
    for name in ("e2ray/manifest.json", "serving/64/commands.json", "scales.json", "evaluation.png"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    take_along(base, target)
    assert not any((target / name).exists() for name in ("e2ray", "serving", "scales.json", "evaluation.png"))


def test_the_fields_of_the_bases_card_that_still_hold_are_kept(base, target):
    take_along(base, target)
    assert card_fields(target)[0] == {
        "license": "llama3.1",
        "license_name": "a licence",
        "language": ["en", "de"],
        "tags": ["facebook", "llama"],
        "datasets": ["a/b"],
    }


@pytest.mark.parametrize("card", ["", "# no fields", "---\nlicense: [", "---\n- a\n---\n", "---\nlicense: mit\n"])
def test_a_card_without_readable_fields_gives_none(target, card):
    (target / "README.base.md").write_text(card)
    fields, told = card_fields(target)
    assert fields == {} and (told is not None) is card.startswith("---")
    assert told is None or told.endswith(
        "README.base.md: its head is no YAML between two lines of ---, so its fields do not enter the card"
    )
    (target / "README.base.md").unlink()
    assert card_fields(target) == ({}, None)


@pytest.mark.parametrize("before", ["\n\n", "\ufeff", "\r\n \n"])
def test_a_head_behind_blank_lines_is_one(target, before):
    (target / "README.base.md").write_text(f"{before}---\nlicense: mit\n---\n")
    assert card_fields(target) == ({"license": "mit"}, None)


def test_a_base_is_called_by_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "Llama-X").mkdir()
    assert base_name(PretrainedModel(path=str(tmp_path / "Llama-X"))) == "Llama-X"
    monkeypatch.chdir(tmp_path / "Llama-X")
    assert base_name(PretrainedModel(path=".")) == "Llama-X"
    assert base_name(PretrainedModel(path="owner/Llama-X")) == "owner/Llama-X"
    assert base_name(LlamaModel()) is None


def test_of_a_hub_id_what_was_fetched_travels_where_the_hub_does_not_answer(base, tmp_path, monkeypatch):
    from e2ray.train import beside

    monkeypatch.setattr(beside, "cached_file", lambda *names, **options: str(base / "config.json"))
    folder, told = base_folder(PretrainedModel(path="owner/base"))  # tests are offline
    assert folder == base
    assert len(told) == 1 and "owner/base: the hub does not answer" in told[0]
