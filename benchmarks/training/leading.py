"""The largest singular value of Jacobians that are known exactly, from twenty products."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.results import table
from netspectra.linalg.lanczos import golub_kahan
from netspectra.live.conditions import plain_kernels
from netspectra.live.jacobian import Jacobian
from netspectra.live.untouched import untouched
from netspectra.verbs.train.spectra import leading

STEPS = 10


def chain(depth: int, width: int, act: type[nn.Module], gain: float) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.orthogonal_(linear.weight, gain)
        layers += [linear, act()]
    return nn.Sequential(*layers)


class Last(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


def convolutions(depth: int, channels: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "one linear layer": (lambda: nn.Linear(200, 200), (200,)),
    "tanh, depth 20, orthogonal (flat)": (lambda: chain(20, 150, nn.Tanh, 1.1), (150,)),
    "tanh, depth 50, orthogonal 1.5 (chaotic)": (lambda: chain(50, 100, nn.Tanh, 1.5), (100,)),
    "ReLU, depth 20, He": (lambda: chain(20, 150, nn.ReLU, 1.414), (150,)),
    "convolutions, depth 6": (lambda: convolutions(6, 8), (3, 8, 8)),
    "Transformer, 2 layers": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
        ),
        (10, 32),
    ),
    "LSTM, 2 layers": (lambda: Last(nn.LSTM(16, 32, 2, batch_first=True)), (12, 16)),
}


def study(quick: bool) -> dict[str, Any]:
    rows = []
    for name, (make, shape) in CASES.items():
        errors, seconds, exact_seconds = [], [], []
        for seed in range(2 if quick else 10):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model, x = make(), torch.randn(1, *shape)
            with untouched(model), plain_kernels():
                leaf = x.clone().requires_grad_()
                J = Jacobian(leaf, model(leaf))
                began = time.process_time()
                found = golub_kahan(J, 1, tolerance=1e-9, max_steps=STEPS)
                seconds.append(time.process_time() - began)
                assert found.products <= 2 * STEPS
                began = time.process_time()
                exact = torch.autograd.functional.jacobian(model, x)
                matrix = exact.reshape(J.shape).double()
                truth = float(torch.linalg.svdvals(matrix)[0])
                exact_seconds.append(time.process_time() - began)
            value = leading(found)
            errors.append(abs(value - truth) / truth)
        middle = len(seconds) // 2
        rows.append(
            {
                "model": name,
                "size": list(J.shape),
                "networks": len(errors),
                "worst": max(errors),
                "median": sorted(errors)[middle],
                "seconds": sorted(seconds)[middle],
                "exact seconds": sorted(exact_seconds)[middle],
            }
        )
    return {"products": 2 * STEPS, "rows": rows}


def page(found: dict[str, Any]) -> str:
    rows = [
        [
            row["model"],
            f"{row['size'][0]} x {row['size'][1]}",
            f"{row['median']:.1e}",
            f"{row['worst']:.1e}",
            f"{1e3 * row['seconds']:.0f} ms, {1e3 * row['exact seconds']:.0f} ms",
        ]
        for row in found["rows"]
    ]
    worst = max(row["worst"] for row in found["rows"])
    reached = "reached" if worst <= 0.01 else "not reached"
    head = ["model", "J", "median error", "worst error", "time, and of the exact Jacobian"]
    late = [row["model"] for row in found["rows"] if row["worst"] > 0.01]
    why = (
        f" Beyond it: {', '.join(late)}. A large square matrix of independent numbers, whose spectrum ends in a flat "
        f"edge, has a bidiagonal form with equal entries; of it {STEPS} steps from any start leave 1 - cos(pi / "
        f"{2 * STEPS + 2}) = {1 - math.cos(math.pi / (2 * STEPS + 2)):.2%} of sigma_1: the mark is at the limit of "
        "what products can find. `trainability` decomposes Jacobians of this size in full."
        if late
        else ""
    )
    return (
        f"## sigma_1(J)\n\n{found['products']} products against the exact Jacobian, {found['rows'][0]['networks']} "
        f"networks each:\n\n{table(head, rows)}\n\nWorst of all {worst:.1e}; mark 1 % in 20 products: {reached}.{why}"
    )
