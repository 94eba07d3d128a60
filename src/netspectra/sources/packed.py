"""Numbers that a file keeps in its own way: turned, as varints or half bytes, or as whole numbers with scales."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netspectra.sources.guard import refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import StoredTensor, leading
from netspectra.weight import Index, Loader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Arranged", "Blocks", "Nibbles", "Scaled", "Turned", "Varints", "broadcast"]


@dataclass(frozen=True)
class Varints:
    """Numbers written as varints, at an offset of a file; those of floats are their bits."""

    path: AnyPath
    start: int
    stop: int
    shape: tuple[int, ...]
    dtype: str

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode all of them and give ``tensor[index]``."""
        import numpy as np
        import torch

        data = StoredTensor(self.path, self.start, (self.stop - self.start,), "uint8")().numpy()
        ends = np.flatnonzero(data < 128)
        starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
        if len(ends) != math.prod(self.shape) or ends[-1] + 1 != len(data) or int((ends - starts).max()) > 9:
            refuse(self.path, f"holds {len(ends)} numbers at byte {self.start}, its shape says {math.prod(self.shape)}")
        values = np.zeros(len(ends), np.uint64)
        for place in range(int((ends - starts).max()) + 1):
            there = starts + place <= ends
            digits = data[np.minimum(starts + place, ends)].astype(np.uint64) & np.uint64(127)
            values |= np.where(there, digits << np.uint64(7 * place), np.uint64(0))
        dtype = getattr(torch, self.dtype)
        if dtype.is_floating_point:
            bits = values.astype(np.uint16 if dtype.itemsize == 2 else np.uint8)
            tensor = torch.from_numpy(bits).view(dtype)
        else:
            tensor = torch.from_numpy(values.view(np.int64)).to(dtype)
        return tensor.reshape(self.shape)[index]


@dataclass(frozen=True)
class Nibbles:
    """Four-bit whole numbers, two a byte, the first in the low half."""

    raw: Loader
    shape: tuple[int, ...]
    signed: bool

    def __call__(self, index: Index = ()) -> Tensor:
        """Unpack all of them to int8 and give ``tensor[index]``."""
        return self.all()[index]

    def all(self) -> Tensor:
        """Unpack them."""
        import torch

        data = self.raw().view(torch.uint8)
        both = torch.stack([data & 15, data >> 4], dim=-1).reshape(-1)[: math.prod(self.shape)].reshape(self.shape)
        return both.to(torch.int8) - 16 * (both > 7).to(torch.int8) if self.signed else both


@dataclass(frozen=True)
class Turned:
    """An array that is stored columns first, or with its bytes the other way round; a `netspectra.weight.Loader`."""

    raw: Loader
    columns_first: bool
    swapped: bool

    def __call__(self, index: Index = ()) -> Tensor:
        """Load and turn; one that is stored columns first is read as a whole."""
        import numpy as np
        import torch

        found = self.raw(() if self.columns_first else index)
        if self.swapped:
            found = torch.from_numpy(np.asarray(found.contiguous().numpy().byteswap()))
        if not self.columns_first:
            return found
        turned = found.permute(*reversed(range(found.dim())))
        return turned[index] if index else turned


@dataclass(frozen=True)
class Arranged:
    """A tensor with its axes in another order, and in another shape; a `netspectra.weight.Loader`.

    Attributes:
        raw: gives the tensor as it is stored.
        order: of the axes, or empty for that of the file.
        shape: after that.
    """

    raw: Loader
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def __call__(self, index: Index = ()) -> Tensor:
        """Load the whole, arrange it, and give ``tensor[index]``."""
        found = self.raw()
        found = (found.permute(self.order) if self.order else found).reshape(self.shape)
        return found[index] if index else found


def broadcast(scale: tuple[int, ...], shape: tuple[int, ...], axis: int, block: int = 0) -> tuple[int, ...] | None:
    """The shape that lines a scale up with a tensor's axes; None where it does not fit.

    A scale is one number, one for each place on ``axis``, one for each run of ``block`` places on it, or of a shape
    that broadcasts.

    >>> broadcast((), (5, 3), 1), broadcast((5,), (5, 3), 0), broadcast((1, 3), (5, 3), 0), broadcast((4,), (5, 3), 0)
    ((1, 1), (5, 1), (1, 3), None)
    """
    axis = axis % len(shape) if shape else 0
    if math.prod(scale) == 1:
        return (1,) * len(shape)
    if len(scale) == 1 and axis < len(shape) and scale[0] == shape[axis]:
        return tuple(size if place == axis else 1 for place, size in enumerate(shape))
    if len(scale) != len(shape):
        return None
    if block:
        whole = tuple(-(-size // block) if place == axis else size for place, size in enumerate(shape))
        return scale if scale == whole else None
    return scale if all(one in (1, size) for one, size in zip(scale, shape, strict=True)) else None


@dataclass(frozen=True)
class Scaled:
    """Whole numbers q that stand for (q - zero) * scale in float32; a `netspectra.weight.Loader`.

    Attributes:
        raw: gives q.
        shape: of q.
        scale: gives the scales.
        zero: gives the zero points, if any.
        shapes: of scale and zero, lined up with q by `broadcast`.
        axis: on which they are given in blocks.
        block: length of one; 0 where they are not.
    """

    raw: Loader
    shape: tuple[int, ...]
    scale: Loader
    zero: Loader | None
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    axis: int = 0
    block: int = 0

    def __call__(self, index: Index = ()) -> Tensor:
        """Load and decode the rows that the first index selects."""
        import torch

        cut, rest = leading(index, self.shape)
        found = self.raw((cut,) if self.shape else ()).to(torch.float32)
        if self.zero is not None:
            found -= self._lined_up(self.zero(), self.shapes[1], cut)
        found *= self._lined_up(self.scale(), self.shapes[0], cut)
        return found[rest] if rest else found

    def _lined_up(self, numbers: Tensor, shape: tuple[int, ...], cut: slice) -> Tensor:
        import torch

        numbers = numbers.to(torch.float32).reshape(shape)
        if self.block and numbers.numel() > 1:
            numbers = numbers.repeat_interleave(self.block, self.axis).narrow(self.axis, 0, self.shape[self.axis])
        return numbers[cut] if numbers.dim() and numbers.shape[0] > 1 else numbers


@dataclass(frozen=True)
class Blocks:
    """Rows of whole numbers of 4 or 8 bits in blocks, each block with a scale and a zero point (MatMulNBits).

    Attributes:
        raw: gives the bytes, (rows, blocks, bytes a block).
        shape: (rows, columns) of the matrix.
        scale: gives a number a block.
        zero: gives the zero points, if any: packed as the numbers are, rows padded to whole bytes; or floats.
        bits: of a number.
        block: numbers in a block.
    """

    raw: StoredTensor
    shape: tuple[int, int]
    scale: Loader
    zero: Loader | None
    bits: int
    block: int

    def __call__(self, index: Index = ()) -> Tensor:
        """Load and decode the rows that the first index selects."""
        import torch

        cut, rest = leading(index, self.shape)
        blocks = self.raw.shape[1]
        found = self._unpacked(self.raw((cut,))).reshape(-1, blocks, self.block).to(torch.float32)
        scale = self.scale().to(torch.float32).reshape(-1, blocks)[cut]
        found -= self._zeros(blocks, cut)
        found *= scale[..., None]
        found = found.reshape(-1, blocks * self.block)[:, : self.shape[1]]
        return found[rest] if rest else found

    def _zeros(self, blocks: int, cut: slice) -> Tensor | int:
        if self.zero is None:
            return 1 << (self.bits - 1)
        zeros = self.zero()
        if not zeros.dtype.is_floating_point:
            zeros = self._unpacked(zeros.reshape(self.shape[0], -1))
        return zeros.reshape(self.shape[0], -1)[cut, :blocks, None].float()

    def _unpacked(self, data: Tensor) -> Tensor:
        import torch

        return data if self.bits == 8 else torch.stack([data & 15, data >> 4], dim=-1).flatten(-2)
