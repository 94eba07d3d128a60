"""The spectral norm of a layer as the linear map it applies, convolution and padding included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from netspectra.errors import InputRefused
from netspectra.linalg.conv import PaddingMode, conv_operator
from netspectra.linalg.norm import NormEstimate, conv_norm, dense_norm

__all__ = ["operator_norm"]

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def operator_norm(
    module: nn.Module, input_shape: Sequence[int] = (), *, tolerance: float = 1e-6, bound: bool = True
) -> NormEstimate:
    """Largest factor by which a linear layer can stretch an input, its bias aside.

    For a convolution this is not the norm of the reshaped kernel, which is smaller by a factor of up to the root of
    the number of taps; it depends on the grid, the padding, the stride.

    Args:
        module: Linear, Embedding, Conv1d-3d or ConvTranspose1d-3d; neither changed nor moved.
        input_shape: for convolutions the spatial shape of the input, with or without leading batch and channel sizes.
        tolerance: relative residual wanted where products are used.
        bound: also compute a rigorous upper bound for convolutions (a Gram matrix a frequency).

    Raises:
        InputRefused: another kind of module, a missing or unfitting input shape.

    >>> operator_norm(nn.Conv1d(1, 1, 1, bias=False), (4,)).how
    'exact'
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        return dense_norm(module.weight)
    if not isinstance(module, _CONVS + _TRANSPOSED):
        raise InputRefused(f"{type(module).__name__} is not one linear map; give a Linear, Embedding or convolution")
    dims = module.weight.dim() - 2
    if len(input_shape) < dims:
        raise InputRefused(f"{type(module).__name__} needs the {dims} spatial sizes of its input as input_shape")
    kernel = module.weight.detach()
    if kernel.dtype not in (torch.float32, torch.float64):
        kernel = kernel.float()  # products in half precision would drown the answer; widening is exact
    operator = conv_operator(
        kernel,
        tuple(input_shape)[-dims:],
        stride=module.stride,
        padding=cast("str | tuple[int, ...]", module.padding),
        dilation=module.dilation,
        groups=module.groups,
        mode=cast("PaddingMode", module.padding_mode),
        transposed=isinstance(module, _TRANSPOSED),
        output_padding=module.output_padding,
    )
    return conv_norm(operator, tolerance=tolerance, bound=bound)
