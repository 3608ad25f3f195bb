"""How far a model really reads, and which scale reads each length best.

Two files follow from a surface: `scales.json` says for each context length which scale was measured best, with the
paper's W / L beside it; `effective.json` says up to which length the model reads. A length counts as read when the NLL
on the last tokens of its windows, at the best scale, is no worse than at the base window plus a tolerance, when
retrieval, where it was asked, covers the length and holds its threshold, and when no shorter length fails. All lengths
are judged by the same tokens, those that windows of every length score last, so both questions are answered pairwise,
and their intervals come from drawing documents with replacement. The best scale is chosen and judged by the same
documents: its figures are a little too good where scales hardly differ.

The retrieval threshold is RULER's (NVIDIA/RULER): 85.6 %, what Llama-2-7B reaches at its own 4K.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from e2ray.core.scales import paper_scale
from e2ray.evaluate.intervals import CONFIDENCE, ratio_interval, resampled
from e2ray.evaluate.perplexity import Sums
from e2ray.records.effective import Criterion, Effective, LengthRow
from e2ray.records.retrieval import RetrievalRow
from e2ray.records.scales import ScaleRow, Scales

TOLERANCE = 0.01  # nats per token
RETRIEVAL_THRESHOLD = 0.856
LAST_TOKENS: Final = "last_tokens"  # the tokens of a length's NLL
SLIDING: Final = "sliding"


def scale_table(cells: Sequence[Sums], base_context_length: int, *, model: str = "tuned") -> Scales:
    """Return the scale that read each context length best.

    The served scale is the best measured one where it is better than W / L beyond the spread of the documents, else
    W / L, also where W / L was not measured.

    Args:
        cells: Sums of all, of one set of documents.
        base_context_length: L in tokens.
        model: Name in the cells to use.
    """
    rows = []
    for window in sorted({sums.window for sums in cells if sums.model == model}):
        best = _best(cells, model, window)
        scale = paper_scale(window, base_context_length)
        paper = _cell(cells, model, window, scale)
        low, high = (None, None) if paper is None else difference_interval(paper, best)
        rows.append(
            ScaleRow(
                context_length=window,
                served=best.scale if low is not None and low > 0 else scale,
                scale=best.scale,
                nll=best.mean,
                paper_scale=scale,
                paper_nll=None if paper is None else paper.mean,
                gain=None if paper is None else paper.mean - best.mean,
                gain_low=low,
                gain_high=high,
            )
        )
    return Scales(base_context_length=base_context_length, model=model, lengths=tuple(rows))


def effective_length(
    cells: Sequence[Sums],
    base_context_length: int,
    *,
    retrieval: Sequence[RetrievalRow] | None = None,
    model: str = "tuned",
    tolerance: float = TOLERANCE,
    threshold: float = RETRIEVAL_THRESHOLD,
) -> Effective:
    """Return up to which length a model reads, one row per window.

    Each length is judged at the scale with the lowest mean over whole documents, by NLL on the last tokens of its
    windows, the same tokens for all (`Sums.end`); L is read at scale 1 where that was measured. Where retrieval was
    asked, a length that it does not cover does not read and is never the effective one; the lengths beyond it may be.

    Args:
        cells: Sums of all, of one set of documents; they choose the scales. A length whose sums keep no end is judged
            by the mean over whole documents, against the same of L.
        base_context_length: L in tokens.
        retrieval: Rows of a retrieval evaluation, read at W / L; None where none was asked, and NLL alone judges.
        model: Name in the cells to use.
        tolerance: Nats per token that a length may be worse than L.
        threshold: Share of answers found that counts as read.
    """
    best = {window: _best(cells, model, window) for window in {sums.window for sums in cells if sums.model == model}}
    windows = [window for window in sorted(best) if window >= base_context_length]
    shares = {window: _share(retrieval or (), window) for window in windows}
    covered = None if retrieval is None else tuple(window for window in windows if shares[window] is not None)
    nothing = Effective(
        claimed=max(best, default=None),
        tolerance=tolerance,
        threshold=threshold,
        model=model,
        retrieval_lengths=covered,
        effective=None,
        lengths=(),
    )
    if base_context_length not in best:
        return nothing
    reference = _cell(cells, model, base_context_length, 1.0) or best[base_context_length]
    best[base_context_length] = reference
    judged = [_judged(best[window], reference) for window in windows]
    holds = np.array([share is None or share >= threshold for share in shares.values()])
    counts = np.array([covered is None or window in covered for window in windows])
    near = np.array([length.rise <= tolerance for length in judged])
    low, high = _bounds(judged, tolerance, holds, counts)
    kinds = {length.criterion for length in judged}
    return nothing.changed(
        criterion=kinds.pop() if len(kinds) == 1 else "mixed",
        last=max((length.cell.stride for length in judged if length.criterion == LAST_TOKENS), default=None),
        effective=_last_in_row(near, holds, counts, windows),
        low=low,
        high=high,
        lengths=[
            length.row(shares[length.cell.window], reads=bool(reads))
            for length, reads in zip(judged, near & holds & counts, strict=True)
        ],
    )


@dataclass(frozen=True, eq=False)
class _Judged:
    """How a window compares with L.

    Attributes:
        cell: The cell that it is judged by.
        criterion: Name of what is compared.
        rise: Its NLL over that of L, nats per token.
        drawn: The same in each resample of the documents; None for one document.
    """

    cell: Sums
    criterion: Criterion
    rise: float
    drawn: np.ndarray | None

    def row(self, share: float | None, *, reads: bool) -> LengthRow:
        nll_low, nll_high = ratio_interval(self.cell.nll, self.cell.tokens) or (None, None)
        low, high = _ends(self.drawn)
        return LengthRow(
            context_length=self.cell.window,
            scale=self.cell.scale,
            criterion=self.criterion,
            nll=self.cell.mean,
            nll_low=nll_low,
            nll_high=nll_high,
            rise=self.rise,
            rise_low=low,
            rise_high=high,
            retrieval=share,
            reads=reads,
        )


def _judged(cell: Sums, reference: Sums) -> _Judged:
    """Return how a cell compares with that of L: by the ends of windows where both cells have them."""
    end, reference_end = cell.end, reference.end
    if end is None or reference_end is None:
        return _Judged(cell, SLIDING, cell.mean - reference.mean, _resampled_difference(cell, reference))
    return _Judged(end, LAST_TOKENS, end.mean - reference_end.mean, _resampled_difference(end, reference_end))


def _bounds(
    judged: Sequence[_Judged], tolerance: float, holds: np.ndarray, counts: np.ndarray
) -> tuple[int | None, int | None]:
    """Return the 95 % interval of the effective length, 0 where none is read; None twice for one document."""
    drawn = [length.drawn for length in judged if length.drawn is not None]
    if len(drawn) < len(judged):
        return None, None
    windows = [length.cell.window for length in judged]
    lengths = [_last_in_row(rises <= tolerance, holds, counts, windows) or 0 for rises in np.stack(drawn).T]
    low, high = np.quantile(lengths, _tails(), method="inverted_cdf")
    return int(low), int(high)


def sentences(scales: Scales, effective: Effective) -> list[str]:
    """Return in plain words how far a model reads and whether another scale than W / L reads a length better."""
    lines = []
    covered = effective.retrieval_lengths
    note = "" if covered is None else f" Retrieval was measured at {', '.join(f'{each:,}' for each in covered)}."
    if covered == ():
        note = " Retrieval was asked and covers none of the windows, so no length counts."
    if effective.claimed is not None and effective.effective is None and effective.lengths:
        first = effective.lengths[0].context_length
        none = "none" if covered is not None and first not in covered else "not even the base window"
        lines.append(f"Claimed {effective.claimed:,} tokens, effective: {none}.{note}")
    elif effective.effective is not None:
        low, high = effective.low, effective.high
        interval = f" (95 % interval {low:,} to {high:,})" if low is not None else ""
        condition = "" if covered is None else f" and retrieval is at least {effective.threshold:.1%}"
        lines.append(
            f"Claimed {effective.claimed:,} tokens, effective {effective.effective:,}{interval}: up to there "
            f"{_what(effective)} is at most {effective.tolerance:g} nats above the base window's{condition}, at the "
            f"scale that the same documents chose.{note}"
        )
    better = [row for row in scales.lengths if row.gain_low is not None and row.gain_low > 0]
    if better:
        words = ", ".join(f"{row.context_length:,} at {row.scale:g}" for row in better)
        lines.append(
            f"Beyond the spread of the documents, which also chose it, another scale than W/L reads better: {words}."
        )
    return lines


def _what(effective: Effective) -> str:
    """Return which NLL the lengths were judged by."""
    ends = f"NLL on the last {effective.last} tokens of windows"
    if effective.criterion == "mixed":
        where = [f"{row.context_length:,}" for row in effective.lengths if row.criterion == SLIDING]
        return f"{ends} (at {', '.join(where)}: of sliding windows over whole documents)"
    return ends if effective.criterion == LAST_TOKENS else "NLL of sliding windows over whole documents"


def _last_in_row(reads: np.ndarray, holds: np.ndarray, counts: np.ndarray, windows: Sequence[int]) -> int | None:
    """Return the last window that counts and up to which all are read; None without one."""
    last = None
    for window, read, counted in zip(windows, reads & holds, counts, strict=True):
        if not read:
            break
        last = window if counted else last
    return last


def _best(cells: Sequence[Sums], model: str, window: int) -> Sums:
    known = [sums for sums in cells if (sums.model, sums.window) == (model, window)]
    return min(known, key=lambda sums: (sums.mean, sums.scale))


def _cell(cells: Sequence[Sums], model: str, window: int, scale: float) -> Sums | None:
    return next((s for s in cells if (s.model, s.window) == (model, window) and abs(s.scale - scale) < 1e-6), None)


def _share(retrieval: Sequence[RetrievalRow], window: int) -> float | None:
    """Return the share of answers found at a length, the mean over tasks; None where nothing was asked."""
    rows = [row for row in retrieval if row.context_length == window and row.trials]
    by_task: dict[str, list[RetrievalRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
    shares = [sum(row.found for row in each) / sum(row.trials for row in each) for each in by_task.values()]
    return sum(shares) / len(shares) if shares else None


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
