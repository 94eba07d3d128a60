"""Which of many findings to believe: the false discovery rate."""

from __future__ import annotations

import numpy as np

__all__ = ["discovered", "empirical_p"]


def discovered(p: np.ndarray, rate: float) -> np.ndarray:
    """Which hypotheses to reject so that at most ``rate`` of the rejections are expected to be false.

        reject the k smallest, k = max {i : p_(i) <= i rate / N}

    Valid for independent p-values and for positively dependent ones.

    Args:
        p: (N,) p-values.
        rate: the false discovery rate, between 0 and 1.

    Reference: Benjamini & Hochberg 1995, doi:10.1111/j.2517-6161.1995.tb02031.x.

    >>> discovered(np.array([0.001, 0.04, 0.5, 0.012]), 0.05).tolist()
    [True, False, False, True]
    """
    count = len(p)
    order = np.argsort(p, kind="stable")
    below = np.flatnonzero(p[order] <= rate * np.arange(1, count + 1) / max(count, 1))
    found = np.zeros(count, dtype=bool)
    if below.size:
        found[order[: below[-1] + 1]] = True
    return found


def empirical_p(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """P-values of ``values`` against draws of the null: (1 + draws at least as large) / (1 + draws).

    The ones make it a valid p-value for any number of draws (Davison & Hinkley 1997, section 4.2.3); none is smaller
    than 1 / (1 + draws).

    >>> empirical_p(np.array([0.0, 5.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.25]
    """
    ascending = np.sort(null)
    return (1 + len(null) - np.searchsorted(ascending, values, side="left")) / (1 + len(null))
