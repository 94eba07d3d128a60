"""One option of each component: the least total of one measure within a limit on the total of another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["least"]

STATES = 4096  # partial sums that are kept
HALVINGS = 60  # of the interval in which the multiplier lies

Numbers = NDArray[np.float64]


def least(lose: Sequence[Numbers], spend: Sequence[Numbers], limit: float, known: Sequence[int]) -> list[int]:
    """Which option of each component to take, no worse than a choice that is known.

        min sum_i lose_i[o_i]    subject to    sum_i spend_i[o_i] <= limit

    Partial sums grow by one component at a time; one that neither spends nor loses less than another is dropped
    (Nemhauser & Ullmann 1969), and so is what lies further above the Lagrangian bound than the known choice does. Both
    are exact. Only beyond 4096 partial sums, those that spend nearly alike are thinned out to the one that loses least.

    Args:
        lose: for each component, what its options lose.
        spend: what they cost, not negative.
        limit: on the total cost.
        known: a choice within the limit; the Lagrangian one bounds what is sought where it is better.

    Reference: Kellerer, Pferschy & Pisinger 2004, Knapsack Problems, chapter 11. Cost: components x 4096 x options that
    survive the bound, which are few.

    >>> least([np.array([5.0, 1, 0]), np.array([4.0, 2, 0])], [np.array([0.0, 3, 4]), np.array([0.0, 1, 3])], 4, [0, 2])
    [1, 1]
    """
    multiplier = _multiplier(lose, spend, limit)
    reduced = [loss + multiplier * cost for loss, cost in zip(lose, spend, strict=True)]
    floors = [float(values.min()) for values in reduced]
    cheap = [int(values.argmin()) for values in reduced]
    known = min([*known], cheap, key=lambda which: _total(lose, which)) if _total(spend, cheap) <= limit else [*known]
    whole = _total(lose, known)
    gap = whole - (sum(floors) - multiplier * limit)
    gap += 1e-9 * (abs(whole) + abs(gap)) + 1e-300
    spent, lost, above = np.zeros(1), np.zeros(1), np.zeros(1)
    behind = sum(float(cost.min()) for cost in spend)  # the least that the components to come cost
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for loss, cost, values, floor in zip(lose, spend, reduced, floors, strict=True):
        behind -= float(cost.min())
        some = np.flatnonzero(values - floor <= gap)
        c = (spent[:, None] + cost[some]).ravel()
        e = (above[:, None] + (values[some] - floor)).ravel()
        total = (lost[:, None] + loss[some]).ravel()
        able = np.flatnonzero((e <= gap) & (c + behind <= limit * (1 + 1e-12)))
        if not len(able):
            return known
        kept = able[_undominated(c[able], total[able])]
        spent, lost, above = c[kept], total[kept], e[kept]
        steps.append((kept // len(some), some[kept % len(some)]))
    at = int(lost.argmin())
    if lost[at] >= whole:
        return known
    found = []
    for before, option in reversed(steps):
        found.append(int(option[at]))
        at = int(before[at])
    return found[::-1]


def _total(values: Sequence[Numbers], which: Sequence[int]) -> float:
    return sum(float(some[o]) for some, o in zip(values, which, strict=True))


def _multiplier(lose: Sequence[Numbers], spend: Sequence[Numbers], limit: float) -> float:
    """The price of a unit of cost at which what is best for each component alone just keeps the limit."""

    def costs(price: float) -> float:
        return sum(float(cost[int((loss + price * cost).argmin())]) for loss, cost in zip(lose, spend, strict=True))

    if costs(0.0) <= limit:
        return 0.0
    low, high = 0.0, 1e-12
    while costs(high) > limit and high < 1e300:
        low, high = high, 16 * high
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5 if low else high / 16
        low, high = (middle, high) if costs(middle) > limit else (low, middle)
    return high


def _undominated(spent: Numbers, lost: Numbers) -> NDArray[np.intp]:
    """Those than which no other spends and loses less; thinned out beyond what may be kept."""
    order = np.lexsort((lost, spent))
    falling = np.minimum.accumulate(lost[order])
    kept = order[np.r_[True, lost[order][1:] < falling[:-1]]]
    if len(kept) <= STATES:
        return kept
    c = spent[kept]
    cells = ((c - c[0]) / max(c[-1] - c[0], 1e-300) * (STATES - 1)).astype(int)
    return kept[np.r_[cells[1:] != cells[:-1], True]]  # of a cell the last: it loses least
