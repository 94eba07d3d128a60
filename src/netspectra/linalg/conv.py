"""A convolution as the linear map it is: exact products with it and with its adjoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from netspectra.linalg.algebra import Transposed

__all__ = ["DEFAULT_GRID", "ConvOperator", "PaddingMode", "conv_operator"]

# Input sizes taken where none is known, by the number of spatial dimensions.
DEFAULT_GRID = {1: 64, 2: 16, 3: 8}
PaddingMode = Literal["zeros", "circular", "reflect", "replicate"]
_FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_BACKWARD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@dataclass(frozen=True, eq=False)
class ConvOperator:
    """Cross-correlation in one to three dimensions on a fixed input grid, R^(c_in prod(grid)) -> R^(c_out prod(out)).

    Vectors are flattened as torch flattens (channel, *grid). Made by `conv_operator` from plain numbers.

    Attributes:
        kernel: (c_out, c_in / groups, *size), real.
        grid: spatial shape of the input.
        stride: one a dimension.
        padding: (before, after), one pair a dimension.
        dilation: one a dimension.
        groups: number of groups.
        mode: what the padding holds.
        out: spatial shape of the output.
    """

    kernel: Tensor
    grid: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: PaddingMode
    out: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(c_out prod(out), c_in prod(grid))."""
        c_out, c_in = self.kernel.shape[0], self.kernel.shape[1] * self.groups
        return c_out * math.prod(self.out), c_in * math.prod(self.grid)

    @property
    def dtype(self) -> torch.dtype:
        """The kernel's dtype."""
        return self.kernel.dtype

    @property
    def device(self) -> torch.device:
        """The kernel's device."""
        return self.kernel.device

    @property
    def frobenius2(self) -> float:
        """Squared Frobenius norm of the map: how often each tap is used, times its square; exact where padding is zero.

        Raises:
            ValueError: reflecting and replicating paddings count taps together; circular ones whose kernel wraps too.
        """
        if self.mode != "zeros":
            raise ValueError("known in closed form for zero padding only")
        total = self.kernel.double().square().sum(dim=(0, 1))
        for d in range(len(self.grid)):
            taps = torch.arange(total.shape[0])[:, None] * self.dilation[d] - self.padding[d][0]
            places = taps + torch.arange(self.out[d])[None] * self.stride[d]
            used = ((places >= 0) & (places < self.grid[d])).sum(1).to(total)
            total = torch.tensordot(used, total, dims=1)
        return float(total)

    def matmat(self, X: Tensor) -> Tensor:
        """A X, for X of shape (n, k)."""
        x = X.mT.reshape(-1, self.kernel.shape[1] * self.groups, *self.grid)
        for d, index in enumerate(self._sources()):
            x = self._pad(x, d, index)
        y = _FORWARD[len(self.grid)](x, self.kernel, stride=self.stride, dilation=self.dilation, groups=self.groups)
        for d, size in enumerate(self.out):
            y = y.narrow(2 + d, 0, size)
        return y.reshape(X.shape[1], -1).mT

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^T Y, for Y of shape (m, k): the exact adjoint, padding included."""
        y = Y.mT.reshape(-1, self.kernel.shape[0], *self.out)
        x = _BACKWARD[len(self.grid)](y, self.kernel, stride=self.stride, dilation=self.dilation, groups=self.groups)
        for d, index in enumerate(self._sources()):
            x = self._unpad(x, d, index)
        return x.reshape(Y.shape[1], -1).mT

    def dense(self) -> Tensor:
        """The matrix, for small grids."""
        return self.matmat(torch.eye(self.shape[1], dtype=self.dtype, device=self.device))

    def _sources(self) -> list[Tensor | None]:
        """For each dimension the input index every padded place reads; None where it reads zeros outside."""
        if self.mode == "zeros":
            return [None] * len(self.grid)
        return [source_index(n, *p, self.mode, self.device) for n, p in zip(self.grid, self.padding, strict=True)]

    def _pad(self, x: Tensor, d: int, index: Tensor | None) -> Tensor:
        if index is not None:
            return x.index_select(2 + d, index)
        before, after = self.padding[d]
        widths = [0, 0] * (x.dim() - 3 - d) + [before, after]
        return F.pad(x, widths) if before or after else x

    def _unpad(self, x: Tensor, d: int, index: Tensor | None) -> Tensor:
        """Adjoint of `_pad`; the places no output reads count as zero."""
        padded = self.grid[d] + sum(self.padding[d])
        have = x.shape[2 + d]
        if have > padded:
            x = x.narrow(2 + d, 0, padded)
        elif have < padded:
            x = F.pad(x, [0, 0] * (x.dim() - 3 - d) + [0, padded - have])
        if index is None:
            return x.narrow(2 + d, self.padding[d][0], self.grid[d])
        shape = list(x.shape)
        shape[2 + d] = self.grid[d]
        return torch.zeros(shape, dtype=x.dtype, device=x.device).index_add_(2 + d, index, x)


def source_index(n: int, before: int, after: int, mode: PaddingMode, device: torch.device) -> Tensor:
    """Which of n places each of the before + n + after padded places copies.

    >>> source_index(4, 2, 1, "reflect", torch.device("cpu")).tolist()
    [2, 1, 0, 1, 2, 3, 2]
    """
    place = torch.arange(-before, n + after, device=device)
    if mode == "circular":
        return place % n
    if mode == "replicate":
        return place.clamp(0, n - 1)
    if max(before, after) >= n:
        raise ValueError(f"reflect padding {before, after} must be smaller than the grid {n}")
    place = place.abs()
    return torch.where(place < n, place, 2 * (n - 1) - place)


def conv_operator(
    kernel: Tensor,
    grid: Sequence[int],
    *,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] | Sequence[tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    mode: PaddingMode = "zeros",
    transposed: bool = False,
    output_padding: int | Sequence[int] = 0,
) -> ConvOperator | Transposed:
    """The linear map of a convolution, its numbers named as torch names them.

    Args:
        kernel: (c_out, c_in / groups, *size); transposed: (c_in, c_out / groups, *size).
        grid: spatial shape of the input.
        stride: one number, or one a dimension.
        padding: as torch has it, ``"same"`` and ``"valid"`` included, or (before, after) pairs.
        dilation: one number, or one a dimension.
        groups: number of groups.
        mode: ``zeros``, ``circular``, ``reflect``, ``replicate``.
        transposed: a transposed convolution: the adjoint of the convolution on its output grid.
        output_padding: of a transposed convolution.

    Raises:
        ValueError: complex kernels, a grid of other dimensions or too small, padding of transposed other than zeros.

    >>> A = conv_operator(torch.ones(1, 1, 2), (3,))
    >>> A.dense()
    tensor([[1., 1., 0.],
            [0., 1., 1.]])
    """
    dims = kernel.dim() - 2
    if dims not in _FORWARD or len(grid) != dims or not kernel.is_floating_point():
        raise ValueError(
            f"a kernel of shape {tuple(kernel.shape)}, {kernel.dtype} does not act on a grid {tuple(grid)}"
        )
    kernel = kernel.detach()
    steps, holes, size = _each(stride, dims), _each(dilation, dims), tuple(kernel.shape[2:])
    spans = tuple(h * (k - 1) for h, k in zip(holes, size, strict=True))
    pads = _pairs(padding, spans)
    place = tuple(int(g) for g in grid)
    if transposed:
        if mode != "zeros":
            raise ValueError("a transposed convolution is padded with zeros only")
        extra = _each(output_padding, dims)
        whole = tuple(
            (n - 1) * s - sum(p) + w + 1 + e for n, s, p, w, e in zip(place, steps, pads, spans, extra, strict=True)
        )
        return Transposed(ConvOperator(kernel, whole, steps, pads, holes, groups, mode, place))
    out = tuple(
        (n + sum(p) - w - 1) // s + 1 if n + sum(p) > w else 0
        for n, p, w, s in zip(place, pads, spans, steps, strict=True)
    )
    if min(out) < 1:
        raise ValueError(f"the grid {place} is smaller than the kernel {size}")
    return ConvOperator(kernel, place, steps, pads, holes, groups, mode, out)


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number a dimension."""
    return (value,) * dims if isinstance(value, int) else tuple(int(v) for v in value)


def _pairs(
    padding: int | str | Sequence[int] | Sequence[tuple[int, int]], spans: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """(before, after) a dimension; ``same`` puts the odd one after, as torch does."""
    if padding == "valid":
        return ((0, 0),) * len(spans)
    if padding == "same":
        return tuple((w // 2, w - w // 2) for w in spans)
    if isinstance(padding, str):
        raise ValueError(f"padding {padding!r} is neither 'same' nor 'valid'")
    if isinstance(padding, int):
        return ((padding, padding),) * len(spans)
    return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in padding)
