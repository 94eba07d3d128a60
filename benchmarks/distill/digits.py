"""Digits: an MLP and a CNN to narrower students; five starts, the same training, accuracy along the way."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import netspectra as ns
from netspectra.verbs.distill.student import share_of, shrunk_copy
from netspectra.verbs.distill.training import train

CHECKS = (0, 10, 20, 40, 100, 200, 400)
STARTS = ("random init", "random neurons", "random neurons, refitted", "pivoted QR, refitted", "forward, refitted")


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 16, 10),
    )  # fmt: skip


def data(images: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    x = torch.from_numpy(found.images).float() / 16
    x = x[:, None] if images else x.flatten(1)
    y = torch.from_numpy(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[:1300]], y[order[:1300]], x[order[1300:]], y[order[1300:]]


def taught(make: Callable[[], nn.Module], x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


class Answers(nn.Module):
    """The teacher's logits of fixed batches, computed once: the same training for half the work."""

    def __init__(self, teacher: nn.Module, batches: Sequence[Tensor]) -> None:
        super().__init__()
        with torch.no_grad():
            self.known = {batch.data_ptr(): teacher(batch) for batch in batches}

    def forward(self, x: Tensor) -> Tensor:
        return self.known[x.data_ptr()]


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    was = model.training
    with torch.no_grad():
        found = float((model.eval()(x).argmax(1) == y).float().mean())
    model.train(was)
    return found


def start(name: str, teacher: nn.Module, batches: Sequence[Tensor], width: float, seed: int) -> nn.Module:
    """A student of this width, begun in this way."""
    select: Any = name.split()[0].strip(",") if not name.startswith("random") else "random"
    student = shrunk_copy(teacher, batches, share_of(width), select=select, refit="refitted" in name, seed=seed)
    if name == "random init":
        student = copy.deepcopy(student)
        torch.manual_seed(seed)
        for module in student.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return student


def measured(kind: str, quick: bool) -> dict[str, Any]:
    """Accuracies by width, start and step: the median over seeds, and the range."""
    make, widths = (mlp, (4 / 256, 8 / 256, 16 / 256)) if kind == "mlp" else (cnn, (1 / 32, 1 / 16, 1 / 8))
    seeds = (0,) if quick else (0, 1, 2, 3, 4)
    checks = CHECKS[:4] if quick else CHECKS
    x, y, tx, ty = data(kind == "cnn")
    found: dict[str, Any] = {"teacher": [], "rows": []}
    runs: dict[tuple[float, str], list[list[float]]] = {}
    ranks = []
    for seed in seeds:
        teacher = taught(make, x, y, 5 if quick else 20 if kind == "cnn" else 40, seed)
        found["teacher"].append(accuracy(teacher, tx, ty))
        batches = list(x.split(64))
        report, answers = ns.distill(teacher, batches), Answers(teacher, batches)
        ranks.append(
            {
                "ranks": {one.name: float(one.inputs.effective_rank) for one in report.use},
                "used k90": {one.name: float(one.used.k90) for one in report.use},
                "suggested": {one.name: one.suggested for one in report.widths},
            }
        )
        for width in widths:
            for name in STARTS:
                student = start(name, teacher, batches, width, seed)
                seen = [accuracy(student, tx, ty)]

                def look(step: int, loss: float, student: nn.Module = student, seen: list[float] = seen) -> None:
                    if step in checks:
                        seen.append(accuracy(student, tx, ty))

                train(student, answers, batches, steps=checks[-1], rate=3e-3, objective="logits", seed=seed, each=look)
                runs.setdefault((width, name), []).append(seen)
    for (width, name), seen in runs.items():
        columns = list(zip(*seen, strict=True))
        found["rows"].append(
            {
                "width": width,
                "start": name,
                "steps": list(checks),
                "median": [statistics.median(c) for c in columns],
                "low": [min(c) for c in columns],
                "high": [max(c) for c in columns],
            }
        )
    found["ranks"] = ranks
    found["marks"] = _marks(runs, widths, checks)
    return found


def _marks(runs: dict[tuple[float, str], list[list[float]]], widths: Sequence[float], checks: Sequence[int]) -> Any:
    """Steps until forward selection's start has random init's last accuracy; its lead over other starts at step 0."""
    rows = []
    for width in widths:
        ends = [seen[-1] for seen in runs[width, "random init"]]
        needed = []
        for seen, end in zip(runs[width, STARTS[-1]], ends, strict=True):
            needed.append(next((step for step, value in zip(checks, seen, strict=True) if value >= end), None))
        lead = {
            other: statistics.median(
                a[0] - b[0] for a, b in zip(runs[width, STARTS[-1]], runs[width, other], strict=True)
            )
            for other in STARTS[1:4]
        }
        rows.append({"width": width, "steps needed": needed, "of": checks[-1], "lead at step 0": lead})
    return rows
