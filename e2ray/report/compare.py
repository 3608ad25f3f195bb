"""What a comparison found, as tables, a picture and one JSON file.

A lane's figure is the mean over its seeds. Its interval is Student's t over the seeds where there are several; a lane
of one seed has none. Against the paper's preset, lanes are compared document by document, and the interval comes from
drawing documents with replacement: all lanes score the same tokens.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binomtest
from scipy.stats import t as student

from e2ray.core.methods.registry import lane_labels
from e2ray.evaluate.intervals import CONFIDENCE, resampled
from e2ray.evaluate.perplexity import BOS_POLICY
from e2ray.evaluate.removed import base_name
from e2ray.files import atomic_path, write_json, write_text
from e2ray.report.frame.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, new_figure, tidy
from e2ray.report.frame.labels import label_ends, label_points

BASE, PAPER, YARN = "base", "e2llm", "yarn"
NAMES = lane_labels()
MOST_NAMED = 18  # lanes; of more a picture names the best
OWN_COLOURS = (GREEN, PURPLE, ORANGE, "#8B5A2B", "#5F6B8A")
STYLES = {
    "base": (INK, "-"),
    "e2llm": (BLUE, "-"),
    "pi_long": (VERMILLION, "-"),
    "best": (ORANGE, "-"),
    "yarn": (SKY, "--"),
}


def write_comparison(
    folder: Path,
    found: Sequence[Mapping[str, Any]],
    base_context_length: int,
    windows: Sequence[int],
    *,
    stride: int | None,
    removed_scaling: str | None = None,
) -> str:
    """Write comparison.json, comparison.md and comparison.png and return the tables.

    Args:
        folder: Of the comparison.
        found: What each job has left: `lane`, `seed`, `sums`, `retrieval`, `tokens`, `steps`, `train_s`, `peak_mib`,
            `missing` (lines on what has no figure) and, where it failed, `failed` (the reason).
        base_context_length: L in tokens.
        windows: W asked for, in tokens.
        stride: S, tokens that a window moved on.
        removed_scaling: Rope type that was removed from the base; None where it is the checkpoint itself.
    """
    rows = summary(found, base_context_length, windows, removed_scaling=removed_scaling)
    scored: list[int] = next((one["tokens"] for job in found for one in job["sums"]), [])
    protocol = {
        "stride": stride,
        "documents": len(scored),
        "tokens": sum(scored),
        "bos": BOS_POLICY,
        "missing": missing_lines(found),
    }
    best = winners(found, windows)
    text = tables(rows, base_context_length, windows, protocol, best=best)
    content = {"base_context_length": base_context_length, "protocol": protocol, "rows": rows, "best": best}
    write_json(folder / "comparison.json", content)
    write_text(folder / "comparison.md", text)
    with atomic_path(folder / "comparison.png") as aside:
        draw(rows, base_context_length, windows).savefig(aside, format="png")
    return text


def summary(
    found: Sequence[Mapping[str, Any]],
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
    base = _job_nll(by_lane[BASE][0], base_context_length) if BASE in by_lane else None
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
                "name": base_name(removed_scaling, untouched=True) if lane == BASE else NAMES.get(lane, lane),
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


def missing_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _cell(job: Mapping[str, Any], window: int, *, unscaled: bool = False) -> Mapping[str, Any] | None:
    for sums in job["sums"]:
        if sums["window"] == window and (sums["scale"] == 1.0 if unscaled else sums["served"]):
            return sums
    return None


def _job_nll(job: Mapping[str, Any], window: int, *, unscaled: bool = False) -> float | None:
    sums = _cell(job, window, unscaled=unscaled)
    return None if sums is None else sum(sums["nll"]) / sum(sums["tokens"])


def _by_document(jobs: Sequence[Mapping[str, Any]], window: int) -> tuple[np.ndarray, np.ndarray] | None:
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


def winners(found: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> list[dict[str, Any]]:
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


def _shares(jobs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
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


def tables(
    rows: Sequence[Mapping[str, Any]],
    base_context_length: int,
    windows: Sequence[int],
    protocol: Mapping[str, Any],
    *,
    best: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the comparison as Markdown tables: NLL, differences, retrieval, cost. What has no figure reads `missing`.

    Args:
        rows: As `summary` returns them.
        base_context_length: L in tokens.
        windows: W asked for, in tokens.
        protocol: `stride`, `documents`, `tokens`, `bos` and `missing`, as comparison.json holds it.
        best: As `winners` returns it.
    """
    parts = [
        f"NLL, nats per token, by window, each lane at the scale that it is served with: windows slide by "
        f"{protocol['stride']} tokens over the same {protocol['tokens']:,} tokens of {protocol['documents']} held-out "
        f"documents; {protocol['bos']}. ± is half of the 95 % interval over seeds (Student's t), where a lane has "
        "several.",
        _nll_table(rows, windows),
    ]
    if any(row["lane"] == "best" for row in rows):
        parts.append(
            f"{NAMES['best']} trains at the learning rate and for the objective that its study has found, all others "
            "at the recipe's or their own."
        )
    if any(row["lane"] == PAPER for row in rows) and len(rows) > 1:
        parts += [
            f"NLL minus that of {NAMES[PAPER]}, and its 95 % interval over documents; negative is better.",
            _over_table(rows, windows),
        ]
    if any(row["lane"] == YARN for row in rows) and any(row["train_s"] is not None for row in rows):
        parts += [
            f"NLL of trained lanes minus that of {NAMES[YARN]}, and its 95 % interval over documents; negative is "
            "better.",
            _over_yarn_table(rows, windows),
        ]
    if best:
        parts += [
            "The best lane of each window, how far the next one is behind it, and whether the two are told apart (95 % "
            "over documents).",
            _winners_table(rows, best),
        ]
    for task in dict.fromkeys(task for row in rows for task in row["retrieval"]):
        parts += [
            f"{task.replace('_', ' ').capitalize()}: share found, by context length, and its 95 % interval (Wilson) as "
            "if all prompts were independent; the same texts stand behind all depths and seeds.",
            _retrieval_table(rows, task),
        ]
    if any(row["train_s"] is not None for row in rows):
        parts += [
            "What training took, each seed; memory is the whole process's, interpreter and libraries included.",
            _cost_table(rows),
        ]
    parts += [
        f"NLL at scale 1: does a lane read past {base_context_length:,} tokens unscaled?",
        _unscaled_table(rows, windows),
    ]
    if protocol["missing"]:
        parts += ["What is missing:", "\n".join(f"- {line}" for line in protocol["missing"])]
    return "\n\n".join(parts) + "\n"


def _nll_table(rows: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> str:
    lines = [["lane", *(f"{w:,}" for w in windows), "beyond L", "short rise"]]
    for row in rows:
        cells = [_shown(row["nll"][str(window)]) for window in windows]
        lines.append([row["name"], *cells, _shown(row["long"]), _shown(row["short"], sign=True)])
    return _markdown(lines)


def _over_table(rows: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> str:
    lines = [["lane", *(f"{w:,}" for w in windows)]]
    for row in (row for row in rows if row["lane"] != PAPER):
        cells = []
        for found in (row["nll"][str(window)] for window in windows):
            over, low, high = (found[key] for key in ("over_paper", "low", "high"))
            interval = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
            cells.append("missing" if over is None else f"{over:+.3f}{interval}")
        lines.append([row["name"], *cells])
    return _markdown(lines)


def _over_yarn_table(rows: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> str:
    lines = [["lane", *(f"{w:,}" for w in windows)]]
    for row in (row for row in rows if row["train_s"] is not None):
        lines.append([row["name"], *(_signed(row["nll"][str(window)]["over_yarn"]) for window in windows)])
    return _markdown(lines)


def _signed(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "missing"
    return f"{found['mean']:+.3f}" + ("" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]")


def _winners_table(rows: Sequence[Mapping[str, Any]], best: Sequence[Mapping[str, Any]]) -> str:
    names = {row["lane"]: row["name"] for row in rows}
    lines = [["window", "best lane", "NLL", "next lane", "behind by", "told apart"]]
    for one in best:
        if one["lane"] is None:
            lines.append([f"{one['window']:,}", *["missing"] * 5])
            continue
        apart = {None: "one document", True: "yes", False: "no"}[one["apart"]]
        rest = ["none", "", ""] if one["next"] is None else [names[one["next"]], _signed(one["behind"]), apart]
        lines.append([f"{one['window']:,}", names[one["lane"]], f"{one['nll']:.3f}", *rest])
    return _markdown(lines)


def _retrieval_table(rows: Sequence[Mapping[str, Any]], task: str) -> str:
    lengths = sorted({int(length) for row in rows for length in row["retrieval"].get(task, {})})
    lines = [["lane", *(f"{length:,}" for length in lengths)]]
    for row in rows:
        shares = row["retrieval"].get(task, {})
        cells = [_found(shares[str(n)]) if str(n) in shares else "missing" for n in lengths]
        lines.append([row["name"], *cells])
    return _markdown(lines)


def _cost_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [["lane", "seeds", "tokens", "seconds", "seconds per step", "peak memory, MiB"]]
    for row in rows:
        if row["train_s"] is not None:
            memory = "missing" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
            cost = [f"{row['tokens']:,}", f"{row['train_s']:.0f}", f"{row['step_s']:.3f}", memory]
            lines.append([row["name"], str(len(row["seeds"])), *cost])
    return _markdown(lines)


def _unscaled_table(rows: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> str:
    lines = [["lane", *(f"{w:,}" for w in windows)]]
    for row in rows:
        values = [row["nll"][str(window)]["unscaled"] for window in windows]
        if row["train_s"] is not None or row["lane"] == BASE:
            lines.append([row["name"], *("missing" if v is None else f"{v:.3f}" for v in values)])
    return _markdown(lines)


def _found(value: Mapping[str, float]) -> str:
    return f"{value['share']:.0%} ({value['low']:.0%} to {value['high']:.0%})"


def _shown(value: Mapping[str, float | None], *, sign: bool = False) -> str:
    mean, half = value["mean"], value["half"]
    if mean is None:
        return "missing"
    text = f"{mean:+.3f}" if sign else f"{mean:.3f}"
    return text if half is None else f"{text} ± {half:.3f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        first = row[0].ljust(widths[0])
        return "| " + " | ".join([first, *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return "\n".join([line(rows[0]), rule, *(line(row) for row in rows[1:])])


def named(rows: Sequence[Mapping[str, Any]], windows: Sequence[int]) -> list[str]:
    """Return the lanes that a picture names: all of a few; of many those of `STYLES`, and the best ones.

    Best are those of the lowest NLL at each window, and the three that read best beyond L.
    """
    if len(rows) <= MOST_NAMED:
        return [row["lane"] for row in rows]
    found = {row["lane"] for row in rows if row["lane"] in STYLES}
    for window in map(str, windows):
        known = [row for row in rows if row["nll"][window]["mean"] is not None]
        found |= {min(known, key=lambda row: row["nll"][window]["mean"])["lane"]} if known else set()
    known = sorted((row for row in rows if row["long"]["mean"] is not None), key=lambda row: row["long"]["mean"])
    found |= {row["lane"] for row in known[:3]}
    return [row["lane"] for row in rows if row["lane"] in found]


def draw(rows: Sequence[Mapping[str, Any]], base_context_length: int, windows: Sequence[int]) -> Figure:
    """Return the picture: NLL by window of every lane, and what each gives at L against what it gains beyond.

    Of many lanes the others are grey and without a name, and what lies far above the named ones is cut off.
    """
    figure = new_figure(5.2 if len(rows) <= MOST_NAMED else 6.4)
    curves, trade = figure.subplots(1, 2, width_ratios=[3, 2])
    ends, trades, shown = [], [], named(rows, windows)
    colours = dict(zip((lane for lane in shown if lane not in STYLES), cycle(OWN_COLOURS), strict=False))
    for row in rows:
        points = [(w, row["nll"][str(w)]["mean"]) for w in windows if row["nll"][str(w)]["mean"] is not None]
        if not points:
            continue
        colour, line = STYLES.get(row["lane"], (GREY, "-" if row["train_s"] is not None else "--"))
        if len(rows) > MOST_NAMED:
            colour = colours.get(row["lane"], colour)
        width = 2.0 if row["lane"] in STYLES or (row["lane"] in colours and len(rows) > MOST_NAMED) else 1.0
        looks: dict[str, Any] = {"color": colour, "alpha": 1.0 if row["lane"] in shown else 0.45}
        curves.plot(*zip(*points, strict=True), linestyle=line, linewidth=width, marker="o", markersize=3, **looks)
        short, long = row["short"]["mean"], row["long"]["mean"]
        if short is not None and long is not None:
            trade.plot(short, long, "o", markersize=5, **looks)
        if row["lane"] in shown:
            ends.append((*points[-1], row["name"], colour))
            if short is not None and long is not None:
                trades.append((short, long, row["name"]))
    curves.set_xscale("log", base=2)
    curves.set_xticks(list(windows), [f"{w:,}" for w in windows])
    longest = max((len(name) for *_, name, _ in ends), default=0)
    curves.set_xlim(windows[0] / 1.2, windows[-1] * (3.6 if len(rows) <= MOST_NAMED else 2 ** (longest / 12)))
    if len(rows) > MOST_NAMED:
        _cut_off(curves, trade, rows, shown, windows)
        ends = [end for end in ends if end[1] <= curves.get_ylim()[1]]
        trades = [one for one in trades if one[1] <= trade.get_ylim()[1]]
    curves.axvline(base_context_length, color=GREY, linewidth=0.8, linestyle=":")
    curves.set_xlabel("window W (tokens)")
    curves.set_ylabel("NLL (nats per token), lower is better")
    tidy(curves, "Each lane at the scale it is served with")
    trade.set_xlabel(f"NLL rise at L = {base_context_length:,} (nats)")
    trade.set_ylabel("mean NLL beyond L (nats)")
    if len(rows) <= MOST_NAMED:
        trade.margins(x=0.22, y=0.12)
    tidy(trade, "Short against long")
    label_ends(curves, ends)
    label_points(trade, trades, obstacles=[], fontsize=7)
    return figure


def _cut_off(
    curves: Axes, trade: Axes, rows: Sequence[Mapping[str, Any]], shown: Sequence[str], windows: Sequence[int]
) -> None:
    """End both axes a little above what the named lanes but the untouched base reach."""
    known = [row for row in rows if row["lane"] in shown and row["lane"] != BASE]
    nll = [row["nll"][str(w)]["mean"] for row in known for w in windows if row["nll"][str(w)]["mean"] is not None]
    curves.set_ylim(min(nll) - 0.05 * (max(nll) - min(nll)), max(nll) + 0.1 * (max(nll) - min(nll)))
    long = [row["long"]["mean"] for row in known if row["long"]["mean"] is not None]
    short = [row["short"]["mean"] for row in known if row["short"]["mean"] is not None]
    if long and short:
        room, side = max(long) - min(long) or 0.1, max(short) - min(short) or 0.1
        trade.set_ylim(min(long) - 0.15 * room, max(long) + 0.15 * room)
        trade.set_xlim(min(short) - 0.15 * side, max(short) + 0.45 * side)
