"""Allocated against uniform on held-out samples: three models, five budgets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.compress.digits import trained
from netspectra.verbs.compress.allocate import uniform
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.replace import tried

KEEP = (0.3, 0.4, 0.5, 0.7, 0.9)


def perceptron(images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    """A perceptron of three hidden layers trained on flat digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = (64, 256, 256, 128, 10)
        layers: list[nn.Module] = []
        for n, m in pairwise(sizes):
            layers += [nn.Linear(n, m), nn.GELU()]
        model = nn.Sequential(*layers[:-1])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for part in torch.randperm(len(images)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[part]), labels[part]).backward()
                optimizer.step()
    return model.eval()


def compared(
    name: str, model: nn.Module, batches: Sequence[Any], tests: Sequence[Any], include: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Losses of all candidates on the held-out samples that chose, and of the chosen and uniform on others."""
    rows, known = [], None
    for keep in KEEP:
        options = CompressOptions(keep=keep, include=include)
        plan, shop = compress(model, options, batches, calibration=known)
        known = shop.calibration
        assert shop.held is not None
        judge = HeldOut.of(model, tests, shop.held.objective)
        found = {}
        for which, some in (("chosen", shop.chosen), ("uniform", uniform(shop.parts, keep, "parameters"))):
            with tried(model, shop.fit(some)) as changed:
                found[which] = judge.loss(changed)
        losses = {which: measures["loss"] for which, measures in plan.held_out["candidates"].items()}
        share = plan.totals["selected_after"].parameters / plan.totals["selected_before"].parameters
        kept = plan.held_out["kept"]
        rows.append({"model": name, "keep": keep, "held_out": losses, "kept": kept, "share": share, "test": found})
        print("  ", rows[-1], flush=True)
    return rows


def measured(quick: bool = False) -> list[dict[str, Any]]:
    """Rows of all three models."""
    from benchmarks.compress.minilm import ENCODER, Model

    network, train, test, _ = trained(4 if quick else 30)
    network.requires_grad_(True)
    rows = compared("digits CNN", network, list(train[:512].split(64)), list(test.split(64)))
    flat = train.flatten(1)
    with torch.no_grad():
        labels = network(train).argmax(1)
    dense = perceptron(flat, labels, 2 if quick else 20)
    rows += compared("digits perceptron", dense, list(flat[:512].split(64)), list(test.flatten(1).split(64)))
    minilm = Model(64, 8) if quick else Model(192, 60)
    return rows + compared("MiniLM", minilm.module, minilm.calibration, minilm.tests["in"], ENCODER)
