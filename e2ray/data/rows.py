"""Writes rows of tokens as the Arrow IPC files that `e2ray.data.shards` reads.

A stream of documents is cut into record batches whose borders do not depend on how the documents arrive, so the
same documents give the same bytes. The sha256 of a file and the CRC-32 of every piece, for the manifest, are
computed from the bytes on their way to the disk.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from isal.isal_zlib import crc32

from e2ray.data.packing import Packer, Row
from e2ray.data.shards import PADDING, Tokens, train_schema, validation_schema
from e2ray.records.manifest import ShardEntry

BATCH_BYTES = 256 * 2**10  # a random row verifies its whole record batch


class _Sink:
    """A file for Arrow to write to that knows its offset, its CRC since the last cut and its sha256."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("xb")
        self.sha256 = hashlib.sha256()
        self.offset = 0
        self.crc = 0
        self.closed = False

    def write(self, data: pa.Buffer | bytes) -> int:
        view = memoryview(data)
        self.file.write(view)
        self.sha256.update(view)
        self.crc = crc32(view, self.crc)
        self.offset += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.offset

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.closed = True
        self.file.close()


class ShardWriter:
    """Writes record batches of one schema into numbered files and keeps what the manifest says about them."""

    def __init__(self, folder: Path, kind: str, schema: pa.Schema, *, shard_rows: int) -> None:
        self.folder, self.kind, self.schema, self.shard_rows = folder, kind, schema, shard_rows
        self.entries: list[ShardEntry] = []
        self.rows = 0
        self._sink: _Sink | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._first_row = 0
        self._blocks: list[tuple[int, int]] = []

    @property
    def room(self) -> int:
        """Rows that still fit into the open file."""
        return self.shard_rows - (self.rows - self._first_row)

    def write(self, columns: Sequence[pa.Array]) -> None:
        """Append one record batch of at most `room` rows; a file that is full is closed."""
        batch = pa.RecordBatch.from_arrays(list(columns), schema=self.schema)
        if batch.num_rows > self.room:
            raise ValueError(f"a record batch must have at most {self.room} rows (the room left), got {batch.num_rows}")
        if self._sink is None or self._writer is None:
            self._sink = _Sink(self.folder / f"{self.kind}-{len(self.entries):05d}.arrow")
            self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self.schema)
        self._writer.write_batch(batch)
        self._cut(self._sink)
        self.rows += batch.num_rows
        if not self.room:
            self.close()

    def close(self) -> None:
        """Finish the open file, if any."""
        if self._sink is None or self._writer is None:
            return
        self._writer.close()
        self._cut(self._sink)
        self._sink.close()
        self.entries.append(
            ShardEntry(
                file=f"{self.kind}-{len(self.entries):05d}.arrow",
                rows=self.rows - self._first_row,
                first_row=self._first_row,
                bytes=self._sink.offset,
                sha256=self._sink.sha256.hexdigest(),
                blocks=tuple(self._blocks),
            )
        )
        self._first_row, self._sink, self._blocks = self.rows, None, []

    def _cut(self, sink: _Sink) -> None:
        self._blocks.append((sink.offset, sink.crc))
        sink.crc = 0


class TrainRows:
    """Cuts a stream of documents into rows of exactly `window` tokens and writes them."""

    def __init__(self, folder: Path, window: int, *, shard_rows: int) -> None:
        self.window = window
        self.rows_per_batch = min(max(BATCH_BYTES // (4 * window), 1), shard_rows)
        self.writer = ShardWriter(folder, "train", train_schema(window), shard_rows=shard_rows)
        self.padded = 0
        self._pieces: list[Tokens] = []
        self._documents: list[int] = []
        self._waiting = 0

    def add(self, document: int, tokens: Tokens) -> None:
        """Append a document's tokens, int32 [tokens]."""
        self._pieces.append(tokens)
        self._documents.append(document)
        self._waiting += len(tokens)
        while self._waiting >= (count := min(self.rows_per_batch, self.writer.room) * self.window):
            self._write(count)

    def finish(self) -> int:
        """Write the waiting whole rows, close the file and return the number of tokens left over.

        What is added afterwards begins a new text in a new file.
        """
        if self._waiting >= self.window:
            self._write(self._waiting // self.window * self.window)
        self.writer.close()
        left, self._waiting, self._pieces, self._documents = self._waiting, 0, [], []
        return left

    def _write(self, count: int) -> None:
        """Write the first `count` waiting tokens, whole rows, and keep the rest."""
        window, rows = self.window, count // self.window
        lengths = np.array([len(piece) for piece in self._pieces])
        begins = np.cumsum(lengths) - lengths
        flat = np.concatenate(self._pieces)
        cuts = np.union1d(begins[begins < count], np.arange(rows) * window)
        owners = np.searchsorted(begins, cuts, side="right") - 1
        offsets = pa.array(np.append(np.searchsorted(cuts, np.arange(rows) * window), len(cuts)), pa.int32())
        _, starts, documents = train_schema(window)
        self.writer.write(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(flat[:count]), type=train_schema(window).field(0).type),
                pa.ListArray.from_arrays(offsets, pa.array((cuts % window).astype(np.int32)), type=starts.type),
                pa.ListArray.from_arrays(
                    offsets, pa.array(np.array(self._documents, np.int64)[owners]), type=documents.type
                ),
            ]
        )
        self._waiting -= count
        if self._waiting:
            first = int(np.searchsorted(begins, count, side="right")) - 1
            self._pieces = [flat[count : begins[first] + lengths[first]].copy(), *self._pieces[first + 1 :]]
            self._documents = self._documents[first:]
        else:
            self._pieces, self._documents = [], []


class PackedRows:
    """Writes rows that hold whole documents, padded to `window` tokens."""

    def __init__(self, folder: Path, window: int, *, shard_rows: int, packer: Packer, padding: int) -> None:
        """Begin with nothing.

        Args:
            folder: Where the files go.
            window: Tokens of a row.
            shard_rows: Rows of a file.
            packer: Chooses which documents share a row.
            padding: Token that fills a row; it is neither seen nor predicted.
        """
        self.window, self.packer, self.padding = window, packer, padding
        self.rows_per_batch = min(max(BATCH_BYTES // (4 * window), 1), shard_rows)
        self.writer = ShardWriter(folder, "train", train_schema(window), shard_rows=shard_rows)
        self.padded = 0
        self._rows: list[Row] = []

    def add(self, document: int, tokens: Tokens) -> None:
        """Append a document's tokens, int32 [tokens]."""
        for row in self.packer.add(document, tokens):
            self._append(row)

    def finish(self) -> int:
        """Write the waiting rows, close the file and return the number of tokens left over: none."""
        for row in self.packer.finish():
            self._append(row)
        if self._rows:
            self._write()
        self.writer.close()
        return 0

    def _append(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) == min(self.rows_per_batch, self.writer.room):
            self._write()

    def _write(self) -> None:
        """Write the waiting rows as one record batch; padding is a last piece of a row, of document `PADDING`."""
        flat = np.full((len(self._rows), self.window), self.padding, dtype=np.int32)
        starts: list[int] = []
        documents: list[int] = []
        offsets = [0]
        for row, row_tokens in zip(self._rows, flat, strict=True):
            end = 0
            for document, tokens in row:
                starts.append(end)
                documents.append(document)
                row_tokens[end : end + len(tokens)] = tokens
                end += len(tokens)
            if end < self.window:
                starts.append(end)
                documents.append(PADDING)
                self.padded += self.window - end
            offsets.append(len(starts))
        kinds = [field.type for field in train_schema(self.window)]
        ends = pa.array(offsets, pa.int32())
        self.writer.write(
            [
                pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), type=kinds[0]),
                pa.ListArray.from_arrays(ends, pa.array(starts, pa.int32()), type=kinds[1]),
                pa.ListArray.from_arrays(ends, pa.array(documents, pa.int64()), type=kinds[2]),
            ]
        )
        self._rows = []


class ValidationRows:
    """Writes whole documents, one per row."""

    def __init__(self, folder: Path, *, shard_rows: int) -> None:
        self.writer = ShardWriter(folder, "validation", validation_schema(), shard_rows=shard_rows)
        self._waiting: list[tuple[Tokens, int, str]] = []
        self._bytes = 0

    def add(self, document: int, name: str, tokens: Tokens) -> None:
        """Append one document, tokens int32 [tokens]."""
        self._waiting.append((tokens, document, name))
        self._bytes += 4 * len(tokens)
        if self._bytes >= BATCH_BYTES or len(self._waiting) == self.writer.room:
            self._write()

    def finish(self) -> None:
        """Write the waiting documents and close the file."""
        if self._waiting:
            self._write()
        self.writer.close()

    def _write(self) -> None:
        tokens, documents, names = zip(*self._waiting, strict=True)
        offsets = np.cumsum([0, *map(len, tokens)]).astype(np.int32)
        kind = validation_schema().field(0).type
        self.writer.write(
            [
                pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(tokens)), type=kind),
                pa.array(documents, pa.int64()),
                pa.array(names, pa.string()),
            ]
        )
        self._waiting, self._bytes = [], 0
