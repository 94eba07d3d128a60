"""The spectral norm of a layer as the linear map it applies, convolution and padding included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from netspectra.linalg.algebra import Transposed
from netspectra.linalg.conv import ConvOperator
from netspectra.linalg.norm import NormEstimate, conv_norm, dense_norm
from netspectra.linalg.operator import Dense, LinearOperator
from netspectra.live.maps import linear_map

__all__ = ["norm_of", "operator_norm"]


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
    weight = cast(Tensor, module.weight) if isinstance(getattr(module, "weight", None), Tensor) else Tensor()
    return norm_of(linear_map(module, input_shape)(weight.detach()), tolerance=tolerance, bound=bound)


def norm_of(A: LinearOperator, *, tolerance: float = 1e-6, bound: bool = True) -> NormEstimate:
    """The spectral norm of what `linear_map` gave, by the surest route for it."""
    if isinstance(A, Dense):
        return dense_norm(A.matrix)
    assert isinstance(A, ConvOperator | Transposed)
    return conv_norm(A, tolerance=tolerance, bound=bound)
