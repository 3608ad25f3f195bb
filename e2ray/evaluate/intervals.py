"""How sure a mean over documents is: documents, not tokens, are the independent draws."""

import math

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95


def ratio_stderr(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """Return the standard error of sum(sums) / sum(counts) when documents are the independent draws.

    The usual linearised estimator of a ratio: documents differ in length and all their tokens share one author, so
    tokens are not independent draws. None for a single document.
    """
    num_documents = len(sums)
    if num_documents < 2:
        return None
    residuals = sums - sums.sum() / counts.sum() * counts
    return float(math.sqrt(num_documents / (num_documents - 1) * (residuals**2).sum()) / counts.sum())


def ratio_interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of sum(sums) / sum(counts), documents drawn with replacement.

    Args:
        sums: float64 [documents], nats.
        counts: int64 [documents], tokens.

    Returns:
        (low, high), percentiles of 2,000 resamples of a fixed seed; None for a single document.
    """
    if len(sums) < 2:
        return None
    draws = resampled(len(sums))
    ratios = np.sort(sums[draws].sum(axis=-1) / counts[draws].sum(axis=-1))
    tail = (1 - CONFIDENCE) / 2
    return _quantile(ratios, tail), _quantile(ratios, 1 - tail)


def _quantile(ordered: np.ndarray, share: float) -> float:
    """Return the value below which a share of sorted numbers lies, interpolated linearly between two of them."""
    rank = share * len(ordered) + 1 - share
    below, part = int(rank) - 1, rank % 1
    return float((1 - part) * ordered[below] + part * ordered[below + 1])


def resampled(num_documents: int, *, seed: int = 0) -> np.ndarray:
    """Return int64 [2,000, documents]: which documents each resample draws, for statistics of several means at once."""
    return np.random.default_rng(seed).integers(0, num_documents, (RESAMPLES, num_documents))
