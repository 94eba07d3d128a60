"""Does trainability predict what trains? Its threshold was fixed at depth 20; everything else is a test."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import netspectra as ns
from benchmarks.results import table
from benchmarks.training.networks import STEPS, WAYS, Shape, digits, drawn, fewest_steps, module

CALIBRATION = [Shape(20, 64, act, residual) for act in ("tanh", "relu") for residual in (False, True)]
TEST = [
    Shape(10, 64, "tanh", seed=1),
    Shape(10, 64, "gelu", seed=1),
    Shape(10, 32, "relu", True, seed=2),
    Shape(50, 32, "tanh", seed=3),
    Shape(50, 32, "relu", seed=3),
    Shape(50, 32, "gelu", True, seed=4),
    Shape(50, 32, "relu", True, seed=6),
    Shape(20, 32, "relu", seed=4),
    Shape(20, 32, "silu", seed=5),
]
SAMPLES = 8  # of unlabelled data that trainability sees
# What predicts, and which sign of it: for the rivals the better one of the raw number and its distance from 1.
PREDICTORS = {
    "trainability score": "score",
    "share of sigma(J) outside 0.1 ... 10": "outside",
    "|log10 rms sigma(J)|": "rms",
    "first-layer gradient norm (needs labels)": "gradient",
    "median condition number of the weights": "condition",
    "product of spectral norms": "product",
}


@dataclass
class Cell:
    """One shape: every way to initialise it, what was measured before training, and how it trained."""

    shape: Shape
    rows: list[dict[str, Any]]

    def of(self, name: str) -> np.ndarray:
        return np.array([row[name] for row in self.rows], dtype=float)


def cell(shape: Shape, steps: int) -> Cell:
    networks = [module(shape, drawn(shape, way)) for way in WAYS]
    rows = []
    for way, network in zip(WAYS, networks, strict=True):
        found = ns.trainability(network, digits().x[:SAMPLES])
        spectra = [torch.linalg.svdvals(p.detach()) for p in network.parameters() if p.dim() == 2]
        rows.append(
            {
                "way": way,
                "score": float(found.score),
                "outside": 1 - float(found.share),
                "rms": abs(np.log10(max(float(found.rms), 1e-30))),
                "condition": float(np.median([float(s[0] / s[-1]) for s in spectra])),
                "product": sum(float(s[0].log10()) for s in spectra),
                "gradient": gradient(network),
                "passes": found.passes,
            }
        )
    for row, count in zip(rows, fewest_steps(shape, networks, steps).tolist(), strict=True):
        row["steps"] = count if count <= steps else None
    return Cell(shape, rows)


def gradient(network: torch.nn.Module) -> float:
    """log10 of the norm of the loss's gradient in the first weight."""
    first = next(network.parameters())
    data = digits()
    loss = torch.nn.functional.cross_entropy(network(data.x[:64]), data.y[:64])
    (found,) = torch.autograd.grad(loss, first)
    return float(found.norm().clamp_min(1e-30).log10())


def outcomes(cells: Sequence[Cell], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Whether each network trained, and its steps; never counts as twice the limit."""
    found = [row["steps"] for one in cells for row in one.rows]
    return np.array([s is not None for s in found]), np.array([2 * steps if s is None else s for s in found])


def ranks(cells: Sequence[Cell], steps: int) -> dict[str, dict[str, float]]:
    """AUROC and Spearman of every predictor over these cells."""
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    trains, took = outcomes(cells, steps)
    found = {}
    for title, name in PREDICTORS.items():
        values = np.concatenate([one.of(name) for one in cells])
        forms = [values] if name in ("score", "outside", "rms") else [values, -values, np.abs(values)]
        if name == "condition":
            forms = [values]
        auroc = max(roc_auc_score(~trains, form) for form in forms)
        rho = max(float(spearmanr(form, took)[0]) for form in forms)
        found[title] = {"auroc": float(auroc), "spearman": rho}
    return found


def ceiling(cells: Sequence[Cell], steps: int) -> float:
    """Spearman of a number that ranks every network rightly: networks that never train tie, so it is below 1."""
    from scipy.stats import spearmanr

    _, took = outcomes(cells, steps)
    return float(spearmanr(np.argsort(np.argsort(took, kind="stable")), took)[0])


def verdicts(cells: Sequence[Cell], steps: int) -> dict[str, int]:
    """What the verdict said against what happened."""
    trains, _ = outcomes(cells, steps)
    passes = np.array([row["passes"] for one in cells for row in one.rows])
    return {
        "passes, trains": int((passes & trains).sum()),
        "passes, fails": int((passes & ~trains).sum()),
        "warned, trains": int((~passes & trains).sum()),
        "warned, fails": int((~passes & ~trains).sum()),
    }


def study(quick: bool) -> dict[str, Any]:
    steps = 60 if quick else STEPS
    calibration, test = (CALIBRATION[:1], TEST[:1]) if quick else (CALIBRATION, TEST)
    return {"steps": steps, "parts": {"calibration, depth 20": part(calibration, steps), "test": part(test, steps)}}


def part(shapes: Sequence[Shape], steps: int) -> dict[str, Any]:
    """Train and measure these shapes."""
    began = time.process_time()
    cells = [cell(shape, steps) for shape in shapes]
    return {
        "cells": [{"shape": str(one.shape), "seed": one.shape.seed, "rows": one.rows} for one in cells],
        "ranks": ranks(cells, steps),
        "ceiling": ceiling(cells, steps),
        "each": {str(one.shape): one_rank(one, steps) for one in cells},
        "verdicts": verdicts(cells, steps),
        "seconds": time.process_time() - began,
    }


def one_rank(one: Cell, steps: int) -> dict[str, Any]:
    trains, took = outcomes([one], steps)
    from scipy.stats import spearmanr

    if not trains.any():  # nothing to rank
        return {"trains": 0, "of": len(trains), "spearman": {}}
    rho = {name: float(spearmanr(one.of(PREDICTORS[name]), took)[0]) for name in list(PREDICTORS)[:3]}
    rho["median condition number of the weights"] = float(spearmanr(one.of("condition"), took)[0])
    return {"trains": int(trains.sum()), "of": len(trains), "spearman": rho}


def page(found: dict[str, Any]) -> str:
    parts = [
        f"Networks on the 8 x 8 digits, {len(WAYS)} ways to initialise each shape; the fewest of {found['steps']} "
        "steps to 90 % test accuracy by the best of SGD with momentum (0.03, 0.01, 0.003) and Adam (0.001). The score "
        "and its threshold were fixed on the calibration shapes; the test shapes were named before they were run."
    ]
    for name, part in found["parts"].items():
        count = sum(part["verdicts"].values())
        rows = [[title, f"{r['auroc']:.3f}", f"{r['spearman']:.2f}"] for title, r in part["ranks"].items()]
        parts.append(f"## {name}: {count} networks\n\n" + table(["predictor", "AUROC: fails", "Spearman: steps"], rows))
        parts.append(
            f"{part['verdicts']['passes, fails'] + part['verdicts']['warned, fails']} networks never train and tie: no "
            f"predictor has a Spearman correlation above {part['ceiling']:.2f}."
        )
        rows = [
            [
                shape,
                f"{one['trains']} of {one['of']}",
                *([f"{rho:.2f}" for rho in one["spearman"].values()] or ["-"] * 4),
            ]
            for shape, one in part["each"].items()
        ]
        head = ["shape", "train", "rho score", "rho share", "rho rms", "rho condition"]
        parts.append(table(head, rows))
        said = part["verdicts"]
        right = said["passes, trains"] + said["warned, fails"]
        told = ", ".join(f"{key}: {value}" for key, value in said.items())
        parts.append(f"The verdict at the fixed threshold: {told}; right on {right / count:.0%}.")
    return "\n\n".join([*parts, marks(found)])


def marks(found: dict[str, Any]) -> str:
    test = found["parts"]["test"]["ranks"]
    score, condition = test["trainability score"], test["median condition number of the weights"]
    rows = [
        ["AUROC", f"{score['auroc']:.3f}", ">= 0.95", said(score["auroc"] >= 0.95)],
        [
            "Spearman",
            f"{score['spearman']:.2f} of at most {found['parts']['test']['ceiling']:.2f}",
            ">= 0.8",
            said(score["spearman"] >= 0.8),
        ],
        [
            "Spearman above condition number",
            f"{score['spearman'] - condition['spearman']:.2f}",
            ">= 0.3",
            said(score["spearman"] - condition["spearman"] >= 0.3),
        ],
    ]
    return table(["on the test shapes", "measured", "mark", ""], rows)


def said(reached: bool) -> str:
    return "reached" if reached else "not reached"
