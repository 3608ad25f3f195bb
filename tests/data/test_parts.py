import pyarrow as pa
import pytest

from e2ray.data import parts as parts_module
from e2ray.data.parts import Keeper, Parts


def table(*items):
    return pa.table({"item": pa.array(items, pa.int32()), "name": [f"{item}" for item in items]})


@pytest.fixture
def parts(tmp_path):
    return Parts(tmp_path / "parts")


def read(parts, source=0):
    return [(stop, found.column("item").to_pylist()) for stop, found in Parts(parts.folder).read(source)]


def test_items_are_kept_once_they_are_complete(parts, monkeypatch):
    monkeypatch.setattr(parts_module, "PART_BYTES", 1)
    keeper = Keeper(parts, 0, 0)
    keeper.add(table(0, 0))
    assert read(parts) == []  # more of item 0 may come
    keeper.add(table(0, 1))
    assert read(parts) == [(1, [0, 0, 0])]
    keeper.add(table(1, 1, 4))
    assert read(parts) == [(1, [0, 0, 0]), (4, [1, 1, 1])]  # items 2 and 3 had no documents
    again = Keeper(Parts(parts.folder), 0, 4)
    again.add(table(4, 5))
    assert read(parts) == [(1, [0, 0, 0]), (4, [1, 1, 1]), (5, [4])]


def test_few_documents_are_written_when_their_source_has_ended(parts):
    keeper = Keeper(parts, 0, 0)
    keeper.add(table(0, 1, 2))
    assert not list(parts.folder.iterdir())
    keeper.finish(5)
    assert read(parts) == [(5, [0, 1, 2])]
    Keeper(parts, 0, 5).finish(5)
    assert len(list(parts.folder.iterdir())) == 1


def test_sources_have_their_own(parts):
    parts.write(1, 0, 2, [table(0, 1)])
    assert read(parts, 0) == [] and read(parts, 1) == [(2, [0, 1])]


def test_a_damaged_part_and_what_stands_behind_it_are_made_again(parts):
    for first in (0, 2, 4):
        parts.write(0, first, first + 2, [table(first, first + 1)])
    (middle,) = parts.folder.glob("part-0-2-4-*.arrow")
    content = bytearray(middle.read_bytes())
    content[len(content) // 2] ^= 1
    middle.write_bytes(content)
    assert read(parts) == [(2, [0, 1])] and not middle.exists()


def test_a_part_that_was_being_written_is_swept(parts):
    (parts.folder / ".tmp-abc-part-0-0-1.arrow").write_bytes(b"half")
    assert read(parts) == [] and not list(parts.folder.iterdir())
    parts.remove()
    assert not parts.folder.exists()
