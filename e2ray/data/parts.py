"""Tokenised documents of a `prepare` that has not finished, kept so that the next one continues after them.

A part holds the documents of some whole work items of one source, in their order, as a compressed Arrow file whose name
says which items they are and has a digest of its bytes; a damaged part is made again. The folder is named by everything
the tokens are made of, is beside the shards, and is removed when they are finished.
"""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from e2ray import files

PART_BYTES = 256 * 2**20
NAME = re.compile(r"part-(\d+)-(\d+)-(\d+)-([0-9a-f]{16})\.arrow")


class Parts:
    """The parts of one `prepare`, below a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, or create it."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{files.TEMPORARY}*"):
            left.unlink(missing_ok=True)

    def read(self, source: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield (item after the last one, documents) of the consecutive parts of a source, from its first item on."""
        parts = {}
        for path in self.folder.glob("part-*.arrow"):
            match = NAME.fullmatch(path.name)
            if match and int(match[1]) == source:
                parts[int(match[2])] = (int(match[3]), match[4], path)
        done = 0
        while done in parts:
            done, digest, path = parts[done]
            content = path.read_bytes()
            if _digest(content) != digest:
                path.unlink()
                return
            yield done, pa.ipc.open_file(pa.BufferReader(content)).read_all()

    def write(self, source: int, first: int, stop: int, tables: list[pa.Table]) -> None:
        """Keep the documents of the items [first, stop) of a source.

        Raises:
            SettingsError: If the disk is full or the folder cannot be written.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, tables[0].schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            for table in tables:
                writer.write_table(table)
        content = sink.getvalue().to_pybytes()
        path = self.folder / f"part-{source}-{first}-{stop}-{_digest(content)}.arrow"
        with files.atomic_path(path) as aside:
            aside.write_bytes(content)

    def remove(self) -> None:
        """Remove all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Keeper:
    """Takes the tables of a source as they come and keeps the documents of items that are complete."""

    def __init__(self, parts: Parts, source: int, first: int) -> None:
        """Begin after the items below `first`."""
        self.parts, self.source, self.first = parts, source, first
        self._tables: list[pa.Table] = []
        self._bytes = 0

    def add(self, table: pa.Table) -> None:
        """Take the next documents; column `item` says which item each is of, ascending."""
        self._tables.append(table)
        self._bytes += table.nbytes
        if self._bytes < PART_BYTES:
            return
        open_item = table.column("item")[-1].as_py()  # more of it may come
        whole = pa.concat_tables(self._tables)
        complete = pc.sum(pc.less(whole.column("item"), open_item)).as_py()
        if complete:
            self.parts.write(self.source, self.first, open_item, [whole.slice(0, complete)])
            self.first, self._tables = open_item, [whole.slice(complete)]
            self._bytes = self._tables[0].nbytes

    def finish(self, stop: int) -> None:
        """Keep the documents of the items that are left, which are complete now."""
        if self._bytes:
            self.parts.write(self.source, self.first, stop, self._tables)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
