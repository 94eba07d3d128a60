"""The whole job against WeightWatcher 0.7.7, in one process and in turn: MiniLM, and GPT-2 small by its shapes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import netspectra as ns
from benchmarks.demo.run import minilm
from benchmarks.results import in_turn, keep, table

HERE = Path(__file__).parent


def as_module(tensors: dict[str, torch.Tensor]) -> nn.Module:
    """Linear layers that hold the matrices, since the peer looks at modules."""
    layers = nn.Sequential()
    for name, tensor in tensors.items():
        layer = nn.Linear(tensor.shape[1], tensor.shape[0], bias=False)
        layer.weight = nn.Parameter(tensor, requires_grad=False)
        layers.add_module(name.replace(".", "_"), layer)
    return layers


def minilm_layers() -> nn.Module:
    source = ns.open(minilm())
    return as_module({w.name: w.part.load().float() for w in source if w.kind == "linear"})


def gpt2_small_shapes(layers: int = 12, width: int = 768) -> nn.Module:
    torch.manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        for name, rows in (("attn_qkv", 3 * width), ("attn_proj", width), ("mlp_fc", 4 * width)):
            tensors[f"h{layer}_{name}"] = 0.02 * torch.randn(rows, width)
        tensors[f"h{layer}_mlp_proj"] = 0.02 * torch.randn(width, 4 * width)
    return as_module(tensors)


def watcher(model: nn.Module, **options: Any) -> Callable[[], Any]:
    import weightwatcher

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)

    def analyze() -> Any:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return weightwatcher.WeightWatcher(model=model).analyze(**options)

    return analyze


FULL = {"mp_fit": True, "randomize": True, "detX": True, "plot": False}


def main(quick: bool = False) -> None:
    models = {"MiniLM, 37 linear layers": minilm_layers()}
    if not quick:
        models["GPT-2 small's shapes, 48 layers"] = gpt2_small_shapes()
    rows, data = [], {}
    for name, model in models.items():
        peers: dict[str, Callable[[], Any]] = {
            "netspectra": lambda model=model: ns.analyze(model),
            "netspectra, one worker": lambda model=model: ns.analyze(model, workers=1),
            "WeightWatcher": watcher(model),
        }
        rounds = 2 if quick or "GPT" in name else 3
        found = in_turn(peers, rounds, warm=False)
        if "MiniLM" in name and not quick:
            found |= in_turn({"WeightWatcher, mp_fit randomize detX": watcher(model, **FULL)}, 1, warm=False)
        ours = found["netspectra"].median
        for peer, timing in found.items():
            rows.append([name, peer, timing, f"{timing.median / ours:.2f}x"])
        data[name] = {peer: timing.to_dict() for peer, timing in found.items()}
    page = table(["model", "tool", "seconds, median (span)", "of netspectra's"], rows)
    if quick:
        print(page)
    else:
        keep(HERE, "The whole job against WeightWatcher", data, page)
