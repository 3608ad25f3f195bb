"""What a comparison found: figures by lane.

A lane's figure is the mean over its seeds. Its interval is Student's t over the seeds where there are several; a lane
of one seed has none. Against the paper's preset, lanes are compared document by document, and the interval comes from
drawing documents with replacement: all lanes score the same tokens.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from e2ray.config.compare import UNTOUCHED
from e2ray.core.methods.registry import lane_labels
from e2ray.evaluate.intervals import CONFIDENCE, resampled
from e2ray.evaluate.removed import base_name
from e2ray.records.comparison import Lane, LaneSums

PAPER, YARN = "e2llm", "yarn"
NAMES = lane_labels()
LaneRow = Mapping[str, Any]  # as `summary` returns it


@dataclass(frozen=True)
class Compared:
    """All that a page on a comparison tells.

    Attributes:
        rows: As `summary` returns them.
        base_context_length: L in tokens.
        windows: W asked for, in tokens.
        protocol: `stride`, `documents`, `tokens`, `bos` and `missing`, as comparison.json holds it.
        best: As `winners` returns it.
    """

    rows: Sequence[LaneRow]
    base_context_length: int
    windows: Sequence[int]
    protocol: Mapping[str, Any]
    best: Sequence[Mapping[str, Any]] = ()

    @property
    def trained(self) -> list[LaneRow]:
        """The rows of lanes that were trained."""
        return [row for row in self.rows if row["train_s"] is not None]

    def has(self, lane: str) -> bool:
        """Return whether a lane is among them."""
        return any(row["lane"] == lane for row in self.rows)


def summary(
    found: Sequence[Lane],
    base_context_length: int,
    windows: Sequence[int],
    *,
    removed_scaling: str | None = None,
) -> list[dict[str, Any]]:
    """Return one row per lane, in the order of `NAMES`, then those that the recipe defines.

    Each has `lane`, `name`, `seeds`, `nll` (per window: `mean`, `half` (95 % over seeds, None for one), `unscaled`
    (g = 1), `over_paper` with `low` and `high` (mean minus the paper's preset, 95 % over documents), `over_yarn` (the
    same against untrained YaRN, `mean`, `low` and `high`)), `long` and
    `short` (`mean`, `half`), `retrieval` (per task and context length: `share` found, `low` and `high`, `trials`),
    `tokens`, `step_s`, `train_s`, `peak_mib` (None for a lane without training). What was not measured is None.
    """
    known = dict.fromkeys(one["lane"] for one in found)
    lanes = [*(lane for lane in NAMES if lane in known), *(lane for lane in known if lane not in NAMES)]
    by_lane = {lane: [one for one in found if one["lane"] == lane] for lane in lanes}
    means = {lane: {w: _by_document(jobs, w) for w in windows} for lane, jobs in by_lane.items()}
    base = _job_nll(by_lane[UNTOUCHED][0], base_context_length) if UNTOUCHED in by_lane else None
    rows = []
    for lane, jobs in by_lane.items():
        by_window = {w: [_job_nll(job, w) for job in jobs] for w in windows}
        long = [_mean([_job_nll(job, w) for w in windows if w > base_context_length]) for job in jobs]
        at_l = [_job_nll(job, base_context_length) for job in jobs]
        short = [None if value is None or base is None else value - base for value in at_l]
        nll: dict[str, dict[str, Any]] = {}
        for window in windows:
            paper = means.get(PAPER, {}).get(window)
            low, high = _paired(means[lane][window], paper) if lane != PAPER else (None, None)
            unscaled = _mean([_job_nll(job, window, unscaled=True) for job in jobs])
            here = _spread(by_window[window])
            there = _mean([_job_nll(job, window) for job in by_lane.get(PAPER, [])])
            over = None if here["mean"] is None or there is None else here["mean"] - there
            nll[str(window)] = here | {"unscaled": unscaled, "over_paper": over, "low": low, "high": high}
            if YARN in means and lane != YARN:
                nll[str(window)]["over_yarn"] = difference(means[lane][window], means[YARN][window])
        trained = [job for job in jobs if job["steps"]]
        rows.append(
            {
                "lane": lane,
                "name": base_name(removed_scaling, untouched=True) if lane == UNTOUCHED else NAMES.get(lane, lane),
                "seeds": [job["seed"] for job in trained],
                "nll": nll,
                "long": _spread(long),
                "short": _spread(short),
                "retrieval": _shares(jobs),
                "tokens": max(job["tokens"] for job in jobs),
                "train_s": statistics.median(job["train_s"] for job in trained) if trained else None,
                "step_s": statistics.median(job["train_s"] / job["steps"] for job in trained) if trained else None,
                "peak_mib": max((j["peak_mib"] for j in trained if j["peak_mib"] is not None), default=None),
            }
        )
    return rows


def missing_lines(found: Sequence[Lane]) -> list[str]:
    """Return a line for whatever jobs could not do, with the job's name and the reason; once where all say the same."""
    said: dict[str, list[str]] = {}
    for job in found:
        name = NAMES.get(job["lane"], job["lane"]) + (f", seed {job['seed']}" if job["seed"] else "")
        for line in [*job["missing"], *([job["failed"]] if "failed" in job else [])]:
            said.setdefault(line, []).append(name)
    lines = []
    for line, names in said.items():
        lines += [f"{name}: {line}" for name in (["all"] if len(names) == len(found) > 1 else names)]
    return lines


def _cell(job: Lane, window: int, *, unscaled: bool = False) -> LaneSums | None:
    for sums in job["sums"]:
        if sums["window"] == window and (sums["scale"] == 1.0 if unscaled else sums["served"]):
            return sums
    return None


def _job_nll(job: Lane, window: int, *, unscaled: bool = False) -> float | None:
    sums = _cell(job, window, unscaled=unscaled)
    return None if sums is None else sum(sums["nll"]) / sum(sums["tokens"])


def _by_document(jobs: Sequence[Lane], window: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (summed NLL over a lane's seeds' mean, tokens) of each document; None where a job lacks the cell."""
    cells = [_cell(job, window) for job in jobs]
    if any(sums is None for sums in cells):
        return None
    return np.mean([sums["nll"] for sums in cells if sums], axis=0), np.array(cells[0]["tokens"])  # type: ignore[index]


def _paired(
    one: tuple[np.ndarray, np.ndarray] | None, other: tuple[np.ndarray, np.ndarray] | None
) -> tuple[float | None, float | None]:
    if one is None or other is None or len(one[1]) < 2:
        return None, None
    draws = resampled(len(one[1]))
    difference = (one[0][draws].sum(axis=1) - other[0][draws].sum(axis=1)) / one[1][draws].sum(axis=1)
    low, high = np.quantile(difference, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)


def difference(
    one: tuple[np.ndarray, np.ndarray] | None, other: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, float | None]:
    """Return `mean`, `low` and `high` of the first minus the second, paired by document; None where one is missing."""
    if one is None or other is None:
        return {"mean": None, "low": None, "high": None}
    low, high = _paired(one, other)
    return {"mean": float((one[0].sum() - other[0].sum()) / one[1].sum()), "low": low, "high": high}


def winners(found: Sequence[Lane], windows: Sequence[int]) -> list[dict[str, Any]]:
    """Return for each window its best lane, the next one, and whether they are told apart.

    Each row has `window`, `lane` and `nll` of the best, `next`, `behind` (`mean`, `low`, `high` of the next minus the
    best, 95 % over documents) and `apart` (whether that interval is above 0). What was not measured is None.
    """
    rows: list[dict[str, Any]] = []
    names = dict.fromkeys(one["lane"] for one in found)
    lanes = {lane: [one for one in found if one["lane"] == lane] for lane in names}
    for window in windows:
        known = {lane: figures for lane, jobs in lanes.items() if (figures := _by_document(jobs, window)) is not None}
        ranked = sorted(known, key=lambda lane: known[lane][0].sum() / known[lane][1].sum())
        if not ranked:
            rows.append({"window": window, "lane": None, "nll": None, "next": None, "behind": None, "apart": None})
            continue
        best, second = ranked[0], ranked[1] if len(ranked) > 1 else None
        behind = None if second is None else difference(known[second], known[best])
        apart = None if behind is None or behind["low"] is None else behind["low"] > 0
        nll = float(known[best][0].sum() / known[best][1].sum())
        rows.append({"window": window, "lane": best, "nll": nll, "next": second, "behind": behind, "apart": apart})
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Return the mean over seeds and half of its 95 % interval, Student's t; None where a seed is missing."""
    mean = _mean(values)
    known = [value for value in values if value is not None]
    if mean is None or len(known) < 2:
        return {"mean": mean, "half": None}
    quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1))
    return {"mean": mean, "half": quantile * statistics.stdev(known) / math.sqrt(len(known))}


def _shares(jobs: Sequence[Lane]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the share found over all seeds, depths and trials, by task and context length.

    `low` and `high` are its 95 % interval (Wilson's), as if all prompts of all seeds were independent draws; the same
    texts stand behind all depths and seeds, so that another choice of texts may move it further.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for row in (row for job in jobs for row in job["retrieval"]):
        cell = counts.setdefault(row["task"], {}).setdefault(str(row["context_length"]), [0, 0])
        cell[0] += row["found"]
        cell[1] += row["trials"]
    return {
        task: {length: _share(found, trials) for length, (found, trials) in by_length.items()}
        for task, by_length in counts.items()
    }


def _share(found: int, trials: int) -> dict[str, float]:
    interval = binomtest(found, trials).proportion_ci(CONFIDENCE, method="wilson")
    return {"share": found / trials, "low": float(interval.low), "high": float(interval.high), "trials": trials}
