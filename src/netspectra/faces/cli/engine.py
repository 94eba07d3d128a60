"""Which engine carries out an analysis or a comparison: threads in this process, or Ray."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from netspectra.errors import InputRefused

if TYPE_CHECKING:
    from netspectra.run import Run

__all__ = ["check_device", "engine", "kept"]

ENGINES = ("local", "ray")


def engine(
    name: str, address: str | None, gpus: float | None = None, *, workers: int, device: str | None = None, quiet: bool
) -> Run:
    """The engine of this name.

    Raises:
        InputRefused: no such engine, or options that do not go together.
    """
    if name not in ENGINES:
        raise InputRefused(f"--engine {name}: there are {', '.join(ENGINES)}")
    if name == "local":
        if address is not None or gpus is not None:
            raise InputRefused(f"{'--gpus' if address is None else '--address'} goes with --engine ray")
        from netspectra.run.local import LocalRun

        check_device(device)
        return LocalRun(workers=workers)
    on_gpu = device is not None and device != "cpu"
    if on_gpu and device != "cuda":
        raise InputRefused(f"--device {device}: Ray chooses which GPU; give --device cuda, and a share with --gpus")
    if gpus is not None and not on_gpu:
        raise InputRefused("--gpus goes with --device cuda")
    from netspectra.run.ray import RayRun

    made = RayRun(address, workers=workers, gpus=(1.0 if gpus is None else gpus) if on_gpu else 0.0)
    if not quiet and made.private:
        print("starting Ray on this machine (15 to 30 seconds)", file=sys.stderr, flush=True)
    return made


def kept(run: Run) -> AbstractContextManager[None]:
    """One cluster for all that a command maps over."""
    from netspectra.run.ray import RayRun

    return run.joined() if isinstance(run, RayRun) else nullcontext()


def check_device(device: str | None) -> None:
    """Refuse a device that is not there before any work."""
    if device is None:
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as wrong:
        raise InputRefused(f"--device {device}: {str(wrong).splitlines()[0][:160]}") from None
