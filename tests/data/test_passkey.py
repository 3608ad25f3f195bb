import re

import numpy as np
import pytest

from e2ray.config.base import SettingsError
from e2ray.config.data import PasskeySource, TextSource
from e2ray.data.corpus import BadDocument, Document, list_items, read_item
from e2ray.data.passkey import PASSKEY, PASSKEY_QUESTION, document, file_of

FORM = re.compile(
    r"(.*) The pass key is (\d+)\. Remember it\. \2 is the pass key\.(.*)" + re.escape(PASSKEY_QUESTION), re.S
)


def source(folder, **changes):
    made = {"documents": 50, "max_characters": 60, "text": TextSource(paths=(f"{folder}/*.txt",))} | changes
    return PasskeySource(**made)


def read(settings):
    return [found for item in list_items([settings]) for found in read_item(item)]


@pytest.fixture
def texts(tmp_path):
    """Two files, one nine times as long as the other, each of words of its own."""
    (tmp_path / "a.txt").write_text("lake " * 900)
    (tmp_path / "b.txt").write_text("rock " * 100)
    return tmp_path


def test_a_document_hides_one_number_in_a_stretch_and_asks_for_it(texts):
    found = read(source(texts, min_characters=20, digits=4))
    assert len(found) == 50 and len({one.name for one in found}) == 50
    depths = []
    for one in found:
        said, _, answer = one.text.rpartition(" ")
        before, key, behind = FORM.fullmatch(said).groups()
        assert key == answer and 1000 <= int(key) < 10_000
        assert 20 <= len(before + behind) <= 60
        assert before + behind in "lake " * 20 or before + behind in "rock " * 20
        depths.append(len(before) / len(before + behind))
    assert min(depths) < 0.2 and max(depths) > 0.8
    assert PASSKEY.format(border=" ", key=answer) in found[-1].text  # the sentence of the retrieval task


def test_documents_depend_on_settings_and_number_alone(texts, monkeypatch):
    found = read(source(texts))
    monkeypatch.setattr("e2ray.data.corpus.PASSKEYS", 7)
    assert len(list_items([source(texts)])) == 8 and read(source(texts)) == found
    assert read(source(texts, documents=10)) == found[:10]
    others = read(source(texts, seed=1))
    assert not {one.name for one in others} & {one.name for one in found}
    assert len({one.text for one in others + found}) == 100


def test_files_are_cut_up_as_often_as_they_are_large():
    drawn = [file_of(PasskeySource(), number, np.array([0, 900, 100, 0])) for number in range(2000)]
    assert set(drawn) == {1, 2} and 0.87 < drawn.count(1) / 2000 < 0.93


def test_a_number_that_stands_in_the_text_is_not_taken():
    settings = PasskeySource(digits=2, min_characters=9, max_characters=9)
    for number in range(300):
        made = document(settings, number, "123456789")
        assert FORM.match(made)[2] not in "123456789"


def test_a_text_that_cannot_be_read_is_a_bad_document(texts):
    (texts / "b.txt").write_bytes(b"\xff" * 500)
    found = read(source(texts))
    assert {type(one) for one in found} == {Document, BadDocument}
    assert all("b.txt: is no UTF-8" in one.reason for one in found if isinstance(one, BadDocument))


def test_no_text_at_all_is_refused(texts):
    for path in texts.glob("*.txt"):
        path.write_text("")
    with pytest.raises(SettingsError, match="data source passkey: no text is left to hide keys in"):
        list_items([source(texts)])
