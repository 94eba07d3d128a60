"""A tensor as torch keeps it: an offset, sizes and strides within a storage that lies in a file as it is.

Only the bytes that the wanted numbers span are read; where they lie far apart, piece by piece.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from netspectra.sources.guard import refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import opened
from netspectra.weight import ITEMSIZE, Index

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StridedTensor", "span"]

BLOCK = 1 << 26
AT_ONCE = 1 << 20


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many numbers lie from the first to the last of a view, both included.

    >>> span((2, 3), (3, 1)), span((2, 3), (1, 2)), span((5,), (10,)), span((0, 7), (7, 1))
    (6, 6, 41, 0)
    """
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def cut(index: Index, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, list[int], list[int]]:
    """(offset, shape, stride) of ``view[index]``.

    >>> cut((1, slice(0, 6, 2)), 0, (4, 6), (6, 1))
    (6, [3], [2])
    """
    if len(index) > len(shape):
        raise IndexError(f"{len(index)} indices for {len(shape)} axes")
    sizes, steps = list(shape[len(index) :]), list(stride[len(index) :])
    kept: list[tuple[int, int]] = []
    for place, size, step in zip(index, shape, stride, strict=False):
        if isinstance(place, int):
            offset += range(size)[place] * step
            continue
        start, stop, hop = place.indices(size)
        if hop < 1:
            raise ValueError("the step of a slice must be positive")
        kept.append((len(range(start, stop, hop)), step * hop))
        offset += start * step
    return offset, [size for size, _ in kept] + sizes, [step for _, step in kept] + steps


@dataclass(frozen=True)
class StridedTensor:
    """A view of a storage in a file; a `netspectra.weight.Loader` that holds no handle, so it pickles.

    Attributes:
        path: the file.
        base: where the storage begins in it, in bytes.
        nbytes: of the storage.
        dtype: of the numbers.
        offset: of the first number in the storage, in numbers.
        shape: of the view.
        stride: of the view, in numbers, none negative.
        crc: CRC-32 of the whole storage, checked whenever all of it is read; 0 where none was kept.
        conj: the storage holds the complex conjugate.
        neg: the storage holds the negative.
    """

    path: AnyPath
    base: int
    nbytes: int
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    crc: int = 0
    conj: bool = False
    neg: bool = False

    def __call__(self, index: Index = ()) -> Tensor:
        """Read ``tensor[index]``."""
        import torch

        offset, shape, stride = cut(index, self.offset, self.shape, self.stride)
        if 0 in shape:
            return torch.empty(shape, dtype=getattr(torch, self.dtype))
        with opened(self.path) as file:
            found = self._gather(file, offset, shape, stride)
        found = found.conj_physical() if self.conj else found
        return found.neg() if self.neg else found

    def _gather(self, file: BinaryIO, offset: int, shape: list[int], stride: list[int]) -> Tensor:
        """All numbers of a view, in one read where they lie close together, else in pieces along the widest axis."""
        import torch

        count, spanned, itemsize = math.prod(shape), span(tuple(shape), tuple(stride)), ITEMSIZE[self.dtype]
        if spanned * 4 <= count * 5 or spanned * itemsize <= AT_ONCE:
            found = self._read(file, offset * itemsize, spanned * itemsize).as_strided(shape, stride)
            return found.contiguous() if spanned > count else found
        found = torch.empty(shape, dtype=getattr(torch, self.dtype))
        axis = max((axis for axis, size in enumerate(shape) if size > 1), key=stride.__getitem__)
        run = AT_ONCE // (stride[axis] * itemsize)
        run = run if 1 <= run < shape[axis] else 1
        for place in range(0, shape[axis], run):
            length = min(run, shape[axis] - place)
            inner = [*shape[:axis], length, *shape[axis + 1 :]]
            piece = self._gather(file, offset + place * stride[axis], inner, stride)
            found.narrow(axis, place, length).copy_(piece)
        return found

    def _read(self, file: BinaryIO, start: int, size: int) -> Tensor:
        """The bytes from ``start`` of the storage, as numbers."""
        import torch

        data = torch.empty(size, dtype=torch.uint8)
        view, done, crc = memoryview(data.numpy().data), 0, 0
        checked = bool(self.crc) and size == self.nbytes
        file.seek(self.base + start)
        while done < size:
            got = file.readinto(view[done : done + BLOCK])  # type: ignore[attr-defined]
            if not got:
                refuse(self.path, f"ends {size - done} bytes early; was it changed while it was read?")
            crc = zlib.crc32(view[done : done + got], crc) if checked else 0
            done += got
        if checked and crc != self.crc:
            refuse(self.path, f"{size} bytes at {self.base} do not match their checksum: damaged; fetch it again")
        return data.view(getattr(torch, self.dtype))
