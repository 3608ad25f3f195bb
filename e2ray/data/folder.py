"""A folder of shards, on a file system of this machine or in an object store, read the same way.

A location is a path, or a URI of any file system that pyarrow knows: s3://bucket/folder, gs://bucket/folder,
abfss://..., hdfs://... Credentials come from the environment; the URI's query may say where and how the store is
reached (s3://bucket/folder?endpoint_override=http://host:9000&scheme=http). Files of this machine are mapped into
memory; of others only the stretches that are asked for are fetched.
"""

import hashlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from pyarrow import fs

from e2ray import files
from e2ray.config.base import SettingsError
from e2ray.config.uris import is_uri, refusal

CHUNK_BYTES = 8 * 2**20


class Folder:
    """The files of one folder."""

    def __init__(self, location: str | Path) -> None:
        """Name the folder; nothing is read.

        Raises:
            SettingsError: If the URI holds credentials, or is not of a file system that pyarrow knows.
        """
        self.local = None if is_uri(location) else Path(location).expanduser()
        self.uri = str(location)
        self.shown = self.uri if self.local else self.uri.partition("?")[0]  # as messages show it
        refused = refusal(self.uri)
        if refused:
            raise SettingsError(f"folder of shards: {refused}")
        if self.local is None:
            try:
                self.filesystem, self.path = fs.FileSystem.from_uri(self.uri)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise SettingsError(f"{self.shown}: is no place that can be read ({short_line(error)})") from None

    def name(self, file: str) -> str:
        """Return the full name of a file, as messages show it."""
        return f"{self.shown.rstrip('/')}/{file}"

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file by its name; none where there is no such folder.

        Raises:
            SettingsError: If the folder cannot be read.
        """
        with self.named(""):
            if self.local is not None:
                if not self.local.is_dir():
                    return {}
                return {path.name: path.stat().st_size for path in self.local.iterdir() if path.is_file()}
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
            return {info.base_name: info.size for info in infos if info.type == fs.FileType.File}

    def names(self) -> list[str]:
        """Return the paths, below the folder, of its files and those of the folders inside it.

        Raises:
            SettingsError: If the folder cannot be read.
        """
        with self.named(""):
            if self.local is not None:
                return sorted(
                    path.relative_to(self.local).as_posix() for path in self.local.rglob("*") if path.is_file()
                )
            selector = fs.FileSelector(self.path, allow_not_found=True, recursive=True)
            infos = self.filesystem.get_file_info(selector)
            inside = [info.path for info in infos if info.type == fs.FileType.File]
            return sorted(path[len(self.path.rstrip("/")) + 1 :] for path in inside)

    def read(self, file: str) -> bytes:
        """Return what a file holds.

        Raises:
            SettingsError: If it cannot be read.
        """
        with self.named(file), self._stream(file) as stream:
            return bytes(stream.read())

    def sha256(self, file: str) -> str:
        """Return the sha256 of a file, in hexadecimal.

        Raises:
            SettingsError: If it cannot be read.
        """
        if self.local is not None:
            with self.named(file):
                return files.sha256(self.local / file)
        digest = hashlib.sha256()
        with self.named(file), self._stream(file) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def open(self, file: str) -> "Stretches":
        """Open a file for reading stretches of it.

        Raises:
            SettingsError: If it cannot be read.
        """
        with self.named(file):
            if self.local is None:
                return Stretches(self, file, remote=self.filesystem.open_input_file(f"{self.path}/{file}"))
            with (self.local / file).open("rb") as opened:
                if not os.fstat(opened.fileno()).st_size:
                    return Stretches(self, file, local=b"")  # an empty file cannot be mapped
                return Stretches(self, file, local=mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))

    def fetch(self, below: str, target: Path) -> None:
        """Copy a folder below this one, with those inside it, to a folder of this machine, whole or not at all.

        Raises:
            SettingsError: If they cannot be read, or there are none.
        """
        path, mark, query = self.uri.partition("?")
        inside = Folder(f"{path.rstrip('/')}/{below}{mark}{query}")
        names = inside.names()
        if not names:
            raise SettingsError(f"{inside.shown}: not found; {self.shown} holds no finished shards, run prepare")
        with files.atomic_folder(target) as aside:
            for name in names:
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(inside.read(name))

    def _stream(self, file: str) -> BinaryIO | pa.NativeFile:
        if self.local is not None:
            return (self.local / file).open("rb")
        return self.filesystem.open_input_stream(f"{self.path}/{file}")

    @contextmanager
    def named(self, file: str) -> Iterator[None]:
        """Turn what the file system refuses in the block into a one-line error that names the file."""
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            where = self.name(file) if file else self.shown
            reason = getattr(error, "strerror", None) or short_line(error)
            raise SettingsError(f"{where}: cannot be read ({reason})") from None


class Stretches:
    """A file whose stretches are read one by one, from several threads at once if need be."""

    def __init__(
        self, folder: Folder, file: str, *, local: mmap.mmap | bytes = b"", remote: pa.NativeFile | None = None
    ) -> None:
        """Take an open file, either a remote or a local one."""
        self.folder, self.file, self.local, self.remote = folder, file, local, remote

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.local) if self.remote is None else int(self.remote.size())

    def whole(self) -> pa.NativeFile | pa.Buffer:
        """Return the file in a form that Arrow opens for random access."""
        return self.remote if self.remote is not None else pa.py_buffer(self.local)

    def read(self, begin: int, end: int) -> pa.Buffer:
        """Return the bytes [begin, end); those of a file of this machine are not copied.

        Raises:
            SettingsError: If they cannot be read.
        """
        if self.remote is None:
            return pa.py_buffer(self.local).slice(begin, end - begin)
        with self.folder.named(self.file):
            content = self.remote.read_at(end - begin, begin)
        return pa.py_buffer(content)


def short_line(error: BaseException) -> str:
    """Return the message of an error on one line, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]} ..."
