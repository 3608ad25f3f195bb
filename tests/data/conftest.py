"""Shards written without Ray."""

from pathlib import Path

import numpy as np
import pytest

from e2ray.data.packing import Packer
from e2ray.data.rows import PackedRows, TrainRows, ValidationRows
from e2ray.records.manifest import Manifest


@pytest.fixture
def write_shards(tmp_path):
    """A function that writes given documents as shards, in this process, and returns the folder."""

    def write(train, validation=(), *, window=16, shard_rows=40, name="shards", pack="concat") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = TrainRows(folder, window, shard_rows=shard_rows)
        if pack != "concat":
            packer = Packer(window, pack=pack, waiting=10)
            rows = PackedRows(folder, window, shard_rows=shard_rows, packer=packer, padding=0)
        held_out = ValidationRows(folder, shard_rows=shard_rows)
        for number, tokens in enumerate(train):
            rows.add(number, np.asarray(tokens, dtype=np.int32))
        for number, (title, tokens) in enumerate(validation):
            held_out.add(len(train) + number, title, np.asarray(tokens, dtype=np.int32))
        dropped = rows.finish()
        held_out.finish()
        manifest = Manifest(
            tokenizer_hash="a" * 64,
            window=window,
            pack=pack,
            rows=rows.writer.rows,
            rows_per_batch=rows.rows_per_batch,
            dropped_tokens=dropped,
            shards=tuple(rows.writer.entries),
            validation=tuple(held_out.writer.entries),
        )
        manifest.write(folder / "manifest.json")
        return folder

    return write


@pytest.fixture
def documents():
    """Thirty documents of 1 to 120 tokens, no token twice."""
    generator = np.random.default_rng(7)
    ends = np.cumsum(generator.integers(1, 121, size=30))
    return np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1])
