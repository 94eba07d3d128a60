"""The best approximations of a matrix where errors are weighed by what enters and by what the output is worth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from netspectra.linalg.lanczos import random_rows
from netspectra.linalg.moments import root

__all__ = ["leading", "projected", "weighed"]

TALL = 3  # from this ratio of the sides on, a QR factorization first is cheaper
LARGE = 2048  # smaller side from which on leading directions are found by products
BLOCKS, SPARE = 8, 8  # of a block Krylov space: how many blocks, and vectors in each beyond those that are wanted


def projected(W: Tensor, L: Tensor | None, R: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Minimise ||L^T (W - W') R||_F for every rank r at once.

        M = L^T W R = U S V^T,    W'_r = (L^T)^+ U_r U_r^T L^T W,    squared error sum_{i > r} s_i^2

    A projection: R is never inverted, so singular moments are harmless; with L square and regular
    the error is the Eckart-Young optimum, for a singular L too (directions it does not see cost nothing).

    Args:
        W: (m, n), float64.
        L: (m, m) lower triangular and regular, or with orthogonal columns, as `netspectra.linalg.moments.root` gives;
            (m,) a diagonal; None: identity.
        R: (n, n), or (n,) a diagonal; None: identity.

    Returns:
        left (m, k), right (k, n), k = min(m, n), and s (k,), descending; W'_r = left[:, :r] @ right[:r]. Column i of
        left and row i of right have equal norms.

    Reference: Eckart & Young 1936; the projection form follows Wang et al. 2024 (SVD-LLM, arXiv:2403.07378) without
    its inverse. Cost: one SVD of an m x n matrix.

    >>> W, R = torch.diag(torch.tensor([3.0, 1.0]).double()), torch.tensor([1.0, 9.0]).double()
    >>> left, right, s = projected(W, None, R)
    >>> s.tolist(), (left[:, :1] @ right[:1]).abs().round().tolist()
    ([9.0, 3.0], [[0.0, 0.0], [0.0, 1.0]])
    """
    LW = _before(L if L is None or L.dim() == 1 else L.mT, W)
    M = _after(LW, R)
    m, n = M.shape
    if n > TALL * m:
        triangle = torch.linalg.qr(M.mT, mode="r").R
        U, s, _ = torch.linalg.svd(triangle.mT, full_matrices=False)
    else:
        U, s, _ = torch.linalg.svd(M, full_matrices=False)
    right = U.mT @ LW
    left = U if L is None else _pseudo_inverse(L, U)
    return (*_balanced(left, right), s)


def _before(G: Tensor | None, X: Tensor) -> Tensor:
    """G X, for a G that may be a diagonal, or the identity."""
    return X if G is None else G[:, None] * X if G.dim() == 1 else G @ X


def _after(X: Tensor, A: Tensor | None) -> Tensor:
    """X A, the same way."""
    return X if A is None else X * A if A.dim() == 1 else X @ A


def weighed(E: Tensor, A: Tensor | None, G: Tensor | None) -> float:
    """tr(G E A E^T): what an error is worth; A and G as for `leading`."""
    return max(float((_before(G, E) * _after(E, A)).sum()), 0.0)  # below it by rounding alone


def _balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, column i of left and row i of right with equal norms."""
    balance = (torch.linalg.vector_norm(right, dim=1) / torch.linalg.vector_norm(left, dim=0)).sqrt()
    balance = torch.where((balance > 0) & balance.isfinite(), balance, torch.ones_like(balance))
    return left * balance, right / balance[:, None]


def _pseudo_inverse(L: Tensor, U: Tensor) -> Tensor:
    """(L^T)^+ U: for a regular triangle solved, for orthogonal columns V diag(l): V diag(1 / l) U, l not zero."""
    if L.dim() == 1:
        return torch.where(L > 0, 1 / L, torch.zeros_like(L))[:, None] * U
    if bool((L.diagonal() != 0).all()) and torch.equal(L, L.tril()):
        return torch.linalg.solve_triangular(L.mT, U, upper=True)
    lengths = L.square().sum(0)
    floor = lengths.max() * torch.finfo(L.dtype).eps
    return L @ (torch.where(lengths > floor, 1 / lengths, torch.zeros_like(lengths))[:, None] * U)


def leading(E: Tensor, A: Tensor | None, G: Tensor | None, rank: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """The best approximations of a matrix of small rank in tr(G E A E^T), by one symmetric eigenproblem.

        K = L^T E A E^T L = U S^2 U^T,  G = L L^T,    E_r = (L^T)^+ U_r U_r^T L^T E

    The same optimum as `projected`, for the first few ranks only: the root of the smaller side's moment and the
    eigenvectors of a matrix of that side, where a singular value decomposition would need both roots. Where that side
    is `LARGE` or more and the rank small, U is found in a block Krylov space of K instead: s^2 is what each direction
    does take of the error, so that what is left is known as exactly, and falls short of the optimum by little.

    Args:
        E: (m, n), float64.
        A: (n, n), or (n,) a diagonal; None: identity.
        G: (m, m), or (m,) a diagonal; None: identity.
        rank: how many.

    Returns:
        left (m, r), right (r, n), squared values s^2 (r,) descending, and the whole tr(G E A E^T).

    Reference: Zhang et al. 2024 (QERA, arXiv:2410.06040), here with both sides; Musco & Musco 2015 (block Krylov,
    arXiv:1504.05477). Cost for m <= n: 2 n^2 m + 2 m^2 n + 4 m^3 and an eigenproblem; of large sides 2 n^2 m + 2 m^2 n.
    """
    m, n = E.shape
    if m > n:
        right, left, s, whole = leading(E.mT, G, A, rank)
        return left.mT, right.mT, s, whole
    L = None if G is None else root(G)
    LT = L if L is None or L.dim() == 1 else L.mT
    EA = _after(E, A)
    rank = min(rank, m)
    if m >= LARGE and BLOCKS * (rank + SPARE) <= m // 4:
        U, s = _krylov(lambda X: _before(LT, EA @ (E.mT @ _before(L, X))), E, rank)
        whole = float((_before(G, E) * EA).sum())
    else:
        inner = _after(_before(LT, EA @ E.mT), L)
        values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
        U, s = vectors.flip(1)[:, :rank], values.flip(0)[:rank].clamp_min(0)
        whole = float(inner.diagonal().sum())
    left, right = _balanced(U if L is None else _pseudo_inverse(L, U), _before(L, U).mT @ E)
    return left, right, s, whole


def _krylov(K: Callable[[Tensor], Tensor], like: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvectors (m, r) and values of a symmetric positive semidefinite map, by Rayleigh and Ritz.

    Args:
        K: the map, of (m, b).
        like: (m, n), of the same side, dtype and device.
        rank: r.
    """
    block = K(random_rows(rank + SPARE, like.shape[0], 0, like.dtype, like.device).mT)
    basis = like.new_empty(like.shape[0], 0)
    products = basis
    for _ in range(BLOCKS):
        # of all, so that what is only noise beside the basis becomes orthogonal to it, too
        block = torch.linalg.qr(torch.cat([basis, block], 1)).Q[:, basis.shape[1] :]
        basis, block = torch.cat([basis, block], 1), K(block)
        products = torch.cat([products, block], 1)
    small = basis.mT @ products
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    return basis @ vectors.flip(1)[:, :rank], values.flip(0)[:rank].clamp_min(0)
