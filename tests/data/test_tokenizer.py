import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe
from e2ray.data.tokenizer import Encoder, begin_token, load_tokenizer, tokenizer_hash, train_byte_level_bpe

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "naïve façade — 漢字 \n\t end"] * 20


@pytest.fixture(scope="module")
def trained():
    return train_byte_level_bpe(TEXTS, ByteLevelBpe(vocab_size=300))


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(path)
    return path


def encoder(tokenizer):
    return Encoder(tokenizer.backend_tokenizer.to_str(), begin=begin_token(tokenizer), end=tokenizer.eos_token_id)


def edit(folder, copy, name, change):
    shutil.copytree(folder, copy)
    value = json.loads((copy / name).read_text())
    change(value)
    (copy / name).write_text(json.dumps(value))
    return copy


def test_any_text_comes_back_from_a_byte_level_bpe(trained):
    for text in [*TEXTS[:3], "\x00\x01 unseen ☃ 😀", " leading", "<|endoftext|> inside"]:
        (tokens,) = encoder(trained).encode([text])
        assert tokens.dtype == np.int32
        assert tokens[-1] == trained.eos_token_id
        assert trained.decode(tokens[:-1], clean_up_tokenization_spaces=False) == text


def test_a_special_token_spelled_out_in_a_text_does_not_end_it(trained):
    (tokens,) = encoder(trained).encode(["a<|endoftext|>b"])
    assert (tokens == trained.eos_token_id).sum() == 1


def test_training_twice_in_other_processes_gives_the_same_tokenizer(trained):
    code = (
        "import sys, json\n"
        "from e2ray.config.data import ByteLevelBpe\n"
        "from e2ray.data.tokenizer import tokenizer_hash, train_byte_level_bpe\n"
        "print(tokenizer_hash(train_byte_level_bpe(json.load(sys.stdin), ByteLevelBpe(vocab_size=300))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(TEXTS), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == tokenizer_hash(trained)


def test_the_hash_is_the_same_wherever_the_tokenizer_lies(trained, folder, tmp_path):
    elsewhere = shutil.copytree(folder, tmp_path / "copy")
    assert (
        tokenizer_hash(load_tokenizer(folder)) == tokenizer_hash(load_tokenizer(elsewhere)) == tokenizer_hash(trained)
    )


def test_the_hash_ignores_truncation_and_padding_and_so_do_the_tokens(folder, tmp_path):
    def change(value):
        value["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
        value["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>",
        }  # fmt: skip

    plain, cut = load_tokenizer(folder), load_tokenizer(edit(folder, tmp_path / "cut", "tokenizer.json", change))
    assert tokenizer_hash(plain) == tokenizer_hash(cut)
    np.testing.assert_array_equal(encoder(plain).encode(TEXTS[:1])[0], encoder(cut).encode(TEXTS[:1])[0])


def test_another_vocabulary_or_end_token_has_another_hash(trained, folder, tmp_path):
    other = train_byte_level_bpe(TEXTS, ByteLevelBpe(vocab_size=290))

    def change(value):
        value["eos_token"] = "a"

    renamed = load_tokenizer(edit(folder, tmp_path / "end", "tokenizer_config.json", change))
    assert len({tokenizer_hash(each) for each in (trained, other, renamed)}) == 3


def test_a_document_begins_with_the_token_that_the_tokenizer_puts_there(folder, tmp_path):
    def template(value):
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
        }

    def begin(value):
        value["bos_token"] = "<|endoftext|>"

    path = edit(folder, tmp_path / "one", "tokenizer.json", template)
    adds = load_tokenizer(edit(path, tmp_path / "two", "tokenizer_config.json", begin))
    named_only = load_tokenizer(edit(folder, tmp_path / "three", "tokenizer_config.json", begin))
    plain = encoder(load_tokenizer(folder)).encode(["the cat"])[0]
    np.testing.assert_array_equal(encoder(adds).encode(["the cat"])[0], [0, *plain])
    np.testing.assert_array_equal(encoder(named_only).encode(["the cat"])[0], plain)


def test_a_tokenizer_without_an_end_token_is_refused(folder, tmp_path):
    path = edit(folder, tmp_path / "endless", "tokenizer_config.json", lambda value: value.pop("eos_token"))
    with pytest.raises(SettingsError, match=r"endless: has no end-of-text token; set eos_token"):
        load_tokenizer(path)


def test_missing_and_broken_tokenizers_are_named_in_one_line(folder, tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere: holds no tokenizer, wanted one of tokenizer.json"):
        load_tokenizer(tmp_path / "nowhere")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(SettingsError, match=r"broken: cannot be loaded") as caught:
        load_tokenizer(broken)
    assert "\n" not in str(caught.value)


def test_no_text_gives_no_tokenizer():
    with pytest.raises(SettingsError, match="no text to train a byte_level_bpe on"):
        train_byte_level_bpe([], ByteLevelBpe())
