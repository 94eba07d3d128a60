"""What the pickles of ``torch.save`` mean: storages by key, tensors as views of them; everything else stays inert."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from netspectra.sources.archive import Archive, Extent
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.pickled import Global, Inert, Table, Unreadable, unpickle
from netspectra.sources.remote import AnyPath
from netspectra.sources.statedict import Found
from netspectra.sources.strided import StridedTensor, span
from netspectra.weight import ITEMSIZE, Index, TensorRef

__all__ = [
    "ARRAY",
    "ByteOrder",
    "Pickled",
    "Place",
    "Storage",
    "Unread",
    "asides",
    "dtype_of",
    "meaning",
    "named",
    "read",
    "read_zip",
    "reference",
]

# Storage classes: their dtype, and bytes per number.
STORAGES: dict[str, tuple[str, int]] = {
    "DoubleStorage": ("float64", 8),
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "ComplexDoubleStorage": ("complex128", 16),
    "ComplexFloatStorage": ("complex64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
    "UntypedStorage": ("uint8", 1),
    "QUInt8Storage": ("quint8", 1),
    "QInt8Storage": ("qint8", 1),
    "QInt32Storage": ("qint32", 4),
    "QUInt4x2Storage": ("quint4x2", 1),
    "QUInt2x4Storage": ("quint2x4", 1),
}


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """A storage by its key; ``begin`` and ``nbytes`` are the part of the ``whole`` bytes that tensors may view."""

    key: str
    dtype: str
    itemsize: int
    whole: int
    begin: int
    nbytes: int


@dataclass(frozen=True, eq=False, slots=True)
class Pickled:
    """A tensor as its pickle describes it: a view of a storage, or why it is none that can be read."""

    shape: tuple[int, ...]
    dtype: str
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] = ()
    conj: bool = False
    neg: bool = False
    problem: str = ""


# Where a storage lies.
Place = Callable[[Storage], Extent]


@contextmanager
def named(path: AnyPath) -> Iterator[None]:
    """Turn what a pickle is refused for into the one line that names the file."""
    try:
        yield
    except Unreadable as wrong:
        refuse(path, str(wrong))


def read(file: BinaryIO, limit: int, met: dict[str, Storage] | None = None, steps: int = GUARD.pickle_steps) -> Any:
    """Read one pickle of ``torch.save`` from where the file stands; ``met`` takes the storages it names, by key."""

    def remember(found: Any) -> Any:
        storage = persistent(found)
        if met is not None and isinstance(storage, Storage):
            met[storage.key] = storage
        return storage

    return unpickle(file, min(limit, GUARD.header_bytes), meaning, remember, steps)


def read_zip(path: AnyPath, start: int = 0, length: int | None = None) -> tuple[Any, Place, Archive, str]:
    """Open a zip of ``torch.save``: its object, where its storages lie, the archive and the folder within it."""
    archive = Archive(path, start, length)
    pickles = [name for name in archive.records if name.count("/") <= 1 and name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        refuse(path, f"the archive holds {len(pickles)} data.pkl, a file of torch.save holds one")
    folder = pickles[0].removesuffix("data.pkl")
    order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in archive.records else b"little"
    if order not in (b"little", b"big"):
        refuse(path, f"is {printable(repr(order[:20]))}, not 'little' or 'big'", f"{folder}byteorder")
    content = archive.read(pickles[0])
    with named(path):
        root = read(io.BytesIO(content), len(content))
    found: dict[str, Extent] = {}

    def place(storage: Storage) -> Extent:
        if order == b"big":
            raise ByteOrder
        if storage.key not in found:
            found[storage.key] = archive.extent(f"{folder}data/{storage.key}")
        return found[storage.key]

    return root, place, archive, folder


class ByteOrder(Exception):
    """The file was written by a big-endian machine."""


class Unread:
    """The loader of a tensor that cannot be read; `TensorRef.problem` says why."""

    def __call__(self, index: Index = ()) -> Any:
        """Refuse."""
        raise Unreadable("this tensor cannot be read; its problem says why")


def reference(path: AnyPath, name: str, tensor: Pickled, place: Place) -> TensorRef:
    """The tensor under its name, its view checked against its storage.

    Raises:
        InputRefused: the view reaches outside its storage, or the storage is not all in the file.
    """
    GUARD.name(path, name)
    shape = GUARD.shape(path, name, tensor.shape)
    storage, problem = tensor.storage, tensor.problem
    if storage is None or problem:
        return TensorRef(name, shape, tensor.dtype, Unread(), problem=problem or "it has no storage")
    needed = (tensor.offset + span(shape, tensor.stride)) * storage.itemsize
    if 0 not in shape and needed > storage.nbytes:
        refuse(path, f"reaches to byte {needed} of a storage of {storage.nbytes} bytes", name)
    try:
        extent = place(storage)
    except ByteOrder:
        problem = "written by a big-endian machine; load and save it again with torch"
        return TensorRef(name, shape, tensor.dtype, Unread(), problem=problem)
    if extent.nbytes < storage.whole:
        refuse(path, f"its storage has {extent.nbytes} bytes, the pickle says {storage.whole}; fetch it again", name)
    problem = _unsuitable(shape, tensor, storage)
    if problem:
        return TensorRef(name, shape, tensor.dtype, Unread(), problem=problem)
    whole = storage.begin == 0 and storage.nbytes == extent.nbytes
    load = StridedTensor(path, extent.offset + storage.begin, storage.nbytes, tensor.dtype, tensor.offset, shape,
                         tensor.stride, extent.crc if whole else 0, tensor.conj, tensor.neg)  # fmt: skip
    identity = (str(path), load.base, load.dtype, load.offset, shape, load.stride, load.conj, load.neg)
    return TensorRef(name, shape, tensor.dtype, load, identity=None if 0 in shape else identity)


def asides(path: AnyPath, found: Found) -> Iterator[TensorRef]:
    """A line for each branch that holds no tensors which could be viewed; it counts no numbers."""
    for name, kind in found.modules:
        problem = f"a whole pickled module ({kind}), which only its class can open; save its state_dict()"
        yield TensorRef(GUARD.name(path, name), (0,), "", Unread(), problem=problem)
    for name, count in found.training:
        problem = f"training state ({count} tensor{'s' if count > 1 else ''}), not weights"
        yield TensorRef(GUARD.name(path, name), (0,), "", Unread(), {"routine": True}, problem=problem)


def _unsuitable(shape: tuple[int, ...], tensor: Pickled, storage: Storage) -> str:
    if tensor.dtype not in ITEMSIZE or storage.itemsize != ITEMSIZE[tensor.dtype]:
        return f"stored as {printable(tensor.dtype, 40)}, which torch cannot compute with"
    count = 1
    for size in shape:
        count *= size
    if any(step == 0 and size > 1 for size, step in zip(shape, tensor.stride, strict=True)) and count:
        return f"an expanded view (stride 0): {count} numbers that repeat a few; save a contiguous copy"
    if count * storage.itemsize > storage.nbytes:
        return f"an overlapping view: {count} numbers in {storage.nbytes} bytes; save a contiguous copy"
    return ""


# ---- storages ----------------------------------------------------------------------------------------------------


def persistent(found: Any) -> Any:
    """A persistent id of torch: a storage, or (before 1.6) a module's class with its source: the class stays."""
    if not isinstance(found, tuple) or not found:
        raise Unreadable("the pickle refers to something outside that is no storage of torch")
    if found[0] == "module" and len(found) == 4:
        return found[1]
    if found[0] != "storage" or len(found) not in (5, 6):
        raise Unreadable("the pickle refers to something outside that is no storage of torch")
    kind, key, _, count = found[1:5]
    key = str(key) if type(key) is int and abs(key) < 2**64 else key
    name = kind.name if isinstance(kind, Global) else ""
    if not isinstance(key, str) or len(key) > 100 or not name.endswith("Storage") or not _whole(count):
        raise Unreadable("the pickle describes a storage in an unknown way")
    dtype, itemsize = STORAGES.get(name, (printable(name.removesuffix("Storage"), 40), 1))
    view = found[5] if len(found) == 6 else None
    begin, length = 0, count
    if view is not None:
        if not (isinstance(view, tuple) and len(view) == 3 and _whole(view[1]) and _whole(view[2])):
            raise Unreadable("the pickle describes the view of a storage in an unknown way")
        begin, length = view[1:]
        if begin + length > count:
            raise Unreadable(f"the view of storage {printable(key, 40)} reaches outside it")
    return Storage(key, dtype, itemsize, count * itemsize, begin * itemsize, length * itemsize)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= GUARD.numel


# ---- tensors -----------------------------------------------------------------------------------------------------


def dtype_of(value: Any) -> str:
    """The name of a pickled ``torch.dtype``; empty for anything else."""
    if isinstance(value, Global) and value.module == "torch":
        return printable(value.name, 40)
    return ""


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > GUARD.dimensions or not all(_whole(size) for size in value):
        raise Unreadable("the pickle gives a tensor a shape or stride that is not a few whole numbers")
    return tuple(value)


def _described(value: Any) -> tuple[int, ...]:
    """The shape of a tensor that is only listed; none where it is told in an unknown way."""
    try:
        return _sizes(value)
    except Unreadable:
        return (0,)


def _view(args: tuple[Any, ...], dtype: str = "", metadata: Any = None) -> Pickled:
    if len(args) > 3 and isinstance(args[0], Inert):
        return Pickled(_described(args[2]), dtype or "unknown", problem="pickled without torch.save; save it with that")
    if len(args) < 4 or not isinstance(args[0], Storage) or not _whole(args[1]):
        raise Unreadable("the pickle rebuilds a tensor from something else than a storage and an offset")
    storage, offset = args[:2]
    shape, stride = _sizes(args[2]), _sizes(args[3])
    if len(shape) != len(stride):
        raise Unreadable("the pickle gives a tensor sizes and strides of different length")
    if dtype:
        storage = Storage(storage.key, dtype, ITEMSIZE.get(dtype, 1), storage.whole, storage.begin, storage.nbytes)
    conj, neg = (isinstance(metadata, Table) and metadata.get(flag) is True for flag in ("conj", "neg"))
    return Pickled(shape, storage.dtype, storage, offset, stride, conj, neg)


def _tensor_v2(args: tuple[Any, ...]) -> Pickled:
    return _view(args, metadata=args[6] if len(args) > 6 else None)


def _tensor_v3(args: tuple[Any, ...]) -> Pickled:
    dtype = dtype_of(args[6]) if len(args) > 6 else ""
    if not dtype:
        raise Unreadable("the pickle rebuilds a tensor without a dtype")
    return _view(args, dtype, args[7] if len(args) > 7 else None)


def _parameter(args: tuple[Any, ...]) -> Any:
    if not args:
        raise Unreadable("the pickle makes a parameter of nothing")
    return args[0]


def _sparse(args: tuple[Any, ...]) -> Pickled:
    data = args[1] if len(args) > 1 and isinstance(args[1], tuple) else ()
    tensors = [part for part in data if isinstance(part, Pickled)]
    sizes = data[len(tensors)] if len(data) > len(tensors) else None
    dtype = tensors[-1].dtype if tensors else "unknown"
    return Pickled(_described(sizes), dtype, problem="a sparse tensor; save it dense (tensor.to_dense())")


def _quantized(args: tuple[Any, ...]) -> Pickled:
    storage = args[0] if args and isinstance(args[0], Storage) else None
    shape = _described(args[2] if len(args) > 2 else None)
    dtype = storage.dtype if storage else "quantized"
    return Pickled(shape, dtype, problem="quantized by torch; save it with tensor.dequantize()")


def _meta(args: tuple[Any, ...]) -> Pickled:
    dtype = dtype_of(args[0] if args else None) or "unknown"
    shape = _described(args[1] if len(args) > 1 else None)
    return Pickled(shape, dtype, problem="on the meta device: it has a shape but no numbers")


def _wrapper(args: tuple[Any, ...]) -> Pickled:
    kind = printable(args[0].text, 120) if args and isinstance(args[0], Global) else "a subclass"
    dtype = dtype_of(args[1] if len(args) > 1 else None) or "unknown"
    shape = _described(args[2] if len(args) > 2 else None)
    return Pickled(shape, dtype, problem=f"a {kind}, which is no plain tensor; save it dequantized or gathered")


def _from_type(args: tuple[Any, ...]) -> Pickled:
    """A tensor of some subclass: the numbers of its base, if these are plain."""
    function, parts = (args[0], args[2]) if len(args) > 2 else (None, None)
    known = meaning(function.text) if isinstance(function, Global) else None
    if known is not None and known is not _from_type and isinstance(parts, tuple) and len(parts) <= GUARD.dimensions:
        found = known(parts)
        if isinstance(found, Pickled):
            return found
    kind = printable(args[1].text, 120) if len(args) > 1 and isinstance(args[1], Global) else "tensor subclass"
    return Pickled((0,), "unknown", problem=f"a {kind}, which is no plain tensor; save it dequantized or gathered")


def _size(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else args


def _ordered(args: tuple[Any, ...]) -> Table:
    if not args:
        return Table()
    pairs = args[0] if isinstance(args[0], list | tuple) else ()
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise Unreadable("the pickle makes a dict of what are no pairs")
    return Table([(pair[0], pair[1]) for pair in pairs])


def _array(args: tuple[Any, ...]) -> Any:
    return Inert(ARRAY, args)


ARRAY = Global("numpy", "ndarray")
MEANINGS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda args: Table(),
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._tensor._rebuild_from_type": _from_type,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch.tensor._rebuild_from_type": _from_type,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
}


def meaning(name: str) -> Callable[[tuple[Any, ...]], Any] | None:
    """What a call of this name makes; None leaves it inert."""
    found = MEANINGS.get(name)
    if found is None and name.startswith("torch.") and "._rebuild_" in name:
        label = printable(name, 120)
        return lambda args: Pickled((0,), "unknown", problem=f"rebuilt by {label}, which is no plain tensor")
    return found
