"""Documents from the sources that a recipe names.

`list_items` turns sources into small, picklable work items without reading a document; `read_item` reads the
documents of one item, in any process. A document that cannot be used is a `BadDocument` and never an exception, so
the caller alone decides whether it stops the run or is counted. Names do not depend on where a corpus is on the
disk, since the validation split is drawn from them.
"""

import glob
import json
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa

from e2ray.config.base import SettingsError
from e2ray.config.data import (
    HuggingFaceSource,
    JsonlSource,
    ParquetSource,
    PasskeySource,
    PythonStdlibSource,
    Source,
    TextSource,
)
from e2ray.data import hub, parquet, passkey, unpack
from e2ray.data.unpack import DEFAULT_LIMITS, MIB, Limits, UnusableError

TEXT_GROUP_BYTES = (MIB, 32 * MIB)  # least and most; between them a 256th of the source
JSONL_RANGE_BYTES = (MIB, 32 * MIB)  # the same of a file: few items leave cores without work
PASSKEYS = 4096  # documents of one item
PASSKEY_BYTES = 256 * MIB  # of files that texts are cut out of, kept at a time
TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
UTF8_MARK = "\ufeff"


@dataclass(frozen=True)
class Document:
    """One text; `name` says which, wherever the corpus is."""

    name: str
    text: str


@dataclass(frozen=True)
class BadDocument:
    """A document that cannot be used; `reason` is one line that names the file and, in a table, the line or row."""

    name: str
    reason: str


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: its path, its name free of the machine, and its size and age when it was listed."""

    path: str
    name: str
    bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Item:
    """One piece of work: whole text files, a stretch of a JSONL or Parquet file or of a Hugging Face dataset, passkeys.

    `start` and `stop` count bytes of a JSONL file (lines that begin in [start, stop)), row groups (whose first row is
    `first`), documents that are made, or what `hub.pieces` says; `bytes` is the size on the disk where it is known, and
    `column` is empty for files of plain text. `source` is set for documents that do not follow from a file alone.
    """

    kind: Literal["text", "jsonl", "parquet", "dataset", "passkey"]
    files: tuple[SourceFile, ...]
    bytes: int
    column: str = ""
    start: int = 0
    stop: int = sys.maxsize
    first: int = 0
    source: HuggingFaceSource | PasskeySource | None = None
    limits: Limits = DEFAULT_LIMITS


def list_items(
    sources: Sequence[Source], *, without: frozenset[str] = frozenset(), limits: Limits = DEFAULT_LIMITS
) -> list[Item]:
    """Return the work of reading `sources`, in their order and each one's files sorted by name.

    Args:
        sources: Settings of the sources.
        without: Real paths of files that are left out, e.g. because they are held out for validation.
        limits: On what is unpacked.

    Raises:
        SettingsError: If a path or glob matches no file, names a folder, or a Parquet file or dataset has no such
            column of text, has extension types (reading those can run code in the file) or is a decompression bomb.
    """
    items: list[Item] = []
    for source in sources:
        files = [file for file in source_files(source) if os.path.realpath(file.path) not in without]
        match source:
            case TextSource() | PythonStdlibSource():
                items += _text_items(files)
            case JsonlSource():
                for file in files:
                    items += _jsonl_items(file, source.column)
            case ParquetSource():
                for file in files:
                    items += _parquet_items(file, source.column, limits)
            case HuggingFaceSource():
                ranges = hub.pieces(source)
                items += [
                    Item("dataset", (), size, source.column, start, stop, source=source) for start, stop, size in ranges
                ]
            case PasskeySource():
                items += _passkey_items(files, source)
    return [replace(item, limits=limits) for item in items]


def source_files(source: Source) -> list[SourceFile]:
    """Return the files of a source in a fixed order, each once; none of a dataset, whose library knows them.

    Raises:
        SettingsError: If a path or glob matches no file or names a folder.
    """
    if isinstance(source, PythonStdlibSource):
        return _stdlib_files()
    if isinstance(source, HuggingFaceSource):
        return []
    if isinstance(source, PasskeySource):
        return source_files(source.text)
    by_path: dict[str, SourceFile] = {}
    for pattern in source.paths:
        for file in _matches(pattern):
            by_path.setdefault(os.path.realpath(file.path), file)
    return list(by_path.values())


def _matches(pattern: str) -> list[SourceFile]:
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.isdir(path):
        raise SettingsError(f"data source {pattern}: is a folder, wanted files; write {pattern.rstrip('/')}/**/*")
    if os.path.lexists(path) or not glob.has_magic(path):
        paths, root = [path], os.path.dirname(path)
    else:
        plain: list[str] = []
        for part in path.split(os.sep):
            if glob.has_magic(part):
                break
            plain.append(part)
        root = os.sep.join(plain) or os.sep
        paths = sorted(match for match in glob.glob(path, recursive=True) if os.path.isfile(match))
    if not paths or not os.path.isfile(paths[0]):
        raise SettingsError(f"data source {pattern}: matches no file; check the path or the glob")
    for packed in paths:
        if packed.lower().endswith(ARCHIVES):
            raise SettingsError(
                f"{packed}: is an archive (WebDataset), whose order and text cannot be known without unpacking it; "
                "unpack it, or write its texts as JSONL or Parquet"
            )
    return [_source_file(path, root, os.path.basename(root)) for path in paths]


def _source_file(path: str, root: str, prefix: str) -> SourceFile:
    status = os.stat(path)
    name = printable(os.path.join(prefix, os.path.relpath(path, root)))
    return SourceFile(path, name, status.st_size, status.st_mtime_ns)


def _stdlib_files() -> list[SourceFile]:
    root = sysconfig.get_paths()["stdlib"]
    paths: list[str] = []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(set(folders) - TEST_FOLDERS)
        paths += [os.path.join(folder, name) for name in names if name.endswith(".py")]
    if not paths:
        raise SettingsError(f"data source python_stdlib: {root} holds no .py files; name text files instead")
    return [_source_file(path, root, "python_stdlib") for path in sorted(paths)]


def _text_items(files: list[SourceFile]) -> list[Item]:
    least, most = TEXT_GROUP_BYTES
    group_bytes = min(max(sum(file.bytes for file in files) // 256, least), most)
    items: list[Item] = []
    group: list[SourceFile] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.bytes
        if size >= group_bytes:
            items.append(Item("text", tuple(group), size))
            group, size = [], 0
    if group:
        items.append(Item("text", tuple(group), size))
    return items


def _jsonl_items(file: SourceFile, column: str) -> list[Item]:
    if unpack.is_packed(file.path):
        return [Item("jsonl", (file,), file.bytes, column)]
    least, most = JSONL_RANGE_BYTES
    size = min(max(file.bytes // 256, least), most)
    return [
        Item("jsonl", (file,), min(size, file.bytes - start), column, start, start + size)
        for start in range(0, max(file.bytes, 1), size)
    ]


def _passkey_items(files: list[SourceFile], source: PasskeySource) -> list[Item]:
    if not sum(file.bytes for file in files):
        raise SettingsError("data source passkey: no text is left to hide keys in, all files are held out or empty")
    firsts = range(0, source.documents, PASSKEYS)
    return [
        Item("passkey", tuple(files), 0, start=first, stop=min(first + PASSKEYS, source.documents), source=source)
        for first in firsts
    ]


def _parquet_items(file: SourceFile, column: str, limits: Limits) -> list[Item]:
    return [
        Item("parquet", (file,), each.bytes, column, each.start, each.stop, each.first)
        for each in parquet.stretches(file.path, column, limits)
    ]


def read_item(item: Item) -> Iterator[Document | BadDocument]:
    """Yield the documents of one item in their order; what cannot be used is a `BadDocument`.

    Bad are: a file that cannot be read or unpacked or unpacks to more than it may, bytes that are not UTF-8, text that
    is empty, only white space or larger than a document may be, a JSON line that is not an object with text under the
    column, a row without text.
    """
    if item.kind == "text":
        for file in item.files:
            yield _read_text(file, item.limits)
    elif item.kind == "jsonl":
        yield from _read_jsonl(item)
    elif item.kind == "dataset":
        yield from _read_dataset(item)
    elif item.kind == "passkey":
        yield from _make_passkeys(item)
    else:
        yield from _read_parquet(item)


def printable(text: str) -> str:
    """Return a text on one line and as UTF-8; a file name may be neither."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _read_text(file: SourceFile, limits: Limits) -> Document | BadDocument:
    try:
        content = unpack.content(file.path, limits)
    except (OSError, pa.ArrowException) as error:
        return BadDocument(file.name, f"{file.path}: cannot be read ({one_line(error)})")
    except UnusableError as error:
        return BadDocument(file.name, f"{file.path}: {error}")
    try:
        text = content.decode("utf-8").removeprefix(UTF8_MARK)
    except UnicodeDecodeError as error:
        return BadDocument(file.name, f"{file.path}: is no UTF-8 (byte {error.start}: {error.reason})")
    return _checked(file.name, file.path, text)


def _checked(name: str, where: str, text: object, limits: Limits | None = None) -> Document | BadDocument:
    if not isinstance(text, str):
        return BadDocument(name, f"{where}: holds {'null' if text is None else type(text).__name__}, wanted text")
    if not text or text.isspace():
        return BadDocument(name, f"{where}: is empty")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return BadDocument(name, f"{where}: is no UTF-8 (lone surrogate at character {error.start})")
    if limits is not None and size > limits.document_bytes:
        return BadDocument(name, f"{where}: {limits.too_large}")
    return Document(name, text)


def _read_jsonl(item: Item) -> Iterator[Document | BadDocument]:
    (file,) = item.files
    first = None if item.start else 1  # number of the stretch's first line; counting the lines before it takes time
    try:
        for offset, count, line in unpack.lines(file.path, item.start, item.stop, item.limits):
            if line is not None and line.isspace():
                continue
            name = f"{file.name}@{offset}"
            parsed = item.limits.too_large if line is None else _parse_line(name, line, item.column)
            if isinstance(parsed, Document):
                yield parsed
                continue
            first = unpack.line_number(file.path, offset) - count if first is None else first
            yield BadDocument(name, f"{file.path} line {first + count}: {parsed}")
    except (OSError, pa.ArrowException) as error:
        yield BadDocument(file.name, f"{file.path}: cannot be read ({one_line(error)})")
    except UnusableError as error:
        yield BadDocument(file.name, f"{file.path}: {error}")


def _parse_line(name: str, line: bytes, column: str) -> Document | str:
    """Return the document of a line, or what is wrong with it."""
    try:
        value = json.loads(line.decode("utf-8").removeprefix(UTF8_MARK))
    except UnicodeDecodeError as error:
        return f"is no UTF-8 (byte {error.start} of the line: {error.reason})"
    except (ValueError, RecursionError) as error:
        return f"is no JSON ({one_line(error)})"
    if not isinstance(value, dict):
        return f"holds {type(value).__name__}, wanted an object with the key {column!r}"
    if column not in value:
        return f"has no key {column!r}, found {list(value)[:8]}"
    checked = _checked(name, "", value[column])
    return checked if isinstance(checked, Document) else checked.reason.removeprefix(": ")


def _read_parquet(item: Item) -> Iterator[Document | BadDocument]:
    (file,) = item.files
    stretch = parquet.Stretch(item.start, item.stop, item.first, item.bytes)
    try:
        for row, cell, size in parquet.cells(file.path, item.column, stretch, item.limits):
            name, where = f"{file.name}@{row}", f"{file.path} row {row}"
            if size > item.limits.document_bytes:
                yield BadDocument(name, f"{where}: {item.limits.too_large}")
                continue
            try:
                yield _checked(name, where, cell.as_py())
            except UnicodeDecodeError as error:
                yield BadDocument(name, f"{where}: is no UTF-8 (byte {error.start}: {error.reason})")
    except UnusableError as error:
        yield BadDocument(file.name, f"{file.path}: column {item.column!r} {error}")
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        yield BadDocument(file.name, f"{file.path}: cannot be read ({one_line(error)})")


def _read_dataset(item: Item) -> Iterator[Document | BadDocument]:
    assert isinstance(item.source, HuggingFaceSource)
    where = f"data source {item.source.path} split {item.source.split}"
    name = f"{item.source.path}/{item.source.split}"
    try:
        for name, value in hub.read(item.source, item.start, item.stop):
            yield _checked(printable(name), f"{where} row {name.rpartition('@')[2]}", value, item.limits)
    except Exception as error:  # whatever a loader raises, for a lost network too
        yield BadDocument(name, f"{where}: cannot be read on behind {name} ({one_line(error)})")


def _make_passkeys(item: Item) -> Iterator[Document | BadDocument]:
    assert isinstance(item.source, PasskeySource)
    sizes = np.array([file.bytes for file in item.files])
    read = lru_cache(maxsize=int(min(max(PASSKEY_BYTES // sizes.max(), 1), 256)))(_read_text)
    for number in range(item.start, item.stop):
        made = read(item.files[passkey.file_of(item.source, number, sizes)], item.limits)
        if isinstance(made, Document):
            made = Document(f"passkey-{item.source.seed}@{number}", passkey.document(item.source, number, made.text))
        yield made


def fingerprint(sources: Iterable[Source]) -> list[list[object]]:
    """Return what distinguishes states of the sources: [path, bytes, modified_ns] per file.

    Raises:
        SettingsError: If a source matches no file, or a dataset cannot be asked for its state.
    """
    states: list[list[object]] = []
    for source in sources:
        if isinstance(source, HuggingFaceSource):
            states.append(hub.identity(source))
        else:
            states += [[printable(file.path), file.bytes, file.modified_ns] for file in source_files(source)]
    return states
