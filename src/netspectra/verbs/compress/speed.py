"""How much faster the whole model has become: both models in turn, on the same batch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from netspectra.live.batches import call
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.replace import Replacement, tried

__all__ = ["speed"]


def speed(model: nn.Module, replacements: Sequence[Replacement], batch: Any, *, rounds: int = 7) -> dict[str, float]:
    """Milliseconds of a batch before and after (medians), and the median ratio of neighbouring runs with its spread.

    Args:
        model: the original, with its own modules.
        replacements: what stands in the compressed one.
        batch: what both are called with.
        rounds: pairs of runs, after one that is not counted.
    """
    times: tuple[list[float], list[float]] = ([], [])
    with untouched(model), torch.inference_mode():
        for _ in range(rounds + 1):
            times[0].append(_milliseconds(model, batch))
            with tried(model, replacements) as changed:
                times[1].append(_milliseconds(changed, batch))
    ratios = sorted(old / new for old, new in zip(times[0][1:], times[1][1:], strict=True))
    return {
        "before_ms": statistics.median(times[0][1:]),
        "after_ms": statistics.median(times[1][1:]),
        "ratio": statistics.median(ratios),
        "low": ratios[0],
        "high": ratios[-1],
    }


def _milliseconds(model: nn.Module, batch: Any) -> float:
    started = time.perf_counter()
    call(model, batch)
    return (time.perf_counter() - started) * 1e3
