"""Numbers that lie in a file back to back: read from their offset, the wanted rows alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from netspectra.errors import EnvironmentFailure
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.remote import AnyPath
from netspectra.weight import ITEMSIZE, Index

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["StoredTensor", "leading", "opened"]


@contextmanager
def opened(path: AnyPath) -> Iterator[BinaryIO]:
    """Open a regular file for reading, here or elsewhere; what the machine refuses becomes one line."""
    GUARD.regular(path)
    try:
        with path.open("rb") as file:
            yield file
    except OSError as wrong:
        if isinstance(wrong, EnvironmentFailure):
            raise
        raise EnvironmentFailure(f"{printable(str(path))}: {wrong.strerror or wrong}") from None


def leading(index: Index, shape: tuple[int, ...]) -> tuple[slice, Index]:
    """The run of rows (of the first axis) that ``index`` needs, and the index that is left to apply to that run.

    >>> leading((3, 0), (5, 2)), leading((slice(1, 4), 0), (5, 2))
    ((slice(3, 4, None), (0, 0)), (slice(1, 4, None), (slice(None, None, None), 0)))
    """
    size = shape[0] if shape else 1
    if index and isinstance(index[0], int):
        first = range(size)[index[0]]
        return slice(first, first + 1), (0, *index[1:])
    if index and isinstance(index[0], slice) and index[0].step in (None, 1):
        first, stop, _ = index[0].indices(size)
        return slice(first, max(first, stop)), (slice(None), *index[1:])
    return slice(0, size), index


@dataclass(frozen=True)
class StoredTensor:
    """A row-major tensor at an offset of a file; a `netspectra.weight.Loader` that holds no handle, so it pickles."""

    path: AnyPath
    offset: int
    shape: tuple[int, ...]
    dtype: str

    def __call__(self, index: Index = ()) -> Tensor:
        """Read ``tensor[index]``: of the file only the rows that the first index selects."""
        import torch

        cut, rest = leading(index, self.shape)
        first, rows = cut.start, cut.stop - cut.start
        inner = math.prod(self.shape[1:])
        row_bytes = inner * ITEMSIZE[self.dtype]
        data = torch.empty(rows * row_bytes, dtype=torch.uint8)
        with opened(self.path) as file:
            file.seek(self.offset + first * row_bytes)
            got = _fill(file, memoryview(data.numpy().data))
        if got < len(data):
            refuse(self.path, f"ends {len(data) - got} bytes early; was it changed while it was read?")
        tensor = data.view(getattr(torch, self.dtype)).reshape(rows, *self.shape[1:])
        if not self.shape:
            return tensor.reshape(())
        return tensor[rest] if rest else tensor


def _fill(file: BinaryIO, view: memoryview) -> int:
    """Read until the view is full or the file ends; one read call may give less than asked."""
    done = 0
    while done < len(view):
        got = file.readinto(view[done : done + (1 << 30)])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    return done
