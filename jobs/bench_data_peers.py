"""Other loaders on the same tokens; part of bench_data.py, in an environment that has them installed.

Each is used as its own documentation shows it, with shuffling, and with two worker processes where it has a loader.
None of them verifies what it reads.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

WORKERS = 2
Batches = Callable[[], Iterator[Any]]


def mosaic(rows: np.ndarray, folder: Path, batch: int) -> Batches:
    """mosaicml-streaming: MDS files read by its dataset and torch's DataLoader."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:int32:{rows.shape[1]}"}) as writer:
        for row in rows:
            writer.write({"tokens": row})

    def read() -> Iterator[Any]:
        dataset = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=batch)
        yield from DataLoader(dataset, batch_size=batch, num_workers=WORKERS)

    return read


def hugging_face(rows: np.ndarray, folder: Path, batch: int) -> Batches:
    """Datasets on disk as torch tensors, through torch's DataLoader."""
    import datasets
    import pyarrow as pa
    from torch.utils.data import DataLoader

    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    made = datasets.Dataset(pa.table({"tokens": column}))
    made.save_to_disk(str(folder))

    def read() -> Iterator[Any]:
        loaded = datasets.load_from_disk(str(folder)).with_format("torch")
        yield from DataLoader(loaded, batch_size=batch, shuffle=True, num_workers=WORKERS)

    return read


def litdata(rows: np.ndarray, folder: Path, batch: int) -> Batches:
    """Litdata's chunks of tokens, read in this process by its dataset alone."""
    import torch
    from litdata import StreamingDataset, TokensLoader
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir(parents=True)
    window = rows.shape[1]
    writer = BinaryWriter(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(window))
    for number, row in enumerate(rows):
        writer[number] = torch.from_numpy(row)
    writer.done()
    writer.merge()

    def read() -> Iterator[Any]:
        dataset = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=window), shuffle=True, seed=0)
        taken = []
        for row in dataset:
            taken.append(np.asarray(row))
            if len(taken) == batch:
                yield np.stack(taken)
                taken = []

    return read


class MappedRows:
    """Rows of a numpy file, as a map-style dataset of torch."""

    def __init__(self, path: Path) -> None:
        self.rows = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Any:
        return np.array(self.rows[place])


def stateful(path: Path, batch: int, share: float) -> Batches:
    """Torchdata's StatefulDataLoader, put back to its state at a share of an epoch."""
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader

    def loader() -> Any:
        generator = torch.Generator().manual_seed(0)
        return StatefulDataLoader(
            MappedRows(path), batch_size=batch, shuffle=True, num_workers=WORKERS, generator=generator
        )

    made = loader()
    stop = int(len(made) * share)
    for number, _ in enumerate(made, 1):
        if number == stop:
            state = made.state_dict()
            break

    def read() -> Iterator[Any]:
        again = loader()
        again.load_state_dict(state)
        yield from again

    return read
