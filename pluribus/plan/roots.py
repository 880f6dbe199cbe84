"""The least argument at which a growing function is no longer negative."""

from __future__ import annotations

from collections.abc import Callable


def first_root(beyond: Callable[[float], float], low: float, most: float, exact: float) -> float:
    """Regula falsi (Illinois), for what grows almost evenly, if by steps.

    Args:
        beyond: how far the function is beyond zero, above -1.
        low: no argument below is of interest.
        most: to be returned where no lower one will do.
        exact: share of the argument by which the answer may be too high.
    """
    missing, over = 0.0, beyond(low)
    # Where the function never comes near zero but by its own steps, ours grow.
    high, step = low, 1.001
    while over < 0 and high < most:
        low, missing = high, over
        high *= min(max(1.0002 / max(1 + over, 1e-9), step), 1.25)
        high, step = min(high, most), step * step
        over = beyond(high)
    side = turn = 0
    while high - low > exact * high and over >= 0:
        turn += 1
        middle = low - missing * (high - low) / (over - missing)
        if turn % 3 == 0:  # a function of few and large steps
            middle = (low + high) / 2
        margin = 0.5 * exact * high  # steps again: no nearer to an end than is asked for
        middle = min(max(middle, low + margin), high - margin)
        found = beyond(middle)
        if found < 0:
            low, missing = middle, found
            over, side = (over / 2 if side < 0 else over), -1
        else:
            high, over = middle, found
            missing, side = (missing / 2 if side > 0 else missing), 1
    return high
