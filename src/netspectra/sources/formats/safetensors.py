"""safetensors: one file, a sharded index, or a Hugging Face folder that holds either.

The header is read here, strictly, before anything else sees the file (layout: https://github.com/huggingface/safetensors,
"Format"): eight bytes of length, a JSON table, then the tensors back to back without overlap or hole. Bytes are read
from their offsets when a weight is asked for, and only the rows that are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from netspectra.checkpoint import DTYPES
from netspectra.sources import FORMATS
from netspectra.sources.guard import GUARD, refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.sharded import shards
from netspectra.sources.stored import StoredTensor, opened
from netspectra.weight import ITEMSIZE, TensorRef

INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_model.safetensors"


class Safetensors:
    """The reader."""

    name = "safetensors"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A folder that holds safetensors, an index of them, or a file that begins like one, whatever its suffix."""
        if path.is_dir():
            return any(path.glob("*.safetensors")) or (path / INDEX).exists()
        if path.name.endswith(".safetensors.index.json"):
            return True
        with opened(path) as file:
            start = file.read(9)
        return start[8:] == b"{" and start[:1] != b"{"

    def files(self, path: AnyPath) -> list[AnyPath]:
        """Every file that holds tensors of the checkpoint, in order."""
        if path.is_dir():
            indices = GUARD.found(path, "*.safetensors.index.json")
            whole = GUARD.found(path, "*.safetensors")
            if (path / INDEX).exists():
                return self._shards(path / INDEX)
            if (path / "model.safetensors").exists():
                return [path / "model.safetensors"]
            if (path / ADAPTER).exists() and not indices:
                return [path / ADAPTER]
            if len(indices) == 1:
                return self._shards(indices[0])
            if len(whole) == 1:
                return whole
            names = ", ".join(file.name for file in (*indices, *whole)[:6])
            refuse(path, f"holds several checkpoints ({names}); name one of them")
        return self._shards(path) if path.suffix == ".json" else [path]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every tensor, by header alone; the format keeps no order: ``layers.2`` goes before ``layers.10``."""
        return iter(sorted(self._unordered(path), key=lambda ref: natural(ref.name)))

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """The ``config.json`` beside the weights; an adapter's ``adapter_config.json`` under ``peft``."""
        return GUARD.config_beside(path)

    def _unordered(self, path: AnyPath) -> Iterator[TensorRef]:
        seen: dict[str, AnyPath] = {}
        for file in self.files(path):
            for ref in _header(file):
                if ref.name in seen:
                    refuse(file, f"the tensor is in {seen[ref.name].name} too", ref.name)
                seen[ref.name] = file
                yield ref

    def _shards(self, index: AnyPath) -> list[AnyPath]:
        return shards(index, lambda file: [ref.name for ref in _header(file)])


def texts(path: AnyPath) -> dict[str, str]:
    """What a file says of itself, under ``__metadata__``."""
    return _table(path)[1]


def _table(path: AnyPath) -> tuple[dict[str, Any], dict[str, str], int]:
    """The header without its texts, the texts, and where the tensors begin."""
    size = GUARD.regular(path)
    with opened(path) as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            refuse(path, f"has {size} bytes, a safetensors file begins with 8 bytes of header length")
        length = int.from_bytes(prefix, "little")
        if length > GUARD.header_bytes:
            refuse(path, f"claims a header of {length} bytes, allowed are {GUARD.header_bytes}")
        if 8 + length > size:
            refuse(path, f"is truncated: header of {length} bytes, file of {size}; fetch it again")
        table = GUARD.json(path, file.read(length))
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse(path, "is not a table of texts", "__metadata__")
    return table, metadata, 8 + length


def _header(path: AnyPath) -> Iterator[TensorRef]:
    """Check the whole header, then yield its tensors in the order of their bytes."""
    size = GUARD.regular(path)
    table, _, start = _table(path)
    if len(table) > GUARD.tensors:
        refuse(path, f"holds {len(table)} tensors, allowed are {GUARD.tensors}")
    entries = sorted((_entry(path, name, entry) for name, entry in table.items()), key=lambda entry: entry[1:3])
    end = 0
    for ref, begin, stop in entries:
        if begin != end:
            refuse(path, f"its bytes begin at {begin}, the tensor before ends at {end}: overlap or hole", ref.name)
        end = stop
    if start + end != size:
        refuse(path, f"is {'truncated' if size < start + end else 'too long'}: "
                     f"the header describes {start + end} bytes, the file has {size}; fetch it again")  # fmt: skip
    for ref, begin, _ in entries:
        yield _at(ref, path, start + begin)


def _entry(path: AnyPath, name: str, entry: Any) -> tuple[TensorRef, int, int]:
    GUARD.name(path, name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(path, "the header entry is not {dtype, shape, data_offsets}", name)
    offsets = entry["data_offsets"]
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int and o >= 0 for o in offsets)):
        refuse(path, "data_offsets are not two whole numbers", name)
    begin, end = offsets
    shape = GUARD.shape(path, name, entry["shape"])
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    problem = "" if dtype else f"stored as {entry['dtype']!r}, which torch cannot hold"
    ref = TensorRef(name, shape, dtype or str(entry["dtype"]), _unread, problem=problem)
    if begin > end or (dtype and end - begin != ref.numel * ITEMSIZE[dtype]):
        refuse(path, f"{entry['dtype']} {list(shape)} has {ref.nbytes} bytes, the header gives {end - begin}", name)
    return ref, begin, end


def natural(name: str) -> list[tuple[int, str]]:
    """Key that sorts numbers inside names by value.

    >>> sorted(["h.10.w", "h.2.w", "e.w"], key=natural)
    ['e.w', 'h.2.w', 'h.10.w']
    """
    parts = re.split(r"([0-9]{1,18})", name)
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _unread(index: Any = ()) -> Any:
    raise NotImplementedError("a header entry before its place in the file is known")


def _at(ref: TensorRef, path: AnyPath, offset: int) -> TensorRef:
    if ref.problem:
        return ref
    return TensorRef(ref.name, ref.shape, ref.dtype, StoredTensor(path, offset, ref.shape, ref.dtype))


FORMATS.add(Safetensors.name, Safetensors(), __name__)
