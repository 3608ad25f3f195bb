"""Shards in an object store, read over HTTP from a server on the loopback interface."""

import shutil

import numpy as np
import pytest

from e2ray.config.base import SettingsError
from e2ray.data import inspect
from e2ray.data import rows as rows_module
from e2ray.data.folder import Folder, is_uri
from e2ray.data.shards import ShardSet, read_manifest
from e2ray.data.stream import batches

HELD_OUT = [("a", list(range(50))), ("b", [1, 2, 3])]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(rows_module, "BATCH_BYTES", 64 * 4)


def test_rows_of_a_bucket_are_those_of_the_folder(store, small_batches, write_shards, documents):
    folder = write_shards(documents, HELD_OUT, pack="best_fit")
    uri = store[0](folder, "same")
    here, there = ShardSet.open(folder), ShardSet.open(uri, window=16, tokenizer_hash="a" * 64)
    ids = np.random.default_rng(0).permutation(here.rows)
    one, other = here.rows_of(ids), there.rows_of(ids)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.token_index, other.token_index)
    documents_there = [(name, tokens.tolist()) for name, tokens in there.validation_documents()]
    assert documents_there == HELD_OUT
    there.verify()


def test_ray_reads_a_bucket_from_every_worker(ray_cluster, store, small_batches, write_shards, documents):
    folder = write_shards(documents)
    uri = store[0](folder, "ray")
    common = {"seed": 3, "start_step": 0, "stop_step": 30, "batch_sequences": 6, "window": 16, "tokenizer_hash": None}
    for rank in (0, 1):
        here = list(batches(folder, rank=rank, num_workers=2, **common))
        there = list(batches(uri, rank=rank, num_workers=2, **common))
        assert len(there) == 30
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one.ids, other.ids)
            np.testing.assert_array_equal(one.tokens, other.tokens)


def test_no_more_is_kept_than_there_is_room_for(store, small_batches, write_shards, documents):
    uri = store[0](write_shards(documents), "kept")
    manifest = read_manifest(uri)
    shards = ShardSet(Folder(uri), manifest, kept_bytes=1500)
    wanted = ShardSet.open(uri).tokens(np.arange(manifest.rows))
    for row in np.random.default_rng(0).permutation(manifest.rows):
        np.testing.assert_array_equal(shards.tokens([row])[0], wanted[row])
        assert sum(block.bytes for block in shards._kept.values()) == shards._kept_bytes <= 1500
    assert shards._kept


def test_damage_in_a_bucket_is_one_line_that_names_the_object(store, small_batches, write_shards, documents):
    put, client = store
    folder = write_shards(documents, HELD_OUT)
    uri = put(folder, "damaged")
    content = bytearray((folder / "train-00000.arrow").read_bytes())
    content[read_manifest(folder).shards[0].blocks[2][0] - 40] ^= 4  # in the third record batch
    client.put_object(Bucket="corpus", Key="damaged/train-00000.arrow", Body=bytes(content))
    shards = ShardSet.open(uri)
    assert shards.tokens(np.arange(8)).shape == (8, 16)
    with pytest.raises(
        SettingsError, match=r"^s3://corpus/damaged/train-00000\.arrow: damaged shard, bytes .* do not match"
    ):
        shards.tokens([8])
    lines = []
    with pytest.raises(SettingsError, match=r"1 of \d files are not what prepare wrote"):
        inspect.verify(uri, show=lines.append)
    assert len(lines) == 1 and "train-00000.arrow" in lines[0]
    client.delete_object(Bucket="corpus", Key="damaged/validation-00000.arrow")
    with pytest.raises(SettingsError, match=r"validation-00000\.arrow: missing shard"):
        ShardSet.open(uri)


def test_a_place_that_holds_nothing_or_is_none_is_one_line(store, tmp_path, write_shards, documents):
    uri = store[0](write_shards(documents), "there")
    with pytest.raises(SettingsError, match=r"elsewhere/manifest\.json: not found, .* holds no finished shards"):
        ShardSet.open(uri.replace("/there", "/elsewhere"))
    with pytest.raises(SettingsError, match=r"nothing: is no place that can be read"):
        ShardSet.open("what://is/nothing")
    with pytest.raises(SettingsError, match=r"^s3://nobucket/there/manifest\.json: not found"):
        ShardSet.open(uri.replace("corpus/", "nobucket/"))


def test_credentials_come_from_the_environment_and_from_nowhere_else(store, write_shards, documents, monkeypatch):
    uri = store[0](write_shards(documents), "keys")
    assert ShardSet.open(uri).rows
    with pytest.raises(
        SettingsError, match=r"^folder of shards: holds credentials in front of an @; .*AWS_ACCESS_KEY_ID"
    ):
        ShardSet.open(uri.replace("s3://", "s3://a:b@"))
    with pytest.raises(SettingsError, match=r"^folder of shards: has the parameter 'access_key', wanted only such"):
        ShardSet.open(f"{uri}&access_key=a&secret_key=b")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(SettingsError, match=r"^s3://corpus/keys/manifest\.json: cannot be read \("):
        ShardSet.open(uri)


def test_the_tokenizer_of_a_bucket_is_copied_whole(store, tmp_path):
    (tmp_path / "shards" / "tokenizer").mkdir(parents=True)
    (tmp_path / "shards" / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "shards" / "tokenizer" / "additional_chat_templates").mkdir()
    (tmp_path / "shards" / "tokenizer" / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    uri = store[0](tmp_path / "shards", "tok")
    Folder(uri).fetch("tokenizer", tmp_path / "here")
    assert (tmp_path / "here" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "here" / "additional_chat_templates" / "rag.jinja").read_text() == "{{ 1 }}"
    with pytest.raises(SettingsError, match=r"tok/nothing: not found"):
        Folder(uri).fetch("nothing", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_a_folder_is_copied_with_those_inside_it_from_any_place(tmp_path):
    names = ["b", "deep/c", "deep/deeper/a"]
    for name in names:
        (tmp_path / "there" / "tokenizer" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / "tokenizer" / name).write_text(name)
    for number, place in enumerate((tmp_path / "there", (tmp_path / "there").as_uri(), f"file://{tmp_path}/there/")):
        target = tmp_path / str(number)
        Folder(place).fetch("tokenizer", target)
        assert Folder(target).names() == names
        assert [(target / name).read_text() for name in names] == names


def test_a_folder_of_this_machine_is_read_the_same_way(tmp_path):
    (tmp_path / "some").write_bytes(b"abcdef")
    (tmp_path / "empty").touch()
    (tmp_path / "below").mkdir()
    folder = Folder(tmp_path)
    assert folder.sizes() == {"some": 6, "empty": 0} and folder.read("some") == b"abcdef"
    assert folder.open("some").read(2, 4).to_pybytes() == b"cd" and folder.open("empty").size == 0
    assert folder.name("some") == f"{tmp_path}/some" and not is_uri(tmp_path)
    assert Folder(tmp_path / "nowhere").sizes() == {}
    with pytest.raises(SettingsError, match=r"nothing: cannot be read \(No such file"):
        folder.read("nothing")
    shutil.rmtree(tmp_path / "below")
