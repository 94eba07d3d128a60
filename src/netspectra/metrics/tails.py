"""The tail: whether the large singular values fall like a power, how steeply, and how sure that is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import metric
from netspectra.metrics.alternatives import compare_laws
from netspectra.metrics.pareto import Tail, draw_like, fit_tail
from netspectra.record import Value

__all__ = ["ENOUGH", "alpha", "hill_exponent"]

ENOUGH = 20  # fewer values than these make no tail
WIDTH = 2.5  # standard errors: 95 % coverage with a chosen xmin, where 1.96 cover 90 %
BOOTSTRAPS = 200
MARTIN = "Martin & Mahoney 2021, JMLR 22, arXiv 1810.01075; 2021, Nat. Commun. 12, arXiv 2002.06716"


@metric(
    "Tail exponent",
    formula="α̂ = 1 + k / Σ_{λ ≥ λ_min} ln(λ / λ_min), λ_min of least Kolmogorov-Smirnov distance",
    range="> 1",
    reference="Clauset, Shalizi & Newman 2009, SIAM Review 51(4), arXiv 0706.1062",
    degree=0,
    interval=True,
)
def alpha(s: Spectrum, rng: np.random.Generator | None = None) -> Value:
    """How steeply the largest λ fall, as a power; smaller is heavier. Without its interval it says little.

    Every λ above the rounding floor is tried as the tail's beginning, exactly (`fit_tail`). ``low`` and ``high`` are a
    95 % interval: alpha -+ 2.5 (alpha - 1) / sqrt(k), the asymptotic standard error widened for the choice of
    lambda_min (1.96 of them hold the true exponent of planted Pareto tails in 90 % of the cases only). Thorough, the
    interval is widened to the 2.5 and 97.5 % quantiles of 200 bootstrap refits where these lie outside, ``p`` is the
    share of 200 samples of the fitted law (semi-parametric bootstrap, refitted) that lie at least as far from it as
    the data (below 0.1 the tail is no power law; standard error at most 0.035), and other laws are compared. All of
    this takes the values for independent draws, which eigenvalues are not. Unknown below 20 values in the tail.

    Cost: 1 to 8 ms for 4096 values; thorough some 400 times that.

    >>> from netspectra.linalg.svd import svdvals
    >>> found = alpha(svdvals(np.diag(np.arange(1, 401) ** -0.25)))  # lambda_i ~ i^(-1/2): alpha = 3
    >>> round(found, 1), found.detail["tail"], found.low < 3 < found.high
    (3.0, 400, True)
    """
    if s.sigma_max == 0:
        return _unknown("the matrix is zero", None, s)
    lam = _energies(s)
    if len(lam) < ENOUGH:
        return _unknown(f"only {len(lam)} values above the rounding floor, a tail needs {ENOUGH}", None, s)
    tail = _fitted(s)
    if tail is None:
        return _unknown("all values are equal: there is no tail", None, s)
    if tail.size < ENOUGH:
        return _unknown(f"only {tail.size} values in the best tail, {ENOUGH} are needed", tail, s)
    error = tail.standard_error
    low, high = tail.alpha - WIDTH * error, tail.alpha + WIDTH * error
    more: dict[str, Any] = {"interval": "95 %, asymptotic, widened for the choice of xmin"}
    p = None
    if rng is not None:
        refits = [fit_tail(rng.choice(lam, len(lam))) for _ in range(BOOTSTRAPS)]
        quantiles = np.quantile([refit.alpha for refit in refits if refit is not None], [0.025, 0.975])
        low, high = min(low, float(quantiles[0])), max(high, float(quantiles[1]))
        p = _goodness(tail, lam, rng)
        more = {
            "interval": "95 %, the wider of asymptotic and bootstrap",
            "draws": BOOTSTRAPS,
            "against": compare_laws(lam[lam >= tail.xmin], tail.xmin, tail.alpha),
        }
    return Value(tail.alpha, low=max(low, 1.0), high=high, detail={**_told(tail, p, s), **more})


def _goodness(tail: Tail, lam: np.ndarray, rng: np.random.Generator) -> float:
    """Share of samples of the fitted law that are at least as far from their own fit as the data."""
    refits = [fit_tail(draw_like(tail, lam, rng)) for _ in range(BOOTSTRAPS)]
    return float(np.mean([refit is None or refit.distance >= tail.distance for refit in refits]))


def _told(tail: Tail | None, p: float | None, s: Spectrum) -> dict[str, Any]:
    """The detail of alpha; xmin in units of lambda."""
    if tail is None:
        return {"tail": 0, "p": None}
    return {
        "tail": tail.size,
        "p": p,
        "xmin": tail.xmin * s.sigma_max * s.sigma_max,  # may be inf; a power would raise
        "distance": tail.distance,
        "standard_error": tail.standard_error,
    }


def _unknown(why: str, tail: Tail | None, s: Spectrum) -> Value:
    return Value(float("nan"), note=why, detail=_told(tail, None, s))


@lru_cache(maxsize=16)
def _energies(s: Spectrum) -> np.ndarray:
    """Every lambda above the rounding floor, in units of the largest."""
    kept = s.values[s.values > s.floor + s.error]
    return (kept / s.sigma_max) ** 2


@lru_cache(maxsize=16)
def _fitted(s: Spectrum) -> Tail | None:
    return fit_tail(_energies(s))


def hill_exponent(lam: np.ndarray) -> Value:
    """Hill's estimate over the upper half of ``lam``, descending: 1 + k / sum ln(lambda_i / lambda_k).

    ``low`` and ``high`` are alpha -+ 1.96 (alpha - 1) / sqrt(k).

    Source: Hill 1975, Ann. Statist. 3(5).
    """
    if len(lam) < ENOUGH:
        return Value.unknown(f"only {len(lam)} values, {ENOUGH} are needed")
    k = len(lam) // 2
    summed = float(np.log(lam[:k] / lam[k - 1]).sum()) if lam[k - 1] > 0 else 0.0
    if summed <= 0:
        return Value.unknown("the upper half of the values is flat or zero")
    found = 1 + k / summed
    error = 1.96 * (found - 1) / k**0.5
    return Value(found, low=found - error, high=found + error)


@metric(
    "Hill exponent of the upper half",
    formula="1 + k / Σ_{i≤k} ln(λ_i / λ_k), k = M / 2",
    range="> 1",
    reference="Hill 1975, Ann. Statist. 3(5); noise of aspect Q = 1, 2, 4, 8, 16 has 2.12, 2.71, 3.45, 4.47, 5.88",
    degree=0,
)
def hill_alpha(s: Spectrum) -> float:
    """The fall of the upper half of λ, as a power: steadier than α̂, but a measure of shape as much as of learning.

    Noise alone gives 2.12 for a square matrix and 5.88 at an aspect of 16: compare layers of one shape, or take
    ``farms_alpha``. Unknown below 20 values, or where the middle value is below the rounding floor.

    >>> from netspectra.linalg.svd import svdvals
    >>> round(hill_alpha(svdvals(np.random.default_rng(0).standard_normal((400, 400)))), 1)
    2.1
    """
    if len(s) >= ENOUGH and s.values[len(s) // 2 - 1] <= s.floor:
        return Value.unknown("the middle value is below the rounding floor")
    return hill_exponent((s.values / (s.sigma_max or 1.0)) ** 2)


@metric("α-hat", formula="α̂ log₁₀ λ₁", range="real", reference=MARTIN, degree=None)
def alpha_hat(s: Spectrum) -> Value:
    """The tail exponent weighted by the layer's scale; of use between models of one family only."""
    found = alpha(s)
    return Value(found * 2 * np.log10(s.sigma_max)) if found.known else _without(found)


@metric("log α-norm", formula="log₁₀ Σ λ^α̂", range="real", reference=MARTIN, degree=None)
def log_alpha_norm(s: Spectrum) -> Value:
    """Logarithm of the Schatten norm at the layer's own tail exponent; close to α-hat where one λ dominates."""
    found = alpha(s)
    if not found.known:
        return _without(found)
    whole = np.log10(np.sum((s.values / s.sigma_max) ** (2 * float(found))))
    return Value(found * 2 * np.log10(s.sigma_max) + whole)


def _without(found: Value) -> Value:
    return Value.unknown(f"alpha is unknown: {found.note}")


@metric(
    "ERG gap",
    formula="max k: Σ_{i≤k} ln λ̃_i ≥ 0, minus the tail of α̂; λ̃ = M λ / Σ λ",
    range="-M ... M",
    reference="Martin & Hinrichs 2025, SETOL, arXiv 2507.17912",
    degree=0,
)
def erg_gap(s: Spectrum) -> Value:
    """By how many values the tail whose λ, scaled to mean 1, have a product of 1 exceeds the power-law tail.

    A hypothesis: near 0 in well-trained layers. Unknown where the tail is.
    """
    found = alpha(s)
    if not found.known:
        return _without(found)
    lam = (s.values / s.sigma_max) ** 2
    with np.errstate(divide="ignore"):
        volume = np.cumsum(np.log(lam * (len(lam) / lam.sum())))
    kept = int(np.count_nonzero(volume >= 0))  # it rises, then falls: above 0 until it crosses, once
    tail = found.detail["tail"]
    return Value(float(kept - tail), detail={"tail": tail, "erg_tail": kept})
