"""Golub-Kahan bidiagonalization with full reorthogonalization: leading singular triplets from products alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from netspectra.linalg.algebra import Transposed
from netspectra.linalg.operator import LinearOperator

__all__ = ["Triplets", "golub_kahan", "golub_kahan_bidiagonal", "random_rows"]


@dataclass(frozen=True, eq=False)
class Triplets:
    """Leading triplets found by products.

    Attributes:
        U: (m, k), orthonormal columns.
        S: (k,), descending.
        Vh: (k, n), orthonormal rows.
        residual: (k,), ||A^H u - s v|| as the recurrence gives it; ||A v - s u|| is zero but for rounding.
        products: how many vectors were multiplied by A or its adjoint.
        converged: whether every residual is below tolerance * S[0].
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    residual: Tensor
    products: int
    converged: bool


def random_rows(k: int, n: int, seed: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """k Gaussian vectors as rows, the same on every device, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((k, n), generator=generator, dtype=torch.float64).to(dtype=dtype, device=device)


def golub_kahan(
    A: LinearOperator,
    k: int = 1,
    *,
    tolerance: float = 1e-6,
    max_steps: int = 0,
    seed: int = 0,
    start: Tensor | None = None,
) -> Triplets:
    """The k leading singular triplets by Golub-Kahan-Lanczos bidiagonalization.

    With orthonormal U_j, V_j and bidiagonal B_j: A V_j = U_j B_j and A^H U_j = V_j B_j^T + beta_j v_{j+1} e_j^T. Each
    new vector is orthogonalised twice against all before it. The SVD of B_j is taken at growing intervals until
    beta_j |e_j^T p_i| <= tolerance s_1 for every i < k (Golub & Kahan 1965, doi:10.1137/0702016).

    Args:
        A: the map, (m, n).
        k: how many triplets.
        tolerance: residual wanted, relative to the largest value.
        max_steps: by default min(m, n), at most 40 k + 300.
        seed: of the start vector; the global generator is not touched.
        start: (n,), a better start than a random one.

    Returns:
        `Triplets`; not converged ones say so. A small residual proves that there is a singular value nearby, not that
        no larger one was missed (the start vector would have to be orthogonal to it: of probability zero).

    Cost: two products a step and 4 (m + n) j operations for the j-th reorthogonalization.

    >>> import torch
    >>> from netspectra.linalg.operator import Dense
    >>> golub_kahan(Dense(torch.diag(torch.arange(1.0, 9.0)).double()), 2).S.numpy().round(9)
    array([8., 7.])
    """
    m, n = A.shape
    if m < n:  # the basis of the short side is complete after min(m, n) steps
        first = A.matmat(start[:, None].to(dtype=A.dtype, device=A.device))[:, 0] if start is not None else None
        t = golub_kahan(Transposed(A), k, tolerance=tolerance, max_steps=max_steps, seed=seed, start=first)
        return replace(t, U=t.Vh.mH, Vh=t.U.mH)
    k = min(k, n)
    limit = min(m, n, max_steps or 40 * k + 300)
    V, U = _Rows(n, A), _Rows(m, A)
    if start is None or not bool(start.any()):
        start = random_rows(1, n, seed, A.dtype, A.device)[0]
    v = start.to(dtype=A.dtype, device=A.device)
    v = v / torch.linalg.vector_norm(v)
    alphas: list[float] = []
    betas: list[float] = []
    tiny = float(torch.finfo(A.dtype).eps)
    check = min(limit, max(2 * k, 8))
    while True:
        V.append(v)
        u = U.orthogonalise(A.matmat(v[:, None])[:, 0])
        alpha = float(torch.linalg.vector_norm(u))
        scale = max([alpha, *alphas, *betas])
        alphas.append(alpha)
        broke = alpha <= tiny * scale
        u = U.fresh(seed + len(alphas)) if broke else u / alpha
        if broke:
            alphas[-1] = 0.0
        U.append(u)
        w = V.orthogonalise(A.rmatmat(u[:, None])[:, 0])
        beta = float(torch.linalg.vector_norm(w))
        ended = beta <= tiny * max(scale, beta)
        j = len(alphas)
        if j >= check or j >= limit:
            P, s, Qh = _bidiagonal_svd(alphas, betas)
            residual = (0.0 if ended else beta) * P[-1, :k].abs()
            done = bool((residual <= tolerance * s[0]).all()) and j >= k
            if done or j >= limit:
                break
            check = min(limit, max(j + 8, int(1.3 * j)))
        betas.append(0.0 if ended else beta)
        v = V.fresh(seed + 7919 + j) if ended else w / beta
    P, Qh = P.to(A.dtype).to(A.device), Qh.to(A.dtype).to(A.device)
    return Triplets(
        (P[:, :k].mT @ U.rows).mT.contiguous(),
        s[:k].to(A.device),
        Qh[:k] @ V.rows.conj(),
        residual,
        2 * len(alphas),
        done,
    )


class _Rows:
    """A growing orthonormal basis kept as rows: products with a few vectors are several times faster so."""

    def __init__(self, length: int, A: LinearOperator) -> None:
        self._held = torch.empty((32, length), dtype=A.dtype, device=A.device)
        self._count = 0

    @property
    def rows(self) -> Tensor:
        return self._held[: self._count]

    def append(self, row: Tensor) -> None:
        if self._count == len(self._held):
            self._held = torch.cat([self._held, torch.empty_like(self._held)])
        self._held[self._count] = row
        self._count += 1

    def orthogonalise(self, x: Tensor) -> Tensor:
        """X without its components in the basis, taken out twice."""
        for _ in range(2):
            x = x - (self.rows.conj() @ x) @ self.rows
        return x

    def fresh(self, seed: int) -> Tensor:
        """A random unit vector orthogonal to the basis; zero where the basis is complete."""
        x = self.orthogonalise(random_rows(1, self._held.shape[1], seed, self._held.dtype, self._held.device)[0])
        norm = torch.linalg.vector_norm(x)
        return x / norm if self._count < self._held.shape[1] else torch.zeros_like(x)


def _bidiagonal_svd(alphas: list[float], betas: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of the upper bidiagonal matrix."""
    B = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if betas:
        B += torch.diag(torch.tensor(betas, dtype=torch.float64), 1)
    P, s, Qh = torch.linalg.svd(B)
    return P, s, Qh


def golub_kahan_bidiagonal(A: LinearOperator, steps: int, start: Tensor) -> Tensor:
    """The upper bidiagonal matrix of at most ``steps`` steps from ``start``, float64; shorter where the space ends.

    The last off-diagonal element is left out.
    """
    m, n = A.shape
    V, U = _Rows(n, A), _Rows(m, A)
    v = start / torch.linalg.vector_norm(start)
    alphas: list[float] = []
    betas: list[float] = []
    tiny = 4 * float(torch.finfo(A.dtype).eps)
    for _ in range(min(steps, m, n)):
        V.append(v)
        u = U.orthogonalise(A.matmat(v[:, None])[:, 0])
        alpha = float(torch.linalg.vector_norm(u))
        scale = max([alpha, *alphas, *betas])
        alphas.append(alpha if alpha > tiny * scale else 0.0)
        if not alphas[-1]:
            break
        U.append(u / alpha)
        w = V.orthogonalise(A.rmatmat(U.rows[-1][:, None])[:, 0])
        beta = float(torch.linalg.vector_norm(w))
        if beta <= tiny * scale:
            break
        betas.append(beta)
        v = w / beta
    size = len(alphas)
    B = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    return B + torch.diag(torch.tensor(betas[: size - 1], dtype=torch.float64), 1) if size > 1 else B
