"""A column of text out of Parquet files of any shape: read, or told in one line."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e2ray.config.base import SettingsError
from e2ray.config.data import ParquetSource
from e2ray.data import parquet
from e2ray.data.corpus import BadDocument, list_items, read_item
from e2ray.data.unpack import Limits

STRINGS = [pa.string(), pa.large_string(), pa.string_view()]


def items(*paths, column="text", **limits):
    source = ParquetSource(paths=tuple(str(path) for path in paths), column=column)
    return list_items([source], limits=Limits(**limits))


def read(*paths, **given):
    return [found for item in items(*paths, **given) for found in read_item(item)]


def refused(path, **given):
    """Return what is said of a file, without its name."""
    with pytest.raises(SettingsError) as caught:
        items(path, **given)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.parquet"


# ---- types ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [*STRINGS, *(pa.dictionary(index, value) for index in (pa.int8(), pa.int64()) for value in STRINGS[:2])],
    ids=str,
)
@pytest.mark.parametrize("store_schema", [True, False])
def test_a_column_of_every_string_type_is_read(path, kind, store_schema):
    pq.write_table(pa.table({"text": pa.array(["a", "ä", None, "a"]).cast(kind)}), path, store_schema=store_schema)
    *found, last = read(path)
    assert [one.text for one in found if not isinstance(one, BadDocument)] + [last.text] == ["a", "ä", "a"]
    assert found[2].reason == f"{path} row 2: holds null, wanted text"


def test_types_of_text_are_known_even_where_no_file_holds_them():
    assert all(parquet.is_text(kind) and parquet.is_text(pa.dictionary(pa.uint8(), kind)) for kind in STRINGS)
    assert not any(parquet.is_text(kind) for kind in (pa.binary(), pa.list_(pa.string()), pa.null(), pa.int8()))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([b"a"]),
        pa.array([b"a"], pa.large_binary()),
        pa.array([b"a"], pa.binary_view()),
        pa.array([b"ab"], pa.binary(2)),
        pa.array([b"a"]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_bytes_are_told_to_be_no_text(path, values):
    pq.write_table(pa.table({"text": values}), path)
    told = refused(path)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    assert f"{kind}" in told
    assert told.startswith("column 'text' holds ") and told.endswith(
        ", wanted text; set the source's column, or write it as strings"
    )


@pytest.mark.parametrize("values", [[1], [["a"]], [{"a": "b"}], [None], [1.5]])
def test_what_is_no_text_at_all_is_told(path, values):
    pq.write_table(pa.table({"text": values}), path)
    assert refused(path).endswith(", wanted text; set the source's column")


# ---- shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["text", "text"], ["id", "text", "text"], ["text", "id", "text", "text"]])
def test_two_columns_of_one_name_are_told(path, names):
    pq.write_table(pa.table([pa.array(["a"])] * len(names), names=names), path)
    assert refused(path).startswith(f"has {names.count('text')} columns 'text', wanted one; name them apart")


def test_other_columns_of_one_name_do_not_matter(path):
    columns = [pa.array([1]), pa.array(["a"]), pa.array([2]), pa.array(["b"])]
    pq.write_table(pa.table(columns, names=["id", "text", "id", "text.en"]), path)
    assert [found.text for found in read(path)] == ["a"]
    assert [found.text for found in read(path, column="text.en")] == ["b"]


@pytest.mark.parametrize("groups", [0, 1, 3])
def test_a_table_without_rows_has_no_documents_and_those_beside_it_are_read(path, tmp_path, groups):
    empty = pa.table({"text": pa.array([], pa.string())})
    with pq.ParquetWriter(path, empty.schema) as writer:
        for _ in range(groups):
            writer.write_table(empty)
    pq.write_table(pa.table({"text": ["one", "two"]}), tmp_path / "b.parquet")
    assert read(path) == []
    assert [found.text for found in read(tmp_path / "*.parquet")] == ["one", "two"]


def test_a_table_without_columns_is_told(path):
    pq.write_table(pa.table({}), path)
    assert refused(path) == "has no column 'text', found []; set the source's column"


def test_rows_are_numbered_over_many_row_groups_in_few_pieces(path, monkeypatch):
    monkeypatch.setattr(parquet, "STRETCHES", 4)
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(50)]}), path, row_group_size=3)
    made = items(path)
    assert [(item.start, item.stop, item.first) for item in made] == [
        (0, 5, 0),
        (5, 10, 15),
        (10, 15, 30),
        (15, 17, 45),
    ]
    found = [found for item in made for found in read_item(item)]
    assert [(one.text, one.name) for one in found] == [
        (f"row {n}", f"{path.parent.name}/a.parquet@{n}") for n in range(50)
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"text " * 100])
def test_what_is_no_parquet_is_told_without_reading_it(path, content):
    path.write_bytes(content)
    assert refused(path).startswith("is no readable Parquet file (")


# ---- bombs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["zstd", "gzip", "snappy"])
def test_pages_that_unpack_to_much_more_than_they_are_are_refused_at_once(path, codec):
    pq.write_table(pa.table({"text": ["x" * 100_000] * 30}), path, compression=codec, use_dictionary=False)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    told = refused(path, document_bytes=1_000_000, ratio=10)
    most = max(1_000_000, 10 * chunk.total_compressed_size)
    wanted = (
        f"column 'text' unpacks to more than {most:,} bytes out of {chunk.total_compressed_size:,}, as a decompression"
    )
    assert told.startswith(wanted)
    assert len(read(path)) == 30  # less than one document may have by default


def test_a_value_that_a_million_rows_share_is_told_and_never_lies_in_memory_a_hundred_times(path):
    large = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["x" * 8_000_000]))
    pq.write_table(pa.table({"text": large}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 10_000
    (item,) = items(path, document_bytes=50_000_000)
    before = pa.total_allocated_bytes()
    found = []
    for one in read_item(item):
        found.append(one)
        assert pa.total_allocated_bytes() - before < 60_000_000
    assert [len(one.text) for one in found[:-1]] == [8_000_000] * 6
    assert "a.parquet: column 'text' unpacks to more than 50,000,000 bytes out of" in found[-1].reason


def test_a_cell_larger_than_a_document_may_be_is_told_and_the_others_are_read(path):
    pq.write_table(pa.table({"text": ["one", "x" * 3_000_000, "two"]}), path)
    one, bad, two = read(path, document_bytes=2**21)
    assert (one.text, two.text) == ("one", "two")
    assert bad.reason == f"{path} row 1: is larger than 2 MiB (data.max_document_mib); cut it, or raise that"
