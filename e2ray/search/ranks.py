"""Spearman's rank correlation, and what chance makes of it."""

import math
from collections.abc import Sequence

import numpy as np


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of paired numbers, -1 to 1, ties sharing their mean rank.

    None where one side does not vary, which has no correlation.
    """
    first, second = _centred_ranks(left), _centred_ranks(right)
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return min(1.0, max(-1.0, float(first @ second) / spread)) if spread else None


def _centred_ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks minus their mean, exact halves, float64 [values]; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return np.asarray(ranks - (len(values) + 1) / 2)


def chance_correlation(trials: int) -> float:
    """Return the rank correlation that two unrelated orders of so many trials exceed in one of twenty cases."""
    return min(1.0, 1.96 / math.sqrt(trials - 1)) if trials > 1 else 1.0
