"""What this machine can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from netspectra.linalg.gram import gram
from netspectra.linalg.lapack import tridiagonal_


def reduction(n: int = 2048) -> dict[str, float]:
    """CPU seconds of the ways from a Gram matrix to its eigenvalues, and of the parts a reduction in two stages needs.

    Full to band (width 32) needs 2/3 n^3 operations in products with 32 columns and as many in updates of rank 64;
    band to tridiagonal is LAPACK's dsbtrd. Their sum is what such a reduction could reach here, its panels not counted.
    """
    G = gram(torch.from_numpy(np.random.default_rng(0).standard_normal((n, n))))
    full = G.tril() + G.tril(-1).mT
    V, W = (np.random.default_rng(1).standard_normal((n, 32)) for _ in range(2))
    band = np.asfortranarray(np.random.default_rng(2).standard_normal((33, n)))
    X, half = torch.from_numpy(np.concatenate([V, W], 1)), full[:, : n // 2].clone()
    array = full.numpy()

    def cpu(run: Callable[[], object], rounds: int = 3) -> float:
        found = []
        for _ in range(rounds):
            before = time.process_time()
            run()
            found.append(time.process_time() - before)
        return min(found)

    steps = n / 96  # n / 32 steps on a matrix that shrinks to nothing: a third of them at full size
    product, update = cpu(lambda: array @ V) * steps, cpu(lambda: half.addmm_(X, X[: n // 2].mT, alpha=1e-3)) * steps
    second = cpu(lambda: scipy.linalg.eig_banded(band, lower=True, eigvals_only=True, check_finite=False), 1)
    return {
        "ours (dsytrd, dsterf in place)": cpu(lambda: tridiagonal_(G.clone().numpy()).eigenvalues(), 2),
        "torch eigvalsh": cpu(lambda: torch.linalg.eigvalsh(full), 2),
        "numpy eigvalsh": cpu(lambda: np.linalg.eigvalsh(array), 2),
        "two stages: products": product,
        "two stages: updates": update,
        "two stages: band to eigenvalues": second,
        "two stages: sum": product + update + second,
    }


def rates(n: int = 2048) -> dict[str, float]:
    """GFLOP/s of the float64 matrix product and of numpy's symmetric product on this machine, one call each."""
    A = torch.from_numpy(np.random.default_rng(0).standard_normal((n, n)))
    a = A.numpy()
    best = {"dgemm": 0.0, "dsyrk": 0.0, "sgemm": 0.0}
    narrow = A.float()
    for _ in range(3):
        for name, run, flops in (
            ("dgemm", lambda: A @ A, 2 * n**3),
            ("dsyrk", lambda: a.T @ a, n**3),
            ("sgemm", lambda: narrow @ narrow, 2 * n**3),
        ):
            before = time.process_time()
            run()
            best[name] = max(best[name], flops / (time.process_time() - before) / 1e9)
    return best
