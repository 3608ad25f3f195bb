"""The report on one run or several: a page that opens offline, and the same as Markdown for a model card.

Both are made of one list of cards, so that they cannot disagree. Runs whose NLLs may not be compared get tables and
pictures of their own, and the page says so first.
"""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from e2ray.report.frame.page import Card
from e2ray.report.frame.section import cards_of
from e2ray.report.frame.writing import write_pages
from e2ray.report.run_files import RunRecord, read_run
from e2ray.report.run_folder import RunFolder
from e2ray.report.sections.section import RunSection

PACKAGE = "e2ray.report.sections"
# Modules of that package in the order of the page, each with its section, named alike in capitals.
SECTIONS: tuple[RunSection, ...] = tuple(
    getattr(import_module(f"{PACKAGE}.{name}"), name.upper())
    for name in (
        "draws",
        "nll",
        "surface",
        "lengths",
        "watched",
        "reach",
        "retrieval",
        "suites",
        "cost",
        "settings",
        "method",
    )
)


def cards(records: Sequence[RunRecord]) -> list[Card]:
    """Return the cards of the report in their order; what no run has is left out."""
    return cards_of(SECTIONS, records)


def write_report(page: Path, runs: Sequence[RunFolder]) -> Path:
    """Write the page, the Markdown beside it and its pictures, each whole or not at all; return the Markdown's path.

    The same runs give the same bytes.

    Args:
        page: HTML file; the Markdown is named after it, its pictures are in `<name>-pictures/`.
        runs: What `open_runs` returns.

    Raises:
        SettingsError: If the name does not end in .html, a run is damaged, or the folder cannot be written.
    """
    records = [read_run(run) for run in runs]
    title = f"{'Run' if len(runs) == 1 else 'Runs'} {', '.join(run.name for run in runs)}"
    subtitle = (
        "E2-LLM: trained on short windows, read at longer ones by choosing the scale of positions. Every figure is of "
        "the runs' own files."
    )
    return write_pages(page, title, subtitle, cards(records), anchors=[section.anchor for section in SECTIONS])
