"""Datasets of the Hugging Face library, made on the spot; nothing is downloaded."""

import pyarrow as pa
import pytest

from e2ray.config.base import SettingsError
from e2ray.config.data import HuggingFaceSource
from e2ray.data import hub
from e2ray.data.corpus import BadDocument, Document, fingerprint, list_items, read_item
from e2ray.data.unpack import Limits

datasets = pytest.importorskip("datasets")
TEXTS = [f"document {number} " * (number % 7 + 1) for number in range(300)]


def source(folder, **changes):
    return HuggingFaceSource(path=str(folder), **changes)


def read(*sources):
    return [document for item in list_items(sources) for document in read_item(item)]


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": TEXTS, "other": list(range(300))}).save_to_disk(str(folder), num_shards=3)
    return folder


def test_a_saved_dataset_is_read_in_ranges_of_rows(saved, monkeypatch):
    monkeypatch.setattr(hub, "RANGE_BYTES", 3000)
    items = list_items([source(saved)])
    assert len(items) > 3
    assert [item.start for item in items[1:]] == [item.stop for item in items[:-1]]
    found = read(source(saved))
    assert found == [Document(f"saved/train@{number}", text) for number, text in enumerate(TEXTS)]


def test_a_split_of_a_saved_dict_is_chosen_by_name(tmp_path):
    made = {split: datasets.Dataset.from_dict({"body": list(body)}) for split, body in (("train", "ab"), ("test", "c"))}
    datasets.DatasetDict(made).save_to_disk(str(tmp_path / "dict"))
    assert read(source(tmp_path / "dict", split="test", column="body")) == [Document("dict/test@0", "c")]
    with pytest.raises(SettingsError, match=r"has no split 'dev', found \['train', 'test'\]"):
        list_items([source(tmp_path / "dict", split="dev", column="body")])
    with pytest.raises(SettingsError, match=r"has no column 'text', found \['body'\]; set the source's column"):
        list_items([source(tmp_path / "dict")])


def test_a_dataset_of_the_hub_is_streamed_file_by_file(tmp_path, monkeypatch):
    for number in range(3):
        part = datasets.Dataset.from_dict({"text": TEXTS[number * 100 : number * 100 + 100]})
        part.to_parquet(str(tmp_path / f"part-{number}.parquet"))
    load = datasets.load_dataset

    def from_folder(path, name, *, split, revision, streaming):
        assert (path, name, split, revision, streaming) == ("some/corpus", None, "train", None, True)
        return load("parquet", data_files=str(tmp_path / "*.parquet"), split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", from_folder)
    items = list_items([source("some/corpus")])
    assert [(item.start, item.stop) for item in items] == [(0, 3), (1, 3), (2, 3)]
    found = [document for item in items for document in read_item(item)]
    assert [document.text for document in found] == TEXTS
    assert found[101].name == "corpus/train@1.1"


def test_a_row_without_text_is_a_bad_document(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", None, " "]}).save_to_disk(str(tmp_path / "some"))
    good, missing, empty = read(source(tmp_path / "some"))
    assert good == Document("some/train@0", "a")
    assert isinstance(missing, BadDocument) and missing.reason.endswith("split train row 1: holds null, wanted text")
    assert isinstance(empty, BadDocument) and empty.reason.endswith("split train row 2: is empty")


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere: not found, wanted a folder that save_to_disk wrote"):
        fingerprint([source(tmp_path / "nowhere")])
    (tmp_path / "other").mkdir()
    with pytest.raises(SettingsError, match=r"other: cannot be loaded \(") as caught:
        list_items([source(tmp_path / "other")])
    assert "\n" not in str(caught.value)
    with pytest.raises(SettingsError, match=r"data source some/corpus: the hub cannot be asked for it .*; check"):
        fingerprint([source("some/corpus")])  # tests have no network


def test_another_state_has_another_fingerprint(saved):
    before = fingerprint([source(saved)])
    assert before == fingerprint([source(saved)])
    (saved / "state.json").write_text((saved / "state.json").read_text() + " ")
    assert fingerprint([source(saved)]) != before


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int64(), pa.large_string()),
    ],
    ids=str,
)
def test_a_column_of_every_string_type_is_read(tmp_path, kind):
    datasets.Dataset(pa.table({"text": pa.array(["a", "ä"]).cast(kind)})).save_to_disk(str(tmp_path / "some"))
    assert [found.text for found in read(source(tmp_path / "some"))] == ["a", "ä"]


@pytest.mark.parametrize(
    ("values", "kind"), [([b"a"], "binary"), ([1], "int64"), ([["a"]], "List"), ([1.5], "float64")]
)
def test_a_column_without_text_is_told_before_a_row_is_read(tmp_path, values, kind):
    datasets.Dataset(pa.table({"text": values})).save_to_disk(str(tmp_path / "some"))
    with pytest.raises(
        SettingsError, match=rf"some: column 'text' holds {kind}, wanted text; set the source's column$"
    ):
        list_items([source(tmp_path / "some")])


def test_two_columns_of_one_name_are_told(tmp_path):
    twice = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "some"))
    with pa.ipc.new_stream(str(tmp_path / "some" / "data-00000-of-00001.arrow"), twice.schema) as writer:
        writer.write_table(twice)  # the library itself writes no such table
    with pytest.raises(SettingsError, match=r"some: cannot be loaded \(.*text.*\)$"):
        list_items([source(tmp_path / "some")])


def test_a_dataset_without_rows_has_no_documents_and_those_beside_it_are_read(tmp_path):
    full = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.Dataset.from_dict({"text": []}, features=full.features).save_to_disk(str(tmp_path / "empty"))
    datasets.DatasetDict({"train": full, "test": full.filter(lambda _: False)}).save_to_disk(str(tmp_path / "filtered"))
    datasets.DatasetDict({"train": full, "test": full.select([])}).save_to_disk(str(tmp_path / "dict"))
    assert read(source(tmp_path / "empty")) == []
    for name in ("dict", "filtered"):
        assert [found.text for found in read(source(tmp_path / name))] == ["a"]
        assert read(source(tmp_path / name, split="test")) == []
    with pytest.raises(SettingsError, match=r"has no column 'body', found \['text'\]"):
        list_items([source(tmp_path / "empty", column="body")])


def test_a_row_larger_than_a_document_may_be_is_told_and_the_others_are_read(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "x" * 5000, "b"]}).save_to_disk(str(tmp_path / "some"))
    items = list_items([source(tmp_path / "some")], limits=Limits(document_bytes=4096))
    one, bad, two = (found for item in items for found in read_item(item))
    assert (one.text, two.text) == ("a", "b")
    assert "some split train row 1: is larger than 0.00390625 MiB (data.max_document_mib)" in bad.reason
