"""Prompts that are kept: the same as made anew, for that grid alone, and made again when they are damaged."""

import dataclasses

import numpy as np
import pytest

from e2ray.config.data import ByteLevelBpe
from e2ray.config.retrieval import RetrievalSettings
from e2ray.data.tokenizer import encoder_of, train_byte_level_bpe
from e2ray.evaluate.haystack import ContextLengthError, Haystack
from e2ray.evaluate.prompts import PromptFolder, prompts

TEXT = "The porter keeps the pass key in 1813 and looks at the river, the stone, the cloud and the old oak tree. " * 40
SETTINGS = RetrievalSettings(depths=(0.2, 0.8), trials=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe([TEXT], ByteLevelBpe(vocab_size=320))


@pytest.fixture(scope="module")
def documents(tokenizer):
    return encoder_of(tokenizer).encode([TEXT])


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a.tokens, b.tokens)
        and a.tokens.dtype == b.tokens.dtype
        and dataclasses.replace(a, tokens=b.tokens).__dict__ == b.__dict__
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("task", ["passkey", "multi_value", "key_value"])
def test_kept_prompts_are_those_made_anew(tmp_path, tokenizer, documents, task):
    kept = PromptFolder(tmp_path / "prompts", "text")
    made = kept.prompts(Haystack(documents, encoder_of(tokenizer)), tokenizer, task, 300, SETTINGS)
    read = kept.prompts(None, tokenizer, task, 300, SETTINGS)  # nothing is made without a text
    direct = prompts(documents, tokenizer, context_length=300, depths=(0.2, 0.8), trials=2, digits=5, seed=0, task=task)
    assert same(made, direct) and same(read, direct)


def test_another_grid_tokenizer_or_text_has_prompts_of_its_own(tmp_path, tokenizer, documents):
    other = train_byte_level_bpe([TEXT], ByteLevelBpe(vocab_size=300))
    folder = tmp_path / "prompts"
    asked = [
        (tokenizer, "passkey", 300, SETTINGS, "text"),
        (tokenizer, "passkey", 301, SETTINGS, "text"),
        (tokenizer, "single_needle", 300, SETTINGS, "text"),
        (tokenizer, "passkey", 300, SETTINGS.model_copy(update={"seed": 1}), "text"),
        (tokenizer, "passkey", 300, SETTINGS.model_copy(update={"digits": 3}), "text"),
        (tokenizer, "passkey", 300, SETTINGS.model_copy(update={"trials": 3}), "text"),
        (tokenizer, "passkey", 300, SETTINGS, "another text"),
        (other, "passkey", 300, SETTINGS, "text"),
    ]
    for one, task, length, settings, text in asked:
        haystack = Haystack(encoder_of(one).encode([TEXT]), encoder_of(one))
        PromptFolder(folder, text).prompts(haystack, one, task, length, settings)
    assert len(list(folder.iterdir())) == len(asked)


def test_a_damaged_file_is_made_again(tmp_path, tokenizer, documents):
    kept = PromptFolder(tmp_path, "text")
    haystack = Haystack(documents, encoder_of(tokenizer))
    made = kept.prompts(haystack, tokenizer, "passkey", 200, SETTINGS)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert same(kept.prompts(haystack, tokenizer, "passkey", 200, SETTINGS), made)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [content]


def test_what_cannot_be_made_leaves_no_file(tmp_path, tokenizer, documents):
    with pytest.raises(ContextLengthError):
        PromptFolder(tmp_path, "text").prompts(
            Haystack(documents, encoder_of(tokenizer)), tokenizer, "passkey", 10**6, SETTINGS
        )
    assert not list(tmp_path.iterdir())
