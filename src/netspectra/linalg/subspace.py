"""Ways to the leading singular subspace of a tall dense matrix; each answers only if its residual holds."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from netspectra.linalg.lanczos import golub_kahan, random_rows
from netspectra.linalg.operator import Dense

__all__ = [
    "OVERSAMPLE",
    "Factors",
    "by_full",
    "by_gram",
    "by_krylov",
    "by_lanczos",
    "by_randomized",
    "quality",
    "rayleigh_ritz",
]

Factors = tuple[Tensor, Tensor, Tensor]  # U (m, k), S (k,), Vh (k, n)
OVERSAMPLE = 8
POLISHES = 4
EFFORTS = (2, 4, 8, 16)  # power iterations tried one after another


def quality(X: Tensor, found: Factors) -> tuple[float, float]:
    """Residual relative to the largest value, and departure from orthogonality.

    >>> quality(torch.eye(3), by_full(torch.eye(3), 2))
    (0.0, 0.0)
    """
    U, S, Vh = found
    if len(S) == 0 or float(S[0]) == 0.0:
        return 0.0, _departure(U, Vh)
    right = torch.linalg.vector_norm(X @ Vh.mH - U * S, dim=0).max()
    left = torch.linalg.vector_norm(U.mH @ X - S[:, None] * Vh, dim=1).max()
    return float(torch.maximum(right, left) / S[0]), _departure(U, Vh)


def _departure(U: Tensor, Vh: Tensor) -> float:
    k = U.shape[1]
    if k == 0:
        return 0.0
    one = torch.eye(k, dtype=U.dtype, device=U.device)
    return max(float((U.mH @ U - one).abs().max()), float((Vh @ Vh.mH - one).abs().max()))


def by_full(X: Tensor, k: int) -> Factors:
    """Full SVD (divide and conquer), cut to k."""
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    return (U, S, Vh) if k == len(S) else (U[:, :k].contiguous(), S[:k].clone(), Vh[:k].contiguous())


def by_lanczos(X: Tensor, k: int, tolerance: float, seed: int) -> Factors | None:
    """Golub-Kahan-Lanczos with full reorthogonalization."""
    found = golub_kahan(Dense(X), k, tolerance=0.3 * tolerance, seed=seed)
    if not found.converged:
        return None
    factors = found.U, found.S.to(found.U.real.dtype), found.Vh
    return factors if quality(X, factors)[0] <= tolerance else None


def rayleigh_ritz(X: Tensor, V: Tensor, k: int) -> Factors:
    """The best k triplets whose right vectors lie in the span of the orthonormal columns of V."""
    Q, R = torch.linalg.qr(X @ V)
    W, S, Zh = torch.linalg.svd(R)
    return Q @ W[:, :k], S[:k].clone(), Zh[:k] @ V.mH


def by_gram(X: Tensor, k: int, tolerance: float, *, wide: bool = False) -> Factors | None:
    """Leading eigenvectors of X^H X, then Rayleigh-Ritz in X; polished by power iterations if need be."""
    n = X.shape[1]
    width = min(n, k + OVERSAMPLE)
    G = X.to(torch.float64 if not X.is_complex() else torch.complex128) if wide else X
    G = G.mH @ G
    if G.device.type == "cpu":
        subset = (n - width, n - 1)
        _, vectors = scipy.linalg.eigh(G.numpy(), subset_by_index=subset, driver="evr", check_finite=False)
        V = torch.from_numpy(np.ascontiguousarray(vectors[:, ::-1]))
    else:
        V = torch.linalg.eigh(G).eigenvectors[:, -width:].flip(1)
    return _polished(X, V.to(X.dtype), k, tolerance, POLISHES)


def _polished(X: Tensor, V: Tensor, k: int, tolerance: float, rounds: int) -> Factors | None:
    """Rayleigh-Ritz, with power iterations between, until the residual holds."""
    for _ in range(rounds):
        V = torch.linalg.qr(V).Q
        found = rayleigh_ritz(X, V, k)
        if quality(X, found)[0] <= tolerance:
            return found
        V = X.mH @ torch.linalg.qr(X @ V).Q
    return None


def by_randomized(X: Tensor, k: int, tolerance: float, seed: int) -> Factors | None:
    """Randomized range finder with power iterations (Halko, Martinsson & Tropp 2011), more until the residual holds."""
    n = X.shape[1]
    V = random_rows(min(n, k + OVERSAMPLE), n, seed, X.dtype, X.device).mH
    done = 0
    for effort in EFFORTS:
        for _ in range(effort - done):
            Q = torch.linalg.qr(X @ V).Q
            V = torch.linalg.qr(X.mH @ Q).Q
        done = effort
        found = rayleigh_ritz(X, V, k)
        if quality(X, found)[0] <= tolerance:
            return found
    return None


def by_krylov(X: Tensor, k: int, tolerance: float, seed: int) -> Factors | None:
    """Randomized block Krylov (Musco & Musco 2015), longer until the residual holds or the space is full."""
    n = X.shape[1]
    V = torch.linalg.qr(random_rows(min(n, k + OVERSAMPLE), n, seed, X.dtype, X.device).mH).Q
    basis = V
    for depth in range(1, EFFORTS[-1] + 1):
        V = X.mH @ (X @ V)
        for _ in range(2):
            V = V - basis @ (basis.mH @ V)
            V = torch.linalg.qr(V).Q
        basis = torch.cat([basis, V], dim=1)
        if basis.shape[1] > n:
            return None
        if depth in EFFORTS:
            found = rayleigh_ritz(X, torch.linalg.qr(basis).Q, k)
            if quality(X, found)[0] <= tolerance:
                return found
    return None
