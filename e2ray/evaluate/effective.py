"""How far a model really reads, and which scale reads each length best.

Two files follow from a surface: `scales.json` says for each context length which scale was measured best, with the
paper's W / L beside it; `effective.json` says up to which length the model reads. A length counts as read when the
NLL there, at the best scale, is no worse than at the base window plus a tolerance, when retrieval holds its threshold
where it was measured, and when every shorter length counts as read. All cells score the same tokens of the same
documents, so both questions are answered pairwise, and their intervals come from drawing documents with replacement.

The retrieval threshold is RULER's (NVIDIA/RULER): 85.6 %, what Llama-2-7B reaches at its own 4K.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from e2ray.evaluate.intervals import CONFIDENCE, resampled
from e2ray.evaluate.perplexity import Sums, paper_scale

TOLERANCE = 0.01  # nats per token
RETRIEVAL_THRESHOLD = 0.856


def scale_table(found: Sequence[Sums], base_context_length: int, *, model: str = "tuned") -> dict[str, Any]:
    """Return the scale that read each context length best, the content of scales.json.

    Args:
        found: Sums of all cells, of one set of documents.
        base_context_length: L in tokens.
        model: Whose cells are read.

    Returns:
        `base_context_length` and `lengths`, one row per window: `context_length`, `served` (what export and generation
        use: the best measured scale where it is better than W / L beyond the spread of the documents, else W / L, also
        where W / L was not measured and nothing is known to be better), `scale` (best measured), `nll`, `paper_scale` (W / L), `paper_nll` (None where that scale was not measured),
        `gain` (paper_nll - nll) with `gain_low` and `gain_high`, its 95 % interval (None for one document).
    """
    rows = []
    for window in sorted({sums.window for sums in found if sums.model == model}):
        best = _best(found, model, window)
        wanted = paper_scale(window, base_context_length)
        paper = _cell(found, model, window, wanted)
        low, high = (None, None) if paper is None else difference_interval(paper, best)
        rows.append(
            {
                "context_length": window,
                "served": best.scale if low is not None and low > 0 else wanted,
                "scale": best.scale,
                "nll": best.mean,
                "paper_scale": wanted,
                "paper_nll": None if paper is None else paper.mean,
                "gain": None if paper is None else paper.mean - best.mean,
                "gain_low": low,
                "gain_high": high,
            }
        )
    return {"base_context_length": base_context_length, "model": model, "lengths": rows}


def served_at(scales: Mapping[str, Any], context_length: int) -> float:
    """Return the scale a request of `context_length` tokens is read with: that of the next longer measured length.

    Beyond the longest measured length it is W / L, as in the paper.
    """
    for row in scales["lengths"]:
        if row["context_length"] >= context_length:
            return row_scale(row)
    return paper_scale(context_length, scales["base_context_length"])


def row_scale(row: Mapping[str, Any]) -> float:
    """Return the scale that a row of scales.json serves its length with.

    Files made when `served` was the best of the scales measured without W / L among them are read as W / L, too.
    """
    unmeasured = "paper_nll" in row and row["paper_nll"] is None
    return float(row["paper_scale"] if unmeasured else row["served"])


def request_scale(num_tokens: int, base_context_length: int, scales: Mapping[str, Any] | None) -> float:
    """Return the scale a request of prompt and answer is read with: that of scales.json if there is one, else W / L."""
    if scales is not None:
        return served_at(scales, num_tokens)
    return paper_scale(num_tokens, base_context_length)


def effective_length(
    found: Sequence[Sums],
    base_context_length: int,
    *,
    retrieval: Sequence[Mapping[str, Any]] = (),
    model: str = "tuned",
    tolerance: float = TOLERANCE,
    threshold: float = RETRIEVAL_THRESHOLD,
) -> dict[str, Any]:
    """Return up to which length a model reads, the content of effective.json.

    Args:
        found: Sums of all cells, of one set of documents.
        base_context_length: L in tokens.
        retrieval: Rows of a retrieval evaluation (`context_length`, `found`, `trials`); lengths without any are judged
            by NLL alone.
        model: Whose cells are read.
        tolerance: Nats per token that a length may be worse than L.
        threshold: Share of answers found that counts as read.

    Returns:
        `claimed` (longest length measured), `effective` (None where not even L was measured), `low` and `high` (95 %
        interval over documents), `tolerance`, `threshold` and `lengths`, one row per window: `context_length`,
        `scale`, `nll`, `rise` over L with `rise_low` and `rise_high`, `retrieval` (share found or None), `reads`.
    """
    best = {window: _best(found, model, window) for window in {sums.window for sums in found if sums.model == model}}
    start: dict[str, Any] = {
        "claimed": max(best, default=None),
        "tolerance": tolerance,
        "threshold": threshold,
        "model": model,
    }
    if base_context_length not in best:
        return start | {"effective": None, "low": None, "high": None, "lengths": []}
    reference = _cell(found, model, base_context_length, 1.0) or best[base_context_length]
    windows = [window for window in sorted(best) if window >= base_context_length]
    shares = {window: _share(retrieval, window) for window in windows}
    holds = np.array([share is None or share >= threshold for share in shares.values()])
    rises = np.array([best[window].mean - reference.mean for window in windows])
    rows, drawn = [], []
    for window, rise, held in zip(windows, rises, holds, strict=True):
        each = _resampled_difference(best[window], reference)
        drawn.append(each)
        low, high = _ends(each)
        rows.append(
            {
                "context_length": window,
                "scale": best[window].scale,
                "nll": best[window].mean,
                "rise": float(rise),
                "rise_low": low,
                "rise_high": high,
                "retrieval": shares[window],
                "reads": bool(rise <= tolerance and held),
            }
        )
    effective = _last_in_row(rises <= tolerance, holds, windows)
    ends: list[int | None] = [None, None]
    if all(each is not None for each in drawn):
        lengths = [
            _last_in_row(column <= tolerance, holds, windows) or 0
            for column in np.stack(drawn).T  # type: ignore[arg-type]
        ]
        ends = [int(value) for value in np.quantile(lengths, _tails(), method="inverted_cdf")]
    return start | {"effective": effective, "low": ends[0], "high": ends[1], "lengths": rows}


def sentences(scales: Mapping[str, Any], effective: Mapping[str, Any]) -> list[str]:
    """Return in plain words how far a model reads and whether another scale than W / L reads a length better."""
    lines = []
    if effective["claimed"] is not None and effective["effective"] is None and effective["lengths"]:
        lines.append(f"Claimed {effective['claimed']:,} tokens, effective: not even the base window.")
    elif effective["effective"] is not None:
        low, high = effective["low"], effective["high"]
        interval = f" (95 % interval {low:,} to {high:,})" if low is not None else ""
        asked = any(row["retrieval"] is not None for row in effective["lengths"])
        found = f" and retrieval is at least {effective['threshold']:.1%}" if asked else ""
        lines.append(
            f"Claimed {effective['claimed']:,} tokens, effective {effective['effective']:,}{interval}: up to there NLL "
            f"is at most {effective['tolerance']:g} nats above the base window's{found}."
        )
    better = [row for row in scales["lengths"] if row["gain_low"] is not None and row["gain_low"] > 0]
    if better:
        words = ", ".join(f"{row['context_length']:,} at {row['scale']:g}" for row in better)
        lines.append(f"Beyond the spread of the documents, another scale than W/L reads better: {words}.")
    return lines


def _last_in_row(reads: np.ndarray, holds: np.ndarray, windows: Sequence[int]) -> int | None:
    """Return the last window up to which all are read; None where the first is not."""
    last = None
    for window, read in zip(windows, reads & holds, strict=True):
        if not read:
            break
        last = window
    return last


def _best(found: Sequence[Sums], model: str, window: int) -> Sums:
    cells = [sums for sums in found if (sums.model, sums.window) == (model, window)]
    return min(cells, key=lambda sums: (sums.mean, sums.scale))


def _cell(found: Sequence[Sums], model: str, window: int, scale: float) -> Sums | None:
    return next((s for s in found if (s.model, s.window) == (model, window) and abs(s.scale - scale) < 1e-6), None)


def _share(retrieval: Sequence[Mapping[str, Any]], window: int) -> float | None:
    rows = [row for row in retrieval if row["context_length"] == window]
    trials = sum(row["trials"] for row in rows)
    return sum(row["found"] for row in rows) / trials if trials else None


def _resampled_difference(one: Sums, other: Sums) -> np.ndarray | None:
    """Return the difference of two cells' NLL in each resample of the documents; None for one document."""
    if len(one.documents) < 2:
        return None
    assert np.array_equal(one.documents, other.documents), "all cells score one set of documents"
    draws = resampled(len(one.documents))
    means = [sums.nll[draws].sum(axis=1) / sums.tokens[draws].sum(axis=1) for sums in (one, other)]
    return means[0] - means[1]


def difference_interval(one: Sums, other: Sums) -> tuple[float | None, float | None]:
    """Return the 95 % interval of one cell's NLL minus another's, documents drawn with replacement.

    Args:
        one: Sums of a cell.
        other: Sums of another one, of the same documents.

    Returns:
        (low, high) in nats per token; None twice for one document, which shows no spread.
    """
    return _ends(_resampled_difference(one, other))


def _ends(drawn: np.ndarray | None) -> tuple[float | None, float | None]:
    if drawn is None:
        return None, None
    low, high = np.quantile(drawn, _tails())
    return float(low), float(high)


def _tails() -> tuple[float, float]:
    return (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
