"""Rows of tokens in Arrow IPC files, read through memory maps that notice every flipped bit.

A folder holds train-*.arrow (rows of exactly `window` tokens), validation-*.arrow (one whole document per row),
the tokenizer and manifest.json. The manifest carries a digest of itself, and per file its sha256 and its blocks:
the file is cut behind every record batch, and each piece has its offset and CRC-32. Together they cover the file
to the last byte, so a batch whose file was damaged or swapped is never handed out, and verifying it costs about
0.3 ms per MiB the first time a process touches it.
"""

import json
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.data.order import Reader

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
PADDING = -1  # in `documents`: tokens that only fill a row
Tokens = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Rows:
    """Training rows as a run reads them.

    Attributes:
        ids: Number of each row among all rows, int64 [n].
        tokens: int32 [n, window].
        places: Each token's place in its document, int32 [n, window], where rows are packed; a token that only fills
            the row has -1 - its place among these. None where a row is one text.
    """

    ids: npt.NDArray[np.int64]
    tokens: Tokens
    places: Tokens | None

    def __getitem__(self, part: slice) -> "Rows":
        """Return some of the rows, as arrays of their own."""
        places = None if self.places is None else self.places[part].copy()
        return Rows(self.ids[part].copy(), self.tokens[part].copy(), places)


def joined(one: Rows, other: Rows) -> Rows:
    """Return the rows of both, one behind the other."""
    places = None
    if one.places is not None and other.places is not None:
        places = np.concatenate([one.places, other.places])
    return Rows(np.concatenate([one.ids, other.ids]), np.concatenate([one.tokens, other.tokens]), places)


def train_schema(window: int) -> pa.Schema:
    """Return the schema of training rows.

    `starts` are the places in the row where a piece of a document begins, the first always 0, and `documents` the
    number of each piece's document in the corpus; the first piece may continue a document of the row before. The last
    piece of a packed row may be `PADDING`.
    """
    fields = [
        pa.field("tokens", pa.list_(pa.field("item", pa.int32(), nullable=False), window), nullable=False),
        pa.field("starts", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("documents", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
    ]
    return pa.schema(fields)


def validation_schema() -> pa.Schema:
    """Return the schema of validation rows: one whole document each, its number in the corpus and its name."""
    fields = [
        pa.field("tokens", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("document", pa.int64(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
    ]
    return pa.schema(fields)


def manifest_text(manifest: dict[str, Any]) -> str:
    """Return the one spelling of a manifest, its digest included; any other text is not read."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    content["digest"] = files.digest(content)
    lines = [f"{json.dumps(key)}: {_json(value)}" for key, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of shards.

    Raises:
        SettingsError: If there is none, or it was changed or damaged since it was written.
    """
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise SettingsError(f"{path}: not found, {folder} holds no finished shards; run prepare")
    try:
        text = path.read_bytes().decode("utf-8")
        manifest = json.loads(text)
        whole = isinstance(manifest, dict) and manifest_text(manifest) == text
    except (ValueError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise SettingsError(f"{path}: damaged or edited, its digest does not match; {_again(folder)}")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise SettingsError(
            f"{path}: schema version {manifest.get('schema_version')}, this program reads {SCHEMA_VERSION}; "
            f"{_again(folder)}"
        )
    return manifest


def _again(folder: Path) -> str:
    return f"remove {folder} and rerun prepare"


class _Shard:
    """One memory-mapped file; a record batch is verified when it is first touched."""

    def __init__(self, folder: Path, entry: dict[str, Any], schema: pa.Schema) -> None:
        self.path = folder / entry["file"]
        self.folder = folder
        self.schema = schema
        self.blocks: list[list[int]] = entry["blocks"]
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != entry["bytes"]:
                    raise self.damaged("its size changed")
                self.mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise SettingsError(f"{self.path}: cannot be read ({error.strerror}); {_again(folder)}") from None
        self._verify(len(self.blocks) - 1)  # the footer, before Arrow reads it
        self.reader = pa.ipc.open_file(pa.py_buffer(self.mapped))
        if not self.reader.schema.equals(schema):
            raise SettingsError(
                f"{self.path}: has the columns {one_line_schema(self.reader.schema)}, wanted "
                f"{one_line_schema(schema)}; {_again(folder)}"
            )

    def batch(self, number: int) -> pa.RecordBatch:
        """Return a record batch whose bytes were verified."""
        self._verify(number)
        return self.reader.get_batch(number)

    def _verify(self, block: int) -> None:
        begin = self.blocks[block - 1][0] if block else 0
        end, crc = self.blocks[block]
        with memoryview(self.mapped) as view, view[begin:end] as piece:
            if zlib.crc32(piece) != crc:
                raise self.damaged(f"bytes {begin} to {end} do not match their checksum")

    def damaged(self, how: str) -> SettingsError:
        """Return the error that names this file."""
        return SettingsError(f"{self.path}: damaged shard, {how}; {_again(self.folder)}")


def one_line_schema(schema: pa.Schema) -> str:
    """Return `name: type` of every column on one line."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


class ShardSet:
    """The shards of a folder, read through memory maps; every byte handed out was verified in this process."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows: int = manifest["rows"]
        self.window: int = manifest["window"]
        self.rows_per_batch: int = manifest["rows_per_batch"]
        self._firsts = np.array([entry["first_row"] for entry in manifest["shards"]], dtype=np.int64)
        self._shards: dict[str, _Shard] = {}
        self._views: dict[tuple[int, int], npt.NDArray[np.int32]] = {}
        self._layouts: dict[tuple[int, int], tuple[Tokens, Tokens, npt.NDArray[np.int64]]] = {}

    @classmethod
    def open(cls, folder: str | Path, *, window: int | None = None, tokenizer_hash: str | None = None) -> "ShardSet":
        """Return the shards of a folder after checking the manifest and the size of every file.

        Args:
            folder: Where `prepare` put them.
            window: Tokens per row that the run wants; None takes any.
            tokenizer_hash: Hash of the tokenizer that the run uses; None takes any.

        Raises:
            SettingsError: If a file is missing, unknown or of another size, the manifest was changed, or the
                shards are of another window or tokenizer.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if window is not None and manifest["window"] != window:
            raise SettingsError(
                f"{folder}: shards hold {manifest['window']}-token rows, the run wants {window}; "
                f"rerun prepare with --set data.window={window}"
            )
        if tokenizer_hash is not None and manifest["tokenizer_hash"] != tokenizer_hash:
            raise SettingsError(
                f"{folder}: shards were made with tokenizer {manifest['tokenizer_hash'][:12]}, the run uses "
                f"{tokenizer_hash[:12]}; rerun prepare with the run's tokenizer"
            )
        entries = {entry["file"]: entry for entry in manifest["shards"] + manifest["validation"]}
        for name, entry in entries.items():
            path = folder / name
            if not path.is_file():
                raise SettingsError(f"{path}: missing shard; {_again(folder)}")
            if path.stat().st_size != entry["bytes"]:
                raise SettingsError(
                    f"{path}: damaged shard, {path.stat().st_size} bytes, wanted {entry['bytes']}; {_again(folder)}"
                )
        for path in sorted(folder.glob("*.arrow")):
            if path.name not in entries:
                raise SettingsError(f"{path}: extra shard that the manifest does not name; remove it")
        return cls(folder, manifest)

    def tokens(self, row_ids: npt.ArrayLike) -> Tokens:
        """Return training rows, int32 [n, window], in the order of `row_ids`, a fresh array.

        Raises:
            SettingsError: If a row lies in a damaged record batch.
            IndexError: If there is no such row.
        """
        ids = np.asarray(row_ids, dtype=np.int64)
        if ids.size and not (0 <= ids.min() and ids.max() < self.rows):
            raise IndexError(f"row ids must lie in [0, {self.rows}), got {ids.min()} to {ids.max()}")
        rows = np.empty((len(ids), self.window), dtype=np.int32)
        views = self._views
        for index, (key, place) in enumerate(self._located(ids)):
            view = views.get(key)
            if view is None:
                view = views[key] = self._view(*key)
            rows[index] = view[place]
        return rows

    def _located(self, ids: npt.NDArray[np.int64]) -> Iterator[tuple[tuple[int, int], int]]:
        """Yield ((shard, record batch), place in the batch) of each row."""
        shards = np.searchsorted(self._firsts, ids, side="right") - 1
        batches, places = np.divmod(ids - self._firsts[shards], self.rows_per_batch)
        return zip(zip(shards.tolist(), batches.tolist(), strict=True), places.tolist(), strict=True)

    @property
    def packed(self) -> bool:
        """Whether rows hold documents that do not see each other."""
        return self.manifest.get("pack", "concat") != "concat"

    def rows_of(self, row_ids: npt.ArrayLike) -> Rows:
        """Return training rows in the order of `row_ids`, fresh arrays.

        Raises:
            SettingsError: If a row lies in a damaged record batch.
            IndexError: If there is no such row.
        """
        tokens = self.tokens(row_ids)
        ids = np.array(row_ids, dtype=np.int64)
        return Rows(ids, tokens, self._places(ids) if self.packed else None)

    def _places(self, ids: npt.NDArray[np.int64]) -> Tokens:
        places = np.empty((len(ids), self.window), dtype=np.int32)
        index = np.arange(self.window, dtype=np.int32)
        for row, (key, inside) in enumerate(self._located(ids)):
            ends, starts, documents = self._layout(key)
            begin, end = ends[inside], ends[inside + 1]
            first = starts[begin:end]
            lengths = np.diff(first, append=self.window)
            place = index - np.repeat(first, lengths)
            if documents[end - 1] == PADDING:
                place[first[-1] :] = -1 - place[first[-1] :]
            places[row] = place
        return places

    def _layout(self, key: tuple[int, int]) -> tuple[Tokens, Tokens, npt.NDArray[np.int64]]:
        """Return (where each row's pieces begin in the two others, their starts, their documents) of a record batch."""
        found = self._layouts.get(key)
        if found is None:
            shard, number = key
            batch = self._shard(self.manifest["shards"][shard], train_schema(self.window)).batch(number)
            starts, documents = batch.column(1), batch.column(2)
            found = (starts.offsets.to_numpy(), starts.values.to_numpy(), documents.values.to_numpy())
            self._layouts[key] = found
        return found

    def _view(self, shard: int, batch: int) -> Tokens:
        entry = self.manifest["shards"][shard]
        tokens = self._shard(entry, train_schema(self.window)).batch(batch).column(0)
        return tokens.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.window)

    def _shard(self, entry: dict[str, Any], schema: pa.Schema) -> _Shard:
        shard = self._shards.get(entry["file"])
        if shard is None:
            shard = self._shards[entry["file"]] = _Shard(self.folder, entry, schema)
        return shard

    def train_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all training rows in their order with their document pieces (`train_schema`), verified."""
        yield from self._batches(self.manifest["shards"], train_schema(self.window))

    def validation_documents(self) -> Iterator[tuple[str, Tokens]]:
        """Yield (name, tokens int32 [tokens]) of each held-out document in corpus order, verified.

        Raises:
            SettingsError: If a record batch is damaged.
        """
        for batch in self._batches(self.manifest["validation"], validation_schema()):
            for name, tokens in zip(batch.column("name"), batch.column("tokens"), strict=True):
                yield name.as_py(), tokens.values.to_numpy(zero_copy_only=True).copy()

    def _batches(self, entries: list[dict[str, Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for entry in entries:
            shard = self._shard(entry, schema)
            for number in range(len(entry["blocks"]) - 1):
                yield shard.batch(number)

    def verify(self) -> None:
        """Compare the sha256 of every file with the manifest's.

        Raises:
            SettingsError: At the first file that differs.
        """
        for entry in self.manifest["shards"] + self.manifest["validation"]:
            path = self.folder / entry["file"]
            if not path.is_file() or files.sha256(path) != entry["sha256"]:
                raise SettingsError(f"{path}: damaged shard, its sha256 does not match; {_again(self.folder)}")


def local_batches(
    folder: "str | Path | ShardSet",
    *,
    seed: int,
    start_step: int,
    stop_step: int,
    rank: int,
    num_workers: int,
    batch_sequences: int,
    window: int,
    tokenizer_hash: str | None,
) -> Iterator[Rows]:
    """Yield one rank's rows of each step in [start_step, stop_step), read in this process.

    They are those of `e2ray.data.stream.batches`, without Ray. Shards that are open already are read as they are.

    Raises:
        SettingsError: If the shards do not fit the run or are damaged.
        ValueError: If the batch does not divide by the workers.
    """
    if isinstance(folder, ShardSet):
        shards = folder
    else:
        shards = ShardSet.open(folder, window=window, tokenizer_hash=tokenizer_hash)
    reader = Reader(seed, shards.rows, batch_sequences, rank, num_workers)
    for step in range(start_step, stop_step):
        yield shards.rows_of(reader.row_ids(step))
