"""A subject of a study's page: its pictures, its tables, and what it adds to the findings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from e2ray.report.frame.page import Part, Picture, Point, Words, png
from e2ray.report.frame.section import Section
from e2ray.search.record import StudyResults

NO_FULL_TRIAL = "No trial ran in full, so there is nothing to draw."


@dataclass(frozen=True)
class Reported:
    """All that the page shows.

    Attributes:
        results: All that follows from the study's records.
        journal_command: The command that opens the study's journal in optuna-dashboard.
        coverage: Figures of the distances that draws show, by their titles.
    """

    results: StudyResults
    journal_command: str
    coverage: Mapping[str, Figure] = field(default_factory=dict)


def _nothing(_: object) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Drawing:
    """A picture of a study, which is a file, too.

    Attributes:
        file: Its name among the pictures, without `.png`.
        draw: Returns the figure, or None where the study holds nothing to draw.
        alt: For those who cannot see it.
        caption: For those who can.
        missing: The text in its place where there is none.
        note: Returns the end of the caption for a study.
    """

    file: str
    draw: Callable[[StudyResults], Figure | None]
    alt: str
    caption: str
    missing: str = NO_FULL_TRIAL
    note: Callable[[StudyResults], str] = lambda results: ""

    def part(self, results: StudyResults) -> Part:
        """Return the picture, or the words that say why it is missing."""
        figure = self.draw(results)
        if figure is None:
            return Words(self.missing, warning=True)
        return Picture(png(figure), self.alt, self.caption + self.note(results), file=self.file)


@dataclass(frozen=True)
class StudySection(Section[Reported]):
    """One subject of a study; `parts` are its pictures, then its tables."""

    drawings: Sequence[Drawing] = ()


def study_section(
    title: str,
    anchor: str,
    *drawings: Drawing,
    tables: Callable[[StudyResults], Sequence[Part]] = _nothing,
    findings: Callable[[StudyResults], Sequence[Point]] = _nothing,
) -> StudySection:
    """Return a subject of what follows from a study's records."""

    def parts(reported: Reported) -> list[Part]:
        return [*(drawing.part(reported.results) for drawing in drawings), *tables(reported.results)]

    return StudySection(title, anchor, parts, lambda reported: findings(reported.results), drawings)
