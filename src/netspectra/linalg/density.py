"""How singular values are distributed, for maps that can only be multiplied with: stochastic Lanczos quadrature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from netspectra.linalg.algebra import Transposed
from netspectra.linalg.lanczos import golub_kahan_bidiagonal, random_rows
from netspectra.linalg.operator import LinearOperator

__all__ = ["Density", "spectral_density"]


@dataclass(frozen=True, eq=False)
class Density:
    """An estimated distribution of singular values: weighted points, one set a probe.

    Attributes:
        values: (probes, steps), singular values at which the quadrature puts weight.
        weights: (probes, steps), each row sums to 1.
        count: how many singular values there are in all, min(m, n).
        shape: (m, n).
        seed: of the probes.
    """

    values: np.ndarray
    weights: np.ndarray
    count: int
    shape: tuple[int, int]
    seed: int

    def sum(self, f: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """Estimate of sum_i f(sigma_i), and its standard error over the probes."""
        each = self.count * (self.weights * f(self.values)).sum(axis=1)
        spread = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else float("inf")
        return float(each.mean()), spread

    def below(self, x: float) -> float:
        """Estimated share of the singular values that are at most x."""
        return float((self.weights * (self.values <= x)).sum() / len(self.values))


def spectral_density(A: LinearOperator, *, probes: int = 8, steps: int = 64, seed: int = 0x0DD5) -> Density:
    """Density of the singular values by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    From a random start the Golub-Kahan recurrence gives a bidiagonal matrix whose squared singular values and squared
    first components of right vectors are nodes and weights of a Gauss quadrature of the density. An estimate: exact in
    expectation for polynomials of degree 2 steps - 1 in sigma^2, with a variance that falls as 1 / (probes min(m, n)).
    Probes come from a generator of their own; do not give the seed that the weights were drawn with.

    Reference: doi:10.1137/16M1104974.

    Cost: 2 probes steps products and 4 (m + n) steps^2 probes operations.

    >>> from netspectra.linalg.operator import Dense
    >>> d = spectral_density(Dense(2 * torch.eye(50, dtype=torch.float64)), probes=2, steps=4)
    >>> round(d.sum(lambda s: s**2)[0], 6), d.below(1.9), d.below(2.1)
    (200.0, 0.0, 1.0)
    """
    m, n = A.shape
    if m < n:
        short = spectral_density(Transposed(A), probes=probes, steps=steps, seed=seed)
        return Density(short.values, short.weights, short.count, (m, n), seed)
    steps = min(steps, n)
    values, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    for i, start in enumerate(random_rows(probes, n, seed, A.dtype, A.device)):
        B = golub_kahan_bidiagonal(A, steps, start)
        _, s, Qh = torch.linalg.svd(B)
        values[i, : len(s)], weights[i, : len(s)] = s.numpy(), Qh[:, 0].abs().square().numpy()
    return Density(values, weights, n, (m, n), seed)
