"""Versions and machine, as a bug report wants them; no names of people, hosts or folders."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from netspectra.run.cost import cores
from netspectra.version import __version__

__all__ = ["environment"]

PACKAGES = ("torch", "numpy", "scipy", "safetensors", "plotly", "typer", "rich", "threadpoolctl", "pandas", "kaleido")


def environment() -> dict[str, str]:
    """Name -> value, in a fixed order."""
    import numpy  # noqa: F401 - so that its BLAS is listed
    import torch
    from threadpoolctl import threadpool_info

    found = {"netspectra": __version__, "python": platform.python_version(), "system": platform.platform()}
    found |= {"processor": _processor(), "cores": str(cores()), "memory": _memory()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    blas = {f"{info['internal_api']} {info.get('version') or ''}".strip() for info in threadpool_info()}
    found["blas"] = ", ".join(sorted(blas))
    found["mkl in torch"] = "yes" if torch.backends.mkl.is_available() else "no"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps (no float64: matrices are brought to the cpu)")
    found["devices"] = ", ".join(["cpu", *devices])
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"
