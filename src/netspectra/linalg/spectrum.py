"""What is known of a matrix's singular values, and how well."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np

__all__ = ["STORED_EPS", "How", "Spectrum", "rounding_floor"]

How = Literal["exact", "partial", "estimated"]

# Distance from 1 to the next number, by the name of the dtype a weight is stored in.
STORED_EPS: dict[str, float] = {
    "float64": 2.0**-52,
    "float32": 2.0**-23,
    "float16": 2.0**-10,
    "bfloat16": 2.0**-7,
    "float8_e4m3fn": 2.0**-3,
    "float8_e4m3fnuz": 2.0**-3,
    "float8_e5m2": 2.0**-2,
    "float8_e5m2fnuz": 2.0**-2,
    "complex128": 2.0**-52,
    "complex64": 2.0**-23,
    "complex32": 2.0**-10,
}


def rounding_floor(frobenius2: float, shape: tuple[int, int], dtype: str) -> float:
    """Size of the singular values that storing a matrix in ``dtype`` alone would produce.

    Rounding to ``t`` bits adds a matrix of nearly independent relative errors of standard deviation about
    0.21 eps, whose spectral norm is that of a random matrix:

        floor = 0.21 eps (||W||_F / sqrt(m n)) (sqrt m + sqrt n)

    Values at or below the floor cannot be told from zero. The factor 0.21 is empirical: 0.211 to 0.212 was measured
    on Gaussian matrices in bf16, fp16 and fp8.

    Args:
        frobenius2: squared Frobenius norm, in units of sigma squared.
        shape: (m, n).
        dtype: name of the dtype the weight is stored in; integers and unknown names count as exact (floor 0).

    >>> f"{rounding_floor(1024.0 * 1024.0, (1024, 1024), 'bfloat16'):.3f}"
    '0.105'
    """
    m, n = shape
    if m == 0 or n == 0:
        return 0.0
    return 0.21 * STORED_EPS.get(dtype, 0.0) * float(np.sqrt(frobenius2 / (m * n)) * (np.sqrt(m) + np.sqrt(n)))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one m x n matrix, in descending order, each with a bound on its error.

    Attributes:
        values: float64, descending, at most min(m, n) of them.
        shape: (m, n) of the matrix.
        frobenius2: the sum of *all* squared singular values, so that a partial spectrum knows what it lacks.
        how: ``exact`` (every value, to ``error``), ``partial`` (the leading values), ``estimated``.
        error: absolute bound on the error of each value, in units of sigma; one per value.
        dtype: name of the dtype the matrix is stored in; decides the rounding floor.
        route: the algorithm that answered.
        blocks: of how many diagonal blocks the matrix is made (grouped convolutions); 1 for one whole matrix.
        seconds: what it took; never exported.
    """

    values: np.ndarray
    shape: tuple[int, int]
    frobenius2: float
    error: np.ndarray
    how: How = "exact"
    dtype: str = "float64"
    route: str = ""
    blocks: int = 1
    seconds: float = field(default=0.0, compare=False)

    def __len__(self) -> int:
        """Count the known values."""
        return len(self.values)

    @property
    def sigma_max(self) -> float:
        """Largest singular value, the spectral norm; 0 for an empty matrix."""
        return float(self.values[0]) if len(self.values) else 0.0

    @cached_property
    def energies(self) -> np.ndarray:
        """Squared singular values."""
        return self.values**2

    @cached_property
    def floor(self) -> float:
        """Size below which a value cannot be told from the rounding of the stored dtype (see `rounding_floor`)."""
        if not self.complete or self.sigma_max == 0:
            return rounding_floor(self.frobenius2, self.shape, self.dtype)
        return self.sigma_max * rounding_floor(self.relative_energy, self.shape, self.dtype)

    @cached_property
    def relative_energy(self) -> float:
        """Sum of lambda over lambda_1, which neither over- nor underflows where the values are all known."""
        if self.complete:
            return float(np.sum((self.values / self.sigma_max) ** 2))
        return self.frobenius2 / self.sigma_max**2

    @property
    def complete(self) -> bool:
        """Whether every singular value is known."""
        return self.how == "exact"

    def scaled(self, factor: float) -> Spectrum:
        """Spectrum of ``factor`` times the matrix."""
        c = abs(factor)
        return replace(self, values=self.values * c, error=self.error * c, frobenius2=self.frobenius2 * c * c)

    def __repr__(self) -> str:
        """Say the essentials in one line."""
        m, n = self.shape
        span = f"{self.values[0]:.6g} .. {self.values[-1]:.3g}" if len(self.values) else "empty"
        worst = f", error <= {self.error.max():.1e}" if len(self.values) else ""
        return f"Spectrum({len(self.values)} values of {m} x {n}, {span}, {self.how}{worst})"
