"""Files of ``torch.save`` and ``torch.jit.save``: ``.pt``, ``.pth``, ``.bin``, ``.ckpt``, whatever their suffix.

No pickle in them is ever run: `netspectra.sources.pickled` reads it as data. Since 1.6 torch writes a zip with the
object in ``data.pkl`` and every storage as an unpacked record; before, a stream of five pickles (a magic number, a
protocol number, facts of the machine, the object, the keys of the storages) and then the storages, each behind its
count of numbers (layout: https://github.com/pytorch/pytorch, ``torch/serialization.py``). A storage's bytes are read
when a weight that views it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from netspectra.errors import InputRefused
from netspectra.sources import FORMATS
from netspectra.sources.archive import Archive, Extent, first_name, is_zip
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.pickled import Global, Inert, Table, Unreadable
from netspectra.sources.remote import AnyPath
from netspectra.sources.sharded import shards
from netspectra.sources.statedict import Found, find
from netspectra.sources.stored import opened
from netspectra.sources.torchpickle import (
    ARRAY,
    ByteOrder,
    Pickled,
    Place,
    Storage,
    asides,
    named,
    read,
    read_zip,
    reference,
)
from netspectra.weight import TensorRef

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".bin.index.json"
TAR = ("storages", "tensors", "pickle", "sys_info")


class TorchFile:
    """The reader."""

    name = "torch"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A folder that holds such files, an index of them, or a file that begins like one, whatever its suffix."""
        if path.is_dir():
            return bool(_indices(path) or _whole(path))
        return path.name.endswith(INDEX) or _begins(path)

    def files(self, path: AnyPath) -> list[AnyPath]:
        """Every file that holds tensors of the checkpoint, in order."""
        if path.is_dir():
            indices, whole = _indices(path), _whole(path)
            if len(indices) == 1:
                return self._shards(indices[0])
            if path / "pytorch_model.bin" in whole:
                return [path / "pytorch_model.bin"]
            if len(whole) == 1 and not indices:
                return whole
            names = ", ".join(file.name for file in (*indices, *whole)[:6])
            refuse(path, f"holds several checkpoints ({names}); name one of them")
        return self._shards(path) if path.name.endswith(INDEX) else [path]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every tensor in the order of the file, then a line for each branch of training state."""
        seen: dict[str, AnyPath] = {}
        for file in self.files(path):
            for ref in _refs(file):
                if ref.name in seen:
                    refuse(file, f"the tensor is in {seen[ref.name].name} too", ref.name)
                seen[ref.name] = file
                yield ref

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """The ``config.json`` beside the weights."""
        return GUARD.config_beside(path)

    def _shards(self, index: AnyPath) -> list[AnyPath]:
        return shards(index, lambda file: [ref.name for ref in _refs(file)])


def _indices(folder: AnyPath) -> list[AnyPath]:
    return GUARD.found(folder, f"*{INDEX}")


def _whole(folder: AnyPath) -> list[AnyPath]:
    named = [file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()]
    return [file for file in named if _begins(GUARD.inside(folder, file.name))]


def _begins(path: AnyPath) -> bool:
    """Whether a file is one of torch, by its first bytes or by the directory of its zip."""
    with opened(path) as file:
        start = file.read(512)
    if not is_zip(start):
        return _is_stream(start) or _is_tar(start)
    inner = first_name(start).partition("/")[2]
    if inner == "data.pkl":
        return True
    try:
        names = list(Archive(path).records)
    except InputRefused:
        return inner in ("version", "byteorder", ".format_version") or inner.startswith("data/")
    return any(name.count("/") <= 1 and name.split("/")[-1] == "data.pkl" for name in names)


def _is_stream(start: bytes) -> bool:
    """A pickle: by its protocol, or by torch's magic number in letters."""
    return (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5") or start.startswith(f"L{MAGIC}L\n".encode())


def _is_tar(start: bytes) -> bool:
    return start[257:262] == b"ustar" and start[:100].rstrip(b"\0").decode("latin-1").strip("./") in TAR


def _refs(path: AnyPath) -> Iterator[TensorRef]:
    """Every tensor of one file, checked."""
    with opened(path) as file:
        start = file.read(512)
    if is_zip(start):
        root, place, _, _ = read_zip(path)
    elif _is_tar(start):
        refuse(path, "is a tar file of PyTorch before 0.1.10; load it with torch and save it again")
    else:
        root, place = _read_stream(path)
    with named(path):
        found = find(root, _is_tensor)
    if not found.tensors:
        _refuse_empty(path, root, found)
    for name, tensor in found.tensors:
        yield reference(path, name, _pickled(tensor), place)
    yield from asides(path, found)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Pickled) or (isinstance(value, Inert) and value.made_by is ARRAY)


def _pickled(value: Any) -> Pickled:
    """The tensor; a NumPy array is listed with the reason why it is not read."""
    if isinstance(value, Pickled):
        return value
    state = value.state if isinstance(value.state, tuple) and len(value.state) > 1 else (None, None)
    sizes = state[1] if isinstance(state[1], tuple) and len(state[1]) <= GUARD.dimensions else (0,)
    shape = sizes if all(type(size) is int and 0 <= size <= GUARD.numel for size in sizes) else (0,)
    return Pickled(shape, "unknown", problem="a NumPy array within a pickle; save it as a tensor")


def _refuse_empty(path: AnyPath, root: Any, found: Found) -> None:
    if found.modules:
        where, kind = found.modules[0]
        at = f" under {printable(where)!r}" if where else ""
        refuse(path, f"holds a whole pickled module{at} ({kind}), which only its class can open; "
                     "where you trust the file, load it with torch and save model.state_dict()")  # fmt: skip
    if found.training:
        names = ", ".join(printable(name, 40) for name, _ in found.training[:5])
        refuse(path, f"holds training state ({names}) and no weights")
    kinds = {Table: "a dict", list: "a list", tuple: "a tuple"}
    kind = root.kind if isinstance(root, Inert) else kinds.get(type(root), type(root).__name__)
    refuse(path, f"holds no tensors ({kind}); save a state dict with torch.save(model.state_dict(), ...)")


# ---- the stream before torch 1.6 ---------------------------------------------------------------------------------


def _read_stream(path: AnyPath) -> tuple[Any, Place]:
    size = GUARD.regular(path)
    met: dict[str, Storage] = {}
    with opened(path) as file, named(path):
        magic = read(file, size)
        if type(magic) is not int or magic != MAGIC:
            raise Unreadable(f"is a pickle, but none of torch.save (it holds {_kind(magic)}); it is never run: "
                             "where you trust it, load it and save a state dict with torch.save")  # fmt: skip
        protocol = read(file, size)
        if type(protocol) is not int or protocol != PROTOCOL:
            raise Unreadable(f"has not the protocol number {PROTOCOL} of torch.save; fetch it again")
        machine = read(file, size)
        little = machine.get("little_endian") if isinstance(machine, Table) else None
        if not isinstance(little, bool):
            raise Unreadable("does not say the order of its bytes; it is damaged, fetch it again")
        root = read(file, size, met)
        extents = _storages(file, size, read(file, size), met)

    def place(storage: Storage) -> Extent:
        if not little:
            raise ByteOrder
        if storage.key not in extents:
            refuse(path, "the storage is not in the file; fetch it again", storage.key)
        return extents[storage.key]

    return root, place


def _storages(file: BinaryIO, size: int, keys: Any, met: dict[str, Storage]) -> dict[str, Extent]:
    """Where each storage lies, from the counts before them."""
    if not isinstance(keys, list):
        raise Unreadable("does not list its storages; it is damaged, fetch it again")
    extents: dict[str, Extent] = {}
    end = file.tell()
    for key in keys:
        storage = met.get(str(key)) if isinstance(key, str | int) else None
        if storage is None or storage.key in extents:
            raise Unreadable("lists a storage twice, or one that nothing views; it is damaged, fetch it again")
        file.seek(end)
        count = int.from_bytes(file.read(8), "little")
        extents[storage.key] = Extent(end + 8, count * storage.itemsize)
        end += 8 + count * storage.itemsize
        if end > size:
            raise Unreadable(f"is truncated: a storage ends at byte {end}, the file at {size}; fetch it again")
    if end < size:
        raise Unreadable(f"has {size - end} bytes after the last storage; was more than one object saved into it?")
    return extents


def _kind(value: Any) -> str:
    if isinstance(value, Inert):
        return f"a call of {value.kind}"
    names = {Table: "a dict", list: "a list", tuple: "a tuple", Global: "a name"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


FORMATS.add(TorchFile.name, TorchFile(), __name__)
