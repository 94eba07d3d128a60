"""Exact p-values by exchanging rows, and what becomes of many of them."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

__all__ = ["combined", "exchanges", "ranked", "stepped_down"]

POWER = 0.5


def exchanges(first: int, second: int, permutations: int, seed: int) -> np.ndarray:
    """Which of first + second rows count as the second group: as it is, then by chance.

    Returns:
        (permutations + 1, first + second), boolean; the truth is row 0, in which the second group comes last.
    """
    rng = np.random.default_rng(seed)
    truth = np.arange(first + second) >= first
    return np.stack([truth, *(rng.permutation(truth) for _ in range(permutations))])


def ranked(statistics: np.ndarray) -> np.ndarray:
    """The p-value of every column of (..., B): the share of its row that is at least as large.

    Where the columns are exchangeable, as the labels of rows under the null hypothesis are, P(p <= a) <= a for every
    a, exactly (Phipson & Smyth 2010, arXiv 1603.05766).

    >>> ranked(np.array([3.0, 1.0, 2.0, 2.0])).tolist()
    [0.25, 1.0, 0.75, 0.75]
    """
    return rankdata(-statistics, method="max", axis=-1) / statistics.shape[-1]


def combined(p: np.ndarray) -> np.ndarray:
    """One p-value from many, for every permutation: their mean power -1/2, ranked among the permutations.

    It is as sharp as the least of few, and adds up what many say (Vovk & Wang 2020, arXiv 1212.4966); the ranking
    makes it exact however they depend on one another.

    Args:
        p: (tests, permutations + 1), as `ranked` gives them.
    """
    return ranked((p**-POWER).mean(0))


def stepped_down(p: np.ndarray) -> np.ndarray:
    """P-values adjusted for their number: the chance of any false one below a is at most a (Westfall & Young 1993).

    The least one is compared with the least of every permutation, the next with the least of those that remain.

    Args:
        p: (tests, permutations + 1).

    Returns:
        (tests,).

    >>> stepped_down(np.array([[0.25, 1.0, 0.75, 0.5], [1.0, 0.25, 0.5, 0.75]])).tolist()
    [0.5, 1.0]
    """
    order = np.argsort(p[:, 0], kind="stable")
    adjusted, reached = np.empty(len(p)), 0.0
    for place, test in enumerate(order):
        least = p[order[place:]].min(0)
        reached = max(reached, float((least <= p[test, 0]).mean()))
        adjusted[test] = reached
    return adjusted
