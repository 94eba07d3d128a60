"""MiniLM to three layers, and to narrower MLPs and fewer heads, on real text; equal steps of the same distillation."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import nn

import netspectra as ns
from benchmarks.compress.texts import topics
from benchmarks.demo.run import minilm as folder
from netspectra.live.build import build
from netspectra.live.samples import text_batches, tokenizer
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.distill.channels import Chain
from netspectra.verbs.distill.student import shallower, shrunk_copy
from netspectra.verbs.distill.training import matched, train

STACK = "encoder.layer"


def opened(quick: bool) -> tuple[nn.Module, list[Any], HeldOut, Any]:
    source = ns.open(folder())
    model, words, texts = build(source), tokenizer(source), topics()
    count, held = (48, 16) if quick else (384, 96)

    def batches(some: list[str]) -> list[Any]:
        return text_batches(sorted(some, key=len), words, model, size=16, longest=48)

    data = batches(texts[:count])
    report = ns.distill(model, data[:8], include="encoder.layer.0.intermediate.*")
    return model, data, HeldOut.of(model, batches(texts[count : count + held]), report.objective), report


def depth(quick: bool) -> dict[str, Any]:
    """Three of six layers: random init, every other layer, the layers that matter most, and those with matching."""
    model, data, held, report = opened(quick)
    steps = 4 if quick else 48
    found: dict[str, Any] = {"steps": steps, "rows": []}
    began = time.process_time()
    chosen = report._depths(3, lambda what, share: None)
    found["choice"] = {"layers": list(chosen[STACK]), "cpu_seconds": time.process_time() - began}
    for name in ("random init", "layer skipping 0 2 4", "chosen layers", "chosen layers, subspace matching"):
        kept = chosen[STACK] if name.startswith("chosen") else (0, 2, 4)
        student = copy.deepcopy(shallower(model, STACK, kept))
        if name == "random init":
            torch.manual_seed(0)
            student.apply(student._init_weights)
        matches = None
        if "matching" in name:
            pairs = [(f"{STACK}.{old}", f"{STACK}.{new}") for new, old in enumerate(kept)]
            matches = matched(student, model, data[:6], pairs)
        before = held.measure(student)
        began = time.process_time()
        train(student, model, data, steps=steps, rate=3e-4, matches=matches, weight=0.3)
        row = {"start": name, "before": before, "after": held.measure(student)}
        found["rows"].append(row | {"cpu_seconds": time.process_time() - began})
    return found


def width(quick: bool) -> dict[str, Any]:
    """A quarter of the neurons, half of the heads: no training; cut, refitted, chosen and refitted."""
    model, data, held, _ = opened(quick)
    few = data[:2] if quick else data[:12]
    found: dict[str, Any] = {"rows": []}
    for what in ("neurons", "heads"):

        def widths(chain: Chain, what: str = what) -> int:
            share = {"neurons": 0.25, "heads": 0.5}[what] if chain.kind == what else 1.0
            return round(chain.width * share)

        for name in ("random, cut", "random, refitted", "pivoted QR, refitted"):
            select = "random" if name.startswith("random") else "pivoted"
            began = time.process_time()
            losses = []
            for seed in (0,) if select == "pivoted" or quick else (0, 1, 2):
                student = shrunk_copy(model, few, widths, select=select, refit="refitted" in name, seed=seed)
                losses.append(held.measure(student)["cosine"])
            row = {"what": what, "start": name, "cosine": losses}
            found["rows"].append(row | {"cpu_seconds": (time.process_time() - began) / len(losses)})
    return found
