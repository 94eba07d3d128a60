"""Plain deep networks that do not train as PyTorch initialises them: do they after ``initialize_``?"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

import netspectra as ns
from benchmarks.results import table
from benchmarks.training.networks import RECIPES, STEPS, Shape, digits, module, steps_to_goal

# depth, width, activation; mirrored pairs were tried out on other seeds (100 to 102)
SHAPES = [
    Shape(20, 64, "tanh"),
    Shape(50, 32, "tanh"),
    Shape(20, 64, "relu"),
    Shape(50, 32, "relu"),
    Shape(50, 64, "relu"),
    Shape(100, 32, "relu"),
    Shape(20, 32, "gelu"),
    Shape(50, 64, "gelu"),
    Shape(50, 32, "silu"),
]
SAMPLES = 32  # of unlabelled data that initialize_ sees
WAYS = {"orthogonal": {"mirror": False}, "initialize_": {}}


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
    rows = [row(shape, seeds, steps) for shape in (SHAPES[:1] if quick else SHAPES)]
    return {"steps": steps, "rows": rows, "seconds": time.process_time() - began}


def row(shape: Shape, seeds: int, steps: int) -> dict[str, Any]:
    """The same networks as PyTorch makes them and initialised in both ways."""
    networks: list[nn.Module] = []
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(module(shape))
    ways = {}
    for name, options in WAYS.items():
        drawn = [module(shape) for _ in networks]
        for network, default in zip(drawn, networks, strict=True):
            network.load_state_dict(default.state_dict())
        found = [
            ns.initialize_(network, digits().x[:SAMPLES], seed=seed, **options) for seed, network in enumerate(drawn)
        ]
        ways[name] = drawn, found
    every = trains(shape, [*networks, *(network for drawn, _ in ways.values() for network in drawn)], steps)
    default, *after = (every[i : i + seeds] for i in range(0, len(every), seeds))
    return {
        "shape": str(shape),
        "networks": seeds,
        "default trains": sum(default),
        "failed": seeds - sum(default),
        "ways": {
            name: {
                "then train": sum(a and not d for a, d in zip(trained, default, strict=True)),
                "rms before": [float(one.before.rms) for one in found],
                "rms after": [float(one.after.rms) for one in found],
                "share after": [float(one.after.share) for one in found],
                "cosine after": [float(one.after.blocks[-2].cosine) for one in found],
                "rounds": [one.rounds for one in found],
            }
            for (name, (_, found)), trained in zip(ways.items(), after, strict=True)
        },
    }


def page(found: dict[str, Any]) -> str:
    rows = []
    for one in found["rows"]:
        cells = [one["shape"], f"{one['default trains']} of {one['networks']}"]
        for way in one["ways"].values():
            rms, cosine = way["rms after"], statistics.median(way["cosine after"])
            cells += [f"{way['then train']} of {one['failed']}", f"{min(rms):.2f} .. {max(rms):.2f}", f"{cosine:.2f}"]
        rows.append(cells)
    failed = sum(one["failed"] for one in found["rows"])
    plain, full = (sum(one["ways"][way]["then train"] for one in found["rows"]) for way in WAYS)
    reached = "reached" if failed and full >= 0.95 * failed else "not reached"
    head = ["shape", "train by default"]
    head += ["orthogonal, scaled: train after", "rms", "cosine", "`initialize_`: train after", "rms", "cosine"]
    return (
        f"## initialize_\n\nPlain networks as PyTorch makes them, then after `initialize_` with a batch of {SAMPLES} "
        f"digits without labels, without mirrored pairs and with them; {found['steps']} steps, any recipe. Rms of the "
        "end-to-end Jacobian; median cosine between different inputs at the last hidden layer.\n\n"
        f"{table(head, rows)}\n\nOf {failed} failing networks {full} train then ({full / max(failed, 1):.0%}; mark "
        f"95 %: {reached}), {plain} ({plain / max(failed, 1):.0%}) without mirrored pairs."
    )
