"""The best approximations of a matrix where errors are weighed by what enters and by what the output is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from netspectra.linalg.moments import root

__all__ = ["leading", "projected"]

TALL = 3  # from this ratio of the sides on, a QR factorization first is cheaper


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
    LW = W if L is None else L[:, None] * W if L.dim() == 1 else L.mT @ W
    M = LW if R is None else LW * R if R.dim() == 1 else LW @ R
    m, n = M.shape
    if n > TALL * m:
        triangle = torch.linalg.qr(M.mT, mode="r").R
        U, s, _ = torch.linalg.svd(triangle.mT, full_matrices=False)
    else:
        U, s, _ = torch.linalg.svd(M, full_matrices=False)
    right = U.mT @ LW
    left = U if L is None else _pseudo_inverse(L, U)
    return (*_balanced(left, right), s)


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
    eigenvectors of a matrix of that side, where a singular value decomposition would need both roots.

    Args:
        E: (m, n), float64.
        A: (n, n), or (n,) a diagonal; None: identity.
        G: (m, m), or (m,) a diagonal; None: identity.
        rank: how many.

    Returns:
        left (m, r), right (r, n), squared values s^2 (r,) descending, and the whole tr(G E A E^T).

    Reference: Zhang et al. 2024 (QERA, arXiv:2410.06040), here with both sides. Cost: 2 n^2 m + 4 m^3 for m <= n.
    """
    m, n = E.shape
    if m > n:
        right, left, s, whole = leading(E.mT, G, A, rank)
        return left.mT, right.mT, s, whole
    L = None if G is None else root(G)
    EA = E if A is None else E * A if A.dim() == 1 else E @ A
    second = EA @ E.mT
    inner = second if L is None else L[:, None] * second * L if L.dim() == 1 else L.mT @ second @ L
    values, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    rank = min(rank, m)
    U, s = vectors.flip(1)[:, :rank], values.flip(0)[:rank].clamp_min(0)
    LE = E if L is None else L[:, None] * E if L.dim() == 1 else L.mT @ E
    left, right = _balanced(U if L is None else _pseudo_inverse(L, U), U.mT @ LE)
    return left, right, s, float(inner.diagonal().sum())
