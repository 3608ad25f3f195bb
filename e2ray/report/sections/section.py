"""A subject of the report on runs: its card and findings, and how two runs differ in it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from e2ray.report.frame.section import Section
from e2ray.report.run_files import RunRecord

Line = tuple[str, str, str, str]  # figure, of one run, of the other, difference


def _no_lines(one: RunRecord, other: RunRecord) -> tuple[()]:
    return ()


@dataclass(frozen=True)
class RunSection(Section[Sequence[RunRecord]]):
    """One subject of runs.

    Attributes:
        diff: Its figures of two runs side by side, for `e2ray diff`.
        undiffered: Why figures that two comparable runs have get no difference, a line for each reason.
    """

    diff: Callable[[RunRecord, RunRecord], Sequence[Line]] = _no_lines
    undiffered: Callable[[RunRecord, RunRecord], Sequence[str]] = _no_lines
