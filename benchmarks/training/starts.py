"""Plain deep networks that do not train as PyTorch initialises them: do they after ``initialize_``?"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

import netspectra as ns
from benchmarks.results import table
from benchmarks.training.networks import RECIPES, STEPS, Shape, digits, module, steps_to_goal

SHAPES = [
    Shape(20, 64, "tanh"),
    Shape(20, 64, "relu"),
    Shape(20, 32, "gelu"),
    Shape(50, 32, "tanh"),
    Shape(50, 64, "relu"),
]


def trains(shape: Shape, networks: list[nn.Module], steps: int) -> list[bool]:
    """Whether any recipe brings each network to 90 %; those that one did are not tried again."""
    done = [False] * len(networks)
    for recipe in RECIPES:
        left = [i for i, ok in enumerate(done) if not ok]
        if not left:
            break
        took = steps_to_goal(shape, [networks[i] for i in left], recipe, steps=steps)
        for i, ok in zip(left, took.isfinite().tolist(), strict=True):
            done[i] = ok
    return done


def study(quick: bool) -> dict[str, Any]:
    steps, seeds = (60, 2) if quick else (STEPS, 5)
    began = time.process_time()
    rows = []
    for shape in SHAPES[:1] if quick else SHAPES:
        networks = []
        for seed in range(seeds):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                networks.append(module(shape))
        default = trains(shape, networks, steps)
        found = [ns.initialize_(network, digits().x[:32], seed=seed) for seed, network in enumerate(networks)]
        after = trains(shape, networks, steps)
        rows.append(
            {
                "shape": str(shape),
                "networks": seeds,
                "default trains": sum(default),
                "failed": seeds - sum(default),
                "then train": sum(a and not d for a, d in zip(after, default, strict=True)),
                "rms before": [float(one.before.rms) for one in found],
                "rms after": [float(one.after.rms) for one in found],
                "share after": [float(one.after.share) for one in found],
                "rounds": [one.rounds for one in found],
            }
        )
    return {"steps": steps, "rows": rows, "seconds": time.process_time() - began}


def page(found: dict[str, Any]) -> str:
    rows = [
        [
            row["shape"],
            f"{row['default trains']} of {row['networks']}",
            f"{row['then train']} of {row['failed']}",
            f"{min(row['rms before']):.0e} .. {max(row['rms before']):.0e}",
            f"{min(row['rms after']):.2f} .. {max(row['rms after']):.2f}",
        ]
        for row in found["rows"]
    ]
    failed, then = (sum(row[key] for row in found["rows"]) for key in ("failed", "then train"))
    reached = "reached" if failed and then >= 0.95 * failed else "not reached"
    head = ["shape", "train by default", "of those that do not, train after", "rms before", "rms after"]
    return (
        "## initialize_\n\nPlain networks as PyTorch makes them, then after `initialize_` with a batch of 32 digits "
        f"without labels; {found['steps']} steps, any recipe.\n\n{table(head, rows)}\n\n"
        f"{then} of {failed} failing networks train then ({then / max(failed, 1):.0%}; mark 95 %: {reached})."
    )
