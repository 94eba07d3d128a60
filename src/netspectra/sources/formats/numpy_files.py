"""numpy: one array of a ``.npy`` file, or the arrays of an ``.npz`` archive, stored or deflated; never a pickle.

The text header is parsed here, by a grammar that knows three keys and nothing else (layout: NumPy Enhancement Proposal
1, versions 1 to 3). Arrays that lie in the file as they are are read by rows; deflated ones are inflated block by
block, with their checksum, and what claims to inflate beyond reason is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.sources import FORMATS
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.members import STORED, Member, members, starts_with_member
from netspectra.sources.packed import Turned
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import StoredTensor, leading, opened
from netspectra.weight import ITEMSIZE, Index, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

MAGIC = b"\x93NUMPY"
KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex"}
UNREADABLE = {
    "O": "holds Python objects, which only a pickle can read: refused",
    "U": "holds texts, not numbers",
    "S": "holds texts, not numbers",
    "V": "holds records or raw bytes, not numbers",
    "M": "holds dates, not numbers",
    "m": "holds times, not numbers",
}
FIELD = re.compile(
    r"""\s*(['"])(?P<key>descr|fortran_order|shape)\1\s*:\s*
    (?:(?P<flag>True|False)|(['"])(?P<text>[^'"]*)\4|\((?P<sizes>[0-9L,\s]*)\)
    |(?P<fields>\[.*?\])(?=\s*,\s*['"](?:fortran_order|shape)['"]|\s*,?\s*\}\s*$))\s*(?:,|(?=\}))""",
    re.VERBOSE | re.DOTALL,
)


class NumpyFiles:
    """The reader."""

    name = "numpy"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A file that begins as ``.npy`` does, or a zip archive whose first member is one, whatever its suffix."""
        if path.is_dir():
            return False
        with opened(path) as file:
            start = file.read(len(MAGIC))
        return start == MAGIC or starts_with_member(path).endswith(".npy")

    def files(self, path: AnyPath) -> list[AnyPath]:
        """The file itself."""
        return [path]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every array, by header alone, in the order of the archive; a lone array has its file's name."""
        with opened(path) as file:
            start = file.read(12 + GUARD.text_bytes)
        if start.startswith(MAGIC):
            yield _ref(path, GUARD.name(path, path.stem), start, GUARD.regular(path), None)
            return
        found = members(path)
        if len(found) > GUARD.tensors:
            refuse(path, f"holds {len(found)} members, allowed are {GUARD.tensors}")
        for member in found:
            name = member.name.removesuffix(".npy")
            if name == member.name:
                yield TensorRef(name, (), "raw", Archived(member, 0, (), "uint8"), problem="not an array (.npy)")
                continue
            yield _ref(path, name, _start(member), member.size, member)

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """Nothing: arrays know no model."""
        return {}


@dataclass(frozen=True)
class Archived:
    """A row-major array in an archive, ``skip`` bytes behind its header; a `netspectra.weight.Loader`."""

    member: Member
    skip: int
    shape: tuple[int, ...]
    dtype: str

    def __call__(self, index: Index = ()) -> Tensor:
        """Read, or inflate, the rows that the first index selects; the whole has its checksum checked."""
        import torch

        if index and self.member.method == STORED:
            return StoredTensor(self.member.path, self.member.offset + self.skip, self.shape, self.dtype)(index)
        cut, rest = leading(index, self.shape)
        row = math.prod(self.shape[1:]) * ITEMSIZE[self.dtype]
        data = torch.empty((cut.stop - cut.start) * row, dtype=torch.uint8)
        self.member.read_into(memoryview(data.numpy().data), self.skip + cut.start * row)
        tensor = data.view(getattr(torch, self.dtype)).reshape(-1 if row else cut.stop - cut.start, *self.shape[1:])
        tensor = tensor if self.shape else tensor.reshape(())
        return tensor[rest] if rest else tensor


def _start(member: Member) -> bytes:
    """The first bytes of a member, header included."""
    found = b""
    for block in member.blocks():
        found += block
        if len(found) >= 12 + GUARD.text_bytes:
            break
    return found


def _ref(path: AnyPath, name: str, start: bytes, size: int, member: Member | None) -> TensorRef:
    """The array whose file of ``size`` bytes begins with ``start``."""
    text, begin = _text(path, name, start)
    descr, columns_first, shape = _header(path, name, text)
    dtype, swapped, problem = _dtype(descr)
    stored = shape[::-1] if columns_first else shape
    raw = StoredTensor(path, begin, stored, dtype) if member is None else Archived(member, begin, stored, dtype)
    ref = TensorRef(name, shape, dtype, raw, problem=problem)
    if problem:
        return ref
    if begin + ref.nbytes != size:
        what = "is truncated" if size < begin + ref.nbytes else "holds more than one array"
        refuse(path, f"{what}: {dtype} {list(shape)} and header have {begin + ref.nbytes} bytes, the file {size}", name)
    if columns_first or swapped:
        return TensorRef(name, shape, dtype, Turned(raw, columns_first, swapped))
    return ref


def _text(path: AnyPath, name: str, start: bytes) -> tuple[str, int]:
    """The text header, and where the numbers begin."""
    if not start.startswith(MAGIC) or len(start) < 12:
        refuse(path, "is no .npy array, or truncated; fetch it again", name)
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        refuse(path, f"is .npy version {version[0]}.{version[1]}, readable are 1.0 to 3.0", name)
    prefix = 10 if version == (1, 0) else 12
    length = int.from_bytes(start[8:prefix], "little")
    if length > GUARD.text_bytes:
        refuse(path, f"claims a header of {length} bytes, allowed are {GUARD.text_bytes}", name)
    if len(start) < prefix + length:
        refuse(path, f"is truncated: header of {length} bytes, file of {len(start)}; fetch it again", name)
    try:
        text = start[prefix : prefix + length].decode("utf-8" if version == (3, 0) else "latin-1")
    except UnicodeDecodeError:
        refuse(path, "has a header that is not UTF-8", name)
    return text, prefix + length


def _header(path: AnyPath, name: str, text: str) -> tuple[str, bool, tuple[int, ...]]:
    """(dtype, whether columns first, shape) of a text header; the dtype of records is ``V``."""
    found: dict[str, Any] = {}
    body = text.strip()
    place = 1
    while body.startswith("{") and (match := FIELD.match(body, place)):
        key = match["key"]
        if key in found:
            refuse(path, f"has the header key {key} twice", name)
        if key == "descr" and (match["text"] is not None or match["fields"] is not None):
            found[key] = "V" if match["fields"] else match["text"]
        elif key == "fortran_order" and match["flag"]:
            found[key] = match["flag"] == "True"
        elif key == "shape" and match["sizes"] is not None:
            found[key] = _sizes(match["sizes"])
        place = match.end()
    if len(found) != 3 or found["shape"] is None or body[place:].strip() != "}":
        refuse(path, f"has a broken header: {printable(body, 80)}", name)
    return found["descr"], found["fortran_order"], GUARD.shape(path, name, found["shape"])


def _sizes(text: str) -> list[int] | None:
    """The whole numbers of a tuple; None for what is none."""
    items = [item.strip().removesuffix("L") for item in text.split(",")]
    if items[-1] == "":
        items.pop()
    return [int(item) for item in items] if all(re.fullmatch("[0-9]{1,20}", item) for item in items) else None


def _dtype(descr: str) -> tuple[str, bool, str]:
    """(name in torch's words, whether big-endian, why it cannot be read) of a dtype's text."""
    match = re.fullmatch(r"([<>|=]?)([a-zA-Z?])([0-9]{0,6})(\[.*\])?", descr)
    if not match:
        return printable(descr, 40) or "nothing", False, f"stored as {printable(repr(descr), 40)}, unknown to NumPy"
    order, kind, length, _ = match.groups()
    if kind in UNREADABLE:
        return printable(descr, 40), False, UNREADABLE[kind]
    if descr in ("|b1", "?"):
        return "bool", False, ""
    dtype = f"{KINDS.get(kind, kind)}{8 * int(length or 0)}"
    if kind not in KINDS or dtype not in ITEMSIZE:
        return dtype, False, f"stored as {printable(repr(descr), 40)}, which torch cannot hold"
    return dtype, order == ">" and ITEMSIZE[dtype] > 1, ""


FORMATS.add(NumpyFiles.name, NumpyFiles(), __name__)
