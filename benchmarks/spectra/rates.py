"""What this machine can do at most."""

from __future__ import annotations

import time

import numpy as np
import torch


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
