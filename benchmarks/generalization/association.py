"""How far numbers go together: over all networks, within one hyper-parameter's change, and beyond what is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau, rankdata

from benchmarks.generalization.numbers import Table

DRAWS = 1000
FEW = 20  # pairs or networks: with fewer there is no answer


@dataclass(frozen=True)
class Estimate:
    """A correlation with its 95 % bootstrap interval; None where there is too little to say.

    Attributes:
        value: the correlation.
        low: 2.5 % quantile of the bootstrap.
        high: 97.5 % quantile.
        p: two-sided, by the normal approximation with the bootstrap's standard error.
        count: networks or pairs behind it.
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    count: int

    def to_dict(self) -> dict[str, Any]:
        return {k: float(f"{v:.3g}") if isinstance(v, float) else v for k, v in asdict(self).items()}


def estimate(value: float, draws: np.ndarray, count: int) -> Estimate:
    draws = draws[np.isfinite(draws)]
    if count < FEW or not math.isfinite(value) or len(draws) < DRAWS / 2:
        return Estimate(None, None, None, None, count)
    error = float(draws.std())
    p = math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else float(value == 0)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(value), float(low), float(high), p, count)


def pairs(data: Table) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every axis the pairs of networks that differ in nothing else."""
    found = {}
    for axis in data.axes:
        others = [values for name, values in data.axes.items() if name != axis]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for place, key in enumerate(zip(*others, strict=True)):
            groups.setdefault(key, []).append(place)
        both = [(i, j) for group in groups.values() for n, i in enumerate(group) for j in group[n + 1 :]]
        if both:
            first, second = np.array(both).T
            found[axis] = (first, second)
    return found


def granulated(data: Table, predictor: str, target: str, rng: np.random.Generator) -> tuple[Estimate, dict[str, float]]:
    """Kendall's tau within each axis, and Psi, their mean: Jiang et al. 2019, arXiv 1912.02178, section 5.

    tau of an axis is the mean of sign(dx) sign(dy) over the pairs of networks that differ in that axis alone; a tie
    counts 0. The bootstrap is Rubin's (1981): every network gets an exponential weight, a pair the product of both,
    so that pairs which share a network are not taken for independent.
    """
    x, y = data.columns[predictor], data.columns[target]
    weights = rng.exponential(size=(DRAWS, len(data)))
    taus, drawn, count, varies = {}, [], 0, False
    for axis, (i, j) in pairs(data).items():
        known = np.isfinite(x[i]) & np.isfinite(x[j]) & np.isfinite(y[i]) & np.isfinite(y[j])
        if known.sum() < 5:
            continue
        i, j = i[known], j[known]
        varies = varies or bool((x[i] != x[j]).any())
        sign = np.sign(x[j] - x[i]) * np.sign(y[j] - y[i])
        both = weights[:, i] * weights[:, j]
        taus[axis] = float(sign.mean())
        drawn.append(both @ sign / both.sum(1))
        count += len(i)
    if not varies:
        return Estimate(None, None, None, None, count), {}
    return estimate(float(np.mean(list(taus.values()))), np.mean(drawn, axis=0), count), taus


def spearman(data: Table, predictor: str, target: str, rng: np.random.Generator) -> Estimate:
    """Rank correlation over all networks; the bootstrap redraws networks."""
    return correlation(data.columns[predictor], data.columns[target], rng)


def correlation(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> Estimate:
    """Spearman's, over what both know."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < FEW:
        return Estimate(None, None, None, None, len(x))
    places = rng.integers(len(x), size=(DRAWS, len(x)))
    a, b = rankdata(x[places], axis=1), rankdata(y[places], axis=1)
    return estimate(_pearson(rankdata(x), rankdata(y)), _pearson(a, b), len(x))


def _pearson(a: np.ndarray, b: np.ndarray) -> Any:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def kendall(data: Table, predictor: str, target: str) -> float | None:
    """Kendall's tau-b over all networks."""
    x, y = data.columns[predictor], data.columns[target]
    known = np.isfinite(x) & np.isfinite(y)
    found: Any = kendalltau(x[known], y[known])
    tau = float(found.statistic) if known.sum() >= FEW else math.nan
    return round(tau, 4) if math.isfinite(tau) else None


def beyond(data: Table, predictor: str, target: str, given: Sequence[str], rng: np.random.Generator) -> Estimate:
    """Partial rank correlation: what is left of both after every hyper-parameter's value and the ``given`` numbers.

    Ranks are regressed on one indicator a value of each axis (the seed's too) and the ranks of the given columns.
    """
    x, y = data.columns[predictor], data.columns[target]
    known = np.isfinite(x) & np.isfinite(y)
    if known.sum() < 2 * FEW:
        return Estimate(None, None, None, None, int(known.sum()))
    design = [np.ones(known.sum())]
    for values in data.axes.values():
        design += [(values[known] == value).astype(float) for value in np.unique(values[known])[1:]]
    design += [rankdata(data.columns[name][known]) for name in given if name != predictor]
    D, both = np.stack(design, 1), np.stack([rankdata(x[known]), rankdata(y[known])], 1)

    def partial(weights: np.ndarray) -> float:
        root = np.sqrt(weights)[:, None]
        solution = np.linalg.lstsq(D * root, both * root, rcond=None)[0]
        rest = both - D @ solution
        norms = (weights[:, None] * rest**2).sum(0)
        scale = (weights[:, None] * both**2).sum(0)
        if (norms <= 1e-9 * scale).any():  # nothing is left: it is a function of what is known
            return math.nan
        return float((weights * rest[:, 0] * rest[:, 1]).sum() / math.sqrt(norms[0] * norms[1]))

    draws = np.array([partial(rng.exponential(size=len(D))) for _ in range(DRAWS // 5)])
    value = partial(np.ones(len(D)))
    count = len(D) if math.isfinite(value) else 0
    return estimate(value, np.resize(draws, DRAWS), count)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """p-values after Holm's step-down over all that exist: the chance of a single false alarm among them all.

    >>> holm([0.01, None, 0.04])
    [0.02, None, 0.04]
    """
    known = sorted((value, place) for place, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    least = 0.0
    for rank, (value, place) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - rank)))
        adjusted[place] = float(f"{least:.3g}")
    return adjusted
