"""Which row of the corpus stands where in which batch, free of the number of workers.

The position of a row in the run is n = step * batch_sequences + i, with i its index in the global batch. An epoch
is one permutation of all rows; row n is number n % rows of the permutation of epoch n // rows. So a batch may
span two epochs, nothing is dropped, and any (step, i) is known without knowing what came before.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, rows: int) -> npt.NDArray[np.int64]:
    """Return the order of all rows in one epoch, int64 [rows], read-only.

    It sorts the raw output of a Philox generator keyed by (seed, epoch): numpy keeps that stream the same for
    ever, which it does not promise for its own shuffles.
    """
    keys = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(rows)
    order = np.argsort(keys, kind="stable").astype(np.int64, copy=False)
    order.flags.writeable = False
    return order


def rows_of_step(
    *, seed: int, step: int, rows: int, batch_sequences: int, start: int = 0, stop: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the row ids of a step's global batch, or of its indices [start, stop), int64.

    Args:
        seed: Chooses the order of every epoch.
        step: Optimizer update, from 0.
        rows: Rows of the corpus.
        batch_sequences: Rows of the global batch.
        start: First index in the global batch.
        stop: Index behind the last one; None means the whole batch.

    Raises:
        ValueError: If a count is not positive or the indices leave the batch.
    """
    stop = batch_sequences if stop is None else stop
    if rows < 1 or batch_sequences < 1 or step < 0:
        raise ValueError(
            f"rows and batch_sequences must be at least 1 and step at least 0, got {rows}, {batch_sequences}, {step}"
        )
    if not 0 <= start <= stop <= batch_sequences:
        raise ValueError(f"start and stop must lie in [0, {batch_sequences}] (the batch), got {start} and {stop}")
    first, end = step * batch_sequences + start, step * batch_sequences + stop
    pieces = []
    while first < end:
        epoch, place = divmod(first, rows)
        count = min(end - first, rows - place)
        pieces.append(permutation(seed, epoch, rows)[place : place + count])
        first += count
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def local_indices(rank: int, num_workers: int, batch_sequences: int) -> range:
    """Return the indices in the global batch that belong to a rank: one block, as long on every rank.

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
    """Which rows one rank reads in which step."""

    seed: int
    rows: int
    batch_sequences: int
    rank: int
    num_workers: int

    def row_ids(self, step: int) -> npt.NDArray[np.int64]:
        """Return the row ids of this rank's part of a step's batch, int64 [batch_sequences / num_workers]."""
        indices = local_indices(self.rank, self.num_workers, self.batch_sequences)
        return rows_of_step(
            seed=self.seed,
            step=step,
            rows=self.rows,
            batch_sequences=self.batch_sequences,
            start=indices.start,
            stop=indices.stop,
        )
