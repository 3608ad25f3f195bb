import gzip
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import processors

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe, DataSettings, PretrainedTokenizer
from e2ray.data import build, identity
from e2ray.data import prepare as prepare_module
from e2ray.data.identity import is_held_out, shards_digest
from e2ray.data.prepare import fill, prepare
from e2ray.data.rows import TrainRows
from e2ray.data.shards import ShardSet, read_manifest
from e2ray.data.stream import tokenise
from e2ray.data.tokenizer import load_tokenizer, save, tokenizer_hash, train_byte_level_bpe
from e2ray.records.manifest import spelled

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")]  # Ray's own
BPE = ByteLevelBpe(vocab_size=300, training_bytes=20_000)


@pytest.fixture
def corpus(tmp_path):
    """Forty text files of 1 to 390 words and a table of sixty lines, under `corpus/`."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    generator = np.random.default_rng(11)
    for number in range(40):
        words = generator.choice(["tree", "stone", "river", "cloud", "Haus"], size=1 + 10 * number % 400)
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
    (folder / "table.jsonl").write_text("".join(json.dumps({"text": f"line {n} of a table"}) + "\n" for n in range(60)))
    return folder


def settings(place, **changes):
    sources = [
        {"kind": "text", "paths": [f"{place}/*.txt"]},
        {"kind": "jsonl", "paths": [f"{place}/table.jsonl"]},
    ]
    return DataSettings.model_validate({"corpus": sources, "window": 32, "validation_share": 0.2} | changes)


def make(place, folder, *, tokenizer_source=BPE, **changes):
    lines = []
    prepare(settings(place, **changes), folder, tokenizer_source=tokenizer_source, progress=lines.append)
    return ShardSet.open(folder), lines


def texts(corpus):
    found = [(f"corpus/{path.name}", path.read_text()) for path in sorted(corpus.glob("*.txt"))]
    place = 0
    for line in (corpus / "table.jsonl").read_text().splitlines():
        found.append((f"corpus/table.jsonl@{place}", json.loads(line)["text"]))
        place += len(line) + 1
    return found


def mixed(place, *weights, **changes):
    """Long texts, short texts and the table as corpora of their own."""
    sources = [
        {"kind": "text", "paths": [f"{place}/*.txt"], "min_tokens": 100},
        {"kind": "text", "paths": [f"{place}/*.txt"], "max_tokens": 99},
        {"kind": "jsonl", "paths": [f"{place}/table.jsonl"]},
    ]
    return {"corpus": [source | {"weight": w} for source, w in zip(sources, weights, strict=True)]} | changes


def test_passkeys_are_never_held_out_nor_cut_out_of_what_is(ray_cluster, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(26):
        (folder / f"{number}.txt").write_text((chr(65 + number) + "  ") * 300)
    texts = {"kind": "text", "paths": [f"{folder}/*.txt"], "weight": 1}
    hidden = {"kind": "passkey", "text": texts | {"weight": None}, "documents": 200, "weight": 1, "min_characters": 30}
    shards, _ = make(folder, tmp_path / "shards", corpus=[texts, hidden], validation_share=0.5)
    tokenizer = load_tokenizer(tmp_path / "shards" / "tokenizer")
    held_out = {tokenizer.decode(tokens[:1].tolist()) for _, tokens in shards.validation_documents()}
    assert 3 < len(held_out) < 23 and not any("pass" in name for name, _ in shards.validation_documents())
    rows = shards.manifest.corpora[1]
    said = tokenizer.decode(np.concatenate(shards.rows_of(range(rows.first_row, shards.rows)).tokens).tolist())
    around = set(re.findall(r"([A-Z])  ", said))
    assert said.count("Remember it.") > 100 and len(around) > 3 and not around & held_out


@pytest.mark.parametrize("pack", ["concat", "best_fit"])
def test_a_mixture_has_each_sources_tokens_by_weight(ray_cluster, corpus, tmp_path, pack):
    shards, _ = make(corpus, tmp_path / "shards", shard_rows=20, **mixed(corpus, 6, 1, 3, pack=pack))
    whole, _ = make(corpus, tmp_path / "whole", pack="document")
    manifest = shards.manifest
    lengths = manifest.documents["train"]
    assert lengths.count == whole.manifest.documents["train"].count  # each text is in one of the two
    assert manifest.num_long + manifest.num_short == 40
    parts = [shards.rows_of(range(c.first_row, c.first_row + c.rows)) for c in manifest.corpora]
    filled = [32 * len(part.ids) if part.token_index is None else int((part.token_index >= 0).sum()) for part in parts]
    assert filled == [corpus.tokens for corpus in manifest.corpora] and sum(filled) == manifest.tokens
    tokenizer = load_tokenizer(tmp_path / "shards" / "tokenizer")
    of_table = ["of a table" in tokenizer.decode(part.tokens[0].tolist()) for part in parts]
    assert of_table == [False, False, True]
    read = shards.order(5, 2).at(np.arange(10_000))
    ends = np.cumsum([len(part.ids) for part in parts])
    owners = np.searchsorted(ends, read, side="right")
    tokens = np.array([np.sum(owners == c) * filled[c] / len(parts[c].ids) for c in range(3)])
    np.testing.assert_allclose(tokens / tokens.sum(), [0.6, 0.1, 0.3], atol=1e-3)


def test_a_mixture_that_cannot_be_is_refused(ray_cluster, corpus, tmp_path):
    with pytest.raises(SettingsError, match=r"data\.corpus: weight 1e-09 is under a ten-thousandth of all"):
        make(corpus, tmp_path / "little", **mixed(corpus, 1, 1, 1e-9))
    sources = mixed(corpus, 1, 1, 1)["corpus"]
    sources[0]["min_tokens"] = 10**6
    with pytest.raises(SettingsError, match=r"data\.corpus\.0: gives 0 training tokens, less than one row of 32"):
        make(corpus, tmp_path / "none", corpus=sources)


def test_every_document_lands_whole_in_its_place(ray_cluster, corpus, tmp_path):
    shards, lines = make(corpus, tmp_path / "shards", shard_rows=50)
    tokenizer = load_tokenizer(tmp_path / "shards" / "tokenizer")
    tokens = [(name, [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]) for name, text in texts(corpus)]
    held_out = [name for name, _ in tokens if is_held_out(name, seed=0, share=0.2)]
    train = [token for name, row in tokens if name not in held_out for token in row]
    rows = len(train) // 32
    np.testing.assert_array_equal(shards.tokens(np.arange(rows)).reshape(-1), train[: rows * 32])
    found = {name: row.tolist() for name, row in shards.validation_documents()}
    assert found == {name: row for name, row in tokens if name in held_out}
    assert 5 < len(found) < 40
    manifest = shards.manifest
    assert (shards.rows, manifest.dropped_tokens) == (rows, len(train) % 32)
    assert manifest.tokenizer_hash == tokenizer_hash(tokenizer)
    assert manifest.vocab_size == len(tokenizer) == 300
    assert manifest.documents["train"].count == 100 - len(found)
    assert manifest.documents["train"].tokens == len(train)
    assert list(manifest.validation_lengths) == [len(row) for row in found.values()]
    assert sum(count for _, count in manifest.documents["train"].histogram) == 100 - len(found)
    assert lines[0] == "prepare: training a byte-level BPE of 300 tokens"
    assert lines[-1].startswith(f"prepare: 100 documents, {len(train) + sum(manifest.validation_lengths):,} tokens, ")
    shards.verify()


@pytest.mark.parametrize("pack", ["document", "best_fit"])
def test_packed_rows_hold_every_document_and_say_how_full_they_are(ray_cluster, corpus, tmp_path, pack):
    shards, lines = make(corpus, tmp_path / "shards", shard_rows=50, pack=pack)
    tokenizer = load_tokenizer(tmp_path / "shards" / "tokenizer")
    wanted = [
        [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for name, text in texts(corpus)
        if not is_held_out(name, seed=0, share=0.2)
    ]
    cut = [document[first : first + 32] for document in wanted for first in range(0, len(document), 32)]
    found = []
    read = shards.rows_of(np.arange(shards.rows))
    for tokens, places in zip(read.tokens, read.token_index, strict=True):
        real = tokens[places >= 0]
        found += [piece.tolist() for piece in np.split(real, np.flatnonzero(places[places >= 0] == 0)[1:])]
    assert sorted(found) == sorted(cut)
    manifest = shards.manifest
    assert manifest.tokens == sum(map(len, wanted)) == (read.token_index >= 0).sum()
    assert fill(manifest) == manifest.tokens / (shards.rows * 32) and manifest.dropped_tokens == 0
    assert lines[-1] == f"prepare: rows are {fill(manifest):.2%} full"
    shards.verify()


def test_short_documents_are_left_out_and_counted(ray_cluster, corpus, tmp_path):
    whole, _ = make(corpus, tmp_path / "whole")
    lengths = [len(tokens) for _, tokens in whole.validation_documents()]
    least = sorted(lengths)[len(lengths) // 2]
    shards, lines = make(corpus, tmp_path / "shards", min_tokens=least)
    assert [len(tokens) for _, tokens in shards.validation_documents()] == [n for n in lengths if n >= least]
    manifest = shards.manifest
    before, after = (
        sum(made.manifest.documents[kind].count for kind in ("train", "validation")) for made in (whole, shards)
    )
    assert manifest.num_short == before - after > 10
    assert lines[-1].split(";")[0].endswith(f", {manifest.num_short} shorter than min_tokens")
    assert min(manifest.documents[kind].min for kind in ("train", "validation")) >= least
    with pytest.raises(SettingsError, match=r"data\.min_tokens: 100 documents are shorter than it .* and none is left"):
        make(corpus, tmp_path / "none", min_tokens=99_999)


def test_preparing_twice_gives_the_same_bytes(ray_cluster, corpus, tmp_path):
    for name in ("one", "two"):
        make(corpus, tmp_path / name)
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(names) >= 5
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_finished_shards_are_taken_as_they_are_until_something_changes(ray_cluster, corpus, tmp_path):
    folder = tmp_path / "shards"
    make(corpus, folder)
    inode = (folder / "manifest.json").stat().st_ino
    _, lines = make(corpus, folder)
    assert lines == [f"prepare: {folder} is up to date, {ShardSet.open(folder).rows} rows of 32 tokens"]
    assert (folder / "manifest.json").stat().st_ino == inode
    shards, _ = make(corpus, folder, window=64)
    assert shards.window == 64
    (folder / "train-00000.arrow").write_bytes(b"")
    shards, lines = make(corpus, folder, window=64)
    shards.verify()
    assert lines[0].startswith("prepare: the shards are made anew; ") and "train-00000.arrow" in lines[0]
    before = shards.manifest.tokens
    (corpus / "99.txt").write_text("more text " * 500)
    shards, _ = make(corpus, folder, window=64)
    assert shards.manifest.tokens > before
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(spelled(manifest | {"schema_version": 9}))
    with pytest.raises(SettingsError, match=r"manifest\.json: was written by a newer e2ray, in schema version 9"):
        make(corpus, folder, window=64)
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 9


def test_a_pretrained_tokenizer_is_kept_beside_the_shards(ray_cluster, corpus, tmp_path):
    first, _ = make(corpus, tmp_path / "first")
    source = PretrainedTokenizer(path=str(tmp_path / "first" / "tokenizer"))
    second, _ = make(corpus, tmp_path / "second", tokenizer_source=source)
    assert first.manifest.tokenizer_hash == second.manifest.tokenizer_hash
    rows = np.arange(first.rows)
    np.testing.assert_array_equal(first.tokens(rows), second.tokens(rows))


TEMPLATES = {"two and no BOS": (("[gMASK]", "<sop>"), None), "one that is no BOS": (("[CLS]",), None)}


def with_prefix(folder, names, bos):
    """Save a tokenizer that puts specials before a text and the end-of-text token behind it."""
    tokenizer = train_byte_level_bpe(["tree stone river cloud Haus line of a table 0123456789"] * 9, BPE)
    tokenizer.add_special_tokens({"additional_special_tokens": [*names]})
    tokenizer.bos_token = bos
    specials = [(name, tokenizer.convert_tokens_to_ids(name)) for name in (*names, "<|endoftext|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*names, "$A", "<|endoftext|>"]), special_tokens=specials
    )
    tokenizer.save_pretrained(folder)
    return PretrainedTokenizer(path=str(folder)), [token for _, token in specials[:-1]]


@pytest.mark.parametrize(("names", "bos"), TEMPLATES.values(), ids=TEMPLATES)
def test_rows_and_held_out_documents_begin_with_the_whole_prefix(ray_cluster, corpus, tmp_path, names, bos):
    source, prefix = with_prefix(tmp_path / "base", names, bos)
    shards, _ = make(corpus, tmp_path / "shards", tokenizer_source=source)
    tokenizer = load_tokenizer(tmp_path / "base")
    wanted = {name: [*prefix, *tokenizer.encode(text, add_special_tokens=False), 0] for name, text in texts(corpus)}
    held_out = {name: tokens.tolist() for name, tokens in shards.validation_documents()}
    assert held_out == {name: wanted[name] for name in held_out} and len(held_out) > 5
    train = [token for name, row in wanted.items() if name not in held_out for token in row]
    rows = shards.tokens(np.arange(shards.rows))
    assert rows.reshape(-1).tolist() == train[: rows.size]
    assert shards.manifest.begin_token == prefix and shards.manifest.tokenizer_hash == tokenizer_hash(tokenizer)


def test_a_prefix_that_leaves_a_row_no_text_is_refused(tmp_path):
    source, prefix = with_prefix(tmp_path, ("<a>", "<b>", "<c>"), None)
    tokenizer = load_tokenizer(source.path)
    identity.refuse_short_rows(len(prefix) + 1, tokenizer)
    for window in (2, 3):
        wanted = rf"data\.window: {window} tokens, of which the tokenizer puts 3 before each text; set it to at least 4"
        with pytest.raises(SettingsError, match=wanted):
            identity.refuse_short_rows(window, tokenizer)


def test_shards_that_were_made_without_the_whole_prefix_are_not_taken_for_finished(write_shards, documents, tmp_path):
    def finished(begin, names, bos, name):
        folder = write_shards(documents, name=name)
        tokens = with_prefix(folder / "tokenizer", names, bos)[1]
        begin = tokens[0] if begin == "first" else begin
        manifest = read_manifest(folder).changed(corpus_digest="c" * 64, begin_token=begin)
        manifest.write(folder / "manifest.json")
        return prepare_module._finished(folder, "c" * 64, print) is not None

    assert finished(None, (), None, "none") and finished(None, (), "<|endoftext|>", "named")
    assert finished("first", ("<s>",), "<s>", "BOS")  # as they were written ever since
    assert not finished(None, ("[gMASK]", "<sop>"), None, "two")
    assert not finished("first", ("<s>", "<lang>"), "<s>", "BOS and more")
    assert not finished(None, ("[CLS]",), None, "CLS")


def test_the_validation_corpus_is_held_out_whole_even_where_the_corpus_names_it(ray_cluster, corpus, tmp_path):
    held_out = [{"kind": "text", "paths": [f"{corpus}/0*.txt"]}]
    shards, _ = make(corpus, tmp_path / "shards", validation_share=0.0, validation_corpus=held_out)
    assert [name for name, _ in shards.validation_documents()] == [f"corpus/0{number}.txt" for number in range(10)]
    assert shards.manifest.documents["train"].count == 90


def test_bad_documents_stop_the_run_or_are_listed(ray_cluster, corpus, tmp_path):
    (corpus / "05.txt").write_bytes(b"caf\xe9")
    (corpus / "07.txt").write_bytes(b"")
    (corpus / os.fsdecode(b"z\n\xff.txt")).write_bytes(b" ")
    with pytest.raises(SettingsError, match=r"/05.txt: is no UTF-8 .*; mend it or set data.on_bad: skip$"):
        make(corpus, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    shards, lines = make(corpus, tmp_path / "shards", on_bad="skip")
    assert shards.manifest.num_skipped == 3
    skipped = [reason.split(": ")[0] for reason in shards.manifest.skipped]
    assert skipped == [f"{corpus}/05.txt", f"{corpus}/07.txt", rf"{corpus}/z\n\udcff.txt"]
    assert shards.manifest.documents["train"].count + len(list(shards.validation_documents())) == 98
    assert lines[-1].split(";")[0].endswith(", 3 skipped")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 10**6}, r"training documents give \d+ tokens, less than one row of 1000000; add sources or set a"),
        ({"validation_share": 1e-9}, r"1e-09 of 100 documents holds out none; raise it, set another data.seed or name"),
        ({"corpus": [{"kind": "text", "paths": ["/nowhere/*.txt"]}]}, r"data source /nowhere/\*.txt: matches no file"),
    ],
)
def test_shards_that_would_be_useless_are_not_made(ray_cluster, corpus, tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        make(corpus, tmp_path / "shards", **changes)
    assert not [path.name for path in tmp_path.iterdir() if "shards" in path.name and not path.name.endswith(".lock")]


def test_an_empty_corpus_is_named(ray_cluster, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("")
    (tmp_path / "corpus" / "table.jsonl").write_text("\n")
    make(corpus_with_text(tmp_path), tmp_path / "trained", validation_share=0.0)
    source = PretrainedTokenizer(path=str(tmp_path / "trained" / "tokenizer"))
    with pytest.raises(SettingsError, match=r"data.corpus: is empty, 1 documents were skipped and none is left"):
        make(tmp_path / "corpus", tmp_path / "shards", tokenizer_source=source, on_bad="skip")
    with pytest.raises(SettingsError, match="no text to train a byte_level_bpe on"):
        make(tmp_path / "corpus", tmp_path / "shards", on_bad="skip")


def test_a_decompression_bomb_and_a_source_without_documents_are_told(ray_cluster, corpus, tmp_path):
    (corpus / "bomb.txt").write_bytes(gzip.compress(b"word " * 400_000))
    told = (
        r"bomb\.txt: is larger than 1 MiB \(data\.max_document_mib\); cut it, or raise that; mend it or set data.on_bad"
    )
    with pytest.raises(SettingsError, match=told):
        make(corpus, tmp_path / "shards", max_document_mib=1)
    (tmp_path / "none.jsonl").write_text("\n")
    nothing = {"kind": "jsonl", "paths": [str(tmp_path / "none.jsonl")]}
    sources = [{"kind": "text", "paths": [f"{corpus}/*.txt"]}, nothing]
    shards, lines = make(corpus, tmp_path / "shards", max_document_mib=1, on_bad="skip", corpus=sources)
    assert shards.manifest.num_skipped == 1 and "bomb.txt: is larger than 1 MiB" in shards.manifest.skipped[0]
    assert f"prepare: warning: data source {tmp_path}/none.jsonl: holds no document" in lines
    assert len([line for line in lines if "warning" in line]) == 1


def corpus_with_text(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("words " * 100)
    (tmp_path / "other" / "table.jsonl").write_text("")
    return tmp_path / "other"


def test_a_folder_that_holds_something_else_is_left_alone(corpus, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    (tmp_path / "home" / "manifest.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"home: exists and holds no shards; choose an empty or new folder"):
        make(corpus, tmp_path / "home")
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"


def test_the_digest_names_settings_sources_and_tokenizer(corpus):
    def digest(source=BPE, **changes):
        return shards_digest(settings(corpus, **changes), tokenizer_source=source)

    digests = [digest(), digest(window=33), digest(seed=1), digest(ByteLevelBpe(vocab_size=301)), digest(shard_rows=9)]
    assert digest(shards="/elsewhere") == digest(max_document_mib=1024, max_unpack_ratio=256) == digests[0]
    digests += [digest(max_document_mib=1), digest(max_unpack_ratio=2)]
    os.utime(corpus / "00.txt", ns=(1, 1))
    digests.append(digest())
    assert len(set(digests)) == len(digests)
    with pytest.raises(SettingsError, match=r"tokenizer /nowhere: not found, wanted a folder with tokenizer.json"):
        digest(PretrainedTokenizer(path="/nowhere"))


def test_the_split_is_free_of_the_order_and_follows_seed_and_share():
    names = [f"document {number}" for number in range(20_000)]
    chosen = {name for name in names if is_held_out(name, seed=0, share=0.1)}
    assert abs(len(chosen) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5
    assert chosen <= {name for name in names if is_held_out(name, seed=0, share=0.2)}
    other = {name for name in names if is_held_out(name, seed=1, share=0.1)}
    assert len(chosen & other) < 300
    assert not [name for name in names if is_held_out(name, seed=0, share=0.0)]


KILLED = """
import json, os, signal, sys
import ray
from pathlib import Path
from e2ray.config.data import ByteLevelBpe, DataSettings
from e2ray.data.prepare import prepare

settings, folder, address = json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
ray.init(address=address, log_to_driver=False)

def progress(line):
    if "documents" in line:
        os.kill(os.getpid(), signal.SIGKILL)

settings = DataSettings.model_validate(settings)
prepare(settings, folder, tokenizer_source=ByteLevelBpe(vocab_size=300), progress=progress)
"""


def test_a_killed_prepare_leaves_nothing_that_passes_for_finished(ray_cluster, corpus, tmp_path):
    folder = tmp_path / "shards"
    value = json.dumps(settings(corpus, shard_rows=50).model_dump(mode="json"))
    address = ray_cluster.get_runtime_context().gcs_address
    command = [sys.executable, "-c", KILLED, value, str(folder), address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not folder.exists()
    left = list(tmp_path.glob(".tmp-*-shards"))
    assert len(left) == 1
    assert (left[0] / "train-00000.arrow").exists()
    with pytest.raises(SettingsError, match="holds no finished shards"):
        ShardSet.open(left[0])
    shards, _ = make(corpus, folder)
    shards.verify()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_killed_prepare_goes_on_behind_the_documents_it_had(ray_cluster, corpus, tmp_path, monkeypatch):
    folder = tmp_path / "shards"
    value = json.dumps(settings(corpus, shard_rows=50).model_dump(mode="json"))
    address = ray_cluster.get_runtime_context().gcs_address
    killed = KILLED.replace('if "documents" in line', 'if list(folder.parent.glob(".shards.parts-*/part-*"))')
    assert killed != KILLED
    command = [sys.executable, "-c", killed, value, str(folder), address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (parts,) = tmp_path.glob(".shards.parts-*")
    assert len(list(parts.glob("part-0-0-1-*.arrow"))) == 1  # the first source, whole
    asked = []
    monkeypatch.setattr(build, "tokenise", lambda items, *a, **k: asked.append(k["first"]) or tokenise(items, *a, **k))
    same = {"tokenizer_source": ByteLevelBpe(vocab_size=300), "shard_rows": 50}
    shards, lines = make(corpus, folder, **same)
    assert asked == [1, 0] and any("goes on behind the 40 documents" in line for line in lines)
    assert not list(tmp_path.glob(".shards.parts-*"))
    make(corpus, tmp_path / "whole", **same)
    for path in (tmp_path / "whole").glob("*.arrow"):
        assert path.read_bytes() == (folder / path.name).read_bytes()
    assert shards.manifest.digest == ShardSet.open(tmp_path / "whole").manifest.digest


def test_near_duplicates_are_left_out_and_counted(ray_cluster, corpus, tmp_path):
    first = (corpus / "30.txt").read_text()
    (corpus / "31.txt").write_text(first + " more")
    (corpus / "32.txt").write_text("before " + first)
    shards, lines = make(corpus, tmp_path / "shards", near_duplicates=0.9, min_tokens=50)
    without, _ = make(corpus, tmp_path / "all", min_tokens=50)
    assert shards.manifest.num_repeated == 2 and any(", 2 near duplicates" in line for line in lines)
    counts = [sum(half.count for half in one.manifest.documents.values()) for one in (without, shards)]
    assert counts[0] - counts[1] == 2


@pytest.mark.parametrize("what", ["tokenizer", "shards"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, limited, what):
    told = "a file may not grow that large here; raise the limit (`ulimit -f`) or choose another storage"

    def write():
        with files.atomic_folder(tmp_path / "shards") as aside:
            if what == "tokenizer":
                save(train_byte_level_bpe(["some words"], ByteLevelBpe(vocab_size=300)), aside / "tokenizer")
            rows = TrainRows(aside, 32, shard_rows=8192)
            rows.add(0, np.arange(10_000, dtype=np.int32))
            rows.finish()

    with pytest.raises(SettingsError) as error, limited(4000):
        write()
    assert str(error.value) == f"{tmp_path}/shards: {told}"
    assert not list(tmp_path.iterdir())
