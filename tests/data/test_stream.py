import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.config.base import SettingsError
from e2ray.config.data import ByteLevelBpe, JsonlSource, TextSource
from e2ray.data import rows as rows_module
from e2ray.data import stream
from e2ray.data.corpus import list_items, read_item
from e2ray.data.shards import ShardSet, local_batches, read_manifest
from e2ray.data.stream import batches, tokenise
from e2ray.data.tokenizer import train_byte_level_bpe

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\.")]  # Ray's own


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_byte_level_bpe(
        ["some words to learn from, again and again"] * 9, ByteLevelBpe(vocab_size=280)
    ).save_pretrained(folder)
    return folder


def arguments(**changes):
    return {
        "seed": 3,
        "start_step": 0,
        "stop_step": 50,
        "rank": 0,
        "num_workers": 1,
        "batch_sequences": 6,
        "window": 16,
        "tokenizer_hash": None,
    } | changes


@pytest.mark.parametrize(
    ("changes", "block_bytes", "task_bytes"),
    [
        ({}, 2**20, 2**20),  # one task, one block
        ({"start_step": 7, "stop_step": 31, "rank": 1, "num_workers": 2}, 1000, 4000),  # several tasks and blocks
        ({"stop_step": 5, "batch_sequences": 300}, 100, 100),  # a block per step, each over several epochs
    ],
)
def test_ray_and_one_process_read_the_same_rows(
    ray_cluster, write_shards, documents, monkeypatch, changes, block_bytes, task_bytes
):
    monkeypatch.setattr(stream, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(stream, "TASK_BYTES", task_bytes)
    folder = write_shards(documents)
    wanted = list(local_batches(folder, **arguments(**changes)))
    found = list(batches(folder, **arguments(**changes)))
    assert_same(found, wanted)
    assert {(batch.tokens.dtype, batch.tokens.flags.writeable, batch.tokens.base is None) for batch in found} == {
        (np.dtype("int32"), True, True)
    }


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.tokens, other.tokens)
        assert (one.token_index is None) == (other.token_index is None)
        if one.token_index is not None:
            np.testing.assert_array_equal(one.token_index, other.token_index)


def test_packed_rows_come_through_ray_with_their_places(ray_cluster, write_shards, documents, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 1000)
    folder = write_shards(documents, pack="best_fit")
    wanted = list(local_batches(folder, **arguments(num_workers=2, rank=1)))
    found = list(batches(folder, **arguments(num_workers=2, rank=1)))
    assert {batch.token_index.shape for batch in found} == {(3, 16)} and len(found) == 50
    assert_same(found, wanted)
    places = np.concatenate([batch.token_index for batch in found])
    assert (places[:, 1:] == 0).any() and (places < 0).any()  # rows of several documents, and rows that are filled


def test_no_steps_give_no_batches(ray_cluster, write_shards, documents):
    assert list(batches(write_shards(documents), **arguments(start_step=5, stop_step=5))) == []


def test_a_damaged_shard_is_one_line_when_its_row_is_due(ray_cluster, write_shards, documents, monkeypatch):
    folder = write_shards(documents)
    blocks = read_manifest(folder).shards[1].blocks
    content = bytearray((folder / "train-00001.arrow").read_bytes())
    content[blocks[0][0] - 100] ^= 1
    (folder / "train-00001.arrow").write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"train-00001.arrow: damaged shard, bytes \d+ to .* rerun prepare$"
    ) as caught:
        list(batches(folder, **arguments()))
    assert "\n" not in str(caught.value)


def test_shards_that_do_not_fit_are_refused_before_a_task_starts(write_shards, documents):
    with pytest.raises(SettingsError, match="16-token rows, the run wants 32"):
        next(batches(write_shards(documents), **arguments(window=32)))
    with pytest.raises(ValueError, match="multiple of num_workers"):
        next(batches(write_shards(documents, name="two"), **arguments(num_workers=4)))


def test_shards_made_anew_under_the_same_name_are_read_anew(ray_cluster, write_shards, documents):
    folder = write_shards(documents)
    first = next(batches(folder, **arguments()))
    folder.rename(folder.with_name("old"))
    write_shards([each + 1 for each in documents])
    np.testing.assert_array_equal(next(batches(folder, **arguments())).tokens, first.tokens + 1)


@pytest.mark.timeout(120)
def test_a_pipeline_starts_where_no_whole_cpu_is_free(ray_cluster, write_shards, documents):
    """Workers may leave less than one CPU: what asks for a quarter must not wait for a whole one."""

    @ray_cluster.remote(num_cpus=0.85)
    class Busy:
        def ready(self):
            return True

    folder = write_shards(documents)
    holders = [Busy.remote(), Busy.remote()]
    assert ray_cluster.get([holder.ready.remote() for holder in holders]) == [True, True]
    try:
        assert ray_cluster.available_resources().get("CPU", 0) < 1
        assert len(list(batches(folder, **arguments(stop_step=5)))) == 5
    finally:
        for holder in holders:
            ray_cluster.kill(holder)


def test_a_reader_that_nobody_drains_stops_reading_ahead(ray_cluster, write_shards, monkeypatch):
    rows, window, step = 2000, 1024, 300  # 24 KiB a step: that row is due 7 MiB after the first
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 4 * window)
    folder = write_shards([np.arange(rows * window) % 1000], window=window, shard_rows=rows)
    seen = batches(folder, **arguments(window=window, stop_step=rows // 6), prefetch_bytes=2**20)
    next(seen)
    time.sleep(1.5)
    row = ShardSet.open(folder).order(3, 16).at(np.array([step * 6]))[0]
    with (folder / "train-00000.arrow").open("r+b") as file:
        file.seek(read_manifest(folder).shards[0].blocks[row][0] - 200)
        file.write(b"damage")
    with pytest.raises(SettingsError, match=r"train-00000.arrow: damaged shard"):
        list(seen)


def test_the_context_and_the_console_of_others_are_left_alone(ray_cluster, write_shards, documents, capfd):
    from ray.data import DataContext

    list(batches(write_shards(documents), **arguments()))
    assert not DataContext.get_current().execution_options.preserve_order
    assert DataContext.get_current().print_on_execution_start
    assert logging.getLogger("ray.data").level in (logging.NOTSET, logging.DEBUG)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Dataset" not in err


def test_documents_come_out_in_order_with_their_tokens(ray_cluster, tmp_path, tokenizer_folder, monkeypatch):
    (tmp_path / "texts").mkdir()
    for number in range(20):
        (tmp_path / "texts" / f"{number:02d}.txt").write_text(f"words {number} " * (number * 5 % 7))
    lines = [json.dumps({"text": f"line {number}"}) for number in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:9], "{", *lines[9:]]))
    sources = [TextSource(paths=(f"{tmp_path}/texts/*",)), JsonlSource(paths=(f"{tmp_path}/a.jsonl",))]
    monkeypatch.setattr("e2ray.data.corpus.JSONL_RANGE_BYTES", (50, 50))
    monkeypatch.setattr("e2ray.data.corpus.TEXT_GROUP_BYTES", (60, 60))
    items = list_items(sources)
    assert len(items) > 10
    found = [row for table in tokenise(items, tokenizer_folder, prefix=(7, 9), end=0) for row in table.to_pylist()]
    wanted = [document for item in items for document in read_item(item)]
    assert [row["name"] for row in found] == [document.name for document in wanted]
    from tokenizers import Tokenizer

    plain = Tokenizer.from_file(str(Path(tokenizer_folder) / "tokenizer.json"))
    for row, document in zip(found, wanted, strict=True):
        reason = getattr(document, "reason", None)
        assert row["reason"] == reason
        if reason is None:
            assert row["tokens"] == [7, 9, *plain.encode(document.text).ids, 0]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(count=st.integers(0, 50_000), at_a_time=st.integers(1, 300))
def test_tasks_get_smaller_towards_the_end_and_leave_nothing_out(count, at_a_time):
    borders = stream._falling(count, at_a_time)
    sizes = np.diff(borders)
    if at_a_time == 1:  # nobody waits for it
        assert len(sizes) == min(count, 1) and sizes.sum() == count
        return
    assert borders[0] == 0 and borders[-1] == count and (sizes > 0).all() and (np.diff(sizes) <= 0).all()
    assert count == 0 or sizes[0] <= max(count / (2 * at_a_time), count / 1024, 1)  # none gets more than its half
    assert count == 0 or sizes[-1] <= max(count / 1024, 1)
    assert len(sizes) <= 1024 + 2 * at_a_time * (1 + np.log(max(count, 1)))


def test_many_items_share_tasks_and_keep_their_order(ray_cluster, tmp_path, tokenizer_folder, monkeypatch):
    monkeypatch.setattr("e2ray.data.corpus.TEXT_GROUP_BYTES", (1, 1))
    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_text("x")
    items = list_items([TextSource(paths=(f"{tmp_path}/*.txt",))])
    found = [
        name for table in tokenise(items, tokenizer_folder, prefix=(), end=0) for name in table["name"].to_pylist()
    ]
    assert [name[-6:-4] for name in found] == [f"{number:02d}" for number in range(20)]
    assert list(tokenise([], tokenizer_folder, prefix=(), end=0)) == []
