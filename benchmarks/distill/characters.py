"""A character-level Transformer to students with a narrower residual stream: equal steps of the same distillation."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
from torch import nn

from benchmarks.distill.smollm import STARTS
from benchmarks.quantize.subjects import Text, taught
from netspectra.verbs.distill.stream import narrower
from netspectra.verbs.distill.training import train

CHECKS = (0, 10, 20, 40, 100, 200)
WIDTH, DEPTH = 96, 3


def _fresh(model: nn.Module, seed: int) -> nn.Module:
    """The same sizes, begun as torch begins."""
    student = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in student.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return student


def steps(quick: bool) -> dict[str, Any]:
    """Nats a character on held-out text along the way: the median over seeds of the order of batches, and the range."""
    text, checks = Text(64), CHECKS[:3] if quick else CHECKS
    teacher = taught(text, WIDTH, DEPTH, 30 if quick else 400)
    data = [text.drawn(text.train, 16)[:, :-1] for _ in range(8 if quick else 64)]
    held = text.drawn(text.held, 128)

    def loss(model: nn.Module) -> float:
        was = model.training
        with torch.no_grad():
            found = float(text.loss(model.eval(), held))
        model.train(was)
        return found

    found: dict[str, Any] = {"width": WIDTH, "before": loss(teacher), "steps": list(checks), "rows": []}
    for width in (WIDTH // 2,) if quick else (WIDTH // 2, WIDTH // 4):
        for name in ("random init", *STARTS):
            began = time.process_time()
            first = narrower(teacher, data[:32], width, **STARTS.get(name, {"refit": False}))
            seconds, runs = time.process_time() - began, []
            for seed in (0,) if quick else (0, 1):
                student = _fresh(first, seed) if name == "random init" else copy.deepcopy(first)
                seen = [loss(student)]

                def look(step: int, _: float, student: nn.Module = student, seen: list[float] = seen) -> None:
                    if step in checks:
                        seen.append(loss(student))

                train(student, teacher, data, steps=checks[-1], rate=3e-3, objective="logits", seed=seed, each=look)
                runs.append(seen)
            columns = list(zip(*runs, strict=True))
            row = {"stream": width, "start": name, "median": [statistics.median(c) for c in columns]}
            row |= {"low": [min(c) for c in columns], "high": [max(c) for c in columns], "cpu_seconds": seconds}
            found["rows"].append(row)
            print("  ", row, flush=True)
    return found
