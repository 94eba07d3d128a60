"""What a weight's singular values cost, from its shape alone, and what this process may spend."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from netspectra.errors import EnvironmentFailure
from netspectra.run.job import Job
from netspectra.weight import Weight

try:
    import resource
except ImportError:  # Windows
    resource = None

__all__ = ["BASE", "UNKNOWN", "cores", "described", "flops", "memory", "must_fit", "needed", "working_set"]

UNKNOWN = 1 << 62  # what `memory` says where nothing tells
BASE = 1 << 30  # bytes for the interpreter, the libraries and their buffers
# Where Linux tells the limit of a container, in its two versions.
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory() -> int:
    """Bytes that this process can have at most: the machine's, the container's, or those of its limits (ulimit -v)."""
    limits = []
    with suppress(OSError, ValueError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in CGROUPS:
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    if resource is not None:
        limits += [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit > 0), default=UNKNOWN)


def must_fit(weights: Iterable[Weight | Job]) -> None:
    """Refuse a weight that cannot be analysed here before any work, rather than be killed by the system in the middle.

    Args:
        weights: that will be in work.

    Raises:
        EnvironmentFailure: twice its bytes, 24 an entry of its smaller square, what lies beside it and
            `BASE` are more than `memory`.
    """
    there = memory()
    for weight in weights:
        need = needed(weight) + BASE
        if need > there:
            raise EnvironmentFailure(
                f"{described(weight)} needs up to {need / 1e9:.1f} GB of memory, there are {there / 1e9:.1f}. "
                "--exclude it, or take a larger machine"
            )


def needed(weight: Weight | Job) -> int:
    """Bytes that one may take, by the promise: its tensor twice, what is worked out of it, what lies beside it."""
    return working_set(weight) + weight.nbytes + weight.beside


def described(weight: Weight | Job) -> str:
    """Its name, and its shape where it has one."""
    return repr(weight.name) if isinstance(weight, Job) else f"{weight.name!r} ({' x '.join(map(str, weight.shape))})"


def working_set(weight: Weight | Job) -> int:
    """Bytes that analysing the weight takes at its peak: its tensor, and 24 bytes per entry of the smaller square.

    Of factors: both in float64, with room to reduce them. Of a job: nothing beside what it says itself.
    """
    if isinstance(weight, Job):
        return 0
    if weight.factors:
        return weight.nbytes + 24 * sum(weight.shape) * weight.factors.rank
    return weight.nbytes + 24 * min(weight.shape) ** 2


def flops(weight: Weight | Job) -> float:
    """Float64 operations that its singular values take: m n min(m, n) + 4/3 min(m, n)^3, block by block.

    Of m x r and r x n factors: 2 (m + n) r^2 + 22 r^3. Of a job: what it says.
    """
    if isinstance(weight, Job):
        return weight.flops
    if weight.factors:
        return 2 * sum(weight.shape) * weight.factors.rank**2 + 22 * weight.factors.rank**3
    groups = weight.layout.groups
    m, n = (size // groups for size in weight.shape)
    return groups * (m * n * min(m, n) + 4 / 3 * min(m, n) ** 3)
