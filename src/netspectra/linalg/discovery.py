"""Which of many findings to believe: the false discovery rate."""

from __future__ import annotations

import numpy as np

__all__ = ["discovered", "discovered_in", "empirical_p", "simes"]


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


def simes(p: np.ndarray) -> float:
    """One p-value that all of these hypotheses hold: min over i of n p_(i) / i.

    Valid for independent p-values and for positively dependent ones (Simes 1986, doi:10.1093/biomet/73.3.751).

    >>> simes(np.array([0.01, 0.02, 0.9]))
    0.03
    """
    return float((np.sort(p) * len(p) / np.arange(1, len(p) + 1)).min())


def discovered_in(p: np.ndarray, family: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Which families hold something to believe, and what in them.

    Families are discovered by Benjamini & Hochberg over their `simes` p-values: of those believed, at most ``rate`` are
    expected to hold nothing. In R believed of F families, hypotheses are rejected at the rate  R rate / F.

    Args:
        p: (N,) p-values.
        family: (N,) numbers from 0 to F - 1, each at least once.
        rate: the false discovery rate of families.

    Returns:
        (F,) which families, (N,) which hypotheses; a family is believed exactly if one of its hypotheses is rejected.

    Reference: Benjamini & Bogomolov 2014, doi:10.1111/rssb.12028.

    >>> discovered_in(np.array([0.001, 0.9, 0.04, 0.5]), np.array([0, 0, 1, 1]), 0.05)
    (array([ True, False]), array([ True, False, False, False]))
    """
    order = np.argsort(family, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(family))[:-1])
    found = discovered(np.array([simes(p[some]) for some in members]), rate)
    inside = np.zeros(len(p), dtype=bool)
    for some in (members[i] for i in np.flatnonzero(found)):
        inside[some] = discovered(p[some], rate * found.sum() / len(found))
    return found, inside


def empirical_p(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    """P-values of ``values`` against draws of the null: (1 + draws at least as large) / (1 + draws).

    The ones make it a valid p-value for any number of draws (Davison & Hinkley 1997, section 4.2.3); none is smaller
    than 1 / (1 + draws).

    >>> empirical_p(np.array([0.0, 5.0]), np.array([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.25]
    """
    ascending = np.sort(null)
    return (1 + len(null) - np.searchsorted(ascending, values, side="left")) / (1 + len(null))
