"""Which modules apply one linear map, and that map as an operator of their weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.linalg.algebra import Transposed
from netspectra.linalg.conv import ConvOperator, PaddingMode, conv_operator
from netspectra.linalg.operator import Dense, LinearOperator

__all__ = ["LinearMap", "is_convolution", "linear_map"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class LinearMap:
    """How a module's weight acts on its input, its bias aside; differentiable in the weight.

    Attributes:
        kind: ``linear``, ``embedding``, ``conv`` or ``transposed conv``.
        grid: spatial shape of the input, of convolutions.
        make: weight -> operator.
    """

    kind: str
    grid: tuple[int, ...]
    make: Callable[[Tensor], LinearOperator]

    def __call__(self, weight: Tensor) -> LinearOperator:
        """The map of this weight; narrow dtypes are widened to float32, exactly."""
        return self.make(weight if weight.dtype in (torch.float32, torch.float64) else weight.float())


@dataclass(frozen=True)
class _Matrix:
    """An (out, in) weight as it is, or an (in, out) one transposed."""

    transposed: bool = False

    def __call__(self, weight: Tensor) -> LinearOperator:
        return Dense(weight.mT if self.transposed else weight)


@dataclass(frozen=True, eq=False)
class _Convolution:
    """A convolution's geometry, with its kernel to be filled in."""

    geometry: ConvOperator | Transposed

    def __call__(self, kernel: Tensor) -> LinearOperator:
        if isinstance(self.geometry, Transposed):
            return Transposed(replace(cast(ConvOperator, self.geometry.A), kernel=kernel))
        return replace(self.geometry, kernel=kernel)


def is_convolution(module: nn.Module) -> bool:
    """Whether the module is a convolution or transposed convolution in one to three dimensions."""
    return isinstance(module, _CONVS + _TRANSPOSED)


def linear_map(module: nn.Module, input_shape: Sequence[int] = ()) -> LinearMap:
    """The linear map that a module applies.

    Args:
        module: Linear, Embedding (of one-hot rows), Conv1d-3d, ConvTranspose1d-3d, or the Conv1D of transformers.
        input_shape: for convolutions the spatial shape of the input, with or without leading batch and channel sizes.

    Raises:
        InputRefused: another kind of module, a missing or unfitting input shape.

    >>> linear_map(nn.Linear(3, 2))(torch.ones(2, 3)).shape
    (2, 3)
    """
    if isinstance(module, nn.Linear):
        return LinearMap("linear", (), _Matrix())
    if isinstance(module, nn.Embedding):
        return LinearMap("embedding", (), _Matrix(transposed=True))
    if type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        return LinearMap("linear", (), _Matrix(transposed=True))
    if not isinstance(module, _CONVS + _TRANSPOSED):
        raise InputRefused(f"{type(module).__name__} is not one linear map; give a Linear, Embedding or convolution")
    dims = module.weight.dim() - 2
    if len(input_shape) < dims:
        raise InputRefused(f"{type(module).__name__} needs the {dims} spatial sizes of its input as input_shape")
    grid = tuple(int(size) for size in input_shape[-dims:])
    with torch.no_grad():
        kernel = torch.empty(module.weight.shape, device="meta", dtype=torch.float32)
    geometry = conv_operator(
        kernel,
        grid,
        stride=module.stride,
        padding=cast("str | tuple[int, ...]", module.padding),
        dilation=module.dilation,
        groups=module.groups,
        mode=cast("PaddingMode", module.padding_mode),
        transposed=isinstance(module, _TRANSPOSED),
        output_padding=module.output_padding,
    )
    return LinearMap("transposed conv" if isinstance(module, _TRANSPOSED) else "conv", grid, _Convolution(geometry))
