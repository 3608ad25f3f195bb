"""Whose tokenizer a run has: its own, whoever prepared the shards that it reads."""

import pytest
from transformers import AutoTokenizer

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe
from e2ray.config.load import validate
from e2ray.data.prepare import shards_digest
from e2ray.data.shards import SCHEMA_VERSION, manifest_text
from e2ray.data.tokenizer import load_tokenizer, tokenizer_hash, train_byte_level_bpe
from e2ray.run import Run, run_tokenizer

TOOLS = {"default": "{{ messages }}", "tool_use": "TOOLS {{ messages }}"}


@pytest.fixture
def base(tmp_path):
    """A function that saves the same tokens beside another chat template, and returns the folder."""
    tokenizer = train_byte_level_bpe(["some words to learn from"] * 9, ByteLevelBpe(vocab_size=280))

    def save(name, template):
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def shards(tmp_path, base):
    """What is read of shards here: a manifest, and the tokenizer of whoever prepared them."""
    folder = tmp_path / "shards"
    place = base("shards/tokenizer", {"default": "first", "rag": "first of all"})
    manifest = {"schema_version": SCHEMA_VERSION, "tokenizer_hash": tokenizer_hash(load_tokenizer(place))}
    (folder / "manifest.json").write_text(manifest_text(manifest))
    return folder


def run_of(small, tokenizer):
    small["data"]["tokenizer"] = tokenizer
    small["train"] = {"steps": 2, "batch_sequences": 2, "lr": 1e-3}
    return Run(validate(small, source="test"), 32)


def templates(folder):
    return AutoTokenizer.from_pretrained(folder).chat_template


def test_a_run_has_the_chat_templates_of_its_own_tokenizer_and_not_of_the_shards(small, base, shards):
    sources = {name: base(name, template) for name, template in (("one", "{{ 1 }}"), ("two", TOOLS))}
    runs = {name: run_of(small, {"kind": "pretrained", "path": str(path)}) for name, path in sources.items()}
    found = {name: run_tokenizer(run, shards) for name, run in runs.items()}
    assert {name: templates(folder) for name, folder in found.items()} == {"one": "{{ 1 }}", "two": TOOLS}
    assert len({tokenizer_hash(load_tokenizer(path)) for path in (*found.values(), shards / "tokenizer")}) == 1
    digests = {shards_digest(run.config.data, tokenizer_source=run.config.data.tokenizer) for run in runs.values()}
    assert len(digests) == 1  # which is why the shards cannot say whose template it is
    assert found == {name: run_tokenizer(run, shards) for name, run in runs.items()}  # once for all stages
    base("two", TOOLS | {"default": "another"})
    assert templates(run_tokenizer(runs["two"], shards)) == TOOLS | {"default": "another"}
    assert templates(found["two"]) == TOOLS


def test_a_tokenizer_that_prepare_trained_lies_with_the_shards_and_comes_whole_from_a_store(small, shards):
    run = run_of(small, {"kind": "byte_level_bpe", "vocab_size": 320})
    assert run_tokenizer(run, shards) == shards / "tokenizer"
    fetched = run_tokenizer(run, shards.as_uri())
    assert fetched.is_relative_to(run.storage)
    assert templates(fetched) == {"default": "first", "rag": "first of all"}


def test_a_tokenizer_that_is_gone_is_one_line(small, shards, tmp_path):
    run = run_of(small, {"kind": "pretrained", "path": str(tmp_path / "gone")})
    with pytest.raises(SettingsError, match=r"^tokenizer .*/gone: not found, wanted a folder with tokenizer\.json$"):
        run_tokenizer(run, shards)
