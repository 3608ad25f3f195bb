"""The frame of every HTML page the package writes: one file that opens offline, without scripts.

A page is data: cards of words, points, tables, pictures and code. One template draws them all, so that pages look
alike and nothing gets into the HTML unescaped: names, reasons and commands come from recipes and from other people's
errors. Pictures are embedded as data URIs, and the page's own content policy forbids any request.
"""

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from e2ray.config.base import SettingsError
from e2ray.files import atomic_path, write_text


@dataclass(frozen=True)
class Words:
    """A paragraph; a `warning` is coloured as one."""

    form: ClassVar[str] = "words"
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Point:
    """A finding: its subject in bold, then the text; each of `more` is a bullet below it."""

    head: str
    text: str
    warning: bool = False
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Points:
    """A list of findings."""

    form: ClassVar[str] = "points"
    items: Sequence[Point]


@dataclass(frozen=True)
class Column:
    """A column of a table: `number` is aligned right, `wide` may break its lines."""

    title: str
    style: Literal["text", "number", "wide"] = "text"


@dataclass(frozen=True)
class Row:
    """Cells of a table's row; `marked` rows are emphasised, `faint` ones pale."""

    cells: Sequence[str]
    style: Literal["", "marked", "faint"] = ""


@dataclass(frozen=True)
class Table:
    """A table that scrolls sideways on narrow screens; `folded` is the line that unfolds it, None to show it."""

    form: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[Row]
    caption: str
    compact: bool = False
    folded: str | None = None

    @property
    def columns_as_row(self) -> Row:
        """The titles of the columns."""
        return Row([column.title for column in self.columns])

    def paired(self, row: Row) -> Iterator[tuple[Column, str]]:
        """Return the cells of a row with their columns."""
        return zip(self.columns, row.cells, strict=True)


@dataclass(frozen=True)
class Picture:
    """A PNG, a text for those who cannot see it and a caption for those who can; `file` names it beside the page."""

    form: ClassVar[str] = "picture"
    png: bytes
    alt: str
    caption: str
    file: str = ""

    @property
    def base64(self) -> str:
        """The PNG as the text of a data URI."""
        return base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Code:
    """A command or a file to copy."""

    form: ClassVar[str] = "code"
    text: str


Part = Words | Points | Table | Picture | Code


@dataclass(frozen=True)
class Card:
    """A titled part of the page; `anchor` is its name in links and in the files of its pictures."""

    title: str
    anchor: str
    parts: Sequence[Part]


def render(title: str, subtitle: str, cards: Sequence[Card]) -> str:
    """Return the page as HTML text; everything in it is escaped, and the same input gives the same text."""
    environment = Environment(
        loader=PackageLoader("e2ray.report.frame"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(title=title, subtitle=subtitle, cards=cards)


def picture(figure: Figure, alt: str, caption: str) -> Picture:
    """Return a figure as a part of a page."""
    return Picture(png(figure), alt, caption)


def png(figure: Figure) -> bytes:
    """Return a figure as PNG bytes without the library's name and version in them."""
    if engine := figure.get_layout_engine():  # else all is drawn twice, once only to be laid out
        engine.execute(figure)
        figure.set_layout_engine("none")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_png(path: Path, content: bytes | Figure) -> None:
    """Write a picture whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_bytes(content if isinstance(content, bytes) else png(content))


def refuse_other_names(page: Path) -> None:
    """Raise SettingsError if a page is asked for under a name that does not end in .html."""
    if page.suffix.lower() != ".html":
        raise SettingsError(f"{page}: the report is a page; give it a name that ends in .html")


def write_page(path: Path, title: str, subtitle: str, cards: Sequence[Card]) -> None:
    """Write the page whole or not at all.

    Raises:
        SettingsError: If the folder cannot be written.
    """
    write_text(path, render(title, subtitle, cards))
