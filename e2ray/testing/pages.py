"""Every part of a page once, and HTML read back: its tags, its texts, and that tags are closed in order."""

from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from unittest.mock import patch

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from e2ray.report.frame.page import Code, Column, Part, Picture, Point, Points, Row, Table, Words, png

HOSTILE = "<script>alert('x')</script> & \"quoted\" {{ 7 * 7 }}"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags and texts, and checks that every tag is closed in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag that opens."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Close the tag that was opened last, which this must be."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Note a text."""
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


def read(html: str) -> Reader:
    """Return what a page holds; an assertion fails where a tag is not closed in its order."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    return reader


@contextmanager
def unrendered() -> Iterator[None]:
    """Draw figures but save empty pictures: for tests of a page's text, in a tenth of the time."""
    with patch.object(Figure, "savefig"), patch.object(ConstrainedLayoutEngine, "execute"):
        yield


def picture() -> bytes:
    """Return a small picture as the page holds it."""
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([1, 2])
    return png(figure)


def every_part(text: str) -> list[Part]:
    """Return one of every part of a page, with `text` wherever a part has text."""
    return [
        Words(text, warning=True),
        Points([Point(text, text, warning=True), Point(text, text)]),
        Table([Column(text), Column(text, "number")], [Row([text, text], "marked")], text, folded=text),
        Table([Column(text)], [], text, compact=True),
        Picture(picture(), text, text),
        Code(text),
    ]
