"""Folders of ``torch.distributed.checkpoint``: ``.metadata`` and the shards beside it.

``.metadata`` is a pickle that says of every tensor its shape and of every chunk of it the file, the offset and the
length; it is read as data, never run. The bytes of a chunk are a small file of ``torch.save`` (layout:
https://github.com/pytorch/pytorch, ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``). A tensor is put
together from the chunks that a slice touches when it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.sources import FORMATS
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.pickled import Inert, Table, Unreadable
from netspectra.sources.remote import AnyPath
from netspectra.sources.statedict import find
from netspectra.sources.stored import opened
from netspectra.sources.torchpickle import Pickled, Unread, asides, dtype_of, named, read, read_zip, reference
from netspectra.weight import ITEMSIZE, Index, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

METADATA = ".metadata"
CHUNKS = GUARD.metadata_steps // 40
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, and the bytes of a shard that hold it."""

    path: AnyPath
    start: int
    length: int
    offsets: Sizes
    sizes: Sizes

    def load(self, dtype: str, index: Index) -> Tensor:
        """Read ``chunk[index]``."""
        root, place, _, _ = read_zip(self.path, self.start, self.length)
        if not isinstance(root, Pickled):
            refuse(self.path, f"the chunk at byte {self.start} is no tensor; fetch it again")
        ref = reference(self.path, "", root, place)
        if ref.problem:
            refuse(self.path, f"the chunk at byte {self.start} is {ref.problem}")
        if ref.shape != self.sizes or ref.dtype != dtype:
            refuse(self.path, f"the chunk at byte {self.start} is {ref.dtype} {list(ref.shape)}, "
                              f"{METADATA} says {dtype} {list(self.sizes)}; fetch it again")  # fmt: skip
        return ref.load(index)


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor of chunks that tile it; a `netspectra.weight.Loader` that holds no handle, so it pickles."""

    shape: Sizes
    dtype: str
    chunks: tuple[Chunk, ...]

    def __call__(self, index: Index = ()) -> Tensor:
        """Read ``tensor[index]``, of the chunks only what that needs."""
        import torch

        box = [_bounds(place, size) for place, size in zip(index, self.shape, strict=False)]
        box += [(0, size) for size in self.shape[len(index) :]]
        found = torch.empty([stop - start for start, stop in box], dtype=getattr(torch, self.dtype))
        if found.numel():
            for chunk in self.chunks:
                self._put(found, box, chunk)
        rest = tuple(0 if isinstance(place, int) else slice(None, None, place.step) for place in index)
        return found[rest] if rest else found

    def _put(self, found: Tensor, box: list[tuple[int, int]], chunk: Chunk) -> None:
        """Copy what a chunk has of the box."""
        inner: list[slice] = []
        outer: list[slice] = []
        for (start, stop), offset, size in zip(box, chunk.offsets, chunk.sizes, strict=True):
            first, last = max(start, offset), min(stop, offset + size)
            if first >= last:
                return
            inner.append(slice(first - offset, last - offset))
            outer.append(slice(first - start, last - start))
        found[tuple(outer)] = chunk.load(self.dtype, tuple(inner))


def _bounds(place: int | slice, size: int) -> tuple[int, int]:
    """The run of an axis that an index needs."""
    if isinstance(place, int):
        first = range(size)[place]
        return first, first + 1
    wanted = range(size)[place]
    if wanted.step < 1:
        raise ValueError("the step of a slice must be positive")
    return (wanted[0], wanted[-1] + 1) if wanted else (0, 0)


class Distributed:
    """The reader."""

    name = "torch-distributed"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A folder with such a ``.metadata``, or that file."""
        file = path / METADATA if path.is_dir() else path
        if file.name != METADATA or not file.is_file():
            return False
        with opened(file) as found:
            return found.read(1) == b"\x80"

    def files(self, path: AnyPath) -> list[AnyPath]:
        """``.metadata`` and every shard that holds tensors, in order."""
        file = path / METADATA if path.is_dir() else path
        chunks = (ref.load.chunks for ref in self.tensors(path) if isinstance(ref.load, ChunkedTensor))
        return [file, *sorted({chunk.path for each in chunks for chunk in each})]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every tensor, by ``.metadata`` alone, then a line for each branch of training state."""
        file = GUARD.inside(path, METADATA) if path.is_dir() else path
        size = GUARD.regular(file)
        if size > GUARD.header_bytes:
            refuse(file, f"has {size} bytes, allowed are {GUARD.header_bytes}")
        with opened(file) as stream, named(file):
            root = _state(read(stream, size, steps=GUARD.metadata_steps))
            held = root.get("state_dict_metadata")
            infos = _infos(root.get("storage_data"))
            found = find(_tree(held, root.get("planner_data")), lambda value: isinstance(value, _Tensor))
        if not found.tensors:
            refuse(file, "describes no weights; it holds training state only" if found.training else "names no tensor")
        shards: dict[str, tuple[AnyPath, int]] = {}
        left = CHUNKS
        for name, tensor in found.tensors:
            ref = _reference(file, name, tensor, infos, shards, left)
            left -= len(ref.load.chunks) if isinstance(ref.load, ChunkedTensor) else 0
            yield ref
        yield from asides(file, found)

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """The ``config.json`` beside the shards."""
        return GUARD.config_beside(path)


# ---- the metadata ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Tensor:
    """A tensor as the metadata describes it."""

    key: str
    state: Table


def _state(value: Any) -> Table:
    """The attributes of an object in the metadata."""
    if not isinstance(value, Inert) or not isinstance(value.state, Table):
        raise Unreadable("is no metadata of torch.distributed.checkpoint; fetch it again")
    return value.state


def _infos(storage: Any) -> dict[str, Table]:
    """Where each chunk lies, by tensor and offsets."""
    if not isinstance(storage, Table):
        raise Unreadable("does not say where the tensors are stored (another storage than files?)")
    infos: dict[str, Table] = {}
    characters = 0
    for key, info in storage.pairs:
        index = _state(key)
        characters += len(_text(index.get("fqn")))
        if characters > GUARD.header_bytes:
            raise Unreadable(f"has more than {GUARD.header_bytes} characters of names")
        infos[_where(index.get("fqn"), index.get("offset"))] = _state(info)
    return infos


def _where(name: Any, offsets: Any) -> str:
    return f"{_text(name)} {_sizes(offsets) or ()}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _sizes(value: Any) -> Sizes | None:
    """The value, if it is a few sizes or offsets."""
    if not isinstance(value, tuple) or len(value) > GUARD.dimensions:
        return None
    return value if all(type(size) is int and 0 <= size <= GUARD.numel for size in value) else None


def _tree(held: Any, planner: Any) -> Table:
    """The tensors under the keys that were joined to their names when they were saved."""
    if not isinstance(held, Table):
        raise Unreadable("is no metadata of torch.distributed.checkpoint; fetch it again")
    paths = {key: path for key, path in planner.pairs if isinstance(key, str)} if isinstance(planner, Table) else {}
    root = Table()
    characters = 0
    branches: dict[str, Table] = {}
    for key, value in held.pairs:
        state = value.state if isinstance(value, Inert) else None
        if not isinstance(key, str) or not isinstance(state, Table) or state.get("chunks") is None:
            continue
        path = paths.get(key)
        if not isinstance(path, tuple) or not path or not all(isinstance(part, str | int) for part in path):
            path = (key,)
        characters += sum(len(part) for part in path if isinstance(part, str))
        if len(path) > GUARD.containers or characters > GUARD.header_bytes:
            raise Unreadable(f"nests dicts deeper than {GUARD.containers}, or has too long names")
        table = root
        for depth, part in enumerate(path[:-1]):
            prefix = repr(path[: depth + 1])
            if prefix not in branches:
                branches[prefix] = Table()
                table.pairs.append((part, branches[prefix]))
            table = branches[prefix]
        table.pairs.append((path[-1], _Tensor(key, state)))
    return root


# ---- the tensors -------------------------------------------------------------------------------------------------


def _reference(
    file: AnyPath,
    name: str,
    tensor: _Tensor,
    infos: dict[str, Table],
    shards: dict[str, tuple[AnyPath, int]],
    most: int,
) -> TensorRef:
    GUARD.name(file, name)
    shape = GUARD.shape(file, name, tensor.state.get("size"))
    properties = tensor.state.get("properties")
    state = properties.state if isinstance(properties, Inert) else None
    dtype = dtype_of(state.get("dtype") if isinstance(state, Table) else state[0] if isinstance(state, tuple) else None)
    if dtype not in ITEMSIZE:
        return TensorRef(name, shape, dtype, Unread(), problem=f"stored as {dtype or 'an unknown dtype'}")
    boxes = tensor.state.get("chunks")
    if not isinstance(boxes, list) or len(boxes) > most:
        refuse(file, f"its chunks are no list of at most {CHUNKS} for all tensors together", name)
    chunks: list[Chunk] = []
    for box in boxes:
        offsets, sizes = _box(file, name, box, shape)
        if 0 in sizes:
            continue
        info = infos.get(_where(tensor.key, offsets))
        if info is None:
            refuse(file, f"the chunk at {list(offsets)} is stored nowhere; fetch the checkpoint again", name)
        chunks.append(_chunk(file, name, info, (offsets, sizes), shards))
    if not _tile(shape, [(chunk.offsets, chunk.sizes) for chunk in chunks]):
        refuse(file, "its chunks do not cover it once, as a grid", name)
    return TensorRef(name, shape, dtype, ChunkedTensor(shape, dtype, tuple(chunks)))


def _box(file: AnyPath, name: str, box: Any, shape: Sizes) -> tuple[Sizes, Sizes]:
    state = box.state if isinstance(box, Inert) else None
    offsets, sizes = (_sizes(state.get(key)) if isinstance(state, Table) else None for key in ("offsets", "sizes"))
    if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
        refuse(file, "a chunk is not described by offsets and sizes", name)
    if any(offset + size > full for offset, size, full in zip(offsets, sizes, shape, strict=True)):
        refuse(file, f"the chunk {list(offsets)} + {list(sizes)} reaches outside {list(shape)}", name)
    return offsets, sizes


def _chunk(
    file: AnyPath, name: str, info: Table, box: tuple[Sizes, Sizes], shards: dict[str, tuple[AnyPath, int]]
) -> Chunk:
    shard, start, length = info.get("relative_path"), info.get("offset"), info.get("length")
    if info.get("transform_descriptors"):
        refuse(file, "the shards are packed; save the checkpoint without stream transforms", name)
    if not isinstance(shard, str) or _sizes((start, length)) is None:
        refuse(file, "a chunk is not stored at an offset of a file", name)
    if shard not in shards:
        if len(shards) >= GUARD.shards:
            refuse(file, f"names more than {GUARD.shards} files")
        path = GUARD.inside(file.parent, shard)
        if not path.exists():
            refuse(file, f"the shard {printable(shard)} is missing; fetch the checkpoint again")
        shards[shard] = (path, GUARD.regular(path))
    path, size = shards[shard]
    if start + length > size:
        refuse(path, f"is truncated: a chunk ends at byte {start + length}, the file at {size}; fetch it again", name)
    return Chunk(path, start, length, *box)


def _tile(shape: Sizes, boxes: list[tuple[Sizes, Sizes]]) -> bool:
    """Whether boxes make a grid that covers the shape exactly.

    >>> _tile((4, 6), [((0, 0), (4, 2)), ((0, 2), (4, 4))]), _tile((4, 6), [((0, 0), (4, 2))])
    (True, False)
    """
    if 0 in shape:
        return not boxes
    count = 1
    for axis, full in enumerate(shape):
        runs = sorted({(offsets[axis], sizes[axis]) for offsets, sizes in boxes})
        ends = [start + size for start, size in runs]
        if [start for start, _ in runs] != [0, *ends[:-1]] or ends[-1:] != [full]:
            return False
        count *= len(runs)
    corners = {repr(offsets) for offsets, _ in boxes}
    volume = sum(math.prod(sizes) for _, sizes in boxes)
    return count == len(boxes) == len(corners) and volume == math.prod(shape)


FORMATS.add(Distributed.name, Distributed(), __name__)
