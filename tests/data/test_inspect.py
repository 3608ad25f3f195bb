"""Folders of shards as a person asks about them."""

import shutil

import pytest

from e2ray.config.base import SettingsError
from e2ray.data.inspect import info, verify
from e2ray.data.shards import read_manifest

HELD_OUT = [("books/a.txt", [5, 6, 7]), ("c", [1])]


def told(folder):
    """Return the lines of verify, and its error or None."""
    lines = []
    try:
        verify(folder, show=lines.append)
    except SettingsError as error:
        return lines, str(error)
    return lines, None


def test_a_whole_folder_is_said_to_be_whole(write_shards, documents):
    folder = write_shards(documents, HELD_OUT)
    num_files = len(list(folder.glob("*.arrow")))
    (line,), error = told(folder)
    assert error is None and line.startswith(f"{folder}: whole, {num_files} files of ")


def test_every_file_that_is_not_as_written_has_a_line_of_its_own(write_shards, documents):
    folder = write_shards(documents, HELD_OUT, shard_rows=20)
    names = sorted(path.name for path in folder.glob("train-*.arrow"))
    assert len(names) >= 4
    one, two = (folder / name for name in names[:2])
    aside = one.rename(folder / "aside")
    two.rename(one)
    aside.rename(two)
    content = bytearray((folder / names[2]).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / names[2]).write_bytes(content)
    (folder / names[3]).write_bytes((folder / names[3]).read_bytes()[:-1])
    (folder / "validation-00000.arrow").unlink()
    shutil.copy(folder / names[0], folder / "train-99999.arrow")
    lines, error = told(folder)
    assert lines == [
        f"{folder / names[0]}: swapped, holds what {names[1]} should hold",
        f"{folder / names[1]}: swapped, holds what {names[0]} should hold",
        f"{folder / names[2]}: damaged shard, its sha256 does not match",
        lines[3],
        f"{folder}/validation-00000.arrow: missing shard",
        f"{folder}/train-99999.arrow: extra shard that the manifest does not name",
    ]
    assert lines[3].startswith(f"{folder / names[3]}: damaged shard, ") and "bytes, wanted" in lines[3]
    assert "6 of" in error and "\n" not in error


def test_a_damaged_manifest_is_the_only_line(write_shards, documents):
    folder = write_shards(documents)
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"window": 16', '"window": 17'))
    lines, error = told(folder)
    assert lines == [] and "is damaged, its digest does not match" in error
    with pytest.raises(SettingsError, match=r"manifest\.json: is damaged, its digest does not match"):
        info(folder)


def test_info_tells_rows_documents_and_their_lengths(write_shards, documents):
    folder = write_shards(documents, HELD_OUT)
    manifest = read_manifest(folder)
    facts = {"count": 30, "tokens": 1800, "min": 1, "median": 60, "max": 119, "histogram": [[64, 10], [128, 20]]}
    told = manifest.changed(
        vocab_size=1024,
        corpus_digest="c" * 64,
        documents={"train": facts, "validation": {"count": 0, "tokens": 0}},
        num_skipped=2,
        skipped=["a.txt: is empty", "b.txt: no UTF-8"],
    )
    told.write(folder / "manifest.json")
    lines = info(folder)
    assert f"{manifest.rows:,} of 16 tokens" in lines[1]
    assert lines[2] == "packing     concat"
    assert "train       30 documents, 1,800 tokens; 1 to 119 tokens each, median 60" in lines
    assert lines[5].split() == ["up", "to", "64", "tokens", "10", "#" * 20]
    assert lines[6].split() == ["up", "to", "128", "tokens", "20", "#" * 40]
    assert "validation  no documents" in lines
    assert lines[-2:] == ["  a.txt: is empty", "  b.txt: no UTF-8"]
