"""Squared singular values from the float64 Gram matrix of the short side, and how far they may be off."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.lapack import gram_update_
from netspectra.linalg.matrix import U64, wide_chunks

__all__ = ["eigenvalue_bound", "eigenvalues", "gram", "gram_spectrum", "reducible", "square"]

REDUCED_FROM = 96  # below, numpy needs fewer calls
REDUCED_UP_TO = {False: 2304, True: 1024}  # real, complex: beyond, torch's reduction is faster, vectors or not


def gram(A: Tensor, exponent: int = 0) -> Tensor:
    """Lower triangle of (2^-exponent A)^H (2^-exponent A) in float64; what stands above the diagonal is undefined.

    Row chunks are widened one at a time, and on the CPU only the lower triangle is computed: half the work of a
    general product, 8 n^2 bytes and one chunk beside the input.

    Args:
        A: (m, n), any float dtype.
        exponent: the power of two to divide by.

    >>> import torch
    >>> gram(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).tril()
    tensor([[ 1.,  0.],
            [ 2., 13.]], dtype=torch.float64)
    """
    n = A.shape[1]
    total = torch.zeros((n, n), dtype=torch.complex128 if A.is_complex() else torch.float64, device=A.device)
    first = True
    for wide in wide_chunks(A, exponent):
        if total.device.type == "cpu":
            gram_update_(total.numpy(), wide.numpy(), add=not first)
        else:
            total.addmm_(wide.mH, wide)
        first = False
    return total


def reducible(G: Tensor) -> bool:
    """Whether `lapack.tridiagonal_` is the fastest way to the eigenvalues."""
    return G.device.type == "cpu" and REDUCED_FROM <= len(G) <= REDUCED_UP_TO[G.is_complex()]


def square(X: Tensor) -> Tensor:
    """X^H X; on the CPU by numpy, which recognises the symmetry of a real product and does half the work."""
    if X.device.type != "cpu" or X.is_complex():
        return X.mH @ X
    x = X.numpy()
    return torch.from_numpy(x.T @ x)


def eigenvalues(G: Tensor) -> np.ndarray:
    """Eigenvalues of a Hermitian matrix held in its lower triangle, descending, by whichever library is faster."""
    if G.device.type == "cpu" and len(G) < REDUCED_FROM:
        return np.linalg.eigvalsh(G.numpy())[::-1].copy()
    return torch.linalg.eigvalsh(G).cpu().numpy()[::-1].copy()


def eigenvalue_bound(m: int, n: int, top: np.ndarray | float, frobenius2: np.ndarray | float) -> np.ndarray | float:
    """How far an eigenvalue of the computed Gram matrix may be from the squared singular value.

        delta = u ((12 sqrt(n) + 64 + m / 256) lambda_1 + 2 ||A||_F^2),    u = 2^-53

    A *tested bound*: its form is derived, its constants are not. Forming the Gram matrix is off by at most
    K u || |A|^T |A| || <= K u ||A||_F^2 with K the length of a sum (Higham 2002, section 3.5); rounding errors of
    independent sign leave a small constant for K, and where they conspire (entries of few distinct values) up to 2.3
    was seen of || |A|^T |A| ||. Sums over m rows are formed in blocks of at least 256, and adding block after block
    loses at most u of the sum each time. The tridiagonal eigensolver is backward stable; 2 sqrt(n) was seen.

    >>> eigenvalue_bound(1024, 1024, 1.0, 64.0) < 7e-14
    True
    """
    return ((12 * math.sqrt(n) + 64 + m / 256) * top + 2 * frobenius2) * U64


def gram_spectrum(
    m: int, n: int, lam: np.ndarray, frobenius2: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values, their error bounds and delta, from eigenvalues in descending order; of a batch in its last axis.

    If |lambda - sigma^2| <= delta then |sqrt(lambda) - sigma| <= min(delta / sqrt(lambda), sqrt(delta)); and where
    lambda > delta, sqrt(lambda) - sqrt(lambda - delta) is sharper, close to delta / (2 sigma).
    """
    delta = np.asarray(eigenvalue_bound(m, n, lam[..., 0], frobenius2))
    d = delta[..., None]
    kept = np.maximum(lam, 0.0)
    values = np.sqrt(kept)
    below = values + np.sqrt(np.maximum(kept - d, 0.0))
    error = np.where(lam > d, d / np.where(lam > d, below, 1.0), np.sqrt(2 * d))
    return values, error + 4 * U64 * values, delta
