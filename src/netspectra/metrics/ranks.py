"""How many directions: ranks by magnitude, by entropy and by energy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import Function, metric
from netspectra.record import Value


@metric(
    "Stable rank",
    formula="Σ λ / λ₁ = ‖W‖_F² / ‖W‖₂²",
    range="1 ... M",
    reference="Rudelson & Vershynin 2007, J. ACM 54(4), arXiv math/0503442",
    degree=0,
    needs="leading",
)
def stable_rank(s: Spectrum) -> float:
    """Number of directions as strong as the strongest that would hold all the energy; unmoved by tiny values."""
    return s.relative_energy if s.sigma_max > 0 else Value.unknown("the matrix is zero")


@metric(
    "Effective rank",
    formula="exp(−Σ p ln p), p = σ / Σ σ",
    range="1 ... M",
    reference="Roy & Vetterli 2007, EUSIPCO",
    degree=0,
)
def effective_rank(s: Spectrum) -> float:
    """Number of directions in use, by the entropy of the singular values: high when the spectrum is flat."""
    p = s.values / s.values.sum() if s.sigma_max > 0 else s.values[:0]
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p)))) if len(p) else Value.unknown("the matrix is zero")


@metric(
    "Participation ratio",
    formula="(Σ λ)² / Σ λ²",
    range="1 ... M",
    reference="Gao et al. 2017, bioRxiv 214262",
    degree=0,
)
def participation_ratio(s: Spectrum) -> float:
    """Number of directions that carry the energy, by its second moment: between stable and effective rank."""
    if s.sigma_max == 0:
        return Value.unknown("the matrix is zero")
    lam = (s.values / s.sigma_max) ** 2
    return float(lam.sum() ** 2 / np.sum(lam**2))


@metric(
    "Numerical rank",
    formula="#{σ > 0.21 ε ‖W‖_F (√m + √n) / √(mn) + error}",
    range="0 ... M",
    reference="netspectra.linalg.spectrum.rounding_floor; Stewart & Sun 1990 for the perturbation bound",
    degree=0,
)
def numerical_rank(s: Spectrum) -> float:
    """Number of singular values that rounding to the stored dtype cannot have made by itself.

    The floor is the norm of a random rounding error, not eps N sigma_1: that common rule calls every bf16 matrix
    rank 0.
    """
    return float(np.count_nonzero(s.values > s.floor + s.error))


def _energy_rank(s: Spectrum, share: float) -> float:
    if s.sigma_max == 0:
        return Value.unknown("the matrix is zero")
    lam = (s.values / s.sigma_max) ** 2
    cumulative = np.cumsum(lam)
    return float(np.searchsorted(cumulative, share * cumulative[-1] * (1 - 1e-12)) + 1)


def _energy(percent: int) -> Callable[[Function], Function]:
    return metric(
        f"Rank for {percent} % of the energy",
        formula=f"min k: Σ_{{i≤k}} λ ≥ {percent / 100:g} Σ λ",
        range="1 ... M",
        reference="Eckart & Young 1936, Psychometrika 1; Jolliffe 2002, Principal Component Analysis, 6.1.1",
        degree=0,
    )


@_energy(50)
def k50(s: Spectrum) -> float:
    """Smallest rank that keeps half of the energy; the rest leaves a relative error of 0.707."""
    return _energy_rank(s, 0.5)


@_energy(90)
def k90(s: Spectrum) -> float:
    """Smallest rank that keeps nine tenths of the energy; the rest leaves a relative error of 0.316."""
    return _energy_rank(s, 0.9)


@_energy(99)
def k99(s: Spectrum) -> float:
    """Smallest rank that keeps 99 % of the energy; the rest leaves a relative error of 0.1."""
    return _energy_rank(s, 0.99)


def relative_error(s: Spectrum, k: int) -> float:
    """Relative error of the best rank-k approximation, ||W - W_k||_F / ||W||_F = sqrt(sum_{i>k} lambda / sum lambda).

    Source: Eckart & Young 1936. Summed from the tail, so that a small error is not lost to cancellation.

    >>> import torch
    >>> from netspectra.linalg.values import svdvals
    >>> f"{relative_error(svdvals(torch.diag(torch.tensor([4.0, 3.0]))), 1):.1f}"
    '0.6'
    """
    if s.sigma_max == 0:
        return 0.0
    scaled = s.values / s.sigma_max
    return float(np.sqrt(np.sum(scaled[k:][::-1] ** 2) / np.sum(scaled[::-1] ** 2)))
