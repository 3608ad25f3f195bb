"""The cards of a page as Markdown, for a model card: what the page says, in the same words and figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from e2ray.report.frame.page import Card, Code, Part, Picture, Points, Table, Words

SPECIAL = re.compile(r"([\\`*_{}<>#|~$&!])")
LINKING = re.compile(r"\][\[(:]")  # without one of these, brackets make no link


def escaped(text: str) -> str:
    """Return a text on one line that Markdown and the HTML in it show literally."""
    shown = SPECIAL.sub(r"\\\1", " ".join(text.split()))
    if LINKING.search(shown):
        shown = re.sub(r"([\[\]])", r"\\\1", shown)
    return shown.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def render(
    title: str,
    subtitle: str,
    cards: Sequence[Card],
    pictures: Mapping[int, str],
    *,
    padded: bool = False,
    shown: Callable[[str], str] = escaped,
) -> str:
    """Return the page as Markdown, its headings from the second level on, so that it fits into a model card.

    Args:
        title: Of the page.
        subtitle: Below it.
        cards: Of the page.
        pictures: Path of each picture, relative to the Markdown file, by the `id` of its part.
        padded: Whether columns of tables are as wide as their widest cell, so that a terminal shows them in line.
        shown: Makes a text fit for where the result is read: escaped for Markdown; a terminal takes it as it is.
    """
    blocks = [f"## {shown(title)}", *([shown(subtitle)] if subtitle else [])]
    for card in cards:
        blocks.append(f"### {shown(card.title)}")
        blocks += [_part(part, pictures, padded, shown) for part in card.parts]
    return "\n\n".join(blocks) + "\n"


def file_names(cards: Sequence[Card], folder: Path) -> dict[int, str]:
    """Return a file in a folder for each picture, named by its card: `pictures/nll-1.png`."""
    names: dict[int, str] = {}
    for card in cards:
        pictures = [part for part in card.parts if isinstance(part, Picture)]
        names |= {id(part): (folder / f"{card.anchor}-{n}.png").as_posix() for n, part in enumerate(pictures, 1)}
    return names


def _part(part: Part, pictures: Mapping[int, str], padded: bool, shown: Callable[[str], str]) -> str:
    match part:
        case Words():
            return f"> {shown(part.text)}" if part.warning else shown(part.text)
        case Points():
            lines = []
            for point in part.items:
                head = f"**{shown(point.head)}** " if point.head else ""
                lines += [f"- {head}{shown(point.text)}", *(f"  - {shown(line)}" for line in point.more)]
            return "\n".join(lines)
        case Picture():
            return f"![{shown(part.alt)}]({pictures[id(part)]})\n\n{shown(part.caption)}"
        case Table():
            text = _table(part, padded, shown)
            return f"{text}\n\n{shown(part.caption)}" if part.caption else text
        case Code():
            fence = "`" * max(3, *(1 + len(ticks) for ticks in re.findall("`+", part.text)), 0)
            return f"{fence}\n{part.text}\n{fence}"


def _table(table: Table, padded: bool, shown: Callable[[str], str]) -> str:
    numeric = [column.style == "number" for column in table.columns]
    rows = [[shown(cell) for cell in row.cells] for row in (table.columns_as_row, *table.rows)]
    widths = [max(3, *(len(row[at]) for row in rows)) if padded else 4 for at in range(len(numeric))]
    rule = ["-" * (width - 1) + ":" if number else ":" + "-" * (width - 1)
            for number, width in zip(numeric, widths, strict=True)]  # fmt: skip
    if padded:
        rows = [[cell.rjust(width) if number else cell.ljust(width)
                 for cell, number, width in zip(row, numeric, widths, strict=True)] for row in rows]  # fmt: skip
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rule, *rows[1:]))
