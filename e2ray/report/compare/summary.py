"""What a comparison found: figures by lane.

A lane's figure is the mean over its seeds. Its interval is Student's t over the seeds where there are several; a lane
of one seed has none. Against the paper's preset, lanes are compared document by document, and the interval comes from
drawing documents with replacement: all lanes score the same tokens.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from e2ray.config.compare import UNTOUCHED
from e2ray.config.search import PAPER
from e2ray.core.methods.registry import lane_labels
from e2ray.evaluate.intervals import CONFIDENCE, resampled
from e2ray.evaluate.removed import base_name
from e2ray.records.comparison import (
    ComparisonProtocol,
    Difference,
    FoundShare,
    Lane,
    LaneRow,
    LaneSums,
    LaneWindow,
    Spread,
    Winner,
)

YARN = "yarn"
NAMES = lane_labels()
Sums = tuple[np.ndarray, np.ndarray]  # NLL, summed, and tokens of each document


@dataclass(frozen=True)
class Compared:
    """All that a page on a comparison shows.

    Attributes:
        rows: One per lane.
        base_context_length: L in tokens.
        windows: W asked for, in tokens.
        protocol: How it was measured.
        best: One per window.
    """

    rows: Sequence[LaneRow]
    base_context_length: int
    windows: Sequence[int]
    protocol: ComparisonProtocol
    best: Sequence[Winner] = ()

    @property
    def trained(self) -> list[LaneRow]:
        """The rows of lanes that were trained."""
        return [row for row in self.rows if row.train_s is not None]

    def has(self, lane: str) -> bool:
        """Return whether a lane is among them."""
        return any(row.lane == lane for row in self.rows)


def summary(
    jobs: Sequence[Lane],
    base_context_length: int,
    windows: Sequence[int],
    *,
    removed_scaling: str | None = None,
) -> list[LaneRow]:
    """Return one row per lane, in the order of `NAMES`, then those that the recipe defines."""
    by_lane = _by_lane(jobs)
    means = {lane: {w: _by_document(seeds, w) for w in windows} for lane, seeds in by_lane.items()}
    base = _job_nll(by_lane[UNTOUCHED][0], base_context_length) if UNTOUCHED in by_lane else None
    papers = by_lane.get(PAPER, [])
    rows = []
    for lane in [*(lane for lane in NAMES if lane in by_lane), *(lane for lane in by_lane if lane not in NAMES)]:
        seeds = by_lane[lane]
        long = [_mean([_job_nll(job, w) for w in windows if w > base_context_length]) for job in seeds]
        at_l = [_job_nll(job, base_context_length) for job in seeds]
        short = [None if value is None or base is None else value - base for value in at_l]
        nll = {}
        for window in windows:
            paper = means.get(PAPER, {}).get(window)
            low, high = _paired(means[lane][window], paper) if lane != PAPER else (None, None)
            here, there = (
                _spread([_job_nll(job, window) for job in seeds]),
                _mean([_job_nll(j, window) for j in papers]),
            )
            nll[str(window)] = LaneWindow(
                mean=here.mean,
                half=here.half,
                unscaled=_mean([_job_nll(job, window, unscaled=True) for job in seeds]),
                over_paper=None if here.mean is None or there is None else here.mean - there,
                low=low,
                high=high,
                over_yarn=_over(means[lane][window], means[YARN][window]) if YARN in means and lane != YARN else None,
            )
        trained = [job for job in seeds if job.steps]
        rows.append(
            LaneRow(
                lane=lane,
                name=lane_name(lane, removed_scaling),
                seeds=tuple(job.seed for job in trained),
                nll=nll,
                long=_spread(long),
                short=_spread(short),
                retrieval=_shares(seeds),
                tokens=max(job.tokens for job in seeds),
                train_s=statistics.median(job.train_s for job in trained) if trained else None,
                step_s=statistics.median(job.train_s / job.steps for job in trained) if trained else None,
                peak_mib=max((job.peak_mib for job in trained if job.peak_mib is not None), default=None),
            )
        )
    return rows


def _by_lane(jobs: Sequence[Lane]) -> dict[str, list[Lane]]:
    by_lane: dict[str, list[Lane]] = {}
    for job in jobs:
        by_lane.setdefault(job.lane, []).append(job)
    return by_lane


def lane_name(lane: str, removed_scaling: str | None) -> str:
    """Return what a comparison calls a lane; `removed_scaling` is the rope type that was removed from its base."""
    return base_name(removed_scaling, untouched=True) if lane == UNTOUCHED else NAMES.get(lane, lane)


def missing_lines(jobs: Sequence[Lane], *, removed_scaling: str | None = None) -> list[str]:
    """Return a line for all that jobs could not do, with the job's name and the reason; one line where all agree."""
    by_line: dict[str, list[str]] = {}
    for job in jobs:
        name = lane_name(job.lane, removed_scaling) + (f", seed {job.seed}" if job.seed else "")
        for line in [*job.missing, *([] if job.failed is None else [job.failed])]:
            by_line.setdefault(line, []).append(name)
    lines = []
    for line, names in by_line.items():
        lines += [f"{name}: {line}" for name in (["all"] if len(names) == len(jobs) > 1 else names)]
    return lines


def _cell(job: Lane, window: int, *, unscaled: bool = False) -> LaneSums | None:
    for sums in job.sums:
        if sums.window == window and (sums.scale == 1.0 if unscaled else sums.served):
            return sums
    return None


def _job_nll(job: Lane, window: int, *, unscaled: bool = False) -> float | None:
    sums = _cell(job, window, unscaled=unscaled)
    return None if sums is None else sum(sums.nll) / sum(sums.tokens)


def _by_document(jobs: Sequence[Lane], window: int) -> Sums | None:
    """Return the sums of each document, NLL as its mean over a lane's seeds; None where a job lacks the cell."""
    cells = [sums for job in jobs if (sums := _cell(job, window))]
    if len(cells) < len(jobs):
        return None
    return np.mean([sums.nll for sums in cells], axis=0), np.array(cells[0].tokens)


def _paired(one: Sums | None, other: Sums | None) -> tuple[float | None, float | None]:
    if one is None or other is None or len(one[1]) < 2:
        return None, None
    draws = resampled(len(one[1]))
    difference = (one[0][draws].sum(axis=1) - other[0][draws].sum(axis=1)) / one[1][draws].sum(axis=1)
    low, high = np.quantile(difference, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def _over(one: Sums | None, other: Sums | None) -> Difference:
    """Return the first minus the second, paired by document."""
    if one is None or other is None:
        return Difference(mean=None, low=None, high=None)
    low, high = _paired(one, other)
    return Difference(mean=float((one[0].sum() - other[0].sum()) / one[1].sum()), low=low, high=high)


def winners(jobs: Sequence[Lane], windows: Sequence[int]) -> list[Winner]:
    """Return for each window its best lane, the next one, and whether documents separate the two."""
    rows = []
    by_lane = _by_lane(jobs)
    for window in windows:
        known = {lane: sums for lane, seeds in by_lane.items() if (sums := _by_document(seeds, window)) is not None}
        ranked = sorted(known, key=lambda lane: known[lane][0].sum() / known[lane][1].sum())
        if not ranked:
            rows.append(Winner(window=window, lane=None, nll=None, next=None, behind=None, apart=None))
            continue
        best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
        behind = None if second is None else _over(known[second], known[best])
        apart = None if behind is None or behind.low is None else behind.low > 0
        nll = float(known[best][0].sum() / known[best][1].sum())
        rows.append(Winner(window=window, lane=best, nll=nll, next=second, behind=behind, apart=apart))
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> Spread:
    """Return the mean over seeds and half of its 95 % interval, Student's t; None where a seed is missing."""
    mean = _mean(values)
    known = [value for value in values if value is not None]
    if mean is None or len(known) < 2:
        return Spread(mean=mean, half=None)
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
    return Spread(mean=mean, half=quantile * statistics.stdev(known) / math.sqrt(len(known)))


def _shares(jobs: Sequence[Lane]) -> dict[str, dict[str, FoundShare]]:
    """Return the share found over all seeds, depths and trials, by task and context length.

    `low` and `high` are its 95 % interval (Wilson's), as if all prompts of all seeds were independent draws; the same
    texts serve all depths and seeds, so that another choice of texts may move it further.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for row in (row for job in jobs for row in job.retrieval):
        cell = counts.setdefault(row.task, {}).setdefault(str(row.context_length), [0, 0])
        cell[0] += row.found
        cell[1] += row.trials
    return {
        task: {length: _share(found, trials) for length, (found, trials) in by_length.items()}
        for task, by_length in counts.items()
    }


def _share(found: int, trials: int) -> FoundShare:
    interval = binomtest(found, trials).proportion_ci(CONFIDENCE, method="wilson")
    return FoundShare(share=found / trials, low=float(interval.low), high=float(interval.high), trials=trials)
