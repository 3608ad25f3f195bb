"""Which trials go on at a rung: successive halving, asynchronous, as a pure function of what was recorded.

Nothing is remembered but the values that trials had at each rung, so a verdict can be written down together with the
value it follows from, and a study that was cut off comes to the same ones.
"""

from collections.abc import Mapping, Sequence

from e2ray.config.search import Stopping


def goes_on(value: float, others: Sequence[float], reduction_factor: int) -> bool:
    """Return whether a trial is among the best of those that reached a rung, itself included.

    One in `reduction_factor` goes on, at least the best one; it does not wait for trials that are still on their way.

    Args:
        value: Its weighted number; lower is better.
        others: Those of the trials that reached the rung before.
        reduction_factor: Eta.

    Source: ASHA (arXiv 1810.05934), Algorithm 2.
    """
    reached = sorted([*others, value])
    return value <= reached[max(len(reached) // reduction_factor, 1) - 1]


def bracket_of(stopping: Stopping, number: int, rungs: Sequence[int]) -> int:
    """Return the bracket of a trial: how many of the rungs let it pass without a verdict.

    ASHA has one bracket. With n rungs, Hyperband's bracket k passes the first k of them and has a share of the trials
    of ceil((n + 1) * eta ** (n - k) / (n - k + 1)), as published; trials are dealt out by number.

    Source: Hyperband (arXiv 1603.06560), Algorithm 1.
    """
    if stopping.kind == "asha":
        return 0
    last = len(rungs)
    factor = stopping.reduction_factor
    shares = [-(-(last + 1) * factor ** (last - skipped) // (last - skipped + 1)) for skipped in range(last + 1)]
    index = number % sum(shares)
    for bracket, share in enumerate(shares):
        if index < share:
            return bracket
        index -= share
    raise AssertionError("the shares cover every place")


def verdict(
    stopping: Stopping,
    rungs: Sequence[int],
    step: int,
    *,
    number: int,
    value: float,
    others: Mapping[int, float],
) -> bool:
    """Return whether a trial of some weighted number is stopped at a rung.

    `others` are the numbers at this rung of the trials that compete with it, by trial number.
    """
    mine = bracket_of(stopping, number, rungs)
    if rungs.index(step) < mine:
        return False
    rivals = [other for rival, other in others.items() if bracket_of(stopping, rival, rungs) == mine]
    return not goes_on(value, rivals, stopping.reduction_factor)
