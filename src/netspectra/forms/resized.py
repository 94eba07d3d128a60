"""The same kind of linear layer with other sizes: what a shrunken block is made of."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from netspectra.forms.factors import is_conv1d

__all__ = ["bias_of", "fill_", "resized", "sizes"]


def sizes(module: nn.Module) -> tuple[int, int]:
    """(m, n) of a Linear or Conv1D: outputs by inputs."""
    m, n = cast(Tensor, module.weight).shape
    return (n, m) if is_conv1d(module) else (m, n)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias, if it has one."""
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None


def resized(original: nn.Module, m: int, n: int) -> nn.Module:
    """A Linear (or transformers' Conv1D) of n inputs and m outputs, uninitialised, as the original otherwise is."""
    weight = cast(Tensor, original.weight)
    like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if is_conv1d(original):
        new: nn.Module = type(original)(m, n)
        cast(Any, new).weight = nn.Parameter(torch.empty((n, m), **like), requires_grad=weight.requires_grad)
        cast(Any, new).bias = nn.Parameter(torch.zeros(m, **like), requires_grad=weight.requires_grad)
        return new
    new = nn.utils.skip_init(nn.Linear, n, m, bias=bias_of(original) is not None, **like)
    return new.requires_grad_(weight.requires_grad)


def fill_(module: nn.Module, W: Tensor, bias: Tensor | None) -> nn.Module:
    """Write a matrix (m, n) and a bias, in the layer's own layout and dtype."""
    weight = cast(Tensor, module.weight)
    with torch.no_grad():
        weight.copy_(W.mT if is_conv1d(module) else W)
        if bias is not None:
            cast(Tensor, module.bias).copy_(bias)
    return module
