"""The files of a comparison: its figures, its tables, its picture, and the page that shows all of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from e2ray.evaluate.perplexity import BOS_POLICY
from e2ray.files import write_text
from e2ray.records.comparison import Comparison, Lane
from e2ray.records.folders import ComparisonFolder
from e2ray.report.compare.lanes import SECTIONS
from e2ray.report.compare.picture import draw
from e2ray.report.compare.summary import Compared, missing_lines, summary, winners
from e2ray.report.frame import markdown
from e2ray.report.frame.page import Card, Picture, write_page, write_png
from e2ray.report.frame.section import cards_of

TITLE = "Methods compared"


def write_comparison(
    folder: Path,
    found: Sequence[Lane],
    base_context_length: int,
    windows: Sequence[int],
    *,
    stride: int | None,
    removed_scaling: str | None = None,
) -> str:
    """Write comparison.json, comparison.md, comparison.png and report.html, and return the tables.

    Args:
        folder: Of the comparison.
        found: What each job has left.
        base_context_length: L in tokens.
        windows: W asked for, in tokens.
        stride: S, tokens that a window moved on.
        removed_scaling: Rope type that was removed from the base; None where it is the checkpoint itself.
    """
    rows = summary(found, base_context_length, windows, removed_scaling=removed_scaling)
    scored: list[int] = next((sums["tokens"] for job in found for sums in job["sums"]), [])
    protocol = {
        "stride": stride,
        "documents": len(scored),
        "tokens": sum(scored),
        "bos": BOS_POLICY,
        "missing": missing_lines(found),
    }
    best, files = winners(found, windows), ComparisonFolder(folder)
    content = {"base_context_length": base_context_length, "protocol": protocol, "rows": rows, "best": best}
    Comparison.parse(content, where=files.comparison).write(files.comparison)
    cards = cards_of(SECTIONS, Compared(rows, base_context_length, windows, protocol, best))
    text = _text(cards)
    write_text(files.tables, text)
    write_png(files.picture, draw(rows, base_context_length, windows))
    subtitle = f"Ways to read further, each trained and measured alike on one base, L = {base_context_length:,} tokens."
    write_page(files.page, f"Comparison {folder.name}", subtitle, cards)
    return text


def tables(
    rows: Sequence[Mapping[str, Any]],
    base_context_length: int,
    windows: Sequence[int],
    protocol: Mapping[str, Any],
    *,
    best: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the comparison as Markdown tables: NLL, differences, retrieval, cost. What has no figure reads `missing`.

    Arguments are those of `Compared`.
    """
    return _text(cards_of(SECTIONS, Compared(rows, base_context_length, windows, protocol, best)))


def _text(cards: Sequence[Card]) -> str:
    """Return cards as Markdown without their pictures, which a terminal does not show."""
    plain = [
        Card(card.title, card.anchor, [part for part in card.parts if not isinstance(part, Picture)]) for card in cards
    ]
    return markdown.render(TITLE, "", plain, {}, padded=True)
