"""What a weight's singular values cost, from its shape alone: for budgets, progress and forecasts."""

from __future__ import annotations

import os

from netspectra.weight import Weight

__all__ = ["cores", "flops", "working_set"]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def working_set(weight: Weight) -> int:
    """Bytes that analysing the weight takes at its peak: its tensor, and 24 bytes per entry of the smaller square.

    Of factors: both in float64, with room to reduce them.
    """
    if weight.factors:
        return weight.nbytes + 24 * sum(weight.shape) * weight.factors.rank
    return weight.nbytes + 24 * min(weight.shape) ** 2


def flops(weight: Weight) -> float:
    """Float64 operations that its singular values take: m n min(m, n) + 4/3 min(m, n)^3, block by block.

    Of m x r and r x n factors: 2 (m + n) r^2 + 22 r^3.
    """
    if weight.factors:
        return 2 * sum(weight.shape) * weight.factors.rank**2 + 22 * weight.factors.rank**3
    groups = weight.layout.groups
    m, n = (size // groups for size in weight.shape)
    return groups * (m * n * min(m, n) + 4 / 3 * min(m, n) ** 3)
