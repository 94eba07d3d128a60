"""A weight on its way to another machine: names, places and slices; numbers stay where they are.

Paths are made absolute here and looked up there, so that the other machine says at once that it has no such file.
"""

from __future__ import annotations

import io
import os
import pickle
import platform
from pathlib import Path
from typing import Any

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.run.job import Job
from netspectra.weight import Weight

__all__ = ["pack", "unpack"]

_sizes: dict[str, int] = {}


class _Packer(pickle.Pickler):
    """Writes a path as (its absolute form, bytes of the file); refuses numbers."""

    def __init__(self, file: io.BytesIO, name: str) -> None:
        super().__init__(file, protocol=5)
        self.name = name

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Path):
            path = os.path.abspath(obj)
            if path not in _sizes:
                _sizes[path] = _size(path)
            return path, _sizes[path]
        if type(obj).__module__.startswith("torch") and hasattr(obj, "data_ptr"):
            raise InputRefused(
                f"{self.name!r} is in this process's memory, and tensors do not travel: save the model where every "
                "machine can read it and give its path, or leave the engine out"
            )
        return None


class _Unpacker(pickle.Unpickler):
    def persistent_load(self, pid: Any) -> Path:
        path, size = pid
        there = _size(path)
        if there != size:
            found = "is not there" if there == MISSING else f"has {there} bytes, not the driver's {size},"
            raise EnvironmentFailure(
                f"{path}: {found} on {platform.node()}. The checkpoint has to be at this path on every machine: "
                "put it on a shared file system, or copy it to all"
            )
        return Path(path)


MISSING, FOLDER = -1, -2


def _size(path: str) -> int:
    if os.path.isdir(path):
        return FOLDER
    try:
        return os.stat(path).st_size
    except OSError:
        return MISSING


def pack(weight: Weight | Job) -> bytes:
    """The weight or job as bytes, some hundreds of them.

    Raises:
        InputRefused: it holds its numbers itself: a live module, a dict of tensors.
    """
    file = io.BytesIO()
    try:
        _Packer(file, weight.name).dump(weight)
    except (pickle.PicklingError, AttributeError) as wrong:  # a lambda, or a function within another
        raise InputRefused(f"{weight.name!r} cannot travel: {wrong}; functions have to stand in a module") from None
    return file.getvalue()


def unpack(parcel: bytes) -> Any:
    """Undo `pack`, on any machine.

    Raises:
        EnvironmentFailure: this machine has no such file at that path, or one of another size.
    """
    return _Unpacker(io.BytesIO(parcel)).load()
