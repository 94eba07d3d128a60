"""The linear layers of a model, with the grids that its convolutions see."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from netspectra.errors import InputRefused
from netspectra.linalg.conv import DEFAULT_GRID
from netspectra.live.batches import call, tensors
from netspectra.live.maps import LinearMap, is_convolution, linear_map
from netspectra.live.untouched import untouched
from netspectra.weight import Selection

__all__ = ["default_grid", "linear_layers"]


def linear_layers(
    model: nn.Module, batch: Any, selection: Selection, *, parametrized: bool = False
) -> tuple[list[tuple[str, nn.Module, LinearMap]], list[tuple[str, str]]]:
    """Find every module of one linear map.

    Args:
        model: any module; it is run once on the batch, and comes back untouched.
        batch: shows the grids of convolutions, the largest counts; None for the default ones.
        selection: of module names.
        parametrized: also those whose weight is parametrized.

    Returns:
        (name, module, map) each, in the order of the model; and (name, reason) of what holds a matrix but is left
        alone: tied or parametrized weights, convolutions that the batch does not reach, and modules that use theirs
        otherwise.
    """
    shapes = _input_shapes(model, batch) if batch is not None else {}
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    )
    found: list[tuple[str, nn.Module, LinearMap]] = []
    skipped: list[tuple[str, str]] = []
    for name, module in model.named_modules():
        if not selection.accepts(name) or isinstance(module, parametrize.ParametrizationList):
            continue
        if not isinstance(getattr(module, "weight", None), Tensor) or cast(Tensor, module.weight).dim() < 2:
            if reason := _other_weights(module):
                skipped.append((name, reason))
            continue
        weight = cast(Tensor, module.weight)
        if parametrize.is_parametrized(module, "weight") and not parametrized:
            skipped.append((name, "its weight is parametrized already"))
        elif owners[id(weight)] > 1:
            skipped.append((name, "its weight is tied to another module's"))
        elif is_convolution(module) and batch is not None and name not in shapes:
            skipped.append((name, "the batch did not reach it, so the size of its input is unknown"))
        else:
            try:
                found.append((name, module, linear_map(module, shapes.get(name) or default_grid(module))))
            except InputRefused as reason:
                skipped.append((name, str(reason)))
    return found, skipped


def _other_weights(module: nn.Module) -> str:
    """Why a module with matrices under other names is left alone; empty where it holds none of its own."""
    own = [name for name, p in module.named_parameters(recurse=False) if p.dim() >= 2]
    return f"{type(module).__name__} applies {', '.join(own[:3])} in its own way, not as one linear map" if own else ""


def default_grid(module: nn.Module) -> tuple[int, ...]:
    """The input size that a convolution is taken on where none is known; empty for other modules."""
    if not is_convolution(module):
        return ()
    dims = cast(Tensor, module.weight).dim() - 2
    return (DEFAULT_GRID[dims],) * dims


def _input_shapes(model: nn.Module, batch: Any) -> dict[str, tuple[int, ...]]:
    """Shape of the largest input that each convolution sees."""
    seen: dict[str, tuple[int, ...]] = {}
    hooks = []

    def watch(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...]) -> None:
            shape = tuple(next(tensors(args)).shape)
            if name not in seen or math.prod(shape) > math.prod(seen[name]):
                seen[name] = shape

        return see

    for name, module in model.named_modules():
        if is_convolution(module):
            hooks.append(module.register_forward_pre_hook(watch(name)))
    try:
        with untouched(model), torch.no_grad():
            call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
