"""The backward-stable route: rows folded into a triangle by QR, then a float64 SVD of the triangle."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.matrix import U64, row_chunks, widen

__all__ = ["leaf_rows", "stable_svdvals", "svd_bound", "triangle"]

PLAIN = 256  # short sides up to this need no QR before the SVD
LARGE = 2048  # short sides from which the copies that `torch.linalg.qr` makes are spared


def triangle(A: Tensor, exponent: int = 0) -> Tensor:
    """A matrix of at most n rows with the singular values of 2^-exponent A, for A of shape (m, n).

    Blocks of `leaf_rows` rows are reduced to triangles, triangles of triangles follow (TSQR: Demmel, Grigori, Hoemmen
    & Langou 2012, doi:10.1137/080731992): no sum is longer than a leaf, so rounding errors of one sign cannot pile up
    over many rows. Large squares are reduced too: on a constant matrix of n = 2048 the SVD alone loses 740 u sigma_1,
    after QR a fraction of it. Small matrices with hardly more rows than columns are returned as they are, in float64.

    Memory beside the input, whatever m: 16 n^2 bytes for large n on the CPU, else up to 60 n^2.
    """
    m, n = A.shape
    if m <= 1.25 * n and n <= PLAIN:
        return widen(A, exponent)
    if n >= LARGE and A.device.type == "cpu":
        return _folded_in_place(A, exponent)
    R: Tensor | None = None
    for chunk in row_chunks(A, at_least=max(n, leaf_rows(n))):
        wide = widen(chunk, exponent)
        R = _folded(wide if R is None else torch.cat([R, wide]))
    assert R is not None
    return R


def leaf_rows(n: int) -> int:
    """Rows of a block that is reduced at once."""
    return max(2 * n, 256)


def _folded(X: Tensor) -> Tensor:
    """Reduce to at most n rows, leaf by leaf."""
    n = X.shape[1]
    leaf = leaf_rows(n)
    while X.shape[0] > leaf:
        whole = X.shape[0] // leaf * leaf
        R = torch.linalg.qr(X[:whole].reshape(-1, leaf, n), mode="r").R
        X = torch.cat([R.reshape(-1, n), X[whole:]])
    return torch.linalg.qr(X, mode="r").R if X.shape[0] > n or n > PLAIN else X


def _folded_in_place(A: Tensor, exponent: int) -> Tensor:
    """As many rows as a leaf has in one piece of memory, over and over: the triangle so far, and rows below it."""
    m, n = A.shape
    dtype = torch.complex128 if A.is_complex() else torch.float64
    X = torch.empty((n, min(m, leaf_rows(n))), dtype=dtype).mT  # columns contiguous, as LAPACK has them
    tau = torch.empty(n, dtype=dtype)
    done = filled = 0
    while done < m:
        for chunk in row_chunks(A[done : done + len(X) - filled]):
            X[filled : filled + len(chunk)] = widen(chunk, exponent)
            filled, done = filled + len(chunk), done + len(chunk)
        X[filled:] = 0
        torch.geqrf(X, out=(X, tau))
        X[:n].triu_()
        filled = n
    return X[:n]


def svd_bound(n: int, top: float) -> float:
    """Absolute error of each singular value of a float64 SVD after QR: u sigma_1 (8 sqrt(n) + n / 8 + 48).

    Householder QR and bidiagonalization are backward stable: the values are those of A + E with ||E|| <= p u sigma_1
    (Golub & Van Loan 2013, ch. 5 and 8). The factor p is *tested* on the zoo, not derived; its linear term stands for
    sums whose rounding errors have one sign, which constant matrices show.
    """
    return (8 * math.sqrt(n) + n / 8 + 48) * U64 * top


def stable_svdvals(A: Tensor, exponent: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of 2^-exponent A (m >= n) and their error bounds, by float64 SVD.

    >>> import torch
    >>> stable_svdvals(torch.diag(torch.tensor([2.0, 1.0])))[0]
    array([2., 1.])
    """
    values = torch.linalg.svdvals(triangle(A, exponent)).cpu().numpy().copy()
    return values, np.full(len(values), svd_bound(A.shape[1], float(values[0])))
