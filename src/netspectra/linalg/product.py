"""A matrix kept as two thin factors: its singular values and triplets, without ever multiplying them out."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.linalg.matrix import U64, as_matrix, binary_exponent, dtype_name, widen
from netspectra.linalg.operator import LowRank
from netspectra.linalg.spectrum import STORED_EPS, Spectrum
from netspectra.linalg.triangle import svd_bound, triangle

__all__ = ["Factored", "product_svd", "product_svdvals"]


@dataclass(frozen=True, eq=False)
class Factored:
    """scale B A as a linear map: two thin products for every block of vectors."""

    B: Tensor
    A: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse factors that do not fit."""
        if self.B.shape[1] != self.A.shape[0]:
            raise ValueError(f"a product needs fitting shapes, got {tuple(self.B.shape)} and {tuple(self.A.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """The wider of the factors' dtypes."""
        return torch.promote_types(self.B.dtype, self.A.dtype)

    @property
    def device(self) -> torch.device:
        """The factors' device."""
        return self.B.device

    def matmat(self, X: Tensor) -> Tensor:
        """Scale B (A X)."""
        return self.scale * (self.B.to(X.dtype) @ (self.A.to(X.dtype) @ X))

    def rmatmat(self, Y: Tensor) -> Tensor:
        """Scale A^H (B^H Y)."""
        return self.scale * (self.A.to(Y.dtype).mH @ (self.B.to(Y.dtype).mH @ Y))

    def dense(self) -> Tensor:
        """The product itself: m n numbers."""
        return self.scale * (self.B.to(self.dtype) @ self.A.to(self.dtype))


def product_svdvals(
    B: Any, A: Any, scale: float = 1.0, *, device: str | torch.device | None = None
) -> Spectrum:  # fmt: skip
    """The min(m, n, r) singular values of ``scale`` B A that can differ from zero, each with a bound on its error.

    B = Q R and A^H = P T in float64; the values are those of the small core R T^H. With b_j the columns of B and a_j
    the rows of A, each value is within

        u (c_m + c_n + r) sum_j ||b_j|| ||a_j|| + u (8 sqrt(r) + r / 8 + 48) sigma_1,    c_k = 8 sqrt(r) + r / 8 + 48

    of the exact one. Householder QR is backward stable column by column (Higham 2002, theorem 19.4), so the bound does
    not depend on how size is shared between b_j and a_j; the constants are *tested*, as those of `triangle.svd_bound`.
    It is absolute: of factors that cancel, small values are known less well, and ``error`` says so.

    Args:
        B: (m, r), any floating or complex dtype.
        A: (r, n).
        scale: times the product.
        device: where to compute; by default where the factors are.

    Raises:
        NotDecomposable: NaN or Inf in a factor or in the scale, or factors that do not fit.

    Cost: 2 (m + n) r^2 + O(r^3) float64 operations, 24 (m + n) r bytes.

    >>> import torch
    >>> product_svdvals(torch.eye(3, 2), 2.0 * torch.eye(2, 4), scale=0.5).values
    array([1., 1.])
    """
    started = time.perf_counter()
    B, A = as_matrix(B, device), as_matrix(A, device)
    (m, r), n = B.shape, A.shape[1]
    name = max((dtype_name(X.dtype) for X in (B, A)), key=lambda name: STORED_EPS.get(name, 0.0))
    balanced = _balanced(B, A, scale)
    count = min(m, n, r)
    if balanced is None:
        zero = np.zeros(count)
        return Spectrum(zero, (m, n), 0.0, zero.copy(), dtype=name, route="zero" if count else "empty")
    left, right, exponent = balanced
    mass = float((torch.linalg.vector_norm(left, dim=0) * torch.linalg.vector_norm(right, dim=0)).sum())
    core = triangle(left) @ triangle(right).mH
    values = torch.linalg.svdvals(core).cpu().numpy()[:count].copy()
    c = 8 * math.sqrt(r) + r / 8 + 48
    error = np.full(count, U64 * (2 * c + r) * mass + svd_bound(r, float(values[0])))
    factor = abs(float(scale))
    with np.errstate(over="ignore", under="ignore"):
        values, error = np.ldexp(values, exponent) * factor, np.ldexp(error, exponent) * factor * (1 + 4 * U64)
        error = error + 2 * U64 * values + 5e-324  # the scale, and subnormal results
        frobenius2 = float(np.sum(values**2))
    return Spectrum(values, (m, n), frobenius2, error, dtype=name, route="QR of both factors, float64 SVD of the core",
                    seconds=time.perf_counter() - started)  # fmt: skip


def product_svd(
    B: Any, A: Any, scale: float = 1.0, *, k: int | None = None, device: str | torch.device | None = None
) -> LowRank:
    """The leading singular triplets of ``scale`` B A in float64, from the QR of both factors and the SVD of the core.

    Args:
        B: (m, r).
        A: (r, n).
        scale: times the product.
        k: how many triplets; min(m, n, r), beyond which all values are zero, by default and at most.
        device: where to compute; by default where the factors are.

    Raises:
        NotDecomposable: as `product_svdvals`.

    >>> import torch
    >>> f = product_svd(torch.ones(4, 1), torch.ones(1, 3), scale=2.0)
    >>> f.shape, [round(s, 6) for s in f.S.tolist()]
    ((4, 3), [6.928203])
    """
    spectrum = product_svdvals(B, A, scale, device=device)
    B, A = as_matrix(B, device), as_matrix(A, device)
    most = len(spectrum) if k is None else max(0, min(k, len(spectrum)))
    left, right, exponent = _balanced(B, A, scale) or (widen(B), widen(A).mH.contiguous(), 0)
    Q, R = torch.linalg.qr(left)
    P, T = torch.linalg.qr(right)
    U, S, Vh = torch.linalg.svd(R @ T.mH, full_matrices=False)
    U, S, Vh = Q @ U[:, :most], S[:most], Vh[:most] @ P.mH
    top = float(S[0]) if most else 0.0
    residual, orthogonality = 0.0, 0.0
    if top:
        residual = max(
            float(torch.linalg.vector_norm(left @ (right.mH @ Vh.mH) - U * S, dim=0).max()),
            float(torch.linalg.vector_norm(right @ (left.mH @ U) - Vh.mH * S, dim=0).max()),
        ) / top  # fmt: skip
    if most:
        one = torch.eye(most, dtype=U.dtype, device=U.device)
        orthogonality = max(float((U.mH @ U - one).abs().max()), float((Vh @ Vh.mH - one).abs().max()))
    if scale < 0:
        U = -U
    factor = abs(float(scale))
    S = torch.from_numpy(np.ldexp(S.cpu().numpy(), exponent) * factor).to(U.device)
    error = float(spectrum.error.max()) if len(spectrum) else 0.0
    return LowRank(U, S, Vh, spectrum.frobenius2, error, residual, "QR of both factors", orthogonality)


def _balanced(B: Tensor, A: Tensor, scale: float) -> tuple[Tensor, Tensor, int] | None:
    """B D and (D^-1 A)^H in float64 and e with B A = 2^e times their product; None where the product is zero.

    D holds powers of two that give b_j and a_j the same size, largest 1, so nothing over- or underflows on the way.
    """
    if B.shape[1] != A.shape[0]:
        raise NotDecomposable(f"factors of shapes {tuple(B.shape)} and {tuple(A.shape)} do not fit")
    if not math.isfinite(scale):
        raise NotDecomposable("the scale of the factors is NaN or Inf")
    eB, eA = binary_exponent(B), binary_exponent(A)
    if eB is None or eA is None or scale == 0:
        return None
    left, right = widen(B, eB), widen(A, eA).mH.contiguous()
    b, a = _sizes(left), _sizes(right)
    alive = (b > DEAD) & (a > DEAD)
    if not alive.any():
        return None
    total = np.where(alive, b + a, 0)
    top = int(total[alive].max())
    half = (total - top) // 2
    left = _shifted(left, np.where(alive, half - b, DEAD))
    right = _shifted(right, np.where(alive, total - top - half - a, DEAD))
    return left, right, eB + eA + top


DEAD = -(10**6)


def _sizes(X: Tensor) -> np.ndarray:
    """Binary exponent of the largest entry of each column; `DEAD` for a zero column."""
    top = X.abs().amax(dim=0).cpu().numpy()
    return np.where(top > 0, np.frexp(top)[1], DEAD)


def _shifted(X: Tensor, exponents: np.ndarray) -> Tensor:
    """Column j times 2^exponents[j], in two exact steps."""
    first = exponents // 2
    for step in (first, exponents - first):
        X = X * torch.from_numpy(np.ldexp(1.0, np.clip(step, -2000, 1000))).to(X.device)
    return X
