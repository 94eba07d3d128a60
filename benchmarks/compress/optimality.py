"""How far the factors are from the theoretical optimum: random cases, ill-conditioned and singular ones among them."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch

from netspectra.linalg.moments import Moments
from netspectra.methods import METHODS

CASES = 200
SEEN = 1e-12  # tails below this share of the whole are lost in rounding: 1e-16 of the whole, squared, is what is left


def measured(quick: bool = False) -> dict[str, Any]:
    """Largest error over the tail of the singular values, by kind of case; over all ranks."""
    worst: dict[str, float] = {}
    failures = []
    for seed in range(20 if quick else CASES):
        kind, W, A, G = case(seed)
        for method in ("whitened", "two_sided"):
            try:
                ratio = excess(W, A, G if method == "two_sided" else None, method)
            except Exception as wrong:  # noqa: BLE001 - a benchmark counts what fails and goes on
                failures.append(f"{seed} {kind} {method}: {wrong}")
                continue
            worst[kind] = max(worst.get(kind, 0.0), ratio)
    return {"cases": 20 if quick else CASES, "worst": worst, "failures": failures}


def case(seed: int) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """One problem: sizes up to 48, inputs of one of four kinds."""
    rng = np.random.default_rng(seed)
    m, n = (int(size) for size in rng.integers(4, 48, 2))
    kind = ("regular", "fewer tokens than inputs", "dead inputs", "condition 1e12")[seed % 4]
    X = rng.standard_normal((n // 2 if kind.startswith("fewer") else 4 * n, n))
    if kind == "dead inputs":
        X[:, rng.random(n) < 0.3] = 0.0
    if kind == "condition 1e12":
        X = X @ (np.linalg.qr(rng.standard_normal((n, n)))[0] * np.logspace(0, -6, n)) @ rng.standard_normal((n, n))
    g = rng.standard_normal((3 * m, m)) * np.logspace(0, -2, m)
    A = Moments.zeros(n).add_(torch.from_numpy(X)).second.numpy()
    return kind, rng.standard_normal((m, n)), A, g.T @ g / len(g)


def excess(W: np.ndarray, A: np.ndarray, G: np.ndarray | None, method: str) -> float:
    """Largest ratio of error to tail minus 1, over the ranks; both by LAPACK in float64, from roots of their own."""
    R = symmetric_root(A)
    L = np.eye(len(W)) if G is None else symmetric_root(G)
    energies = np.asarray(scipy.linalg.svdvals(L @ W @ R)) ** 2
    tail = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
    found = METHODS[method].compute(*(None if x is None else torch.from_numpy(x) for x in (W, A, G)))  # type: ignore[arg-type]
    worst = 0.0
    for rank in range(len(tail)):
        if tail[rank] > SEEN * tail[0]:
            left, right = found.factors(rank)
            error = float(np.linalg.norm(L @ (W - (left @ right).numpy()) @ R)) ** 2
            worst = max(worst, error / tail[rank] - 1)
    return float(worst)


def symmetric_root(A: np.ndarray) -> np.ndarray:
    """A^(1/2)."""
    values, vectors = np.linalg.eigh(A)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
