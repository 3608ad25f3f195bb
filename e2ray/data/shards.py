"""Rows of tokens in Arrow IPC files, read so that every flipped bit is noticed.

A folder holds train-*.arrow (rows of exactly `window` tokens), validation-*.arrow (one whole document per row),
the tokenizer and manifest.json. The manifest carries a digest of itself, and per file its sha256 and its blocks:
the file is cut after every record batch, and each piece has its offset and CRC-32. Together they cover the file
to the last byte, so a batch whose file was damaged or swapped is never returned, and verifying it costs about
0.3 ms per MiB the first time a process touches it.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from isal.isal_zlib import crc32

from e2ray.config.base import SettingsError
from e2ray.config.data import SHUFFLE_SHARDS
from e2ray.data.folder import Folder
from e2ray.data.order import Corpus, Order, Reader
from e2ray.records.folders import ShardFolder
from e2ray.records.manifest import Manifest, ShardEntry

MANIFEST = ShardFolder.manifest.name
PADDING = -1  # in `documents`: padding at the end of a row
MAGIC_BYTES = 8  # at the head of an Arrow file, padding included
KEPT_BYTES = 512 * 2**20  # of record batches of a remote folder, in one process
FETCHES = 16  # from a remote folder at once
Tokens = npt.NDArray[np.int32]
Key = tuple[int, int]


@dataclass(frozen=True)
class Rows:
    """Training rows as a run reads them.

    Attributes:
        ids: Number of each row among all rows, int64 [n].
        tokens: int32 [n, window].
        token_index: Each token's index in its document, int32 [n, window], where rows are packed; a padding token has
            -1 - its index in the padding. None where a row is one text.
    """

    ids: npt.NDArray[np.int64]
    tokens: Tokens
    token_index: Tokens | None

    def __getitem__(self, part: slice) -> "Rows":
        """Return some of the rows, copied."""
        token_index = None if self.token_index is None else self.token_index[part].copy()
        return Rows(self.ids[part].copy(), self.tokens[part].copy(), token_index)


def joined(one: Rows, other: Rows) -> Rows:
    """Return the rows of both, the second after the first."""
    token_index = None
    if one.token_index is not None and other.token_index is not None:
        token_index = np.concatenate([one.token_index, other.token_index])
    return Rows(np.concatenate([one.ids, other.ids]), np.concatenate([one.tokens, other.tokens]), token_index)


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


def read_manifest(location: str | Path | Folder) -> Manifest:
    """Return the manifest of a folder of shards.

    Raises:
        SettingsError: If there is none, or it was changed or damaged since it was written, or cannot be read.
    """
    folder = location if isinstance(location, Folder) else Folder(location)
    path = folder.name(MANIFEST)
    if MANIFEST not in folder.sizes():
        raise SettingsError(f"{path}: not found, {folder.shown} holds no finished shards; run prepare")
    return Manifest.of_text(folder.read(MANIFEST), where=path)


def _again(folder: Folder) -> str:
    return f"remove {folder.shown} and rerun prepare"


class _Shard:
    """One file; a record batch is verified whenever it is read."""

    def __init__(self, folder: Folder, entry: ShardEntry, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self.path = folder.name(entry.file)
        self.blocks = entry.blocks
        self.file = folder.open(entry.file)
        if self.file.size != entry.bytes:
            raise self.damaged("its size changed")
        self._verified(len(self.blocks) - 1)  # the footer, before Arrow reads it
        file_schema = pa.ipc.open_file(self.file.whole()).schema
        if not file_schema.equals(schema):
            raise SettingsError(
                f"{self.path}: has the columns {one_line_schema(file_schema)}, wanted {one_line_schema(schema)}; "
                f"{_again(self.folder)}"
            )

    def batch(self, number: int) -> pa.RecordBatch:
        """Return a record batch whose bytes were verified."""
        stretch = self._verified(number)
        if not number:  # the file's magic bytes and the schema come before the first one
            reader = pa.ipc.MessageReader.open_stream(stretch.slice(MAGIC_BYTES))
            reader.read_next_message()
            return pa.ipc.read_record_batch(reader.read_next_message(), self.schema)
        return pa.ipc.read_record_batch(pa.ipc.read_message(stretch), self.schema)

    def _verified(self, block: int) -> pa.Buffer:
        begin = self.blocks[block - 1][0] if block else 0
        end, crc = self.blocks[block]
        stretch = self.file.read(begin, end)
        if crc32(stretch) != crc:
            raise self.damaged(f"bytes {begin} to {end} do not match their checksum")
        return stretch

    def damaged(self, how: str) -> SettingsError:
        """Return the error that names this file."""
        return SettingsError(f"{self.path}: damaged shard, {how}; {_again(self.folder)}")


def one_line_schema(schema: pa.Schema) -> str:
    """Return `name: type` of every column on one line."""
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


@dataclass(frozen=True)
class _Block:
    """One record batch of training rows: tokens [rows, window], and where each row's pieces begin in `starts`."""

    tokens: Tokens
    ends: Tokens
    starts: Tokens
    documents: npt.NDArray[np.int64]
    bytes: int


class ShardSet:
    """The shards of a folder; every byte that is returned was verified in this process.

    Files of this machine are mapped into memory. Record batches of a remote folder are fetched when they are first
    needed, several at once, and the newest ones are kept.
    """

    def __init__(self, folder: Folder, manifest: Manifest, *, kept_bytes: int = KEPT_BYTES) -> None:
        self.folder = folder
        self.manifest = manifest
        self.rows, self.window, self.rows_per_batch = manifest.rows, manifest.window, manifest.rows_per_batch
        self._firsts = np.array([entry.first_row for entry in manifest.shards], dtype=np.int64)
        self._shards: dict[str, _Shard] = {}
        self._kept: OrderedDict[Key, _Block] = OrderedDict()
        self._kept_bytes, self._most_bytes = 0, kept_bytes
        self._lock = threading.Lock()

    @classmethod
    def open(cls, location: str | Path, *, window: int | None = None, tokenizer_hash: str | None = None) -> "ShardSet":
        """Return the shards of a folder after checking the manifest and the size of every file.

        Args:
            location: Where `prepare` put them, or a URI of where they were copied to.
            window: Tokens per row that the run needs; None takes any.
            tokenizer_hash: Hash of the tokenizer that the run uses; None takes any.

        Raises:
            SettingsError: If a file is missing, unknown or of another size, the manifest was changed, the shards are of
                another window or tokenizer, or the location cannot be read.
        """
        folder = Folder(location)
        manifest = read_manifest(folder)
        if window is not None and manifest.window != window:
            raise SettingsError(
                f"{folder.shown}: shards hold {manifest.window}-token rows, the run wants {window}; "
                f"rerun prepare with --set data.window={window}"
            )
        if tokenizer_hash is not None and manifest.tokenizer_hash != tokenizer_hash:
            raise SettingsError(
                f"{folder.shown}: shards were made with tokenizer {manifest.tokenizer_hash[:12]}, the run uses "
                f"{tokenizer_hash[:12]}; rerun prepare with the run's tokenizer"
            )
        entries = {entry.file: entry for entry in manifest.shards + manifest.validation}
        sizes = folder.sizes()
        for name, entry in entries.items():
            if name not in sizes:
                raise SettingsError(f"{folder.name(name)}: missing shard; {_again(folder)}")
            if sizes[name] != entry.bytes:
                raise SettingsError(
                    f"{folder.name(name)}: damaged shard, {sizes[name]} bytes, wanted {entry.bytes}; {_again(folder)}"
                )
        for name in sorted(sizes):
            if name.endswith(".arrow") and name not in entries:
                raise SettingsError(f"{folder.name(name)}: extra shard that the manifest does not name; remove it")
        return cls(folder, manifest)

    def tokens(self, row_ids: npt.ArrayLike) -> Tokens:
        """Return training rows, int32 [n, window], in the order of `row_ids`, a fresh array.

        Raises:
            SettingsError: If a row lies in a damaged record batch.
            IndexError: If there is no such row.
        """
        keys, places = self._located(np.asarray(row_ids, dtype=np.int64))
        blocks = self._blocks(keys)
        rows = np.empty((len(keys), self.window), dtype=np.int32)
        for index, (key, offset) in enumerate(zip(keys, places, strict=True)):
            rows[index] = blocks[key].tokens[offset]
        return rows

    def _located(self, ids: npt.NDArray[np.int64]) -> tuple[list[Key], list[int]]:
        """Return (shard, record batch) of each row, and its index in the batch."""
        if ids.size and not (0 <= ids.min() and ids.max() < self.rows):
            raise IndexError(f"row ids must lie in [0, {self.rows}), got {ids.min()} to {ids.max()}")
        shards = np.searchsorted(self._firsts, ids, side="right") - 1
        batches, places = np.divmod(ids - self._firsts[shards], self.rows_per_batch)
        return list(zip(shards.tolist(), batches.tolist(), strict=True)), places.tolist()

    def _blocks(self, keys: list[Key]) -> dict[Key, _Block]:
        """Return the record batches of some rows; those of a remote folder are fetched several at once."""
        blocks = {key: self._kept[key] for key in keys if key in self._kept}
        if self.folder.local is not None:
            for key in keys:
                if key not in blocks:
                    blocks[key] = self._kept[key] = self._block(*key)
            return blocks
        for key in blocks:
            self._kept.move_to_end(key)
        missing = [key for key in dict.fromkeys(keys) if key not in blocks]
        if missing:
            with ThreadPoolExecutor(FETCHES) as pool:
                blocks |= dict(zip(missing, pool.map(lambda key: self._block(*key), missing), strict=True))
            for key in missing:
                self._keep(key, blocks[key])
        return blocks

    def _keep(self, key: Key, block: _Block) -> None:
        """Keep a fetched record batch; the oldest ones are dropped when there is no room."""
        self._kept[key] = block
        self._kept_bytes += block.bytes
        while self._kept_bytes > self._most_bytes:
            self._kept_bytes -= self._kept.popitem(last=False)[1].bytes

    def _block(self, shard: int, number: int) -> _Block:
        batch = self._shard(self.manifest.shards[shard], train_schema(self.window)).batch(number)
        tokens, starts, documents = batch.columns
        return _Block(
            tokens.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.window),
            starts.offsets.to_numpy(),
            starts.values.to_numpy(),
            documents.values.to_numpy(),
            batch.nbytes,
        )

    def order(self, seed: int, shuffle_shards: int, rows_per_example: int = 1) -> Order:
        """Return the order in which a run reads the training examples.

        Args:
            seed: Of the run.
            shuffle_shards: Shards whose rows are mixed among each other.
            rows_per_example: Rows that stay together.

        Raises:
            SettingsError: If shards end in the middle of an example.
        """
        corpora = [corpus.in_examples(rows_per_example) for corpus in self.corpora]
        if None in corpora:
            raise SettingsError(
                f"{self.folder.shown}: its shards hold no whole examples of {rows_per_example} rows each; prepare them "
                f"with data.shard_rows a multiple of {rows_per_example}"
            )
        return Order(seed, tuple(corpus for corpus in corpora if corpus), shuffle_shards)

    @property
    def corpora(self) -> tuple[Corpus, ...]:
        """The corpora whose rows are mixed, each with its share of the rows of a run."""
        corpora = self.manifest.corpora
        if corpora is None:  # one text, shards of equal length
            return (Corpus(0, self.rows, self.manifest.shards[0].rows),)
        return tuple(Corpus(each.first_row, each.rows, each.shard_rows, each.parts) for each in corpora)

    @property
    def packed(self) -> bool:
        """Whether rows hold documents that do not see each other."""
        return self.manifest.pack != "concat"

    def rows_of(self, row_ids: npt.ArrayLike) -> Rows:
        """Return training rows in the order of `row_ids`, fresh arrays.

        Raises:
            SettingsError: If a row lies in a damaged record batch.
            IndexError: If there is no such row.
        """
        tokens = self.tokens(row_ids)
        ids = np.array(row_ids, dtype=np.int64)
        return Rows(ids, tokens, self._token_index(ids) if self.packed else None)

    def _token_index(self, ids: npt.NDArray[np.int64]) -> Tokens:
        keys, insides = self._located(ids)
        blocks = self._blocks(keys)
        token_index = np.empty((len(ids), self.window), dtype=np.int32)
        index = np.arange(self.window, dtype=np.int32)
        for row, (key, inside) in enumerate(zip(keys, insides, strict=True)):
            block = blocks[key]
            begin, end = block.ends[inside], block.ends[inside + 1]
            first = block.starts[begin:end]
            lengths = np.diff(first, append=self.window)
            own = index - np.repeat(first, lengths)
            if block.documents[end - 1] == PADDING:
                own[first[-1] :] = -1 - own[first[-1] :]
            token_index[row] = own
        return token_index

    def _shard(self, entry: ShardEntry, schema: pa.Schema) -> _Shard:
        with self._lock:
            shard = self._shards.get(entry.file)
            if shard is None:
                shard = self._shards[entry.file] = _Shard(self.folder, entry, schema)
            return shard

    def train_batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all training rows in their order with their document pieces (`train_schema`), verified."""
        yield from self._batches(self.manifest.shards, train_schema(self.window))

    def validation_documents(self) -> Iterator[tuple[str, Tokens]]:
        """Yield (name, tokens int32 [tokens]) of each held-out document in corpus order, verified.

        Raises:
            SettingsError: If a record batch is damaged.
        """
        for batch in self._batches(self.manifest.validation, validation_schema()):
            for name, tokens in zip(batch.column("name"), batch.column("tokens"), strict=True):
                yield name.as_py(), tokens.values.to_numpy(zero_copy_only=True).copy()

    def held_out(self) -> list[Tokens]:
        """Return the tokens of all held-out documents; errors are those of `validation_documents`."""
        return [tokens for _, tokens in self.validation_documents()]

    def _batches(self, entries: Sequence[ShardEntry], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for entry in entries:
            shard = self._shard(entry, schema)
            for number in range(len(entry.blocks) - 1):
                yield shard.batch(number)

    def verify(self) -> None:
        """Compare the sha256 of every file with the manifest's.

        Raises:
            SettingsError: At the first file that differs.
        """
        for entry in self.manifest.shards + self.manifest.validation:
            if self.folder.sha256(entry.file) != entry.sha256:
                raise SettingsError(
                    f"{self.folder.name(entry.file)}: damaged shard, its sha256 does not match; {_again(self.folder)}"
                )


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
    shuffle_shards: int = SHUFFLE_SHARDS,
    rows_per_example: int = 1,
) -> Iterator[Rows]:
    """Yield one rank's rows of each step in [start_step, stop_step), read in this process.

    The same rows as of `e2ray.data.stream.batches`, without Ray. Shards that are open already are read as they are.

    Raises:
        SettingsError: If the shards do not fit the run or are damaged.
        ValueError: If the batch does not divide by the workers.
    """
    if isinstance(folder, ShardSet):
        shards = folder
    else:
        shards = ShardSet.open(folder, window=window, tokenizer_hash=tokenizer_hash)
    order = shards.order(seed, shuffle_shards, rows_per_example)
    reader = Reader(order, batch_sequences, rank, num_workers, rows_per_example)
    for step in range(start_step, stop_step):
        yield shards.rows_of(reader.row_ids(range(step, step + 1))[0])
