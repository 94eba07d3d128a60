"""Singular values as few points as an eye needs, without losing what matters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

__all__ = ["DIGITS", "decimate", "density", "index_grid", "points_for", "rounded"]

POINTS = 250
FEWEST = 64
BUDGET = 120_000
DIGITS = 5
MOST_BINS = 60
BEYOND = 2.5  # times the edge of the noise bulk: as far as a histogram goes


def points_for(curves: int) -> int:
    """Points per curve for a page of ``curves`` curves: about 250, fewer when there are very many.

    >>> points_for(300), points_for(2000)
    (250, 64)
    """
    return max(FEWEST, min(POINTS, BUDGET // max(curves, 1)))


@cache
def index_grid(count: int, points: int = POINTS) -> tuple[int, ...]:
    """Positions (from 0) at which a spectrum of ``count`` values is drawn: dense, on a log grid, towards both ends.

    The first and the last position always belong to it; up to ``points`` values are all kept.

    >>> index_grid(3)
    (0, 1, 2)
    >>> grid = index_grid(4096)
    >>> grid[:4], grid[-3:], len(grid) < 280
    ((0, 1, 2, 3), (4093, 4094, 4095), True)
    """
    if count <= points:
        return tuple(range(count))
    head = np.geomspace(1, count, int(0.55 * points)).round().astype(int) - 1
    tail = count - np.geomspace(1, count, int(0.30 * points)).round().astype(int)
    even = np.linspace(0, count - 1, int(0.35 * points)).round().astype(int)
    grid = np.unique(np.concatenate([head, tail, even]))
    return tuple(int(i) for i in grid)


def rounded(value: float, digits: int = DIGITS) -> float | int | None:
    """``value`` to so many significant digits, as short as JSON can write it; None where it is not finite.

    >>> rounded(0.123456789), rounded(1234567.0), rounded(float("nan"))
    (0.12346, 1234600, None)
    """
    if not np.isfinite(value):
        return None
    short = float(f"{value:.{digits - 1}e}")
    return int(short) if short.is_integer() and abs(short) < 10**digits * 100 else short


def decimate(
    values: Sequence[Any] | np.ndarray, points: int = POINTS
) -> tuple[tuple[int, ...], list[float | int | None]]:
    """Positions and values to draw, keeping the first, the last, the extremes and the last value above zero.

    A spectrum in order needs the shared `index_grid` alone; one with its extremes or its last positive value
    elsewhere gets a grid of its own. Values that are no finite number become None.
    """
    sigma = np.array([np.nan if v is None else v for v in values], dtype=float)
    grid = index_grid(len(sigma), points)
    known = np.flatnonzero(np.isfinite(sigma))
    if known.size:
        positive = known[sigma[known] > 0]
        extremes = {int(known[sigma[known].argmax()]), int(known[sigma[known].argmin()])}
        if positive.size:
            smallest = sigma[positive].min()
            extremes.add(int(positive[sigma[positive] == smallest][-1]))
        level = {float(sigma[i]) for i in grid}
        missing = [i for i in extremes if i not in grid and float(sigma[i]) not in level]
        if missing:
            grid = tuple(sorted({*grid, *missing}))
    return grid, [rounded(float(sigma[i])) for i in grid]


def density(values: Sequence[Any] | np.ndarray | None, edge: float | None) -> dict[str, Any] | None:
    """A histogram of all the values, from 0 on: where it ends, the counts, and how many values lie beyond.

    It reaches to the largest value, but no further than 2.5 times the ``edge`` of the noise bulk: a spike ten times
    as large would press the bulk into one bin. None where nothing is above zero.

    >>> density([3.0, 2.0, 1.0, 0.5] * 4, None)
    {'to': 3, 'counts': [0, 4, 4, 0, 4, 4], 'beyond': 0}
    >>> density([9.0] + [1.0] * 8, 1.0)
    {'to': 2.5, 'counts': [0, 0, 8, 0, 0, 0], 'beyond': 1}
    """
    sigma = np.array([np.nan if v is None else v for v in ([] if values is None else values)], dtype=float)
    sigma = sigma[np.isfinite(sigma)]
    top = float(sigma.max()) if sigma.size else 0.0
    if top <= 0:
        return None
    end = rounded(top if edge is None or edge <= 0 else min(top, BEYOND * edge)) or top
    bins = max(6, min(MOST_BINS, round(1.6 * np.sqrt(sigma.size))))
    # the end is rounded for display: what it cuts off by that is still in the last bin
    inside = np.minimum(sigma[sigma <= end * (1 + 10.0 ** (1 - DIGITS))], end)
    counts, _ = np.histogram(inside / end, bins=bins, range=(0.0, 1.0))
    return {"to": end, "counts": counts.tolist(), "beyond": int(sigma.size - inside.size)}
