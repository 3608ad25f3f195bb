import numpy as np
import pyarrow as pa
import pytest

from e2ray.data import rows as rows_module
from e2ray.data.packing import Packer
from e2ray.data.rows import PackedRows
from e2ray.data.shards import ShardSet, train_schema, validation_schema
from e2ray.records.manifest import Manifest

HELD_OUT = [("books/a.txt", [5, 6, 7]), ("books/ä.txt", list(range(1000))), ("c", [1])]


def naive_rows(documents, window):
    """Rows, starts and document numbers, token by token."""
    flat = [(token, number, place == 0) for number, each in enumerate(documents) for place, token in enumerate(each)]
    rows = []
    for first in range(0, len(flat) - window + 1, window):
        row = flat[first : first + window]
        starts = [place for place, (_, _, begins) in enumerate(row) if begins or place == 0]
        rows.append(([token for token, _, _ in row], starts, [row[place][1] for place in starts]))
    return rows, len(flat) % window


@pytest.mark.parametrize("window", [2, 16, 33, 500])
@pytest.mark.parametrize("shard_rows", [1, 7, 8192])
@pytest.mark.parametrize("batch_bytes", [1, 700, 2**18])
def test_rows_are_the_documents_end_to_end(write_shards, documents, monkeypatch, window, shard_rows, batch_bytes):
    monkeypatch.setattr(rows_module, "BATCH_BYTES", batch_bytes)
    shards = ShardSet.open(write_shards(documents, window=window, shard_rows=shard_rows))
    wanted, dropped = naive_rows(documents, window)
    found = [row for batch in shards.train_batches() for row in batch.to_pylist()]
    assert [(row["tokens"], row["starts"], row["documents"]) for row in found] == wanted
    assert (shards.rows, shards.manifest.dropped_tokens) == (len(wanted), dropped)
    assert [entry.rows for entry in shards.manifest.shards[:-1]] == [shard_rows] * (-(-len(wanted) // shard_rows) - 1)
    order = np.random.default_rng(0).permutation(len(wanted))
    np.testing.assert_array_equal(shards.tokens(order), np.array([row for row, _, _ in wanted])[order])


def test_the_files_are_plain_arrow_of_the_promised_schema(write_shards, documents):
    folder = write_shards(documents, HELD_OUT, window=16)
    train = pa.ipc.open_file(folder / "train-00000.arrow").read_all()
    held_out = pa.ipc.open_file(folder / "validation-00000.arrow").read_all()
    assert train.schema == train_schema(16)
    assert train.schema.field("tokens").type.equals(pa.list_(pa.field("item", pa.int32(), nullable=False), 16))
    assert held_out.schema == validation_schema()
    assert held_out["document"].to_pylist() == [30, 31, 32]


def test_writing_twice_gives_the_same_bytes(write_shards, documents):
    one, two = (write_shards(documents, HELD_OUT, name=name) for name in ("one", "two"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


@pytest.mark.parametrize("pack", ["document", "best_fit"])
def test_packed_rows_come_back_with_each_tokens_place(tmp_path, documents, pack):
    window, padding = 16, 7_777
    packer = Packer(window, pack=pack, waiting=5)
    rows = PackedRows(tmp_path, window, shard_rows=40, packer=packer, padding=padding)
    for number, tokens in enumerate(documents):
        rows.add(number, tokens)
    assert rows.finish() == 0
    manifest = Manifest(
        tokenizer_hash="a" * 64,
        pack=pack,
        window=window,
        rows=rows.writer.rows,
        rows_per_batch=rows.rows_per_batch,
        shards=tuple(rows.writer.entries),
        validation=(),
    )
    manifest.write(tmp_path / "manifest.json")
    shards = ShardSet.open(tmp_path)
    assert len(manifest.shards) > 1 and shards.packed
    read = shards.rows_of(np.arange(shards.rows)[::-1])
    assert read.ids.tolist() == list(range(shards.rows))[::-1]
    tokens, places = read.tokens[::-1], read.token_index[::-1]
    np.testing.assert_array_equal(tokens, shards.tokens(np.arange(shards.rows)))
    assert (
        (places < 0).sum()
        == rows.padded
        == (tokens == padding).sum()
        == shards.rows * window - sum(map(len, documents))
    )
    found = []
    for row, place in zip(tokens, places, strict=True):
        fill = place < 0
        assert list(place[fill]) == [-1 - p for p in range(fill.sum())] and not fill[: window - fill.sum()].any()
        for piece in np.split(row[~fill], np.flatnonzero(place[~fill] == 0)[1:]):
            found.append(piece)
        steps = np.diff(place[~fill])
        assert set(steps[place[~fill][1:] != 0]) <= {1}
    cut = [document[first : first + window] for document in documents for first in range(0, len(document), window)]
    assert sorted(map(tuple, found)) == sorted(map(tuple, cut))
