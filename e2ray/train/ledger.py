"""The ledger of a run: which row every rank trained on in every step, and with which draw, for audits.

Each rank writes what it handed to the loop, as it came out of the data path, one Arrow file for each stretch between
two checkpoints: `ledger/steps-<first>-<last + 1>-rank-<rank>-<digest of its bytes>.arrow`. A stretch is written before
its checkpoint, and what comes after the checkpoint that a restart continues from is removed, so the files together list
the steps that the weights have seen, each once, whatever was killed in between. Steps that changed nothing are among
them; a run's skipped.jsonl names those.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.core.positions import Draw
from e2ray.records.folders import RunFolder
from e2ray.records.run import SkippedRow

FOLDER = RunFolder.ledger.name
NAME = re.compile(r"steps-(\d+)-(\d+)-rank-(\d+)(?:-([0-9a-f]{16}))?\.arrow")  # earlier versions had no digest
SCHEMA = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("index", pa.int32(), nullable=False),  # of the example in the global batch
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # among all rows of the shards
        pa.field("scale", pa.float32(), nullable=False),
        pa.field("places", pa.list_(pa.int32()), nullable=False),  # where in a document the shift changes,
        pa.field("shifts", pa.list_(pa.int64()), nullable=False),  # and to how many tokens
    ]
)


class Ledger:
    """One rank's part of the ledger."""

    def __init__(self, folder: Path, *, rank: int, start_step: int) -> None:
        """Begin after the `start_step` updates of a checkpoint; rank 0 removes what all ranks noted of later steps.

        Raises:
            SettingsError: If the folder cannot be written.
        """
        self.folder, self.rank, self.first = folder / FOLDER, rank, start_step
        self._columns: dict[str, list[object]] = {field.name: [] for field in SCHEMA}
        if rank == 0:
            for left in self.folder.glob(f"{files.TEMPORARY}*"):
                left.unlink()
            for path in _files(self.folder):
                match = NAME.fullmatch(path.name)
                if match and int(match[2]) > start_step:
                    path.unlink()

    def add(self, step: int, indices: range, ids: Int[Tensor, " rows"], draw: Draw) -> None:
        """Note one step's rows, by number, and their draws; `indices` are the examples' places in the global batch."""
        offsets, per_example = draw.offsets.numpy(), len(ids) // len(indices)
        for row_index, row in enumerate(ids.tolist()):
            index = indices[row_index // per_example]
            entry = (step, index, self.rank, row, float(draw.scale[row_index]), *jumps(offsets[row_index]))
            for name, value in zip(SCHEMA.names, entry, strict=True):
                self._columns[name].append(value)

    def commit(self, step: int) -> None:
        """Write the steps below `step` that were noted since the last time, whole or not at all.

        Raises:
            SettingsError: If the disk is full or the folder cannot be written.
        """
        if step == self.first:
            return
        table = pa.table(self._columns, schema=SCHEMA)
        assert table.num_rows == 0 or table.column("step")[-1].as_py() < step, "a step beyond the checkpoint was noted"
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, SCHEMA) as writer:
            writer.write_table(table)
        content = sink.getvalue().to_pybytes()
        name = f"steps-{self.first:08d}-{step:08d}-rank-{self.rank:05d}-{_digest(content)}.arrow"
        with files.atomic_path(self.folder / name) as aside:
            aside.write_bytes(content)
        self.first = step
        self._columns = {name: [] for name in SCHEMA.names}


def jumps(offsets: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where in a row the shift changes, and to how many tokens; `replayed` is the inverse.

    Offsets are those of one row's draw, int64 [window].
    """
    offsets = np.asarray(offsets)
    places = np.flatnonzero(np.diff(offsets, prepend=0))
    return places, offsets[places]


def rows_of(ids: Int[Tensor, " rows"], draw: Draw, nll: Float[Tensor, " rows"]) -> list[SkippedRow]:
    """Return what skipped.jsonl says of each row of a batch.

    `ids` are the rows' numbers among all, int64 [rows], draws on the CPU, `nll` the mean of each row, [rows].
    """
    shifts = [jumps(offsets) for offsets in draw.offsets.numpy()]
    rows = zip(ids.tolist(), nll.tolist(), draw.scale.tolist(), shifts, strict=True)
    return [
        SkippedRow(
            row=row,
            loss=files.finite(loss),
            scale=scale,
            places=tuple(places.tolist()),
            shifts=tuple(moved.tolist()),
        )
        for row, loss, scale, (places, moved) in rows
    ]


def read_ledger(folder: Path) -> pa.Table:
    """Return a run's ledger, columns of `SCHEMA`, sorted by (step, index in the global batch); no rows without one.

    Raises:
        SettingsError: If a file is not what was written.
    """
    tables = []
    for path in _files(folder / FOLDER):
        content, match = path.read_bytes(), NAME.fullmatch(path.name)
        if match is None or match[4] not in (None, _digest(content)):
            raise SettingsError(f"{path}: is damaged, its name tells another digest; put it back from a copy")
        try:
            tables.append(pa.ipc.open_file(pa.BufferReader(content)).read_all())
        except pa.ArrowException as error:
            raise SettingsError(f"{path}: is damaged ({error}); put it back from a copy") from None
    whole = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return whole.sort_by([("step", "ascending"), ("index", "ascending")])


def _files(folder: Path) -> list[Path]:
    """Return the files of a ledger in order, without what killed writers left half-written."""
    return sorted(path for path in folder.glob("*.arrow") if not path.name.startswith(files.TEMPORARY))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def replayed(entry: dict[str, object], window: int) -> torch.Tensor:
    """Return the offsets of a draw from its row of the ledger, int64 [window]."""
    offsets = np.zeros(window, dtype=np.int64)
    places, shifts = entry["places"], entry["shifts"]
    assert isinstance(places, list) and isinstance(shifts, list)
    for index, shift in zip(places, shifts, strict=True):
        offsets[index:] = shift
    return torch.from_numpy(offsets)
