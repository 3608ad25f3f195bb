"""Files of text as bytes, plain or packed by gzip or zstd, within limits.

How a file is packed is read from its first bytes and never from its name. A few kilobytes can unpack to more than a
machine holds, so a document has a largest size, and a packed file a largest multiple of its own size. Every byte is
copied a fixed number of times, however long a line is.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pyarrow as pa

from e2ray.config.data import MAX_DOCUMENT_MIB, MAX_UNPACK_RATIO, DataSettings

MIB = 2**20
READ_BYTES = 4 * MIB
BEHIND_BYTES = 2**16  # of one read after a stretch, where only the rest of a line is needed
HEAD_BYTES = 512
PACKED = (  # none of these begins a text: they are no UTF-8, or hold control characters
    (re.compile(rb"\x1f\x8b"), "gzip"),
    (re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), "zstd"),  # or begins with a frame to skip, as pzstd does
)
FOREIGN = (
    (re.compile(rb"BZh[1-9]1AY&SY"), "bzip2"),
    (re.compile(rb"\xfd7zXZ\0"), "xz"),
    (re.compile(rb"\x04\x22\x4d\x18"), "lz4"),
    (re.compile(rb"PK\x03\x04"), "zip"),
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7z"),
    (re.compile(rb"ARROW1\0\0"), "Arrow"),
    (re.compile(rb"(?s)(?=.{0,256}\0).{257}ustar"), "tar"),
)


class UnusableError(ValueError):
    """A file whose text cannot be read; the message says why, without the file's name."""


@dataclass(frozen=True)
class Limits:
    """Limits on what is unpacked.

    Attributes:
        document_bytes: Of one line, one cell of a table or one packed file of text; a plain file has no limit.
        ratio: Bytes that a packed file may unpack to for each of its own, where that is more than one document's.
    """

    document_bytes: int = MAX_DOCUMENT_MIB * MIB
    ratio: int = MAX_UNPACK_RATIO

    @classmethod
    def of(cls, settings: DataSettings) -> "Limits":
        """Return the limits that a recipe sets."""
        return cls(settings.max_document_mib * MIB, settings.max_unpack_ratio)

    @property
    def too_large(self) -> str:
        """The reason for refusing a document that is larger."""
        return f"is larger than {self.document_bytes / MIB:g} MiB (data.max_document_mib); cut it, or raise that"

    def bytes_of(self, packed_bytes: int) -> int:
        """Return the bytes that a packed file, or a part of one, may unpack to."""
        return max(self.document_bytes, self.ratio * packed_bytes)

    def too_much(self, packed_bytes: int) -> str:
        """Return the reason for refusing a file that unpacks to more."""
        return (
            f"unpacks to more than {self.bytes_of(packed_bytes):,} bytes out of {packed_bytes:,}, as a decompression "
            "bomb does; raise data.max_unpack_ratio if it is none"
        )


DEFAULT_LIMITS = Limits()


class Unpacked:
    """The unpacked bytes of a file, read from its beginning or, where it is plain, from anywhere."""

    def __init__(self, path: str, limits: Limits) -> None:
        """Open a file.

        Raises:
            OSError, ArrowException: If it cannot be opened.
            UnusableError: If it is packed in another format.
        """
        self._plain = plain_file(path)
        head = self._plain.read(HEAD_BYTES)
        self._plain.seek(0)
        _refuse_foreign(head)
        self.packed = _packed(head)
        self._stream = self._plain if self.packed is None else pa.CompressedInputStream(self._plain, self.packed)
        self._limits, self._file_bytes = limits, self._plain.size()
        self._most = sys.maxsize if self.packed is None else limits.bytes_of(self._file_bytes)
        self._count = 0

    def __enter__(self) -> "Unpacked":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def seek(self, offset: int) -> None:
        """Continue at a byte of a plain file."""
        self._plain.seek(offset)

    def read(self, most: int | None = None) -> bytes:
        """Return the next bytes, at most `most` or all; none at the end.

        Raises:
            OSError, ArrowException: If they cannot be read or unpacked.
            UnusableError: If the file unpacks to more than it may, or to something that is not text.
        """
        chunk: bytes = self._stream.read(most)
        if self.packed is not None:
            if not self._count:
                _refuse_foreign(chunk)
                if _packed(chunk):
                    raise UnusableError(f"is packed twice, by {self.packed} and {_packed(chunk)}; unpack it once")
            self._count += len(chunk)
            if self._count > self._most:
                raise UnusableError(self._limits.too_much(self._file_bytes))
        return chunk


def plain_file(path: str) -> pa.NativeFile:
    """Return a file opened as it is."""
    return pa.OSFile(os.fsencode(path))  # a name may be no UTF-8


def _packed(head: bytes) -> str | None:
    """Return the packing of a file from its first bytes."""
    return next((name for pattern, name in PACKED if pattern.match(head)), None)


def _refuse_foreign(head: bytes) -> None:
    for pattern, name in FOREIGN:
        if pattern.match(head):
            raise UnusableError(f"is packed as {name}, wanted text, plain or packed by gzip or zstd; unpack it")


def is_packed(path: str) -> bool:
    """Return whether a file is packed by gzip or zstd; False for one that cannot be read."""
    try:
        with plain_file(path) as file:
            return _packed(file.read(HEAD_BYTES)) is not None
    except (OSError, pa.ArrowException):
        return False


def content(path: str, limits: Limits) -> bytes:
    """Return the unpacked bytes of a whole file.

    Raises:
        OSError, ArrowException: If it cannot be read or unpacked.
        UnusableError: If it is packed and larger than a document may be, or packed in another format.
    """
    with Unpacked(path, replace(limits, ratio=sys.maxsize)) as file:  # a document's own limit is the smaller one
        if file.packed is None:
            return file.read()
        pieces: list[bytes] = []
        left = limits.document_bytes
        while chunk := file.read(READ_BYTES):
            pieces.append(chunk)
            left -= len(chunk)
            if left < 0:
                raise UnusableError(limits.too_large)
        return b"".join(pieces)


def lines(path: str, start: int, stop: int, limits: Limits) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (offset, number, line) for every line that begins in [start, stop) and is not empty.

    Offsets count unpacked bytes, numbers the lines of the stretch from 0; a line that is too long is None. Of a line
    that begins before `start` only the part in the stretch is read.

    Args:
        path: The file.
        start: 0 for a packed file.
        stop: End of the stretch.
        limits: On a line, and on what a packed file unpacks to.

    Raises:
        OSError, ArrowException: If it cannot be read or unpacked.
        UnusableError: If it unpacks to more than it may, or is packed in another format.
    """
    with Unpacked(path, limits) as file:
        # A line begins at `start` only if the byte before it ends one, so the search begins there.
        offset = read_to = max(start - 1, 0)
        if start:
            file.seek(offset)
        number = -1 if start else 0
        line = _Line(0 if start else limits.document_bytes)
        while chunk := file.read(min(READ_BYTES, max(stop - read_to, BEHIND_BYTES))):
            read_to += len(chunk)
            if number >= 0 and not line.size:  # empty lines at the speed of memory: a bomb may hold nothing else
                full = chunk.lstrip(b"\n")
                offset, number = offset + len(chunk) - len(full), number + len(chunk) - len(full)
                chunk = full
                if offset >= stop:
                    return
            *ended, rest = chunk.split(b"\n")
            for piece in ended:
                line.add(piece)
                if number >= 0 and line.size:
                    yield offset, number, line.whole()
                offset, number = offset + line.size + 1, number + 1
                if line.size or not number:
                    line = _Line(limits.document_bytes)
                if offset >= stop:
                    return
            line.add(rest)
            if number < 0 and offset + line.size + 1 >= stop:
                return
        if line.size and number >= 0:
            yield offset, number, line.whole()


class _Line:
    """A line whose pieces come one by one; it is joined once, and not at all where it is too long."""

    def __init__(self, most: int) -> None:
        self.size, self._most = 0, most
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        if self.size <= self._most:
            self._pieces.append(piece)
        else:
            self._pieces = []

    def whole(self) -> bytes | None:
        return b"".join(self._pieces) if self.size <= self._most else None


def line_number(path: str, offset: int) -> int:
    """Return the number, from 1, of the line that begins at a byte of a plain file."""
    number, left = 1, offset
    with plain_file(path) as file:
        while left and (chunk := file.read(min(READ_BYTES, left))):
            number += chunk.count(b"\n")
            left -= len(chunk)
    return number
