"""Tensors that wait in a temporary file for as long as somebody may ask for them."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import EnvironmentFailure
from netspectra.weight import Index, Loader

__all__ = ["Spill"]


@dataclass(eq=False)
class Spill:
    """A nameless temporary file; it goes when the last of its tensors goes.

    Attributes:
        folder: where it lies; None: where ``TMPDIR`` says.

    >>> load = Spill().put(torch.arange(6).reshape(2, 3))
    >>> load()
    tensor([[0, 1, 2],
            [3, 4, 5]])
    """

    folder: Path | None = None
    _file: IO[bytes] = field(init=False, repr=False)
    _turn: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Open the file."""
        self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115  (open as long as a tensor of it is held)

    def put(self, tensor: Tensor) -> Loader:
        """Write a tensor of any dtype; what comes back loads it, on its device.

        Raises:
            EnvironmentFailure: the disk is full.
        """
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        try:
            with self._turn:
                place = self._file.seek(0, 2)
                flat.numpy().tofile(self._file)
                self._file.flush()
        except OSError as wrong:
            folder = self.folder or tempfile.gettempdir()
            raise EnvironmentFailure(
                f"{folder}: full ({wrong.strerror}); temporary data goes there, take a roomier disk (TMPDIR or -o)"
            ) from None
        return _Waiting(self._file, self._turn, place, flat.numel(), tuple(tensor.shape), tensor.dtype, tensor.device)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """Where one tensor lies in the file."""

    file: IO[bytes]
    turn: threading.Lock
    place: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as the tensor itself."""
        return _arrived, (self(),)

    def __call__(self, index: Index = ()) -> Tensor:
        with self.turn:  # threads share one place in the file
            self.file.seek(self.place)
            found = torch.from_numpy(np.fromfile(self.file, dtype=np.uint8, count=self.size))
        return found.view(self.dtype).reshape(self.shape)[index].to(self.device)


def _arrived(tensor: Tensor) -> Tensor:
    return tensor
