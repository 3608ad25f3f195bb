"""A page and its Markdown, with the pictures beside them."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from e2ray.files import write_text
from e2ray.report.frame import markdown
from e2ray.report.frame.page import Card, Picture, refuse_other_names, write_page, write_png


def write_pages(page: Path, title: str, subtitle: str, cards: Sequence[Card], *, anchors: Iterable[str]) -> Path:
    """Write the page, the Markdown beside it and its pictures, each whole or not at all; return the Markdown's path.

    Args:
        page: HTML file; the Markdown is named after it, its pictures are in `<name>-pictures/`.
        title: Of the page.
        subtitle: Below it.
        cards: Of the page.
        anchors: Of all cards that such a page may have: their older pictures are removed.

    Raises:
        SettingsError: If the name does not end in .html, or the folder cannot be written.
    """
    refuse_other_names(page)
    text, folder = page.with_suffix(".md"), page.with_name(f"{page.stem}-pictures")
    names = markdown.file_names(cards, Path(folder.name))
    for part in (part for card in cards for part in card.parts if isinstance(part, Picture)):
        write_png(page.parent / names[id(part)], part.png)
    write_page(page, title, subtitle, cards)
    links = {part: quote(name) for part, name in names.items()}
    write_text(text, markdown.render(title, subtitle, cards, links))
    kept, ours = {Path(name).name for name in names.values()}, re.compile(rf"({'|'.join(anchors)})-[0-9]+\.png")
    for path in folder.glob("*.png"):
        if path.name not in kept and ours.fullmatch(path.name):
            path.unlink()
    return text
