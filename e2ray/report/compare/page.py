"""The files of a comparison: its figures, its tables, its picture, and the page that shows all of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from e2ray.evaluate.perplexity import BOS_POLICY
from e2ray.files import write_text
from e2ray.records.comparison import Comparison, ComparisonProtocol, Lane
from e2ray.records.folders import ComparisonFolder
from e2ray.report.compare.lanes import SECTIONS
from e2ray.report.compare.summary import Compared, missing_lines, summary, winners
from e2ray.report.frame import markdown
from e2ray.report.frame.page import Card, Picture, write_page, write_png
from e2ray.report.frame.section import cards_of

TITLE = "Methods compared"


def write_comparison(
    folder: Path,
    jobs: Sequence[Lane],
    base_context_length: int,
    windows: Sequence[int],
    *,
    stride: int | None,
    removed_scaling: str | None = None,
) -> str:
    """Write comparison.json, comparison.md, comparison.png and report.html, and return the tables.

    Args:
        folder: Of the comparison.
        jobs: The result of each job.
        base_context_length: L in tokens.
        windows: W asked for, in tokens.
        stride: S, tokens that the window moved at each step.
        removed_scaling: Rope type that was removed from the base; None where it is the checkpoint itself.
    """
    scored = next((sums.tokens for job in jobs for sums in job.sums), ())
    compared = Compared(
        rows=summary(jobs, base_context_length, windows, removed_scaling=removed_scaling),
        base_context_length=base_context_length,
        windows=windows,
        protocol=ComparisonProtocol(
            stride=stride,
            documents=len(scored),
            tokens=sum(scored),
            bos=BOS_POLICY,
            missing=tuple(missing_lines(jobs, removed_scaling=removed_scaling)),
        ),
        best=winners(jobs, windows),
    )
    files = ComparisonFolder(folder)
    Comparison(
        base_context_length=base_context_length,
        protocol=compared.protocol,
        rows=tuple(compared.rows),
        best=tuple(compared.best),
    ).write(files.comparison)
    cards = cards_of(SECTIONS, compared)
    write_text(files.tables, tables(cards))
    write_png(files.picture, next(part.png for card in cards for part in card.parts if isinstance(part, Picture)))
    subtitle = f"Ways to read further, each trained and measured alike on one base, L = {base_context_length:,} tokens."
    write_page(files.page, f"Comparison {folder.name}", subtitle, cards)
    return tables(cards, shown=str)


def tables(cards: Sequence[Card], *, shown: Callable[[str], str] = markdown.escaped) -> str:
    """Return a comparison as Markdown tables: NLL, differences, retrieval, cost. What has no figure reads `missing`.

    Pictures are left out, since a terminal shows none.
    """
    plain = [
        Card(card.title, card.anchor, [part for part in card.parts if not isinstance(part, Picture)]) for card in cards
    ]
    return markdown.render(TITLE, "", plain, {}, padded=True, shown=shown)
