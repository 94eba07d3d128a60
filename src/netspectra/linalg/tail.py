"""Small singular values that the Gram matrix blurs: found again in the matrix itself, on the subspace they span."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.lapack import Tridiagonal, cholesky_
from netspectra.linalg.matrix import U64, wide_chunks

__all__ = ["Start", "Tail", "polish", "start_by_cholesky", "start_in_tridiagonal", "tail_size"]

SEED = 0x5EED0F7A11
GUARD = 8
STEPS = 10
FADED = 1e-4
MOST_ITERATIONS = 6
CACHED_BYTES = 2 << 20  # a chunk that stays in the cache between its two products


@dataclass(frozen=True)
class Tail:
    """The t smallest singular values, descending, with their error bounds; ``steps`` of subspace iteration used."""

    values: np.ndarray
    error: np.ndarray
    steps: int


def tail_size(lam: np.ndarray, flagged: int, delta: float) -> int | None:
    """How many of the smallest eigenvalues to polish: at least ``flagged``, cut where the next gap is widest.

    None where no cut within `GUARD` more values leaves a gap that the error ``delta`` cannot close.
    """
    n = len(lam)
    sizes = np.arange(flagged, min(flagged + GUARD, n - 1) + 1)
    if len(sizes) == 0:
        return None
    outside, inside = lam[n - sizes - 1], lam[n - sizes]
    ratio = (outside - delta) / (np.maximum(inside, 0.0) + delta)
    best = int(np.argmax(ratio))
    return int(sizes[best]) if ratio[best] > 1.02 else None


@dataclass(frozen=True, eq=False)
class Start:
    """Where polishing begins: near the lowest eigenvectors, with the means to go on.

    Attributes:
        X: (n, k), a basis of nearly the space of the k smallest eigenvalues.
        solve: B -> (G + shift)^-1 B for the rounded Gram matrix G and a small shift.
    """

    X: Tensor
    solve: Callable[[Tensor], Tensor]


def start_in_tridiagonal(T: Tridiagonal, size: int, delta: float) -> Start | None:
    """From the reduction that gave the eigenvalues: eigenvectors of T, turned back; nothing is factored again."""
    solve = T.solver(2 * delta)
    if solve is None:
        return None
    try:
        X = T.lowest(min(size + GUARD, len(T.diagonal)))
    except np.linalg.LinAlgError:
        return None
    return Start(torch.from_numpy(X), lambda B: torch.from_numpy(solve(B.numpy())))


def start_by_cholesky(G: Tensor, lam: np.ndarray, size: int, delta: float) -> Start | None:
    """From the Cholesky factor of the shifted Gram matrix, by inverse iteration on a random block.

    Args:
        G: lower triangle of the Gram matrix; **overwritten**.
        lam: its eigenvalues, descending.
        size: how many of the smallest are wanted.
        delta: error bound of ``lam``.

    Cost: n^3 / 3, and 4 n^2 (size + 8) operations an iteration.
    """
    n = len(lam)
    width = min(size + GUARD, n)
    G.diagonal().add_(2 * delta)
    if G.device.type == "cpu":
        if not cholesky_(G.numpy()):
            return None
        L = G
    else:
        L, info = torch.linalg.cholesky_ex(G)
        if int(info):
            return None

    def solve(B: Tensor) -> Tensor:
        forward = torch.linalg.solve_triangular(L, B, upper=False)
        return torch.linalg.solve_triangular(L.mH, forward, upper=True)

    generator = torch.Generator().manual_seed(SEED)
    X = torch.randn((n, width), generator=generator, dtype=torch.float64).to(dtype=G.dtype, device=G.device)
    for _ in range(_iterations(lam, size, width, delta)):
        X = torch.linalg.qr(solve(X)).Q
    return Start(X, solve)


def _iterations(lam: np.ndarray, size: int, width: int, delta: float) -> int:
    """Inverse iterations until what lies outside the block has faded to `FADED`; the steps that look at A go on."""
    n = len(lam)
    outside = float(lam[n - width - 1]) if width < n else math.inf
    fading = (max(float(lam[n - size]), 0.0) + 2 * delta) / (outside + 2 * delta)
    return min(MOST_ITERATIONS, max(2, math.ceil(math.log(FADED) / math.log(min(max(fading, FADED), 0.9)))))


def polish(
    A: Tensor,
    exponent: int,
    start: Start,
    lam: np.ndarray,
    size: int,
    delta: float,
    enough: Callable[[Tail], bool] = lambda tail: False,
) -> Tail | None:
    """The ``size`` smallest singular values of 2^-exponent A to about float64 accuracy, or None if it stagnates.

    Subspace iteration preconditioned by the rounded Gram matrix, with residuals taken from A itself:
    X <- X - (G + s)^-1 (A^H A X - X Theta), Rayleigh-Ritz by QR and SVD of A X. It converges to the subspace of A,
    not to that of the rounded Gram matrix.

    Bound: let V span the Ritz vectors kept, R = A^H A V - V Theta, and let the other squared singular values be at
    least ``out`` (known from the Gram matrix to within delta). Then each theta = s^2 is off by at most
    ||R||^2 / (out - theta_max): the quadratic residual bound (Mathias 1998, SIAM J. Matrix Anal. Appl. 19), which is
    derived; the rounding of the products, (2 sqrt(n) + 8) u sigma_1, is tested.

    Args:
        A: (m, n), m >= n.
        exponent: power of two to divide by.
        start: `start_in_tridiagonal` or `start_by_cholesky`.
        lam: eigenvalues of the Gram matrix, descending.
        size: how many values, see `tail_size`.
        delta: error bound of ``lam``.
        enough: stop as soon as this holds; by default when a step no longer halves the bounds.

    Cost: 4 m n (size + 8) operations and one walk over A a step; usually one or two steps.
    """
    n = A.shape[1]
    out = float(lam[n - size - 1]) - delta
    sigma1 = math.sqrt(float(lam[0]))
    X = start.X
    best: Tail | None = None
    for step in range(1, STEPS + 1):
        s, V, R = _ritz(A, exponent, X)
        tail = _bounded(A.shape, s, R, size, out, sigma1, step)
        if tail is not None:
            if enough(tail):
                return tail
            if best is not None and tail.error.sum() > 0.5 * best.error.sum():
                return min(best, tail, key=lambda t: float(t.error.sum()))
            best = tail
        X = torch.linalg.qr(V - start.solve(R)).Q
    return best


def _ritz(A: Tensor, exponent: int, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values s ascending, right vectors V and residuals A^H A V - V s^2 for the columns of X, in one walk."""
    m, k = len(A), X.shape[1]
    Y = torch.empty((m, k), dtype=X.dtype, device=X.device)
    Z = torch.zeros((k, len(X)), dtype=X.dtype, device=X.device)  # (A^H A X)^H: vectors as rows
    begin = 0
    for wide in wide_chunks(A, exponent, CACHED_BYTES, at_least=16):
        part = Y[begin : begin + len(wide)]
        torch.mm(wide, X, out=part)
        Z.addmm_(part.mH, wide)
        begin += len(wide)
    triangle = torch.linalg.qr(Y, mode="r").R
    _, s, Wh = torch.linalg.svd(triangle)
    s, W = s.flip(0), Wh.mH.flip(1)
    V = X @ W
    return s, V, Z.mH @ W - V * s.square()


def _bounded(shape: torch.Size, s: Tensor, R: Tensor, size: int, out: float, sigma1: float, step: int) -> Tail | None:
    """The ``size`` smallest Ritz values with their bounds; None while they are not separated from the rest."""
    n = shape[1]
    values = s[:size].cpu().numpy()[::-1].copy()
    largest = float(s[-1])  # rounding in A^H (A X) follows the largest column of A X, guards included
    noise = (2 * math.sqrt(n) + 8) * U64 * sigma1
    residual = float(torch.linalg.matrix_norm(R[:, :size])) + noise * math.sqrt(size) * largest
    gap = out - residual - float(values[0]) ** 2
    if gap <= 0:
        return None
    eta = residual**2 / gap
    error = np.minimum(eta / np.maximum(values, 1e-300), math.sqrt(eta)) + noise
    return Tail(values, error, step)
