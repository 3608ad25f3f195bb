"""Files of text, packed or not, of any size: what they hold is read, or told in one line."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import tempfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e2ray.config.data import DataSettings, JsonlSource, PasskeySource, TextSource
from e2ray.data import corpus, unpack
from e2ray.data.corpus import BadDocument, Document, list_items, read_item
from e2ray.data.unpack import Limits

SKIPPED = b"\x50\x2a\x4d\x18\x04\0\0\0" + bytes(4)  # a frame that zstd skips, as pzstd puts in front


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


def read(*sources, **limits):
    return [found for item in list_items(sources, limits=Limits(**limits)) for found in read_item(item)]


def text(*paths):
    return TextSource(paths=tuple(str(path) for path in paths))


def jsonl(*paths):
    return JsonlSource(paths=tuple(str(path) for path in paths))


def line(value):
    return json.dumps({"text": value}).encode() + b"\n"


def passkeys(path):
    return PasskeySource(documents=3, min_characters=6, max_characters=6, text=text(path))


# ---- long lines -------------------------------------------------------------------------------------------------


class Counted(bytes):
    """Bytes that count the bytes which an operation on them copies."""

    copied = 0

    def __add__(self, other):
        Counted.copied += len(self) + len(other)
        return Counted(bytes(self) + bytes(other))

    def __radd__(self, other):
        Counted.copied += len(self) + len(other)
        return Counted(bytes(other) + bytes(self))

    def lstrip(self, sign):
        Counted.copied += len(self)
        return Counted(bytes(self).lstrip(sign))

    def split(self, sign):
        Counted.copied += len(self)
        return [Counted(piece) for piece in bytes(self).split(sign)]


@pytest.fixture
def copied(monkeypatch):
    """A function that reads a JSONL file in ranges of 4 KiB and returns the bytes read and copied on the way."""
    monkeypatch.setattr(corpus, "JSONL_RANGE_BYTES", (4096, 4096))
    monkeypatch.setattr(unpack, "READ_BYTES", 1000)
    real = unpack.Unpacked.read
    count = 0

    def counted(self, most=None):
        nonlocal count
        chunk = real(self, most)
        count += len(chunk)
        return Counted(chunk)

    monkeypatch.setattr(unpack.Unpacked, "read", counted)

    def measure(path):
        nonlocal count
        count = Counted.copied = 0
        found = read(jsonl(path))
        return found, count, Counted.copied

    return measure


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_line_eight_times_as_long_is_read_and_copied_eight_times_as_much(tmp_path, copied, pack):
    costs = []
    for size in (100_000, 800_000):
        (tmp_path / "long.jsonl").write_bytes(pack(line("before") + line("x" * size) + line("behind")))
        found, count, moved = copied(tmp_path / "long.jsonl")
        assert [len(document.text) for document in found] == [6, size, 6]
        assert count < 2.5 * size  # a little behind each range
        costs.append((count, moved))
    for once, eight_times in zip(*costs, strict=True):
        assert eight_times < 8.5 * once


@given(
    content=st.lists(st.sampled_from([b"", b"a", b"bcd", b"e" * 20, b"f" * 50]), max_size=12).map(b"\n".join),
    size=st.integers(1, 60),
    read_bytes=st.integers(1, 12),
)
def test_ranges_of_any_size_give_each_line_once_with_its_place_and_number(content, size, read_bytes):
    with tempfile.NamedTemporaryFile() as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpack, "READ_BYTES", read_bytes)
        file.write(content)
        file.flush()
        found = []
        for start in range(0, max(len(content), 1), size):
            before = content[:start].count(b"\n") + (0 if content[:start].endswith(b"\n") or not start else 1)
            stretch = unpack.lines(file.name, start, start + size, Limits(document_bytes=30))
            found += [(offset, before + number, line) for offset, number, line in stretch]
    offsets = np.cumsum([0, *(len(each) + 1 for each in content.split(b"\n"))])
    lines = zip(offsets.tolist(), content.split(b"\n"), strict=False)
    assert found == [(o, n, each if len(each) <= 30 else None) for n, (o, each) in enumerate(lines) if each]


def test_bad_lines_are_numbered_without_looking_through_the_file_for_each(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "JSONL_RANGE_BYTES", (500, 500))
    calls = []
    real = unpack.line_number
    monkeypatch.setattr(unpack, "line_number", lambda *given: calls.append(given) or real(*given))
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\n' + b"no json\n" * 300)
    items = list_items([jsonl(tmp_path / "a.jsonl")])
    first, *bad = [found for item in items for found in read_item(item)]
    assert first.text == "one" and len(bad) == 300
    assert [int(one.reason.split(" line ")[1].split(":")[0]) for one in bad] == list(range(3, 303))
    assert len(calls) < len(items)


# ---- what a file is packed with ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".GZ", ".Zst", ".txt", ".jsonl.gz", ".JSONL.ZST", ".bin"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd, lambda content: SKIPPED + zstd(content)])
def test_a_file_is_unpacked_by_its_content_whatever_its_name(tmp_path, suffix, pack):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(pack(line("one") + line("zwei ä")))
    assert [document.text for document in read(jsonl(path))] == ["one", "zwei ä"]
    (document,) = read(text(path))
    assert document == Document(f"{tmp_path.name}/a{suffix}", (line("one") + line("zwei ä")).decode())
    assert len(read(passkeys(path))) == 3


def archived(content):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def zipped(content):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a.txt", content)
    return made.getvalue()


@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        (bz2.compress, "is packed as bzip2, wanted text, plain or packed by gzip or zstd; unpack it"),
        (lzma.compress, "is packed as xz, wanted text"),
        (lambda content: b"\x04\x22\x4d\x18" + content, "is packed as lz4, wanted text"),
        (zipped, "is packed as zip, wanted text"),
        (archived, "is packed as tar, wanted text"),
        (lambda content: gzip.compress(archived(content)), "is packed as tar, wanted text"),
        (lambda content: zstd(lzma.compress(content)), "is packed as xz, wanted text"),
        (lambda content: gzip.compress(gzip.compress(content)), "is packed twice, by gzip and gzip; unpack it once"),
        (lambda content: zstd(gzip.compress(content)), "is packed twice, by zstd and gzip"),
    ],
)
@pytest.mark.parametrize("source", [text, jsonl, passkeys])
def test_what_is_packed_otherwise_is_told(tmp_path, pack, reason, source):
    (tmp_path / "a.txt").write_bytes(pack(line("some text ") * 50))
    bad = read(source(tmp_path / "a.txt"))
    assert {type(one) for one in bad} == {BadDocument}
    assert {one.reason for one in bad} == {bad[0].reason} and "\n" not in bad[0].reason
    assert bad[0].reason.startswith(f"{tmp_path}/a.txt: {reason}")


# ---- bombs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("ratio", [1, 10**9])
def test_a_packed_text_larger_than_a_document_may_be_is_told(tmp_path, pack, ratio):
    (tmp_path / "bomb.txt").write_bytes(pack(b"x" * 3_000_000))
    (tmp_path / "good.txt").write_bytes(pack(b"x" * 3000))
    (tmp_path / "plain.txt").write_bytes(b"x" * 3_000_000)  # no bomb: its size is seen
    limits = {"document_bytes": 2**20, "ratio": ratio}
    bad, good, plain = read(text(tmp_path / "*.txt"), **limits)
    wanted = f"{tmp_path}/bomb.txt: is larger than 1 MiB (data.max_document_mib); cut it, or raise that"
    assert bad == BadDocument(f"{tmp_path.name}/bomb.txt", wanted)
    assert (len(good.text), len(plain.text)) == (3000, 3_000_000)
    assert {one.reason for one in read(passkeys(tmp_path / "bomb.txt"), **limits)} == {wanted}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_a_line_longer_than_a_document_may_be_is_told_and_the_others_are_read(tmp_path, pack):
    (tmp_path / "a.jsonl").write_bytes(pack(line("one") + line("x" * 5000) + line("two")))
    one, bad, two = read(jsonl(tmp_path / "a.jsonl"), document_bytes=4000, ratio=10**9)
    assert (one.text, two.text) == ("one", "two")
    assert bad.reason.startswith(f"{tmp_path}/a.jsonl line 2: is larger than 0.00381")


@pytest.mark.parametrize("content", [b"\n" * 2_000_000, line("x") * 200_000, b"x" * 2_000_000, line("x" * 2_000_000)])
@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_packed_file_that_unpacks_to_much_more_than_its_size_is_told(tmp_path, pack, content):
    (tmp_path / "a.jsonl").write_bytes(pack(content))
    size = (tmp_path / "a.jsonl").stat().st_size
    *others, bad = read(jsonl(tmp_path / "a.jsonl"), document_bytes=50_000, ratio=5)
    assert sum(len(document.text) for document in others) <= max(50_000, 5 * size)
    wanted = rf"{tmp_path}/a.jsonl: unpacks to more than {max(50_000, 5 * size):,} bytes out of {size:,}, as a"
    assert bad.reason.startswith(wanted) and "raise data.max_unpack_ratio if it is none" in bad.reason


def test_a_file_packed_as_well_as_text_is_is_no_bomb(tmp_path):
    content = b"".join(line(f"{number} of some lines that are much alike") for number in range(30_000))
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(content))
    assert len(content) > 2**20
    assert len(read(jsonl(tmp_path / "a.jsonl"), document_bytes=2**20)) == 30_000


def test_empty_lines_are_counted_and_cost_next_to_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b"\n" * 30_000_000 + b"no json\n" + line("one"), 1))
    bad, one = read(jsonl(tmp_path / "a.jsonl"), ratio=2000)
    assert bad.reason.startswith(f"{tmp_path}/a.jsonl line 30000001: is no JSON") and one.text == "one"


def test_limits_are_settings():
    source = {"kind": "python_stdlib"}
    made = DataSettings.model_validate({"corpus": [source], "window": 8, "max_document_mib": 3, "max_unpack_ratio": 7})
    assert Limits.of(made) == Limits(3 * 2**20, 7)
    assert list_items(made.corpus, limits=Limits.of(made))[0].limits == Limits(3 * 2**20, 7)
    default = DataSettings.model_validate({"corpus": [source], "window": 8})
    assert Limits.of(default) == Limits() == Limits(2**30, 256)
    assert made.identity(without=()) == default.identity(without=()) | {"max_document_mib": 3, "max_unpack_ratio": 7}
