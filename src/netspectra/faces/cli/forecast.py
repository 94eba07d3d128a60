"""What an analysis would take on this machine, from shapes and a short measurement of its speed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from netspectra.run.cost import cores, flops, needed
from netspectra.weight import Source

__all__ = ["Forecast", "forecast"]

SIZE = 384
SHARE = 0.45  # of the product rate is reached by products and eigenvalues together, measured at 384 to 4096
OVERHEAD = 2e-3
BASE = 512 << 20  # the libraries, and buffers


@dataclass(frozen=True)
class Forecast:
    """An estimate, not a promise: seconds of wall time, bytes of memory in all."""

    seconds: float
    bytes: int
    cores: int


def forecast(source: Source) -> Forecast:
    """Estimate time and peak memory of analysing everything the source holds."""
    rate = _flops_per_second()
    work = sum(flops(weight) / (SHARE * rate) + OVERHEAD for weight in source.weights)
    longest = max((flops(weight) / (SHARE * rate) for weight in source.weights), default=0.0)
    largest = max(map(needed, source.weights), default=0)
    return Forecast(max(work / cores(), longest), largest + BASE, cores())


def _flops_per_second() -> float:
    """Rate of a float64 product on one core."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    a, b = np.ones((SIZE, SIZE)), np.full((SIZE, SIZE), 0.5)
    best = float("inf")
    with threadpool_limits(1):
        for _ in range(3):
            started = time.perf_counter()
            np.dot(a, b)
            best = min(best, time.perf_counter() - started)
    return 2 * SIZE**3 / best
