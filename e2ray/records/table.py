"""Parquet files: rows of a class, written whole with a digest of them, and read only as they were written."""

import hashlib
import json
import types
import typing
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from e2ray.config.base import SettingsError
from e2ray.files import atomic_path
from e2ray.records.record import Part

DIGEST, VERSION, WRITTEN = b"e2ray.values", b"e2ray.schema_version", 1
TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}


def schema_of(row: type[Part]) -> pa.Schema:
    """Return the schema of a table of such rows, one column per field."""
    fields = []
    for name, field in row.model_fields.items():
        annotation = field.annotation
        is_union = isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union
        members = typing.get_args(annotation) if is_union else (annotation,)
        kinds = {typing.get_args(kind)[0] if hasattr(kind, "__metadata__") else kind for kind in members}
        (kind,) = kinds - {types.NoneType}
        fields.append(pa.field(name, TYPES[kind], nullable=types.NoneType in kinds))
    return pa.schema(fields)


def table_of(row: type[Part], rows: Iterable[Part]) -> pa.Table:
    """Return rows as a table."""
    return pa.Table.from_pylist([each.plain() for each in rows], schema=schema_of(row))


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table, whole or not at all.

    Args:
        path: The file.
        table: Columns of numbers, texts and truth values; its schema's metadata is replaced.
    """
    with atomic_path(path) as aside:
        metadata = {DIGEST: _digest(table), VERSION: str(WRITTEN).encode()}
        pq.write_table(table.replace_schema_metadata(metadata), aside)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a Parquet file's table.

    Raises:
        SettingsError: If it cannot be read, has another schema, or other rows than were written, or is of a newer
            e2ray.
    """
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        table = table.replace_schema_metadata(None)
        digest = _digest(table)
        version = int(metadata.get(VERSION, b"1"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SettingsError(f"{path}: is damaged ({' '.join(str(error).split())})") from None
    if version > WRITTEN:
        raise SettingsError(
            f"{path}: was written by a newer e2ray, in schema version {version}; this one reads {WRITTEN}: install "
            "the newer one"
        )
    if not table.schema.equals(schema):
        raise SettingsError(f"{path}: holds the columns {table.column_names}, wanted {schema.names}")
    if metadata.get(DIGEST) not in (None, digest):  # None: of an earlier version, or another program's
        raise SettingsError(f"{path}: is damaged, its rows are not those that were written")
    return table


def _digest(table: pa.Table) -> bytes:
    """Return a digest of a table's columns and values, whatever its chunks and the bytes under its nulls."""
    content = json.dumps([[field.name, str(field.type)] for field in table.schema] + [table.to_pydict()])
    return hashlib.sha256(content.encode()).hexdigest().encode()
