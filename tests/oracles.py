"""Matrices whose singular values are known, and a reference that is more precise than float64.

Every generator is seeded and leaves the global random state alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng([20240501, seed])


# -- spectra ---------------------------------------------------------------------------------------------------------


def spectra(n: int, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Prescribed singular values, largest 1, in the manner of LAPACK's test matrices."""
    i = np.arange(n)
    g = rng(seed)
    for cond in (1e2, 1e4, 1e6, 1e7, 1e10):
        yield f"geometric {cond:.0e}", cond ** (-i / max(1, n - 1))
        yield f"arithmetic {cond:.0e}", 1 - i / max(1, n - 1) * (1 - 1 / cond)
        yield f"one large {cond:.0e}", np.r_[1.0, np.full(n - 1, 1 / cond)]
        yield f"one small {cond:.0e}", np.r_[np.ones(n - 1), 1 / cond]
        yield f"log-uniform {cond:.0e}", np.sort(np.r_[1.0, cond ** -g.random(n - 1)])[::-1]
        yield f"two clusters {cond:.0e}", np.r_[np.ones(n // 2), np.full(n - n // 2, 1 / cond)]
    yield "all equal", np.ones(n)
    yield "clustered", np.sort(1 - 1e-9 * g.random(n) * np.repeat(np.arange(1, n // 4 + 2), 4)[:n])[::-1]
    yield "pareto", np.sort((1 - g.random(n)) ** (1 / 1.5))[::-1]
    yield "inverse", 1.0 / (1 + i)
    yield "inverse square", 1.0 / (1 + i) ** 2
    yield "rank half", np.where(i < n // 2, 1 - 0.5 * i / n, 0.0)
    yield "few null", np.where(i < n - 3, 1 - 0.9 * i / n, 0.0)
    yield "few tiny", np.where(i < n - 4, 1 - 0.9 * i / n, 10.0 ** -np.maximum(i - n + 9.0, 0.0))
    yield "staircase", 10.0 ** -(8 * i // n).astype(float)


def with_spectrum(sigma: np.ndarray, m: int, seed: int = 0, layers: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """A float64 m x n matrix whose singular values are known *exactly*, and those values (rounded to a grid).

    The values are rounded to multiples of 2^-g and mixed by reflections I - 2 v v^T / 4^k whose vectors have 4^k
    entries of +-1: every product and sum has few enough bits to be exact in float64.
    """
    n = len(sigma)
    g = rng(seed)
    bits = 52 - 1
    left, right = _weights(m, layers), _weights(n, layers)
    used = sum(2 * k - 1 for k in left) + sum(2 * k - 1 for k in right) + 6
    grid = 2.0 ** (bits - used)
    exact = np.sort(np.rint(sigma * grid) / grid)[::-1]
    A = np.zeros((m, n))
    A[np.arange(n), g.permutation(n)] = exact * g.choice([-1.0, 1.0], n)
    A = A[g.permutation(m)]
    for k in left:
        A = _reflect(A, k, g)
    for k in right:
        A = _reflect(A.T, k, g).T
    return np.ascontiguousarray(A), exact


def _weights(size: int, layers: int) -> list[int]:
    """Exponents k with 4^k <= size, largest first."""
    top = 0
    while 4 ** (top + 1) <= size:
        top += 1
    return [max(1, top - j) for j in range(layers)] if size >= 4 else []


def _reflect(A: np.ndarray, k: int, g: np.random.Generator) -> np.ndarray:
    rows = len(A)
    order = g.permutation(rows)
    for start in range(0, rows - 4**k + 1, 4**k):  # disjoint supports: every row is touched
        v = np.zeros(rows)
        v[order[start : start + 4**k]] = g.choice([-1.0, 1.0], 4**k)
        A = A - np.outer(v, (v @ A) * 2.0 / 4**k)
    return A


# -- matrices --------------------------------------------------------------------------------------------------------


def zoo(n: int, seed: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Matrices as they occur and as textbooks fear them, float64."""
    g = rng(seed)
    i = np.arange(n)
    gauss = g.standard_normal((n, n))
    yield "gaussian", torch.from_numpy(gauss)
    yield "gaussian tall", torch.from_numpy(g.standard_normal((3 * n, n)))
    yield "uniform positive", torch.from_numpy(g.random((n, n)))
    yield "constant 0.1", torch.full((2 * n, n), 0.1, dtype=torch.float64)
    yield "constant + noise", torch.from_numpy(0.1 + 1e-6 * gauss)
    low = g.standard_normal((n, 8)) @ g.standard_normal((8, n))
    yield "low rank", torch.from_numpy(low)
    yield "low rank + noise", torch.from_numpy(low + 1e-4 * gauss)
    yield "heavy tails", torch.from_numpy(g.standard_t(1.5, (n, n)))
    yield "pareto entries", torch.from_numpy(g.pareto(1.2, (n, n)) * np.sign(gauss))
    yield "graded rows", torch.from_numpy(gauss * 10.0 ** (-6 * i / n)[:, None])
    yield "graded columns", torch.from_numpy(gauss * 10.0 ** (-6 * i / n)[None])
    yield "graded both", torch.from_numpy(gauss * 10.0 ** (-4 * i / n)[:, None] * 10.0 ** (-4 * i / n)[None])
    yield "kahan", torch.from_numpy(kahan(n))
    yield "hilbert", torch.from_numpy(1.0 / (1.0 + i[:, None] + i[None]))
    yield "wilkinson", torch.from_numpy(np.diag(np.abs(i - n // 2).astype(float)) + np.eye(n, k=1) + np.eye(n, k=-1))
    yield "trained-like", torch.from_numpy(trained_like(n, g))
    yield "orthogonal", torch.from_numpy(np.linalg.qr(gauss)[0])
    yield "nearly dependent", torch.from_numpy(np.c_[gauss[:, :-1], gauss[:, :-1].sum(1) + 1e-5 * gauss[:, -1]])
    yield "sparse", torch.from_numpy(gauss * (g.random((n, n)) < 0.02))
    yield "upper ones", torch.from_numpy(np.triu(np.ones((n, n))))


def kahan(n: int, theta: float = 1.2) -> np.ndarray:
    s, c = np.sin(theta), np.cos(theta)
    return np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))


def trained_like(n: int, g: np.random.Generator) -> np.ndarray:
    """A Gaussian bulk, a power-law head and a few dead columns."""
    head = n // 8
    U, V = np.linalg.qr(g.standard_normal((n, head)))[0], np.linalg.qr(g.standard_normal((n, head)))[0]
    A = g.standard_normal((n, n)) / np.sqrt(n) + (U * (10.0 / np.arange(1, head + 1) ** 0.7)) @ V.T
    A[:, :2] *= 1e-7
    return A


# -- references ------------------------------------------------------------------------------------------------------


def jacobi_svdvals(A: np.ndarray, sweeps: int = 30) -> np.ndarray:
    """Singular values by one-sided Jacobi in extended precision (64-bit mantissa), descending; for n up to ~200.

    Columns are orthogonalised pair by pair, n / 2 disjoint pairs at a time (round robin).
    """
    X = np.asarray(A, dtype=np.longdouble)
    X = X if X.shape[0] >= X.shape[1] else X.T
    X = X / max(np.abs(X).max(), np.longdouble(np.finfo(float).tiny))
    n = X.shape[1]
    if n % 2:
        X = np.concatenate([X, np.zeros((len(X), 1), np.longdouble)], axis=1)
    X = np.ascontiguousarray(X.T)  # rows are the columns to be orthogonalised
    ring = list(range(len(X)))
    half = len(X) // 2
    for _ in range(sweeps):
        worst = np.longdouble(0)
        for _ in range(max(1, len(X) - 1)):
            p, q = np.array(ring[:half]), np.array(ring[half:][::-1])
            worst = max(worst, _rotate(X, p, q))
            ring = [ring[0], ring[-1], *ring[1:-1]]
        if worst < 2e-19:
            break
    scale = max(np.abs(np.asarray(A)).max(), np.finfo(float).tiny)
    return np.sort(np.sqrt((X * X).sum(1)))[::-1][:n] * np.longdouble(scale)


def _rotate(X: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.longdouble:
    """Orthogonalise rows p against rows q; return the largest cosine met."""
    x, y = X[p], X[q]
    a, b, c = (x * x).sum(1), (y * y).sum(1), (x * y).sum(1)
    size = np.sqrt(a * b)
    turn = (size > 0) & (np.abs(c) > 1e-19 * size)
    if not turn.any():
        return np.longdouble(0)
    cosine = (np.abs(c[turn]) / size[turn]).max()
    safe = np.where(turn, c, 1)
    zeta = (b - a) / (2 * safe)
    t = np.where(zeta >= 0, 1, -1) / (np.abs(zeta) + np.sqrt(1 + zeta * zeta))
    cs = np.where(turn, 1 / np.sqrt(1 + t * t), 1)[:, None]
    sn = np.where(turn, t / np.sqrt(1 + t * t), 0)[:, None]
    X[p], X[q] = cs * x - sn * y, sn * x + cs * y
    return cosine
