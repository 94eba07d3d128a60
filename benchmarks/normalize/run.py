"""What is left of a convolution's norm when its reshaped kernel is normalized, and when the operator is; its price."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations

import netspectra as ns
from benchmarks.normalize import accuracy
from benchmarks.results import keep, table
from netspectra.linalg.threads import threads

HERE = Path(__file__).parent


def left_over(quick: bool) -> list[dict[str, Any]]:
    """The true operator norm of convolutions that torch's spectral_norm has normalized to 1."""
    rows = []
    for size, stride, groups in [(3, 1, 1), (5, 1, 1), (7, 1, 1), (4, 2, 1), (3, 1, 16)]:
        found, ours = [], []
        for seed in range(2 if quick else 10):
            torch.manual_seed(seed)
            padding = size // 2 if size % 2 else 1
            kernel = nn.Conv2d(16, 16, size, stride=stride, padding=padding, groups=groups)
            theirs = nn.Conv2d(16, 16, size, stride=stride, padding=padding, groups=groups)
            theirs.load_state_dict(kernel.state_dict())
            parametrizations.spectral_norm(theirs, n_power_iterations=100)
            found.append(ns.operator_norm(theirs.eval(), (16, 16)).value)
            ours.append(ns.operator_norm(ns.spectral_norm(kernel, input_shape=(16, 16)).eval(), (16, 16)).value)
        rows.append({"kernel": size, "stride": stride, "groups": groups, "torch": spread(found), "ours": spread(ours)})
    return rows


def spread(numbers: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(numbers), "min": min(numbers), "max": max(numbers)}


def told(numbers: dict[str, float], digits: int = 3) -> str:
    return f"{numbers['median']:.{digits}g} ({numbers['min']:.{digits}g} .. {numbers['max']:.{digits}g})"


def main(quick: bool = False) -> None:
    with threads(1):
        rows, digits = left_over(quick), accuracy.study(quick)
    lines = [(r["kernel"], r["stride"], r["groups"], told(r["torch"]), told(r["ours"], 4)) for r in rows]
    page = (
        "Operator norm of 16 -> 16 convolutions on a 16 x 16 grid that were normalized to 1: median (least .. largest) "
        "of 10 random kernels, in eval mode. torch normalizes the reshaped kernel.\n\n"
        + table(("kernel", "stride", "groups", "torch spectral_norm", "ns.spectral_norm"), lines)
        + "\n\n"
        + accuracy.page(digits)
    )
    if quick:
        print(page)
    else:
        keep(HERE, "What is left of a norm", {"norms": rows, "accuracy": digits}, page)
