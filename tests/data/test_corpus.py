import gzip
import json
import os
import re
import sysconfig

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from e2ray.config.base import SettingsError
from e2ray.config.data import JsonlSource, ParquetSource, PythonStdlibSource, TextSource
from e2ray.data import corpus, unpack
from e2ray.data.corpus import BadDocument, Document, fingerprint, list_items, read_item


def read(*sources):
    return [document for item in list_items(sources) for document in read_item(item)]


def text(*paths):
    return TextSource(paths=tuple(str(path) for path in paths))


def jsonl(*paths, column="text"):
    return JsonlSource(paths=tuple(str(path) for path in paths), column=column)


def parquet(*paths, column="text"):
    return ParquetSource(paths=tuple(str(path) for path in paths), column=column)


def zstd(content):
    return pa.compress(content, codec="zstd", asbytes=True)


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", zstd)])
def test_a_text_file_is_one_document_however_it_is_packed(tmp_path, suffix, pack):
    content = "first line\r\nzweite Zeile ä 漢\n" * 3
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(content.encode()))
    assert read(text(tmp_path / "a.txt*")) == [Document(f"{tmp_path.name}/a.txt{suffix}", content)]


def test_a_zst_stream_of_several_frames_is_read_to_its_end(tmp_path):
    (tmp_path / "a.zst").write_bytes(zstd(b"one ") + zstd(b"two"))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert [document.text for document in read(text(tmp_path / "a.*"))] == ["one two"] * 2


@pytest.mark.parametrize("name", ["shard-0.tar", "shard-0.tar.gz", "shard-0.tgz", "shard-0.TAR.GZ", "shard-0.Tar.Zst"])
def test_an_archive_is_refused_with_the_reason(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        SettingsError, match=rf"{name}: is an archive \(WebDataset\).*; unpack it, or write its texts"
    ) as e:
        list_items([text(tmp_path / "*")])
    assert "\n" not in str(e.value)


def test_files_come_sorted_and_once_and_names_do_not_depend_on_the_place(tmp_path):
    names = []
    for place in ("here", "there"):
        root = tmp_path / place / "corpus"
        (root / "sub").mkdir(parents=True)
        for name in ("b.txt", "a.txt", "sub/c.txt"):
            (root / name).write_text(name)
        names.append([document.name for document in read(text(root / "**/*.txt", root / "a.txt"))])
    assert names[0] == names[1] == ["corpus/a.txt", "corpus/b.txt", "corpus/sub/c.txt"]


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(tmp_path):
    (tmp_path / "a[1].txt").write_text("odd")
    assert [document.text for document in read(text(tmp_path / "a[1].txt"))] == ["odd"]


def test_a_name_that_is_no_utf8_can_still_be_written_down(tmp_path):
    (tmp_path / os.fsdecode(b"a\xff.txt")).write_text("odd")
    (document,) = read(text(tmp_path / "*.txt"))
    assert document.name.encode("utf-8").endswith(b"a\\udcff.txt")
    assert str(fingerprint([text(tmp_path / "*.txt")])).encode("utf-8")


def test_files_left_out_are_not_read(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    items = list_items([text(tmp_path / "*.txt")], without=frozenset({os.path.realpath(tmp_path / "a.txt")}))
    assert [document.text for item in items for document in read_item(item)] == ["b.txt"]


def test_many_small_files_share_an_item_and_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "TEXT_GROUP_BYTES", (100, 1000))
    for number in range(50):
        (tmp_path / f"{number:02d}.txt").write_text("x" * 30)
    items = list_items([text(tmp_path / "*.txt")])
    assert [len(item.files) for item in items] == [4] * 12 + [2]
    names = [document.name[-6:-4] for item in items for document in read_item(item)]
    assert names == [f"{number:02d}" for number in range(50)]


@pytest.mark.parametrize("range_bytes", [1, 7, 64, 1000, 10**6])
@pytest.mark.parametrize("read_bytes", [3, 4096])
def test_byte_ranges_of_json_lines_give_each_line_once(tmp_path, monkeypatch, range_bytes, read_bytes):
    monkeypatch.setattr(corpus, "JSONL_RANGE_BYTES", (range_bytes, range_bytes))
    monkeypatch.setattr(unpack, "READ_BYTES", read_bytes)
    wanted = [f"{number} " + "ä" * (number * 7 % 40) for number in range(40)]
    lines = [json.dumps({"text": each}, ensure_ascii=False) for each in wanted]
    lines.insert(5, "")
    (tmp_path / "a.jsonl").write_text("\n".join(lines))  # no line break behind the last one
    found = read(jsonl(tmp_path / "a.jsonl"))
    assert [document.text for document in found] == wanted
    assert len({document.name for document in found}) == len(wanted)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_packed_json_lines_are_the_same_documents(tmp_path, suffix, pack):
    content = "".join(json.dumps({"body": f"text {number}", "id": number}) + "\n" for number in range(100)).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(content))
    plain = read(jsonl(tmp_path / "a.jsonl", column="body"))
    packed = read(jsonl(tmp_path / f"a.jsonl{suffix}", column="body"))
    assert [document.text for document in plain] == [document.text for document in packed]
    assert len(plain) == 100


def test_parquet_row_groups_are_read_in_order(tmp_path):
    values = [f"row {number}" for number in range(10)]
    pq.write_table(pa.table({"id": range(10), "text": values}), tmp_path / "a.parquet", row_group_size=4)
    items = list_items([parquet(tmp_path / "a.parquet")])
    assert [(item.start, item.stop) for item in items] == [(0, 1), (1, 2), (2, 3)]
    found = [document for item in items for document in read_item(item)]
    assert [document.text for document in found] == values
    assert found[9].name == f"{tmp_path.name}/a.parquet@9"


class Tag(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.string(), "e2ray.test.tag")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        raise AssertionError("code of the file ran")


@pytest.mark.parametrize("padded", range(6))
def test_parquet_with_extension_types_is_refused_before_they_are_made(tmp_path, padded):
    column = pa.ExtensionArray.from_storage(Tag(), pa.array(["a"]))
    padding = [f"c{'x' * width}" for width in range(padded)]
    table = pa.table({"text": ["a"], **{name: [1] for name in padding}, "tag": column})
    pq.write_table(table, tmp_path / "a.parquet")
    pa.register_extension_type(Tag())
    try:
        with pytest.raises(SettingsError, match=r"a.parquet: has extension types, wanted plain Arrow columns"):
            list_items([parquet(tmp_path / "a.parquet")])
    finally:
        pa.unregister_extension_type("e2ray.test.tag")


def test_the_standard_library_has_code_and_no_tests():
    files = corpus.source_files(PythonStdlibSource())
    names = [file.name for file in files]
    assert {"python_stdlib/json/decoder.py", "python_stdlib/argparse.py"} <= set(names)
    assert names == sorted(names)
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))]
    assert all(file.path.startswith(sysconfig.get_paths()["stdlib"]) for file in files)


def test_the_fingerprint_follows_every_file(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    before = fingerprint([text(tmp_path / "*.txt")])
    os.utime(tmp_path / "a.txt", ns=(1, 2))
    after = fingerprint([text(tmp_path / "*.txt")])
    (tmp_path / "b.txt").write_text("b")
    assert before == [[str(tmp_path / "a.txt"), 1, 1]]
    assert after == [[str(tmp_path / "a.txt"), 1, 2]]
    assert len(fingerprint([text(tmp_path / "*.txt")])) == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9 au lait", r"is no UTF-8 \(byte 3: "),
    ],
)
def test_a_bad_text_file_is_named_and_the_others_are_read(tmp_path, content, reason):
    (tmp_path / "bad.txt").write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    bad, good = read(text(tmp_path / "*.txt"))
    assert isinstance(bad, BadDocument)
    assert re.match(f"{tmp_path}/bad.txt: {reason}", bad.reason)
    assert good == Document(f"{tmp_path.name}/good.txt", "good")


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
@pytest.mark.parametrize("source", [text, jsonl])
def test_a_file_that_breaks_off_is_unreadable(tmp_path, suffix, pack, source):
    content = json.dumps({"text": os.urandom(5000).hex()}).encode()
    (tmp_path / f"a{suffix}").write_bytes(pack(content)[:-900])
    (bad,) = read(source(tmp_path / f"a{suffix}"))
    assert isinstance(bad, BadDocument)
    assert f"a{suffix}: cannot be read (" in bad.reason
    assert "\n" not in bad.reason


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"body": "x"}', r"has no key 'text', found \['body'\]"),
        (b'{"text": null}', "holds null, wanted text"),
        (b'{"text": 3}', "holds int, wanted text"),
        (b'{"text": ""}', "is empty"),
        (b'["text"]', "holds list, wanted an object"),
        (b'{"text": "x"', r"is no JSON \("),
        (b'{"text": "\\ud800"}', r"is no UTF-8 \(lone surrogate at character 0\)"),
        (b'{"text": "caf\xe9"}', r"is no UTF-8 \(byte 13 of the line"),
        (b"[" * 100_000, r"is no JSON \("),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_bad_json_line_is_named_by_its_number(tmp_path, line, reason, suffix):
    content = b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n'
    (tmp_path / f"a.jsonl{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    one, bad, two = read(jsonl(tmp_path / f"a.jsonl{suffix}"))
    assert [one.text, two.text] == ["one", "two"]
    assert re.match(f"{tmp_path}/a.jsonl{suffix} line 3: {reason}", bad.reason)
    assert "\n" not in bad.reason


def test_a_parquet_row_without_text_is_named(tmp_path):
    pq.write_table(pa.table({"text": ["a", None, "", "b"]}), tmp_path / "a.parquet")
    found = read(parquet(tmp_path / "a.parquet"))
    assert [type(document) for document in found] == [Document, BadDocument, BadDocument, Document]
    assert found[1].reason == f"{tmp_path}/a.parquet row 1: holds null, wanted text"
    assert found[2].reason == f"{tmp_path}/a.parquet row 2: is empty"


@pytest.mark.parametrize("source", [text, jsonl, parquet])
def test_paths_that_match_nothing_are_named(tmp_path, source):
    with pytest.raises(SettingsError, match=r"missing.txt: matches no file; check the path"):
        list_items([source(tmp_path / "missing.txt")])
    with pytest.raises(SettingsError, match=r"\*\*/\*.nothing: matches no file"):
        list_items([source(tmp_path / "**/*.nothing")])
    with pytest.raises(SettingsError, match=r"is a folder, wanted files; write .*/\*\*/\*"):
        list_items([source(tmp_path)])


def test_a_parquet_file_that_does_not_do_is_named(tmp_path):
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(SettingsError, match=r"has no column 'text', found \['id', 'body'\]"):
        list_items([parquet(tmp_path / "a.parquet")])
    with pytest.raises(SettingsError, match=r"column 'id' holds int64, wanted text"):
        list_items([parquet(tmp_path / "a.parquet", column="id")])
    with pytest.raises(SettingsError, match=r"b.parquet: is no readable Parquet file"):
        list_items([parquet(tmp_path / "b.parquet")])
