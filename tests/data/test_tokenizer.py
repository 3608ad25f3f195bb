import copy
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe
from e2ray.data.tokenizer import (
    behind,
    encoder_of,
    load_shard_tokenizer,
    load_tokenizer,
    opening_tokens,
    prefix_tokens,
    save_whole,
    serve_up_to,
    tokenizer_hash,
    train_byte_level_bpe,
    whole_digest,
)
from e2ray.files import digest

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "naïve façade — 漢字 \n\t end"] * 20


@pytest.fixture(scope="module")
def trained():
    return train_byte_level_bpe(TEXTS, ByteLevelBpe(vocab_size=300))


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(path)
    return path


def edit(folder, copy, name, change):
    shutil.copytree(folder, copy)
    value = json.loads((copy / name).read_text())
    change(value)
    (copy / name).write_text(json.dumps(value))
    return copy


def test_any_text_comes_back_from_a_byte_level_bpe(trained):
    for text in [*TEXTS[:3], "\x00\x01 unseen ☃ 😀", " leading", "<|endoftext|> inside"]:
        (tokens,) = encoder_of(trained).encode([text])
        assert tokens.dtype == np.int32
        assert tokens[-1] == trained.eos_token_id
        assert trained.decode(tokens[:-1], clean_up_tokenization_spaces=False) == text


def test_a_special_token_spelled_out_in_a_text_does_not_end_it(trained):
    (tokens,) = encoder_of(trained).encode(["a<|endoftext|>b"])
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
    np.testing.assert_array_equal(encoder_of(plain).encode(TEXTS[:1])[0], encoder_of(cut).encode(TEXTS[:1])[0])


def test_another_vocabulary_or_end_token_has_another_hash(trained, folder, tmp_path):
    other = train_byte_level_bpe(TEXTS, ByteLevelBpe(vocab_size=290))

    def change(value):
        value["eos_token"] = "a"

    renamed = load_tokenizer(edit(folder, tmp_path / "end", "tokenizer_config.json", change))
    assert len({tokenizer_hash(each) for each in (trained, other, renamed)}) == 3


def with_template(tokenizer, single, ids, **names):
    """Return a copy of a tokenizer that puts tokens of the given ids around a text; pairs get others."""
    made = copy.deepcopy(tokenizer)
    made.add_special_tokens({"additional_special_tokens": [name for name in ids if name not in made.get_vocab()]})
    for name, token in names.items():
        setattr(made, name, token)
    ids = {name: made.convert_tokens_to_ids(name) for name in ids}
    pair = " ".join([*reversed(ids), "$A", "$B:1"])
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=list(ids.items())
    )
    return made, ids


# What stands in front (names), the whole template, and the name that bos_token has.
TEMPLATES = {
    "none": ([], "$A", None),
    "a BOS": (["<s>"], "<s> $A", "<s>"),
    "a BOS and an EOS": (["<s>"], "<s> $A <|endoftext|>", "<s>"),
    "an EOS alone": ([], "$A <|endoftext|>", None),
    "the EOS on both sides": (["<|endoftext|>"], "<|endoftext|> $A <|endoftext|>", "<|endoftext|>"),
    "two without a BOS": (["[gMASK]", "<sop>"], "[gMASK] <sop> $A", None),
    "a lone special that is no BOS": (["[CLS]"], "[CLS] $A <|endoftext|>", "<s>"),
    "a BOS and more": (["<s>", "<lang>", "<lang>"], "<s> <lang> <lang> $A <|endoftext|> <s>", "<s>"),
}


@pytest.mark.parametrize(("front", "single", "bos"), TEMPLATES.values(), ids=TEMPLATES)
def test_a_document_begins_with_all_that_the_tokenizer_puts_there_and_with_no_suffix(
    trained, tmp_path, front, single, bos
):
    names = [name for name in single.split() if name != "$A"]
    made, ids = with_template(trained, single, dict.fromkeys([*names, "<s>"]), bos_token=bos)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, load_shard_tokenizer(tmp_path)):
        prefix = [ids[name] for name in front]
        assert prefix_tokens(tokenizer) == prefix
        (tokens,) = encoder_of(tokenizer).encode(["the cat"])
        bare = trained.encode("the cat", add_special_tokens=False)
        assert tokens.tolist() == [*prefix, *bare, trained.eos_token_id]
    assert tokenizer_hash(made) == tokenizer_hash(load_tokenizer(tmp_path))


def test_flags_for_begin_and_end_tokens_count_and_a_bos_that_is_only_named_does_not(trained, tmp_path):
    def flagged(**options):
        backend = Tokenizer.from_str(trained.backend_tokenizer.to_str())
        made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="a", **options)
        made.save_pretrained(tmp_path)
        (begin,) = made.encode("a", add_special_tokens=False)
        return begin, prefix_tokens(made), prefix_tokens(load_shard_tokenizer(tmp_path))

    assert flagged()[1:] == ([], [])
    assert flagged(add_eos_token=True)[1:] == ([], [])
    begin, *found = flagged(add_bos_token=True, add_eos_token=True)
    assert found == [[begin], [begin]]


@pytest.mark.parametrize(
    "part",
    [
        normalizers.Prepend("\u2581"),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
    ],
    ids=["normalizer", "metaspace", "byte level"],
)
def test_a_space_that_is_put_before_a_text_is_no_prefix(part):
    backend = Tokenizer(models.BPE())
    if isinstance(part, normalizers.Prepend):
        backend.normalizer = part
    else:
        backend.pre_tokenizer = part
    alphabet = [*"The year1969.\u2581\u0120"]
    trainer = trainers.BpeTrainer(special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["The year 1969."], trainer)
    plain = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert prefix_tokens(plain) == []
    made, ids = with_template(plain, "<x> <y> $A </s>", {"<x>": 0, "<y>": 0, "</s>": 0})
    assert prefix_tokens(made) == [ids["<x>"], ids["<y>"]]
    assert plain.encode("year")[0] not in prefix_tokens(made)


def test_a_cut_that_tokenizer_json_names_hides_no_prefix(trained, tmp_path):
    made, ids = with_template(trained, "[gMASK] <sop> $A", {"[gMASK]": 0, "<sop>": 0})
    made.backend_tokenizer.enable_truncation(max_length=3)
    made.save_pretrained(tmp_path)
    assert prefix_tokens(load_tokenizer(tmp_path)) == [*ids.values()]


def test_a_prefix_that_a_text_has_is_not_put_twice_and_nothing_begins_with_something(trained):
    made, ids = with_template(trained, "[gMASK] <sop> $A", {"[gMASK]": 0, "<sop>": 0})
    prefix, text = prefix_tokens(made), trained.encode("the cat")
    assert behind(prefix, made.encode("[gMASK]<sop>the cat", add_special_tokens=False)) == [*prefix, *text]
    assert behind(prefix, text) == [*prefix, *text] == behind(prefix, [*prefix, *text])
    assert behind([], text) == text and behind(prefix, []) == prefix
    assert opening_tokens(made, prefix) == [*ids.values()]
    assert opening_tokens(trained, []) == [trained.eos_token_id]
    trained = copy.deepcopy(trained)
    trained.eos_token = None
    assert opening_tokens(trained, []) == []


def test_the_hash_tells_prefixes_apart_and_stays_what_it_was_without_one_or_with_a_bos_alone(trained):
    def hashed(begin, tokenizer):
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        for key in ("version", "padding", "truncation"):
            content.pop(key)
        end, size = tokenizer.eos_token_id, len(tokenizer)
        return digest({"tokenizer": content, "begin": begin, "end": end, "size": size})

    assert tokenizer_hash(trained) == hashed(None, trained)
    for front, single, bos in TEMPLATES.values():
        names = [name for name in single.split() if name != "$A"]
        made, ids = with_template(trained, single, dict.fromkeys([*names, "<s>"]), bos_token=bos)
        lone = front == [bos] if front else True
        before = ids[front[0]] if front and front[0] == bos else None  # what it was when only a BOS was looked for
        assert (tokenizer_hash(made) == hashed(before, made)) == lone


@pytest.mark.parametrize("single", ["$A <x> $A", "<x> $A <x> $A"])
def test_a_post_processor_that_puts_tokens_into_a_text_is_refused(trained, tmp_path, single):
    made, _ = with_template(trained, single, {"<x>": 0})
    made.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match=r"its post_processor puts tokens into a text, wanted one that only puts"):
        load_shard_tokenizer(tmp_path)


def test_shards_are_not_made_without_an_end_token(folder, tmp_path):
    path = edit(folder, tmp_path / "endless", "tokenizer_config.json", lambda value: value.pop("eos_token"))
    assert load_tokenizer(path).eos_token is None
    with pytest.raises(SettingsError, match=r"endless: has no end-of-text token; set eos_token"):
        load_shard_tokenizer(path)


def test_a_tokenizer_of_a_few_words_is_loaded_but_makes_no_shards(tmp_path):
    words = {word: index for index, word in enumerate(["<unk>", "The", "year", "1969", "."])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).encode("The year 1969.") == [1, 2, 3, 4]
    with pytest.raises(SettingsError, match=r"has 5 tokens, its files were not understood"):
        load_shard_tokenizer(tmp_path)


def test_missing_and_broken_tokenizers_are_named_in_one_line(folder, tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere: no such folder; name one with tokenizer.json or a hub id"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=r"empty: holds no tokenizer; name a folder with tokenizer\.json or a hub"):
        load_tokenizer(tmp_path / "empty")
    LlamaConfig().save_pretrained(tmp_path / "model")  # whose class makes up a tokenizer of three tokens
    with pytest.raises(SettingsError, match=r"model: .*; name a folder with tokenizer.json"):
        load_tokenizer(tmp_path / "model")
    with pytest.raises(SettingsError, match=r"^tokenizer someone/nothing-here: cannot be loaded .*; name a folder"):
        load_tokenizer("someone/nothing-here")
    broken = shutil.copytree(folder, tmp_path / "broken")
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(SettingsError, match=r"broken: cannot be loaded") as caught:
        load_tokenizer(broken)
    assert "\n" not in str(caught.value)


TWO = {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}


@pytest.mark.parametrize("old", [True, False], ids=["in the config", "in files"])
def test_a_tokenizer_is_saved_with_all_its_files_and_chat_templates(trained, tmp_path, old):
    tokenizer = copy.deepcopy(trained)
    tokenizer.chat_template = dict(TWO)
    tokenizer.save_pretrained(tmp_path / "base", save_jinja_files=not old)
    assert (tmp_path / "base" / "additional_chat_templates").is_dir() != old
    beside = ("special_tokens_map.json", "merges.txt", "tokenizer.model", "any.tiktoken", "chat_template.json")
    for name in (*beside, "config.json", "model.safetensors", "modeling_own.py", "pytorch_model.bin"):
        (tmp_path / "base" / name).write_text("{}")
    save_whole(tmp_path / "base", tmp_path / "once")
    save_whole(str(tmp_path / "once"), tmp_path / "twice")
    here = sorted(path.relative_to(tmp_path / "twice").as_posix() for path in (tmp_path / "twice").rglob("*.*"))
    templates = [] if old else ["additional_chat_templates/tool_use.jinja", "chat_template.jinja"]
    assert here == sorted([*beside, *templates, "tokenizer.json", "tokenizer_config.json"])
    assert all((tmp_path / "twice" / name).read_bytes() == (tmp_path / "base" / name).read_bytes() for name in here)
    assert load_tokenizer(tmp_path / "twice").chat_template == TWO
    assert whole_digest(tmp_path / "base") == whole_digest(tmp_path / "twice")
    other = edit(tmp_path / "twice", tmp_path / "other", "tokenizer_config.json", lambda value: value.update(x=1))
    digests = [
        whole_digest(other),
        whole_digest(tmp_path / "twice"),
        whole_digest("an/id"),
        whole_digest("an/id", "v2"),
    ]
    assert len(set(digests)) == 4


def test_a_tokenizer_without_tokenizer_json_gets_one_beside_its_own_files(tmp_path):
    letters = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "[MASK]": 4} | {
        letter: 5 + place for place, letter in enumerate("theyar1969")
    }
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "vocab.txt").write_text("\n".join([*letters, *(f"##{each}" for each in "theyar1969")]))
    (tmp_path / "base" / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "model_max_length": 9}'
    )
    save_whole(tmp_path / "base", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file() and (tmp_path / "out" / "vocab.txt").is_file()
    one, other = load_tokenizer(tmp_path / "base"), load_tokenizer(tmp_path / "out")
    assert one.encode("the year") == other.encode("the year") != []
    assert prefix_tokens(one) == prefix_tokens(other) == [1] and one.bos_token_id is None


def test_a_saved_tokenizer_can_be_made_to_take_longer_texts(trained, tmp_path):
    tokenizer = copy.deepcopy(trained)
    tokenizer.model_max_length = 5
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    tokenizer.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "tokenizer_config.json").read_text())
    serve_up_to(tmp_path, 4096)
    found = load_tokenizer(tmp_path)
    assert found.model_max_length == 4096 and len(found(TEXTS[0], truncation=True)["input_ids"]) > 5
    assert len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXTS[0]).ids) > 5
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == before | {"model_max_length": 4096}
    assert tokenizer_hash(found) == tokenizer_hash(trained)


def test_no_text_gives_no_tokenizer():
    with pytest.raises(SettingsError, match="no text to train a byte_level_bpe on"):
        train_byte_level_bpe([], ByteLevelBpe())
