import json
import shutil

import numpy as np
import pytest

from e2ray.config.base import SettingsError
from e2ray.data import rows as rows_module
from e2ray.data.shards import ShardSet, local_batches, read_manifest
from e2ray.records.manifest import spelled

HELD_OUT = [("books/a.txt", [5, 6, 7]), ("books/ä.txt", list(range(1000))), ("c", [1])]


def test_validation_documents_come_back_whole(write_shards, documents, monkeypatch):
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 100)
    shards = ShardSet.open(write_shards(documents, HELD_OUT, shard_rows=2))
    found = [(name, tokens.tolist()) for name, tokens in shards.validation_documents()]
    assert found == HELD_OUT
    assert len(shards.manifest.validation) == 2
    assert all(tokens.dtype == np.int32 for _, tokens in shards.validation_documents())


def test_tokens_are_a_fresh_array_of_the_caller(write_shards, documents):
    shards = ShardSet.open(write_shards(documents))
    first = shards.tokens([0, 0])
    first[:] = -1
    assert shards.tokens([0])[0, 0] == 0
    assert shards.tokens([]).shape == (0, 16)


def test_a_row_that_does_not_exist_is_an_error(write_shards, documents):
    shards = ShardSet.open(write_shards(documents))
    for row in (-1, shards.rows):
        with pytest.raises(IndexError, match=r"row ids must lie in \[0, "):
            shards.tokens([0, row])


def read_all(folder):
    shards = ShardSet.open(folder)
    shards.tokens(np.arange(shards.rows))
    list(shards.validation_documents())


@pytest.mark.parametrize("name", ["train-00000.arrow", "train-00001.arrow", "validation-00000.arrow", "manifest.json"])
def test_every_flipped_bit_is_noticed_and_the_file_named(write_shards, documents, monkeypatch, name):
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 1500)
    folder = write_shards(documents, HELD_OUT)
    read_all(folder)
    whole = (folder / name).read_bytes()
    generator = np.random.default_rng(1)
    regions = [*range(8), *range(len(whole) - 12, len(whole)), *generator.integers(0, len(whole), 250)]
    for place in regions:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(generator.integers(8))
        (folder / name).write_bytes(damaged)
        with pytest.raises(SettingsError, match=rf"/{name}: (is damaged|damaged|not found).*rerun prepare$") as caught:
            read_all(folder)
        assert "\n" not in str(caught.value)
    (folder / name).write_bytes(whole)
    read_all(folder)


def test_rows_beside_a_damaged_batch_are_still_handed_out(write_shards, documents, monkeypatch):
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 64 * 4)
    folder = write_shards(documents)
    blocks = read_manifest(folder).shards[0].blocks
    content = bytearray((folder / "train-00000.arrow").read_bytes())
    content[blocks[2][0] - 40] ^= 4  # in the third record batch
    (folder / "train-00000.arrow").write_bytes(content)
    shards = ShardSet.open(folder)
    assert shards.tokens(np.arange(8)).shape == (8, 16)
    with pytest.raises(SettingsError, match=r"do not match their checksum"):
        shards.tokens([8])
    with pytest.raises(SettingsError, match=r"train-00000.arrow: damaged shard, its sha256"):
        shards.verify()


def test_swapped_shards_are_noticed(write_shards, documents):
    folder = write_shards(documents, shard_rows=20)
    one, two = folder / "train-00000.arrow", folder / "train-00001.arrow"
    assert one.read_bytes() != two.read_bytes()
    aside = one.rename(folder / "aside")
    two.rename(one)
    aside.rename(two)
    with pytest.raises(SettingsError, match=r"train-00000.arrow: damaged shard"):
        read_all(folder)


def test_missing_truncated_and_extra_shards_are_named(write_shards, documents):
    folder = write_shards(documents)
    name = "train-00001.arrow"
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(SettingsError, match=rf"{name}: damaged shard, {len(content) - 1} bytes, wanted {len(content)}"):
        ShardSet.open(folder)
    (folder / name).unlink()
    with pytest.raises(SettingsError, match=rf"{name}: missing shard; remove .* and rerun prepare"):
        ShardSet.open(folder)
    (folder / name).write_bytes(content)
    shutil.copy(folder / name, folder / "train-00009.arrow")
    with pytest.raises(SettingsError, match=r"train-00009.arrow: extra shard"):
        ShardSet.open(folder)


def test_a_shard_that_shrinks_after_opening_is_named(write_shards, documents):
    folder = write_shards(documents)
    shards = ShardSet.open(folder)
    (folder / "train-00000.arrow").write_bytes(b"ARROW1")
    with pytest.raises(SettingsError, match=r"train-00000.arrow: damaged shard, its size changed"):
        shards.tokens([0])
    (folder / "train-00000.arrow").unlink()
    with pytest.raises(SettingsError, match=r"train-00000.arrow: cannot be read"):
        shards.tokens([0])


@pytest.mark.parametrize("change", [{"rows": 3}, {"extra": 1}, {"window": 32}])
def test_an_edited_manifest_is_refused(write_shards, documents, change):
    path = write_shards(documents) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SettingsError, match=r"manifest.json: is damaged, its digest does not match"):
        ShardSet.open(path.parent)


@pytest.mark.parametrize("content", ["", "[]", "null", "{}", "[" * 100_000, '{"digest": NaN}'])
def test_a_manifest_that_is_none_is_refused(write_shards, documents, content):
    path = write_shards(documents) / "manifest.json"
    path.write_text(content)
    with pytest.raises(SettingsError, match=r"manifest.json: is damaged, .*; remove the folder and rerun prepare"):
        ShardSet.open(path.parent)


def test_an_unknown_schema_version_is_refused(write_shards, documents):
    path = write_shards(documents) / "manifest.json"
    path.write_text(spelled(json.loads(path.read_text()) | {"schema_version": 2}))
    with pytest.raises(SettingsError, match=r"newer e2ray, in schema version 2; this one reads 1: .* rerun prepare"):
        ShardSet.open(path.parent)


def test_a_folder_without_shards_is_named(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SettingsError, match=r"manifest.json: not found, .* holds no finished shards; run prepare"):
            ShardSet.open(folder)


def test_shards_that_do_not_fit_the_run_say_how_to_make_them_fit(write_shards, documents):
    folder = write_shards(documents)
    assert ShardSet.open(folder, window=16, tokenizer_hash="a" * 64).window == 16
    with pytest.raises(SettingsError, match=r"hold 16-token rows, the run wants 32; rerun prepare with --set data.win"):
        ShardSet.open(folder, window=32)
    with pytest.raises(SettingsError, match=r"made with tokenizer a{12}, the run uses b{12}; rerun prepare with"):
        ShardSet.open(folder, tokenizer_hash="b" * 64)


def test_a_file_of_other_columns_is_refused(write_shards, documents, tmp_path):
    folder = write_shards(documents, HELD_OUT)
    manifest = read_manifest(folder)
    manifest.changed(validation=manifest.shards[:1]).write(folder / "manifest.json")
    (folder / "validation-00000.arrow").unlink()
    with pytest.raises(SettingsError, match=r"has the columns tokens: .*, wanted tokens: .*, document: int64, name"):
        list(ShardSet.open(folder).validation_documents())


def test_ranks_read_their_part_of_the_global_batch(write_shards, documents):
    folder = write_shards(documents)
    shards = ShardSet.open(folder)
    common = {"seed": 4, "start_step": 2, "stop_step": 40, "batch_sequences": 12, "window": 16, "tokenizer_hash": None}
    parts = [list(local_batches(folder, rank=rank, num_workers=3, **common)) for rank in range(3)]
    for number, step in enumerate(range(2, 40)):
        rows = shards.order(4, 16).at(np.arange(step * 12, step * 12 + 12))
        read = np.concatenate([part[number].tokens for part in parts])
        np.testing.assert_array_equal(read, shards.tokens(rows))
