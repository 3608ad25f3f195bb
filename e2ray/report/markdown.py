"""The sections of a page as Markdown, for a model card: what the page says, in the same words and figures."""

import re
from collections.abc import Sequence
from pathlib import Path

from e2ray.report.page import Code, Part, Picture, Points, Section, Table, Words

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&!])")


def escaped(text: str) -> str:
    """Return a text on one line that Markdown and the HTML in it show as it stands."""
    shown = SPECIAL.sub(r"\\\1", " ".join(text.split()))
    return shown.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def render(title: str, subtitle: str, sections: Sequence[Section], pictures: dict[int, str]) -> str:
    """Return the page as Markdown, its headings from the second level on, so that it fits into a model card.

    Args:
        title: Of the page.
        subtitle: Below it.
        sections: Of the page.
        pictures: Where each picture lies, relative to the Markdown file, by the `id` of its part.
    """
    blocks = [f"## {escaped(title)}", escaped(subtitle)]
    for section in sections:
        blocks.append(f"### {escaped(section.title)}")
        blocks += [_part(part, pictures) for part in section.parts]
    return "\n\n".join(blocks) + "\n"


def _part(part: Part, pictures: dict[int, str]) -> str:
    match part:
        case Words():
            return f"> {escaped(part.text)}" if part.warning else escaped(part.text)
        case Points():
            return "\n".join(f"- **{escaped(point.head)}** {escaped(point.text)}" for point in part.items)
        case Picture():
            return f"![{escaped(part.alt)}]({pictures[id(part)]})\n\n{escaped(part.caption)}"
        case Table():
            return f"{_table(part)}\n\n{escaped(part.caption)}"
        case Code():
            fence = "`" * max(3, *(1 + len(ticks) for ticks in re.findall("`+", part.text)), 0)
            return f"{fence}\n{part.text}\n{fence}"


def _table(table: Table) -> str:
    rule = ["---:" if column.style == "number" else ":---" for column in table.columns]
    rows = [[escaped(column.title) for column in table.columns], rule]
    rows += [[escaped(cell) for cell in row.cells] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def file_names(sections: Sequence[Section], folder: Path) -> dict[int, str]:
    """Return a file in a folder for each picture, named by its section: `pictures/nll-1.png`."""
    names: dict[int, str] = {}
    for section in sections:
        found = [part for part in section.parts if isinstance(part, Picture)]
        names |= {
            id(part): (folder / f"{section.anchor}-{place}.png").as_posix() for place, part in enumerate(found, 1)
        }
    return names
