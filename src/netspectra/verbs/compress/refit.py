"""Layers fitted anew behind the compressed ones: inputs from the compressed net, targets from the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from netspectra.forms.heads import HeadLinear
from netspectra.forms.pivoted import PivotedLinear
from netspectra.linalg.pairs import Pairs
from netspectra.live.batches import call
from netspectra.live.untouched import untouched
from netspectra.live.watching import watching
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, rows
from netspectra.verbs.compress.objective import token_mask
from netspectra.verbs.compress.replace import Replacement, tried

__all__ = ["last_stage", "refit_"]

ANCHOR = 0.02  # ridge towards the weights as they are, in mean diagonals of the moments


def last_stage(module: nn.Module) -> tuple[nn.Module, Tensor | None] | None:
    """The layer whose output is the module's output, and which of the module's outputs it makes (None: all).

    None where the outputs do not mean what the original's mean (fewer neurons or head dimensions).
    """
    if isinstance(module, PivotedLinear):
        if not module.rows:
            return module.kept, None
        return module.mixed, torch.argsort(module.order.long())[module.rank :]
    if isinstance(module, HeadLinear):
        return (module.narrow, None) if module.side == "inputs" else None
    if isinstance(module, nn.Sequential):
        return last_stage(module[-1])
    linear = isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or type(module).__name__ == "Conv1D"
    return (module, None) if linear else None


def refit_(model: nn.Module, replacements: Sequence[Replacement], batches: Sequence[Any]) -> list[Tensor]:
    """One sweep: every replacement's last stage by least squares, all at once; gives back what undoes it.

        min over V, c of sum |V z + c - y|^2 + anchor |V - V_now|^2

    z enters the last stage in the compressed net, y is what the original layer makes in the original net.

    Args:
        model: the original, with its own modules.
        replacements: what stands in the compressed one; written to.
        batches: calibration data.
    """
    stages = _stages(model, replacements)
    sums: dict[str, Pairs] = {}
    with untouched(model), torch.no_grad():
        for batch in batches:
            targets: dict[str, Tensor] = {}
            with watching({n: model.get_submodule(n) for n in stages}, _keeper(targets)):
                call(model, batch)
            with (
                tried(model, replacements) as changed,
                watching({n: stage.layer for n, stage in stages.items()}, _adder(stages, sums, targets, batch)),
            ):
                call(changed, batch)
    undo = []
    for name, stage in stages.items():
        if name in sums:
            undo += stage.solve_(sums[name])
    return undo


def _keeper(targets: dict[str, Tensor]) -> Callable[[str, Tensor, Tensor], None]:
    return lambda name, x, y: targets.update({name: y})


@dataclass(eq=False)
class _Stage:
    """A layer that is fitted anew, and which of the original layer's outputs are its targets."""

    layer: nn.Module
    index: Tensor | None
    transposed: bool = False
    written: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def solve_(self, sums: Pairs) -> list[Any]:
        """Write the least-squares solution; gives back parameters and what they were."""
        weight = cast(Tensor, self.layer.weight)
        bias = cast("Tensor | None", self.layer.bias)
        V = (weight.mT if self.transposed else weight.flatten(1)).double()
        z, y = sums.means()
        zz, yz = sums.moments((z, y) if bias is not None else None)
        ridge = ANCHOR * zz.diagonal().mean() * torch.eye(len(zz), dtype=zz.dtype)
        solved = torch.linalg.solve(zz + ridge, (yz + V @ ridge).mT).mT
        undo = [(weight, weight.detach().clone())]
        with torch.no_grad():
            weight.copy_(solved.mT if self.transposed else solved.reshape(weight.shape))
            if bias is not None:
                undo.append((bias, bias.detach().clone()))
                bias.copy_(y - solved @ z)
        return undo


def _stages(model: nn.Module, replacements: Sequence[Replacement]) -> dict[str, _Stage]:
    """By module name, what can be fitted anew: outputs of the same width, no groups."""
    found: dict[str, _Stage] = {}
    for one in replacements:
        original, last = model.get_submodule(one.name), last_stage(one.module)
        if last is None or isinstance(original, nn.Embedding):
            continue
        layer, index = last
        transposed = type(layer).__name__ == "Conv1D"
        outputs = cast(Tensor, layer.weight).shape[1 if transposed else 0]
        weight = cast(Tensor, original.weight)
        whole = weight.shape[1 if type(original).__name__ == "Conv1D" else 0]
        if outputs != (whole if index is None else len(index)) or getattr(layer, "groups", 1) > 1:
            continue
        found[one.name] = _Stage(layer, index, transposed)
    return found


def _adder(
    stages: Mapping[str, _Stage], sums: dict[str, Pairs], targets: Mapping[str, Tensor], batch: Any
) -> Callable[[str, Tensor, Tensor], None]:
    def add(name: str, x: Tensor, _: Tensor) -> None:
        stage, y = stages[name], targets[name]
        convolution = isinstance(stage.layer, CONVOLUTIONS)
        keep = None if convolution else token_mask(name, x.shape[:-1], batch)
        wanted = y.movedim(1, -1) if convolution else y
        wanted = wanted[keep] if keep is not None else wanted.reshape(-1, wanted.shape[-1])
        if stage.index is not None:
            wanted = wanted[:, stage.index]
        start = 0
        for z in rows(stage.layer, x, keep):
            if name not in sums:
                m, n = wanted.shape[1], z.shape[1]
                sums[name] = Pairs.zeros(m, n)
            sums[name].add_(z.float(), wanted[start : start + len(z)].float())
            start += len(z)

    return add
