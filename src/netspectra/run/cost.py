"""What a weight's singular values cost, from its shape alone: for budgets, progress and forecasts."""

from __future__ import annotations

import os
from pathlib import Path

from netspectra.weight import Weight

__all__ = ["cores", "flops", "memory", "working_set"]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory(root: Path = Path("/")) -> int:
    """Bytes this process may still take: what the system has available, or its control group if that is less.

    0 where neither says (systems other than Linux).
    """
    known: list[int] = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                known.append(int(line.split()[1]) << 10)
    except OSError:
        return 0
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            known.append(int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(known, default=0))


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
