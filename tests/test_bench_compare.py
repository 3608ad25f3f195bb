"""What the comparison's benchmark calls a lane that wins, on rows made up by hand."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "jobs"))

from bench_compare import is_ahead, reaches_all, screened


def row(lane="mine", *, short=0.01, long=2.0, over_paper=-0.1, over_yarn=-0.1, found=(1.0, 0.8)):
    """A lane at L = 128 and 256; `over_...` are the upper ends of the intervals at 256."""
    nll = {
        str(window): {"high": paper, "over_yarn": {"high": yarn}}
        for window, paper, yarn in ((128, 9.0, 9.0), (256, over_paper, over_yarn))
    }
    passkey = {"128": {"share": found[0]}, "256": {"share": found[1]}}
    return {
        "lane": lane, "nll": nll, "short": {"mean": short}, "long": {"mean": long}, "retrieval": {"passkey": passkey},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "ahead"),
    [({}, True), ({"over_paper": 0.01}, False), ({"over_yarn": 0.0}, False), ({"over_yarn": None}, False)],
)
def test_a_lane_is_ahead_where_both_intervals_lie_below_0_beyond_l(changes, ahead):
    assert is_ahead(row(**changes)) is ahead


@pytest.mark.parametrize(
    ("changes", "everywhere", "beyond"),
    [
        ({}, True, True),
        ({"found": (0.98, 0.8)}, False, True),
        ({"found": (1.0, 0.7)}, False, False),
        ({"short": 0.031}, False, False),
        ({"over_yarn": 0.1}, False, False),
    ],
)
def test_it_wins_where_it_is_ahead_rises_little_and_finds_as_much(changes, everywhere, beyond):
    yarn = row("yarn", found=(1.0, 0.75))
    assert reaches_all(row(**changes), yarn) is everywhere
    assert reaches_all(row(**changes), yarn, shortest=129) is beyond


def test_the_best_three_are_of_those_that_rise_little_first_and_none_that_failed():
    rows = [
        row("dear", short=0.5, long=1.0), row("a", long=3.0), row("b", long=2.0), row("c", long=4.0),
        row("failed", long=None), row("e2llm", long=0.5),
    ]  # fmt: skip
    own = ("a", "b", "c", "dear", "failed")
    assert screened(rows, dict.fromkeys(own)) == ["b", "a", "c"]
    assert screened(rows[:3], dict.fromkeys(own)) == ["b", "a", "dear"]
