"""Which row of the corpus is where in which batch, independent of the number of workers.

The position of a row in the run is n = step * batch_sequences + i, with i its index in the global batch. Every row of
the run follows from n and the seed alone, so any (step, i) is known without knowing what came before, at the same
cost for any position and any number of shards; a batch may span two epochs, and nothing is dropped.

Corpora are mixed by a fixed pattern of `PARTS` rows, in which each has its share, spread as evenly as whole rows can
be: among the first n rows of a run, for any n, a corpus has its share to within one row. Row k of a corpus is number
k % rows of its epoch k // rows. An epoch is shuffled on two levels: the shards of the corpus are put in a random order
and taken in groups of `group_shards`, and the rows of a group are put in a random order. So a stretch of steps reads
from few shards; a corpus that is no larger than a group is shuffled as a whole.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

PARTS = 10_000
ROUNDS = 8
WORD = 2**64 - 1
Ids = npt.NDArray[np.int64]


@lru_cache(maxsize=32)
def permutation(seed: int, epoch: int, rows: int, corpus: int = 0, group: int = 0) -> Ids:
    """Return the order of all rows of a group in one epoch, int64 [rows], read-only.

    It sorts the raw output of a Philox generator keyed by (seed, epoch), whose counter begins at (corpus, group): numpy
    keeps that stream the same for ever, which it does not promise for its own shuffles. The low bits of each number
    are replaced by its index, so that no two are equal and a plain sort, which is fast, carries the indices along.
    """
    low = np.uint64(2 ** (rows - 1).bit_length() - 1 if rows else 0)
    keys = _philox(seed, epoch, 2 * corpus, group).random_raw(rows) & ~low | np.arange(rows, dtype=np.uint64)
    keys.sort()
    order = (keys & low).view(np.int64)
    order.flags.writeable = False
    return order


def _philox(seed: int, epoch: int, stream: int, number: int) -> np.random.Philox:
    key, counter = np.array([seed, epoch], np.uint64), np.array([0, 0, number, stream], np.uint64)
    return np.random.Philox(key=key, counter=counter)


class Scramble:
    """A random permutation of [0, size) of which any single value is known at once.

    A Feistel network over the next power of four, walked until it comes back into the range (Black and Rogaway,
    "Ciphers with Arbitrary Finite Domains", 2002); its rounds mix with the finaliser of SplitMix64.
    """

    def __init__(self, size: int, keys: npt.NDArray[np.uint64]) -> None:
        """Make the permutation that `keys`, uint64 [ROUNDS], choose."""
        self.size, self.keys = size, [int(key) for key in keys]
        self.half = max(((size - 1).bit_length() + 1) // 2, 1)
        self.mask = 2**self.half - 1

    def _round(self, value: int, key: int) -> int:
        value = ((value ^ key) * 0xBF58476D1CE4E5B9) & WORD
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & WORD
        return (value ^ (value >> 31)) & self.mask

    def at(self, index: int) -> int:
        """Return the value at an index."""
        value = index
        while True:
            left, right = value >> self.half, value & self.mask
            for key in self.keys:
                left, right = right, left ^ self._round(right, key)
            value = left << self.half | right
            if value < self.size:
                return value

    def index_of(self, value: int) -> int:
        """Return the index of a value."""
        index = value
        while True:
            left, right = index >> self.half, index & self.mask
            for key in reversed(self.keys):
                left, right = right ^ self._round(left, key), left
            index = left << self.half | right
            if index < self.size:
                return index


@lru_cache(maxsize=32)
def _shards(seed: int, epoch: int, corpus: int, size: int) -> Scramble:
    """Return the order of a corpus's shards in one epoch."""
    return Scramble(size, _philox(seed, epoch, 2 * corpus + 1, 0).random_raw(ROUNDS))


@lru_cache(maxsize=4)
def pattern(parts: tuple[int, ...]) -> tuple[Ids, Ids]:
    """Return which corpus each of `PARTS` rows is of, and how many rows of that corpus come before it.

    Row j of a corpus of share w is within [floor(j / w), ceil((j + 1) / w)), which keeps every corpus to within one row
    of its share after any number of rows. Taking, of the rows that may come already, the one that is due first does so
    (Baruah et al., "Proportionate Progress", Algorithmica 15, 1996).

    Args:
        parts: Rows of each corpus among `PARTS`, which they sum to.
    """
    assert sum(parts) == PARTS, parts
    owners, before = np.empty(PARTS, np.int64), np.empty(PARTS, np.int64)
    coming = [(0, -(-PARTS // count), corpus, 0) for corpus, count in enumerate(parts) if count]
    heapq.heapify(coming)
    ready: list[tuple[int, int, int]] = []
    for turn in range(PARTS):
        while coming and coming[0][0] <= turn:
            _, due, corpus, row = heapq.heappop(coming)
            heapq.heappush(ready, (due, corpus, row))
        due, corpus, row = heapq.heappop(ready)
        assert turn < due, "a set of shares that sum to one can be met"
        owners[turn], before[turn] = corpus, row
        if row + 1 < parts[corpus]:
            begin, end = (row + 1) * PARTS // parts[corpus], -(-(row + 2) * PARTS // parts[corpus])
            heapq.heappush(coming, (begin, end, corpus, row + 1))
    for array in (owners, before):
        array.flags.writeable = False
    return owners, before


def shares(weights: Sequence[float], tokens_per_row: Sequence[float]) -> tuple[int, ...]:
    """Return how many of `PARTS` rows each corpus has, so that its tokens have its weight among those of a run.

    Rows are apportioned by largest remainders, to a ten-thousandth.

    Args:
        weights: Of the corpora, in tokens; only their ratios count.
        tokens_per_row: Tokens of a row of each corpus, without padding, on average.

    Raises:
        ValueError: If a weight is too small to get a row.
    """
    rows = np.array(weights, np.float64) / np.array(tokens_per_row, np.float64)
    exact = rows / rows.sum() * PARTS
    parts = np.floor(exact).astype(int)
    parts[np.argsort(parts - exact, kind="stable")[: PARTS - parts.sum()]] += 1
    for number, count in enumerate(parts):
        if not count:
            raise ValueError(f"weight {weights[number]:g} is under a ten-thousandth of all, wanted more, or no source")
    return tuple(parts.tolist())


@dataclass(frozen=True)
class Corpus:
    """Rows that are shuffled among each other: `rows` of them from `first_row` on.

    They are in shards of `shard_rows`, the last one with the rest; `parts` of `PARTS` rows of a run are of this corpus.
    """

    first_row: int
    rows: int
    shard_rows: int
    parts: int = PARTS

    def in_examples(self, rows: int) -> "Corpus | None":
        """Return the corpus counted in examples of several rows each; rows that fill none are left out.

        None where its shards begin in the middle of an example, or it holds none.
        """
        if self.first_row % rows or (self.shard_rows % rows and self.rows > self.shard_rows) or self.rows < rows:
            return None
        return Corpus(self.first_row // rows, self.rows // rows, self.shard_rows // rows, self.parts)


@dataclass(frozen=True)
class Order:
    """The rows of a run, by their position in it."""

    seed: int
    corpora: tuple[Corpus, ...]
    group_shards: int

    def at(self, positions: Ids) -> Ids:
        """Return the rows at positions of the run, both int64 [n].

        Raises:
            ValueError: If a position is negative.
        """
        if positions.size and positions.min() < 0:
            raise ValueError(f"positions must be at least 0, got {positions.min()}")
        if len(self.corpora) == 1:
            return self._of(0, positions)
        owners, before = pattern(tuple(corpus.parts for corpus in self.corpora))
        cycles, places = np.divmod(positions, PARTS)
        rows = np.empty(len(places), np.int64)
        for number in np.unique(owners[places]).tolist():
            mine = owners[places] == number
            rows[mine] = self._of(number, cycles[mine] * self.corpora[number].parts + before[places[mine]])
        return rows

    def _of(self, number: int, turns: Ids) -> Ids:
        """Return the rows of a corpus at positions counted within it."""
        corpus, rows = self.corpora[number], np.empty(len(turns), np.int64)
        epochs, places = np.divmod(turns, corpus.rows)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            rows[mine] = corpus.first_row + self._of_epoch(number, epoch, places[mine])
        return rows

    def _of_epoch(self, number: int, epoch: int, places: Ids) -> Ids:
        """Return the rows of a corpus at positions within one epoch, counted from its first row."""
        corpus = self.corpora[number]
        size, group_rows = corpus.shard_rows, self.group_shards * corpus.shard_rows
        num_shards = -(-corpus.rows // size)
        shards = _shards(self.seed, epoch, number, num_shards)
        short = shards.index_of(num_shards - 1) // self.group_shards  # the group with the shard that is not full
        missing = num_shards * size - corpus.rows
        behind = places >= min((short + 1) * group_rows, num_shards * size) - missing
        groups = (places + missing * behind) // group_rows
        rows = np.empty(len(places), np.int64)
        for group in np.unique(groups).tolist():
            mine, begin = groups == group, group * self.group_shards
            members = np.sort([shards.at(p) for p in range(begin, min(begin + self.group_shards, num_shards))])
            count = len(members) * size - (missing if group == short else 0)
            start = group * group_rows - (missing if group > short else 0)
            order = permutation(self.seed, epoch, count, number, group)
            slots, inside = np.divmod(order[places[mine] - start], size)
            rows[mine] = members[slots] * size + inside
        return rows


def local_indices(rank: int, num_workers: int, batch_sequences: int) -> range:
    """Return the indices in the global batch that belong to a rank: one block of the same length on every rank.

    Raises:
        ValueError: If the batch does not divide by the workers or there is no such rank.
    """
    if num_workers < 1 or batch_sequences % num_workers:
        raise ValueError(f"batch_sequences must be a multiple of num_workers ({num_workers}), got {batch_sequences}")
    if not 0 <= rank < num_workers:
        raise ValueError(f"rank must lie in [0, {num_workers}), got {rank}")
    share = batch_sequences // num_workers
    return range(rank * share, (rank + 1) * share)


@dataclass(frozen=True)
class Reader:
    """Which rows one rank reads in which step.

    Attributes:
        order: Of the examples.
        batch_sequences: Examples of an update.
        rank: This worker.
        num_workers: Workers that share an update.
        rows_per_example: Rows of an example, which follow each other.
    """

    order: Order
    batch_sequences: int
    rank: int
    num_workers: int
    rows_per_example: int = 1

    def row_ids(self, steps: range) -> Ids:
        """Return the row ids of this rank's part of some steps, int64 [steps, rows of its examples].

        Args:
            steps: Optimizer updates, from 0.

        Raises:
            ValueError: If there is no such step or rank, or the batch does not divide by the workers.
        """
        mine = local_indices(self.rank, self.num_workers, self.batch_sequences)
        firsts = np.array(steps, np.int64)[:, None] * self.batch_sequences
        examples = self.order.at((firsts + np.arange(mine.start, mine.stop)).reshape(-1))
        rows = examples[:, None] * self.rows_per_example + np.arange(self.rows_per_example)
        return rows.reshape(len(steps), -1)
