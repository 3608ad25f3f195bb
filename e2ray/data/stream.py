"""Tokenising in parallel and batches for a training rank, by Ray Data, which no other module of this layer uses.

Both pipelines have a few work items as their input, and tasks that stream what each item yields: a block leaves
a task as soon as it is full, so the first batch does not wait for a whole item and memory stays bounded. Each
pipeline has its own Ray Data context; the process-wide one is not changed. An error in the data is passed on as a
row and raised where the rows are read: as an exception in a task it would be logged, retried and wrapped.
"""

import itertools
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
from ray.data import ExecutionResources, TaskPoolStrategy
from tokenizers import Encoding

from e2ray.config.base import SettingsError
from e2ray.config.data import SHUFFLE_SHARDS
from e2ray.config.uris import is_uri
from e2ray.data.corpus import MIB, Document, Item, printable, read_item
from e2ray.data.encoder import Encoder
from e2ray.data.order import Reader, local_indices
from e2ray.data.shards import Rows, ShardSet, joined

TASKS = 256  # of one pipeline at most: handing an item to Ray takes milliseconds
BLOCK_BYTES = 4 * MIB
READERS = (
    2  # tasks of one pipeline at a time; one reads a hundred times what a rank trains on, and is a process to start
)
TASK_BYTES = 128 * MIB  # of one reading task, unless that makes more than TASKS
TOKENISE_CHARACTERS = 4 * MIB
QUIET = {  # Ray Data reports each pipeline on the console; a run reports its own progress
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,
}
DOCUMENTS = pa.schema(
    [("item", pa.int32()), ("name", pa.string()), ("tokens", pa.list_(pa.int32())), ("reason", pa.string())]
)


def _pipeline(
    work: Sequence[object],
    function: Callable[[pa.Table], Iterator[pa.Table]],
    *,
    num_cpus: float,
    block_bytes: int,
    prefetch_bytes: int | None,
    concurrency: int | None = None,
) -> Iterator[pa.Table]:
    """Yield the tables that `function` makes of each piece of work, in the order of the work."""
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    pieces = [{"work": pickle.dumps(piece)} for piece in work]
    dataset = ray.data.from_items(pieces, override_num_blocks=len(pieces))  # from_arrow waits for a whole free CPU
    context = dataset.context
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = block_bytes
    options = context.execution_options
    options.preserve_order = True
    options.verbose_progress = False
    if prefetch_bytes is not None:
        options.resource_limits = ExecutionResources(object_store_memory=prefetch_bytes)
    dataset = dataset.map_batches(
        function,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=num_cpus,
        compute=None if concurrency is None else TaskPoolStrategy(size=concurrency),
    )
    yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


def tokenise(
    items: Sequence[Item], tokenizer_folder: str | Path, *, prefix: Sequence[int], end: int, first: int = 0
) -> Iterator[pa.Table]:
    """Yield the tokenised documents of `items` in their order, tokenised in parallel.

    Args:
        items: Work items of `corpus.list_items`.
        tokenizer_folder: Folder with tokenizer.json, on a file system that all nodes share.
        prefix: Tokens put before each document, maybe none.
        end: Token put after each document.
        first: Items that are left out at the beginning.

    Yields:
        Tables (`item` int32, `name` string, `tokens` list<int32>, `reason` string): a bad document has a reason and no
        tokens; `item` is the index in `items`, ascending.
    """
    numbered = list(enumerate(items))[first:]
    at_a_time = max(int(ray.cluster_resources().get("CPU", 1)), 1)
    groups = [numbered[begun:ended] for begun, ended in itertools.pairwise(_falling(len(numbered), at_a_time))]
    path = str(Path(tokenizer_folder).absolute() / "tokenizer.json")
    function = partial(_tokenise_items, path=path, prefix=tuple(prefix), end=end)
    if groups:
        yield from _pipeline(groups, function, num_cpus=1, block_bytes=8 * BLOCK_BYTES, prefetch_bytes=None)


def _falling(count: int, at_a_time: int) -> list[int]:
    """Return where tasks begin among `count` items, and the end: large ones first, single items last.

    Cores are idle for a fifth of a second between two tasks, so there are few; and the last ones are small, so that all
    cores end at the same time. Each takes its part of half of what is left (guided self-scheduling, Polychronopoulos
    and Kuck, 1987). Where only one task runs at a time, it takes all.
    """
    if at_a_time == 1:
        return [0, count] if count else [0]
    borders, least = [0], max(count // (4 * TASKS), 1)
    while borders[-1] < count:
        size = max((count - borders[-1]) // (2 * at_a_time), least)
        borders.append(min(borders[-1] + size, count))
    return borders


@lru_cache(maxsize=2)
def _encoder(path: str, modified_ns: int, prefix: tuple[int, ...], end: int) -> Encoder:
    return Encoder(Path(path).read_text(encoding="utf-8"), prefix=prefix, end=end)


@dataclass
class _Texts:
    """Documents that are tokenised together; a bad one has a reason and no text."""

    numbers: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)


def _texts(table: pa.Table) -> Iterator[_Texts]:
    for piece in table.column("work"):
        batch, size = _Texts(), 0
        for number, item in pickle.loads(piece.as_py()):  # our own bytes, written a moment ago by `_pipeline`
            for document in read_item(item):
                batch.numbers.append(number)
                batch.names.append(document.name)
                batch.texts.append(document.text if isinstance(document, Document) else "")
                batch.reasons.append(None if isinstance(document, Document) else printable(document.reason))
                size += len(batch.texts[-1]) + len(batch.reasons[-1] or "")
                if size >= TOKENISE_CHARACTERS:
                    yield batch
                    batch, size = _Texts(), 0
        if batch.names:
            yield batch


def _tokenise_items(table: pa.Table, *, path: str, prefix: tuple[int, ...], end: int) -> Iterator[pa.Table]:
    """Yield the documents of the work in a table; while a batch is tokenised, the next is read, the last packed.

    The library has one thread: several of its own would spin while they wait for the last text of a batch.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = _encoder(path, os.stat(path).st_mtime_ns, prefix, end)
    with ThreadPoolExecutor(1) as pool:
        before: tuple[_Texts, Future[list[Encoding]]] | None = None
        for batch in _texts(table):
            coming = batch, pool.submit(encoder.encodings, batch.texts)
            if before is not None:
                yield _tokenised(encoder, *before)
            before = coming
        if before is not None:
            yield _tokenised(encoder, *before)


def _tokenised(encoder: Encoder, batch: _Texts, encodings: "Future[list[Encoding]]") -> pa.Table:
    rows = encoder.arrays(encodings.result())
    tokens = [None if reason else row for row, reason in zip(rows, batch.reasons, strict=True)]
    offsets = np.cumsum([0, *(0 if row is None else len(row) for row in tokens)]).astype(np.int32)
    flat = np.concatenate([np.empty(0, np.int32), *(row for row in tokens if row is not None)])
    return pa.Table.from_arrays(
        [
            pa.array(batch.numbers, pa.int32()),
            pa.array(batch.names),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            pa.array(batch.reasons, pa.string()),
        ],
        schema=DOCUMENTS,
    )


def batches(
    folder: str | Path,
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
    prefetch_bytes: int = 32 * MIB,
    num_cpus: float = 0.25,
    rows_per_example: int = 1,
) -> Iterator[Rows]:
    """Yield one rank's rows of each step in [start_step, stop_step).

    Made inside the worker: one pipeline per rank, so no worker waits for another. Each array is a fresh one.

    Args:
        folder: Shards of `prepare`, on a file system that all nodes share, or a URI that all nodes can read.
        seed: Chooses the order of rows.
        start_step: First step.
        stop_step: Step after the last one.
        rank: This worker.
        num_workers: Workers that share a batch.
        batch_sequences: Examples of the global batch.
        window: Tokens per row that the run needs.
        tokenizer_hash: Hash of the run's tokenizer; None takes any.
        shuffle_shards: Shards whose rows are mixed among each other.
        prefetch_bytes: Tokens read ahead at most, rounded up to two blocks.
        num_cpus: CPUs that one reading task asks for, beside those that train workers hold.
        rows_per_example: Rows of an example, which follow each other.

    Raises:
        SettingsError: If the shards do not fit the run, or a record batch is damaged.
        ValueError: If the batch does not divide by the workers.
    """
    shards = ShardSet.open(folder, window=window, tokenizer_hash=tokenizer_hash)
    share = len(local_indices(rank, num_workers, batch_sequences)) * rows_per_example
    step_bytes = share * window * 4 * (2 if shards.packed else 1)
    block_steps = max(min(BLOCK_BYTES, prefetch_bytes // 2) // step_bytes, 1)
    work = _stretches(range(start_step, stop_step), block_steps=block_steps, step_bytes=step_bytes)
    if not work:
        return
    order = shards.order(seed, shuffle_shards, rows_per_example)
    reader = Reader(order, batch_sequences, rank, num_workers, rows_per_example)
    size = 2 * block_steps * step_bytes  # twice a block, so that Ray Data does not cut one
    tables = _pipeline(
        work,
        _reading(folder, shards, reader, block_steps),
        num_cpus=num_cpus,
        block_bytes=size,
        prefetch_bytes=max(prefetch_bytes, size),
        concurrency=READERS,
    )
    yield from _by_step(tables, share)


def _stretches(steps: range, *, block_steps: int, step_bytes: int) -> list[range]:
    """Return the steps that each reading task reads, none where there are none."""
    task_steps = max(TASK_BYTES // step_bytes, -(-len(steps) // TASKS), 1)
    return [steps[first:stop] for first, stop in itertools.pairwise(_borders(len(steps), block_steps, task_steps))]


def _reading(
    folder: str | Path, shards: ShardSet, reader: Reader, block_steps: int
) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """Return the function of a reading task."""
    return partial(
        _read_steps,
        folder=str(folder) if is_uri(folder) else str(Path(folder).absolute()),
        digest=shards.manifest.digest,
        packed=shards.packed,
        reader=reader,
        block_steps=block_steps,
    )


def _borders(num_steps: int, block_steps: int, task_steps: int) -> list[int]:
    """Return where the tasks begin, and the end: one step, an eighth of a block, one block, then large ones.

    A block leaves a task when it is full or the task ends. So the first batch comes as soon as its own rows are read,
    however much there is to read, and the tasks beside it are small: random rows of much data are in many record
    batches, each of which is verified.
    """
    few = 1 + max(block_steps // 8, 1)
    begins = [0, 1, few, *range(few + block_steps, num_steps, task_steps)]
    return [begin for begin in begins if begin < num_steps] + [num_steps]


@lru_cache(maxsize=4)
def _shards(folder: str, digest: str) -> ShardSet:
    shards = ShardSet.open(folder)
    if shards.manifest.digest != digest:
        raise SettingsError(f"{folder}: the shards were made anew while a run reads them; start the run again")
    return shards


def _read_steps(
    table: pa.Table, *, folder: str, digest: str, packed: bool, reader: Reader, block_steps: int
) -> Iterator[pa.Table]:
    for piece in table.column("work"):
        steps: range = pickle.loads(piece.as_py())  # our own bytes, written a moment ago by `_pipeline`
        try:
            shards = _shards(folder, digest)
            for first in range(0, len(steps), block_steps):
                rows = reader.row_ids(steps[first : first + block_steps])
                yield _block(shards.rows_of(rows.reshape(-1)), None)
        except SettingsError as error:
            nothing = np.zeros((1, 1), np.int32)
            yield _block(Rows(np.zeros(1, np.int64), nothing, nothing if packed else None), str(error))
            return


def _block(rows: Rows, error: str | None) -> pa.Table:
    """Return rows of any width as one table; with an error it has a row that is never read."""
    columns = {"error": pa.array([error] * len(rows.ids), pa.string()), "ids": pa.array(rows.ids)}
    columns |= {"tokens": _lists(rows.tokens)} | (
        {} if rows.token_index is None else {"index": _lists(rows.token_index)}
    )
    return pa.table(columns)


def _lists(values: npt.NDArray[np.int32]) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * np.int32(values.shape[1])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _rows(batch: pa.RecordBatch) -> Rows:
    def plane(name: str) -> npt.NDArray[np.int32]:
        return batch.column(name).flatten().to_numpy(zero_copy_only=True).reshape(batch.num_rows, -1)

    index = plane("index") if "index" in batch.schema.names else None
    return Rows(batch.column("ids").to_numpy(zero_copy_only=True), plane("tokens"), index)


def _by_step(tables: Iterator[pa.Table], share: int) -> Iterator[Rows]:
    """Yield `share` rows at a time, wherever the borders of the tables are."""
    waiting: Rows | None = None
    for table in tables:
        if table.column("error").null_count < table.num_rows:
            raise SettingsError(next(error for error in table.column("error").to_pylist() if error))
        for batch in table.to_batches():
            rows = _rows(batch) if waiting is None else joined(waiting, _rows(batch))
            whole = len(rows.ids) // share * share
            for first in range(0, whole, share):
                yield rows[first : first + share]
            waiting = rows[whole : len(rows.ids)] if whole < len(rows.ids) else None
    assert waiting is None, "a pipeline ended within a step"
