"""One column of text out of a Parquet file, in groups of rows.

A cell may be stored once and belong to a million rows, so a column whose values are long is read with each value kept
once. A file whose types could run code is not opened.
"""

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from e2ray.config.base import SettingsError
from e2ray.data.folder import short_line
from e2ray.data.unpack import MIB, Limits, UnusableError, plain_file

STRETCHES = 256  # of one file at most, since each reads the footer
BATCH_ROWS = 256
LARGE_BYTES = 4 * MIB  # of all values that are kept once; writers give that up at 1 MiB
MARK = b"PAR1"
EXTENSION_KEY = b"ARROW:extension:name"
EXTENSION_PATTERNS = tuple(  # its base64 at each of the three alignments, without the digits shared with neighbours
    base64.b64encode(bytes(skip) + EXTENSION_KEY)[-(-8 * skip // 6) : 8 * (skip + len(EXTENSION_KEY)) // 6]
    for skip in range(3)
)


@dataclass(frozen=True)
class Stretch:
    """Row groups [start, stop): the number of the first row, and the bytes of all their columns, unpacked."""

    start: int
    stop: int
    first: int
    bytes: int


def stretches(path: str, column: str, limits: Limits) -> list[Stretch]:
    """Return the pieces of work that a file is read in; none where it has no rows.

    Raises:
        SettingsError: If it is no Parquet file, has no column of text under that name or several, carries extension
            types (reading those can run code that lies in the file), or its column unpacks to more than it may.
    """
    metadata = _metadata(path, column)
    count = metadata.num_row_groups
    step = max(-(-count // STRETCHES), 1)
    pieces: list[Stretch] = []
    first = 0
    for start, stop in pairwise([*range(0, count, step), count]):
        packed, unpacked = _column_bytes(metadata, column, range(start, stop))
        if unpacked > limits.bytes_of(packed):
            raise SettingsError(f"{path}: column {column!r} {limits.too_much(packed)}")
        groups = [metadata.row_group(number) for number in range(start, stop)]
        pieces.append(Stretch(start, stop, first, sum(group.total_byte_size for group in groups)))
        first += sum(group.num_rows for group in groups)
    return pieces


def _metadata(path: str, column: str) -> pq.FileMetaData:
    """Return the metadata in the footer of a file whose column can be read; others are refused."""
    if _has_extension_types(path):
        raise SettingsError(f"{path}: has extension types, wanted plain Arrow columns; write it without them")
    try:
        metadata = pq.read_metadata(plain_file(path))
        schema = metadata.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise SettingsError(f"{path}: is no readable Parquet file ({short_line(error)})") from None
    indices = schema.get_all_field_indices(column)
    if not indices:
        raise SettingsError(f"{path}: has no column {column!r}, found {schema.names}; set the source's column")
    if len(indices) > 1:
        raise SettingsError(
            f"{path}: has {len(indices)} columns {column!r}, wanted one; name them apart, or set the source's column"
        )
    kind = schema.field(indices[0]).type
    if not is_text(kind):
        raise SettingsError(
            f"{path}: column {column!r} holds {kind}, wanted text; set the source's column"
            + (", or write it as strings" if "binary" in str(kind) else "")
        )
    return metadata


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are texts."""
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value))


def _column_bytes(metadata: pq.FileMetaData, column: str, groups: range) -> tuple[int, int]:
    """Return the bytes of a column in some row groups, as stored and unpacked, according to the footer."""
    leaf = [metadata.schema.column(number).path for number in range(metadata.num_columns)].index(column)
    chunks = [metadata.row_group(number).column(leaf) for number in groups]
    return sum(chunk.total_compressed_size for chunk in chunks), sum(chunk.total_uncompressed_size for chunk in chunks)


def _has_extension_types(path: str) -> bool:
    """Return whether the footer of a Parquet file names an Arrow extension type.

    Arrow makes the types while it opens the file, and making one may run code in it; so the bytes are searched first.
    The Arrow schema is in base64, in which a text has one of three forms.
    """
    try:
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 8, 0))
            length, mark = int.from_bytes(file.read(4), "little"), file.read(4)
            if mark != MARK or length > end - 8:
                raise SettingsError(f"{path}: is no readable Parquet file (it does not end as one)")
            file.seek(end - 8 - length)
            footer = file.read(length)
    except OSError as error:
        raise SettingsError(f"{path}: is no readable Parquet file ({error.strerror})") from None
    return any(pattern in footer for pattern in EXTENSION_PATTERNS)


def cells(path: str, column: str, stretch: Stretch, limits: Limits) -> Iterator[tuple[int, pa.Scalar, int]]:
    """Yield (number, cell, its bytes) of each row of a stretch; numbers count the rows of the file.

    Raises:
        OSError, ArrowException, LookupError, ValueError: If the file cannot be read, or changed meanwhile.
        UnusableError: If the cells hold more than they may.
    """
    row, unpacked = stretch.first, 0
    with plain_file(path) as file:
        metadata = pq.read_metadata(file)
        packed, _ = _column_bytes(metadata, column, range(stretch.start, stretch.stop))
        for group in range(stretch.start, stretch.stop):
            for batch in _batches(file, metadata, column, group):
                for cell in batch.column(batch.schema.get_field_index(column)):
                    value = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
                    size = value.as_buffer().size if value.is_valid else 0
                    unpacked += size
                    if unpacked > limits.bytes_of(packed):
                        raise UnusableError(limits.too_much(packed))
                    yield row, cell, size
                    row += 1


def _batches(file: pa.NativeFile, metadata: pq.FileMetaData, column: str, group: int) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a row group; where its dictionary of values is large, each value is kept once."""
    asked = {"row_groups": [group], "columns": [column]}
    listed = pq.ParquetFile(file, metadata=metadata, read_dictionary=[column])
    first = next(listed.iter_batches(batch_size=1, **asked), None)
    if first is None:
        return
    values = first.column(first.schema.get_field_index(column)).dictionary
    table = listed if values.nbytes > LARGE_BYTES else pq.ParquetFile(file, metadata=metadata)
    yield from table.iter_batches(batch_size=BATCH_ROWS, **asked)
