"""Parquet files of a run: written whole, with a digest of their rows, and read only as they were written."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from e2ray.config.base import SettingsError
from e2ray.files import atomic_path

DIGEST = b"e2ray.values"


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table, whole or not at all.

    Args:
        path: The file.
        table: Columns of numbers, texts and truth values; its schema's metadata is replaced.
    """
    with atomic_path(path) as aside:
        pq.write_table(table.replace_schema_metadata({DIGEST: _digest(table)}), aside)


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Return a Parquet file's table.

    Raises:
        SettingsError: If it cannot be read, has another schema, or other rows than were written.
    """
    try:
        table = pq.read_table(path)
        told = (table.schema.metadata or {}).get(DIGEST)
        table = table.replace_schema_metadata(None)
        found = _digest(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SettingsError(f"{path}: is damaged ({' '.join(str(error).split())})") from None
    if not table.schema.equals(schema):
        raise SettingsError(f"{path}: holds the columns {table.column_names}, wanted {schema.names}")
    if told not in (None, found):  # None: of an earlier version, or another program's
        raise SettingsError(f"{path}: is damaged, its rows are not those that were written")
    return table


def _digest(table: pa.Table) -> bytes:
    """Return what names a table's columns and values, whatever its chunks and whatever stands below its nulls."""
    content = json.dumps([[field.name, str(field.type)] for field in table.schema] + [table.to_pydict()])
    return hashlib.sha256(content.encode()).hexdigest().encode()
