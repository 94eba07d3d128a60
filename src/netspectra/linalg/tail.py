"""Small singular values that the Gram matrix blurs: found again in the matrix itself, on the subspace they span."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.matrix import U64, row_chunks, widen

__all__ = ["Tail", "polish", "tail_size"]

SEED = 0x5EED0F7A11
GUARD = 8
STEPS = 10
WARM_UP = 5  # inverse iterations before the first look at A: each costs a tenth of one


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


def polish(
    A: Tensor,
    exponent: int,
    G: Tensor,
    lam: np.ndarray,
    size: int,
    delta: float,
    enough: Callable[[Tail], bool] = lambda tail: False,
) -> Tail | None:
    """The ``size`` smallest singular values of 2^-exponent A to about float64 accuracy, or None if it stagnates.

    Subspace iteration preconditioned by the Cholesky factor of the shifted Gram matrix, with residuals taken from A
    itself: X <- X - (G + s)^-1 (A^H A X - X Theta), Rayleigh-Ritz by QR and SVD of A X. It converges to the subspace
    of A, not to that of the rounded Gram matrix.

    Bound: let V span the Ritz vectors kept, R = A^H A V - V Theta, and let the other squared singular values be at
    least ``out`` (known from the Gram matrix to within delta). Then each theta = s^2 is off by at most
    ||R||^2 / (out - theta_max): the quadratic residual bound (Mathias 1998, SIAM J. Matrix Anal. Appl. 19), which is
    derived; the rounding of the products, (2 sqrt(n) + 8) u sigma_1, is tested.

    Args:
        A: (m, n), m >= n.
        exponent: power of two to divide by.
        G: lower triangle of the Gram matrix; **overwritten** (its diagonal is shifted).
        lam: its eigenvalues, descending.
        size: how many values, see `tail_size`.
        delta: error bound of ``lam``.
        enough: stop as soon as this holds; by default when a step no longer halves the bounds.

    Cost: n^3 / 3 for the factor, and 4 (m n + n^2) (size + 8) operations a step; usually one to three steps.
    """
    n = A.shape[1]
    G.diagonal().add_(2 * delta)
    L, info = torch.linalg.cholesky_ex(G)
    if int(info):
        return None
    X = _start(n, min(size + GUARD, n), G)
    for _ in range(WARM_UP):
        X = torch.linalg.qr(_solve(L, X)).Q
    out = float(lam[n - size - 1]) - delta
    sigma1 = math.sqrt(float(lam[0]))
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
        X = torch.linalg.qr(V - _solve(L, R)).Q
    return best


def _solve(L: Tensor, B: Tensor) -> Tensor:
    """(L L^H)^-1 B."""
    forward = torch.linalg.solve_triangular(L, B, upper=False)
    return torch.linalg.solve_triangular(L.mH, forward, upper=True)


def _start(n: int, width: int, like: Tensor) -> Tensor:
    """Random block from a generator of its own."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn((n, width), generator=generator, dtype=torch.float64).to(dtype=like.dtype, device=like.device)


def _ritz(A: Tensor, exponent: int, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values s ascending, right vectors V and residuals A^H A V - V s^2 for the columns of X."""
    Y = torch.cat([widen(chunk, exponent) @ X for chunk in row_chunks(A)])
    triangle = torch.linalg.qr(Y, mode="r").R
    _, s, Wh = torch.linalg.svd(triangle)
    s, W = s.flip(0), Wh.mH.flip(1)
    V, Y = X @ W, Y @ W
    R = -V * s.square()
    start = 0
    for chunk in row_chunks(A):
        wide = widen(chunk, exponent)
        R += wide.mH @ Y[start : start + len(chunk)]
        start += len(chunk)
    return s, V, R


def _bounded(shape: torch.Size, s: Tensor, R: Tensor, size: int, out: float, sigma1: float, step: int) -> Tail | None:
    """The ``size`` smallest Ritz values with their bounds; None while they are not separated from the rest."""
    n = shape[1]
    values = s[:size].cpu().numpy()[::-1].copy()
    largest = float(values[0])
    noise = (2 * math.sqrt(n) + 8) * U64 * sigma1
    residual = float(torch.linalg.matrix_norm(R[:, :size])) + noise * math.sqrt(size) * largest
    gap = out - residual - largest**2
    if gap <= 0:
        return None
    eta = residual**2 / gap
    error = np.minimum(eta / np.maximum(values, 1e-300), math.sqrt(eta)) + noise
    return Tail(values, error, step)
