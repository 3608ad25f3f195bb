"""How searched settings and outliers stand on the axes of a study's pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def share_of_range(value: float, spec: Mapping[str, Any]) -> float:
    """Return where a number stands in its searched interval, 0 to 1, logarithmic where the search is."""
    low, high = spec["low"], spec["high"]
    if low == high:
        return 0.5
    if spec.get("log"):
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def upper_limit(values: Sequence[float]) -> float:
    """Return the top of an axis that shows the low values well and cuts far outliers off."""
    low, middle, high = (float(q) for q in np.quantile(values, (0.0, 0.5, 1.0)))
    return min(high, low + 2.5 * max(middle - low, 1e-3))
