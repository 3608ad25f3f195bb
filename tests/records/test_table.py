"""Parquet files of a run: what was written is what is read, and nothing else is."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e2ray.config.base import SettingsError
from e2ray.records.table import read_table, write_table

TYPES = {
    "double": (pa.float64(), st.floats(allow_nan=True)),
    "integer": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "text": (pa.string(), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)),
    "truth": (pa.bool_(), st.booleans()),
}
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in TYPES.items()])
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, (_, values) in TYPES.items()}), max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=ROWS, computed=st.booleans())
def test_a_table_with_any_nulls_comes_back(rows, computed, tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "rows.parquet"
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if computed:  # values below its nulls that nobody wrote
        valid = pa.array([number % 2 == 0 for number in range(len(rows))], pa.bool_())
        column = pc.if_else(valid, table["double"].fill_null(3.0), pa.scalar(None, pa.float64()))
        table = table.set_column(0, "double", column)
    write_table(path, table)
    found = read_table(path, SCHEMA)
    assert repr(found.to_pylist()) == repr(table.to_pylist())


@pytest.mark.parametrize("change", [{"double": 1.5}, {"double": None}, {"integer": 8}, {"text": "b"}])
def test_other_values_under_the_digest_of_the_written_ones_are_damage(tmp_path, change):
    row = {"double": 1.25, "integer": 7, "text": "a", "truth": None}
    path = tmp_path / "rows.parquet"
    write_table(path, pa.Table.from_pylist([row], schema=SCHEMA))
    metadata = pq.read_schema(path).metadata
    kept = {key: value for key, value in metadata.items() if key.startswith(b"e2ray")}
    assert kept
    pq.write_table(pa.Table.from_pylist([row | change], schema=SCHEMA).replace_schema_metadata(kept), path)
    with pytest.raises(SettingsError, match="its rows are not those that were written"):
        read_table(path, SCHEMA)
