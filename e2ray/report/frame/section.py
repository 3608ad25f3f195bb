"""A subject of a page: what it adds to the findings at the top, and its card below.

A page is a tuple of sections; a new subject is a module that holds its section, and its line in that tuple.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from e2ray.report.frame.page import Card, Part, Point, Points

Subject = TypeVar("Subject")  # what a page is about: runs, a study, a comparison


def _nothing(_: object) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class Section(Generic[Subject]):
    """One subject.

    Attributes:
        title: Of its card.
        anchor: Its name in links, and in the files of its pictures.
        parts: Its card: words, pictures and tables; empty where there is nothing to show, and then there is no card.
        findings: What it adds to the plain words at the top of the page.
    """

    title: str
    anchor: str
    parts: Callable[[Subject], Sequence[Part]] = _nothing
    findings: Callable[[Subject], Sequence[Point]] = _nothing


def cards_of(sections: Sequence[Section[Subject]], subject: Subject) -> list[Card]:
    """Return the cards of a page: the findings of all sections in plain words, then each section's own."""
    points = [point for section in sections for point in section.findings(subject)]
    cards = [Card("In plain words", "words", [Points(points)])]
    return cards + [Card(each.title, each.anchor, parts) for each in sections if (parts := each.parts(subject))]
