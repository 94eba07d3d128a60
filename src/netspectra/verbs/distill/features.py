"""What chosen modules of a model put out on a batch, as features on the last axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import call, tensors
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, layers
from netspectra.verbs.compress.objective import token_mask
from netspectra.verbs.distill.student import stacks

__all__ = ["captured", "landmarks", "summarised"]


def landmarks(model: nn.Module) -> tuple[str, ...]:
    """The modules whose outputs a map of a model shows: the layers of its stacks, else its layers with weights."""
    blocks = [f"{name}.{place}" for name, stack in stacks(model).items() for place in range(len(stack))]
    return tuple(blocks or [name for name, module in layers(model).items() if not isinstance(module, nn.Embedding)])


@contextmanager
def captured(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the block, what these modules last put out: features on the last axis (of images the channels too)."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            floats = (t for t in tensors(output) if t.is_floating_point())
            y = next(floats, None)
            if y is not None:
                convolution = isinstance(module, CONVOLUTIONS) and y.dim() == module.weight.dim()
                image = y.dim() > 3 and not isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm)
                found[name] = y.movedim(1, -1) if convolution or image else y

        return note

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def summarised(model: nn.Module, batches: Sequence[Any], names: Sequence[str]) -> Mapping[str, Tensor]:
    """One row a sample (N, d): the mean of a module's output over tokens that are no padding, or over pixels."""
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    with untouched(model), torch.no_grad(), captured(model, names) as found:
        for batch in batches:
            found.clear()
            call(model, batch)
            for name in names:
                if name not in found:
                    raise InputRefused(f"{name}: puts out no tensor of floating-point numbers on this data")
                y = found[name].float()
                keep = token_mask(name, y.shape[:-1], batch)
                if keep is not None:
                    weight = keep.to(y)[..., None]
                    y = (y * weight).sum(1) / weight.sum(1).clamp_min(1)
                rows[name].append(y.flatten(1, -2).mean(1) if y.dim() > 2 else y)
    return {name: torch.cat(some) for name, some in rows.items()}
