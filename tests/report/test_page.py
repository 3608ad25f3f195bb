"""The frame of pages: nothing unescaped, nothing fetched, the same bytes again."""

import base64

import pytest

from e2ray.config.base import SettingsError
from e2ray.report.frame.page import (
    Card,
    Column,
    Row,
    Table,
    render,
    write_page,
)
from e2ray.testing.pages import HOSTILE, every_part, picture, read


def page(text="plain"):
    return render(text, text, [Card(text, "first", every_part(text))])


def test_all_texts_of_all_parts_reach_the_reader_as_they_are_and_never_as_markup():
    reader = read(page(HOSTILE))
    assert "script" not in {tag for tag, _ in reader.tags}
    # title twice, subtitle, link, heading, words, 2 points of 2, table of 6 with its fold, table of 2, caption, code
    assert " ".join(reader.texts).count(HOSTILE) == 21 - 1
    labels = [value for _, attrs in reader.tags for name, value in attrs.items() if name in ("alt", "aria-label")]
    assert labels.count(HOSTILE) == 3


def test_pictures_are_whole_inside_the_page_with_a_text():
    reader = read(page())
    (attrs,) = [attrs for tag, attrs in reader.tags if tag == "img"]
    kind, content = attrs["src"].split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(content) == picture()
    assert attrs["alt"] == "plain"


def test_a_page_forbids_every_request_and_links_only_into_itself():
    html = page()
    reader = read(html)
    policy = [attrs["content"] for tag, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert {attrs["href"] for tag, attrs in reader.tags if tag == "a"} == {"#first"}
    assert "http:" not in html and "https:" not in html and "url(" not in html


def test_tables_scroll_inside_their_own_box():
    assert page().count('<div class="scroll"') == page().count("<table") == 2


def test_a_row_of_another_length_than_the_columns_is_refused():
    with pytest.raises(ValueError, match=r"zip\(\) argument 2 is longer"):
        render("t", "s", [Card("s", "a", [Table([Column("one")], [Row(["1", "2"])], "")])])


def test_the_same_page_has_the_same_bytes(tmp_path):
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "t", "s", [Card("s", "first", every_part("text"))])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot be written: .*; choose another storage"):
        write_page(tmp_path / "file" / "report.html", "t", "s", [])
