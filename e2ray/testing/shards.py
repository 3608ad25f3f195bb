"""Shards written in this process, without Ray and without a tokenizer: documents are given as tokens."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from e2ray.data.packing import Packer
from e2ray.data.rows import PackedRows, TrainRows, ValidationRows
from e2ray.records.folders import ShardFolder
from e2ray.records.manifest import Manifest

TOKENIZER = "a" * 64  # hash of the tokenizer that they claim to be made with


def write_shards(
    folder: Path,
    train: Iterable[ArrayLike],
    validation: Iterable[tuple[str, ArrayLike]] = (),
    *,
    window: int,
    vocab_size: int = 0,
    shard_rows: int = 40,
    pack: Literal["concat", "document", "best_fit"] = "concat",
    waiting: int = 10,
) -> Path:
    """Return a new folder with given documents as shards.

    Args:
        folder: The folder to make.
        train: Tokens of each training document.
        validation: Title and tokens of each held-out document; they are numbered after the others.
        window: R, tokens of a row.
        vocab_size: The vocabulary size in the manifest.
        shard_rows: Rows of a shard at most.
        pack: How documents are put into rows.
        waiting: How many documents a packer keeps waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: TrainRows | PackedRows = TrainRows(folder, window, shard_rows=shard_rows)
    if pack != "concat":
        packer = Packer(window, pack=pack, waiting=waiting)
        rows = PackedRows(folder, window, shard_rows=shard_rows, packer=packer, padding=0)
    held_out, number = ValidationRows(folder, shard_rows=shard_rows), 0
    for tokens in train:
        rows.add(number, np.asarray(tokens, dtype=np.int32))
        number += 1
    for title, tokens in validation:
        held_out.add(number, title, np.asarray(tokens, dtype=np.int32))
        number += 1
    dropped = rows.finish()
    held_out.finish()
    manifest = Manifest(
        tokenizer_hash=TOKENIZER,
        vocab_size=vocab_size,
        window=window,
        pack=pack,
        rows=rows.writer.rows,
        rows_per_batch=rows.rows_per_batch,
        dropped_tokens=dropped,
        shards=tuple(rows.writer.entries),
        validation=tuple(held_out.writer.entries),
    )
    manifest.write(ShardFolder(folder).manifest)
    return folder
