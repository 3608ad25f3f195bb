"""The record of a model folder: what was written is what is read, or one line says what changed."""

import json
import re
from contextlib import nullcontext

import pytest

from e2ray.config.base import SettingsError
from e2ray.core import model_folder
from e2ray.records.folders import ModelFolder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "serving" / "64").mkdir(parents=True)
    (folder / "additional_chat_templates").mkdir()
    for name, text in {
        "model.safetensors": "weights",
        "config.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/rag.jinja": "{{ documents }}",
        "merges.txt": "a b",
        "vocab.txt": "a",
        "LICENSE.txt": "licence",
        "README.md": "card",
        "serving/64/config_override.json": "{}",
    }.items():
        (folder / name).write_text(text)
    model_folder.seal(folder, None)
    return folder


def test_a_folder_as_it_was_written_is_read(folder):
    model_folder.refuse_damaged(folder)
    assert model_folder.probe_of(folder) is None


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "config.json",
        "chat_template.jinja",
        "serving/64/config_override.json",
        "additional_chat_templates/rag.jinja",
        "merges.txt",
        "vocab.txt",
    ],
)
def test_a_changed_or_lost_file_is_named(folder, name):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"{name}: is damaged.*restore it"):
        model_folder.refuse_damaged(folder)
    path.unlink()
    with pytest.raises(SettingsError, match=f"{name}: is missing"):
        model_folder.refuse_damaged(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model-00002.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "adapter_config.json",
        "additional_chat_templates/tool_use.jinja",
        "added_tokens.json",
        "spiece.model",
        "qwen.tiktoken",
    ],
)
def test_what_was_put_in_and_would_be_read_is_named(folder, name):
    (folder / name).write_text("{}")
    with pytest.raises(SettingsError, match=f"{name}: was put into the folder"):
        model_folder.refuse_damaged(folder)


def test_a_card_may_be_edited_and_notes_may_be_added(folder):
    (folder / "README.md").write_text("another card")
    (folder / "LICENSE.txt").write_text("the same licence, wrapped")
    for name in (
        "notes.txt",
        "photo.jpg",
        "results.json",
        "trainer_state.json",
        "evals/model.safetensors",
        ".cache.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    model_folder.refuse_damaged(folder)


def test_only_the_files_asked_for_are_read(folder):
    (folder / "model.safetensors").write_text("WEIGHTS")
    model_folder.refuse_damaged(folder, only=["config.json"])


def test_every_changed_byte_of_the_record_is_noticed_or_changes_nothing(folder):
    path = ModelFolder(folder).record
    text = path.read_bytes()
    before = json.loads(text)
    for place in range(len(text)):
        content = bytearray(text)
        content[place] ^= 1 << (place % 8)
        path.write_bytes(content)
        try:
            same = json.loads(bytes(content)) == before
        except ValueError:
            same = False
        with nullcontext() if same else pytest.raises(SettingsError, match=re.escape(str(path))):
            model_folder.refuse_damaged(folder)


def test_a_lost_record_in_its_folder_is_told(folder):
    (ModelFolder(folder).record).unlink()
    with pytest.raises(SettingsError, match=r"manifest\.json: is missing"):
        model_folder.refuse_damaged(folder)


def test_the_identity_of_weights_is_that_of_their_bits(folder, tmp_path):
    identity = model_folder.weights_identity(str(folder), None, is_folder=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "model.safetensors").write_text("weights")
    assert model_folder.weights_identity(str(plain), None, is_folder=True) == identity
    (plain / "config.json").write_text("{1}")
    assert model_folder.weights_identity(str(plain), None, is_folder=True) == identity
    (plain / "model.safetensors").write_text("weighty")
    assert model_folder.weights_identity(str(plain), None, is_folder=True) != identity
