"""Archives of ``torch.export.save`` (``.pt2``): the weights as records, by the table that names them.

Layout: https://github.com/pytorch/pytorch, ``torch/export/pt2_archive``: a zip with one or more
``data/weights/NAME_weights_config.json`` and a record of plain numbers for each weight. Tensors that were saved as
pickles (subclasses) and the constants of the graph are listed, not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from netspectra.errors import InputRefused
from netspectra.sources import FORMATS
from netspectra.sources.archive import Archive, Extent, first_name, is_zip
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import opened
from netspectra.sources.torchpickle import Pickled, Storage, Unread, reference
from netspectra.weight import ITEMSIZE, TensorRef

CONFIG = re.compile(r"(?P<folder>([^/]+/)?data/weights/)(?P<model>[^/]+)_weights_config\.json")
# The numbers that the archive gives the dtypes.
DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    10: "complex64",
    11: "complex128",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
    29: "float8_e4m3fn",
    30: "float8_e5m2",
    31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz",
    33: "float8_e8m0fnu",
    34: "uint32",
    35: "uint64",
}
STRIDED = 7


class Exported:
    """The reader."""

    name = "torch-export"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A zip with a table of exported weights, whatever its suffix."""
        if path.is_dir():
            return False
        with opened(path) as file:
            start = file.read(512)
        if not is_zip(start) or first_name(start).endswith("/data.pkl"):
            return False
        try:
            return any(CONFIG.fullmatch(name) for name in Archive(path).records)
        except InputRefused:
            return "/data/weights/" in f"/{first_name(start)}"

    def files(self, path: AnyPath) -> list[AnyPath]:
        """The file itself."""
        return [path]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every weight, in the order of the tables; of two models in the archive, under their names."""
        archive = Archive(path)
        order = next((archive.read(name) for name in archive.records if name.split("/")[-1] == "byteorder"), b"little")
        tables = [found for name in archive.records if (found := CONFIG.fullmatch(name))]
        for table in sorted(tables, key=lambda found: found["model"]):
            held = GUARD.json(path, archive.read(table[0])).get("config")
            if not isinstance(held, dict):
                refuse(path, "has no config", table[0])
            for key, entry in held.items():
                name = f"{table['model']}.{key}" if len(tables) > 1 else key
                yield _reference(archive, table["folder"], name, entry, order != b"little")

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """Nothing: the archive holds a graph, no ``config.json``."""
        return {}


def _reference(archive: Archive, folder: str, name: str, entry: Any, foreign: bool) -> TensorRef:
    path = archive.path
    meta = entry.get("tensor_meta") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(entry.get("path_name"), str):
        refuse(path, "the entry does not name its record", name)
    if not isinstance(meta, dict):
        return TensorRef(GUARD.name(path, name), (0,), "", Unread(), problem="an object, not a tensor")
    shape = GUARD.shape(path, name, _numbers(meta.get("sizes")))
    strides = meta.get("strides")
    *stride, offset = _numbers([*(strides if isinstance(strides, list) else ()), meta.get("storage_offset")])
    code = meta.get("dtype")
    dtype = DTYPES.get(code, "") if type(code) is int else ""
    if len(stride) != len(shape) or not all(
        type(step) is int and 0 <= step <= GUARD.numel for step in (*stride, offset)
    ):
        refuse(path, "the entry gives no whole sizes, strides and offset", name)
    problem = ""
    if entry.get("use_pickle"):
        problem = "kept as a pickle (a tensor subclass?); save plain tensors"
    elif meta.get("layout") != STRIDED:
        problem = "a sparse tensor; save it dense"
    elif foreign:
        problem = "written by a big-endian machine"
    elif not dtype:
        problem = f"stored as number {printable(repr(code), 20)}, which torch cannot compute with"
    if problem:
        return TensorRef(GUARD.name(path, name), shape, dtype, Unread(), problem=problem)
    extent = archive.extent(folder + entry["path_name"])
    storage = Storage(entry["path_name"], dtype, ITEMSIZE[dtype], extent.nbytes, 0, extent.nbytes)

    def place(storage: Storage) -> Extent:
        return extent

    return reference(path, name, Pickled(shape, dtype, storage, offset, tuple(stride)), place)


def _numbers(found: Any) -> Any:
    """The plain numbers of symbolic ones, where they have any."""
    if not isinstance(found, list):
        return found
    return [number.get("as_int") if isinstance(number, dict) else None for number in found]


FORMATS.add(Exported.name, Exported(), __name__)
