"""The report of a study: report.html, which opens offline, and its pictures as files.

The page begins with the findings in plain words, then what to train with, then the evidence from the Pareto front to
the last trial, and ends with how it was measured. Where a study lacks something (no full trial, no repeats, no
retrieval) the page says so.
"""

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from e2ray.records.folders import StudyExport
from e2ray.report.frame.page import Part, Picture, png, write_page, write_png
from e2ray.report.frame.section import cards_of
from e2ray.report.frame.text import plural
from e2ray.report.study.method import METHOD, SEARCHED
from e2ray.report.study.pareto import PARETO
from e2ray.report.study.progress import PROGRESS
from e2ray.report.study.ranges import RANGES
from e2ray.report.study.recommendation import RECOMMENDATION
from e2ray.report.study.section import Reported, StudySection
from e2ray.report.study.space import IMPORTANCES, PARALLEL, SLICES
from e2ray.report.study.surfaces import SURFACES
from e2ray.report.study.trials import TRIALS
from e2ray.search.record import StudyResults


def _coverage(reported: Reported) -> list[Part]:
    return [
        Picture(
            png(figure),
            f"Scale coverage: {title}",
            f"{title}: the distances between tokens that the draws show in training, scale by scale.",
            file=f"coverage-{number}",
        )
        for number, (title, figure) in enumerate(reported.coverage.items(), start=1)
    ]


COVERAGE = StudySection("Which distances the draws show", "coverage", _coverage)
SECTIONS: tuple[StudySection, ...] = (
    SEARCHED,
    RECOMMENDATION,
    PARETO,
    RANGES,
    IMPORTANCES,
    SLICES,
    PARALLEL,
    COVERAGE,
    SURFACES,
    PROGRESS,
    TRIALS,
    METHOD,
)
PICTURES = tuple(drawing.file for section in SECTIONS for drawing in section.drawings)


def write_study(
    folder: Path, results: StudyResults, *, coverage: Mapping[str, Figure] | None = None, journal_command: str
) -> Path:
    """Write report.html and pictures/*.png into a folder, each whole or not at all, and return the page's path.

    The same results give the same bytes. A picture for which the study has no data is left out, and an older one of
    its name removed.

    Args:
        folder: The study's export folder.
        results: All that follows from the study's records.
        coverage: Figures of the distances that draws show, by their titles.
        journal_command: The command that opens the study's journal in optuna-dashboard.

    Raises:
        SettingsError: If the folder cannot be written.
    """
    files, facts = StudyExport(folder), results.facts
    cards = cards_of(SECTIONS, Reported(results, journal_command, coverage or {}))
    drawn = {part.file: part.png for card in cards for part in card.parts if isinstance(part, Picture)}
    for name, content in drawn.items():
        write_png(files.pictures / f"{name}.png", content)
    for path in files.pictures.glob("*.png"):
        if path.stem not in drawn and (path.stem in PICTURES or path.stem.startswith("coverage-")):
            path.unlink()
    subtitle = (
        f"Which augmentation ranges to train with: {plural(facts.trials, 'trial')}, base context length "
        f"{facts.base_context_length} tokens, up to scale {facts.max_scale:g}."
    )
    write_page(files.page, f"Study {facts.name}", subtitle, cards)
    return files.page
