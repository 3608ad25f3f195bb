"""Spearman's rank correlation, and how large it gets by chance."""

import math
from collections.abc import Sequence

import numpy as np


def spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of paired numbers, -1 to 1, ties sharing their mean rank.

    None where one side does not vary.
    """
    first, second = _centred_ranks(left), _centred_ranks(right)
    spread = math.sqrt(float(first @ first) * float(second @ second))
    return min(1.0, max(-1.0, float(first @ second) / spread)) if spread else None


def _centred_ranks(values: Sequence[float]) -> np.ndarray:
    """Return ranks minus their mean, multiples of 1/2, float64 [values]; equal values share their mean rank."""
    _, inverse, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return np.asarray(ranks - (len(values) + 1) / 2)


def chance_correlation(trials: int) -> float:
    """Return the rank correlation that two unrelated orders of `trials` trials exceed in one of twenty cases."""
    return min(1.0, 1.96 / math.sqrt(trials - 1)) if trials > 1 else 1.0
