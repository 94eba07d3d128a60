"""HDF5 files as containers of arrays: what h5py writes by default, read by offset (HDF5 File Format Specification 3.0).

Groups, attributes that are texts, and arrays that lie in one piece are read; chunked or filtered, virtual and external
ones are named with the reason. Soft and external links are refused, and no address is followed twice, so that no
cycle, and no table shared by many, costs more than the file's size. No library sees the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.packed import Turned
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import StoredTensor
from netspectra.weight import ITEMSIZE, Loader

__all__ = ["MAGIC", "Array", "Hdf5"]

MAGIC = b"\x89HDF\r\n\x1a\n"
NOWHERE = 2**64 - 1
# Header messages.
SPACE, LINKS, TYPE, LINK, EXTERNAL, LAYOUT, ATTRIBUTE, MORE, TABLE = 1, 2, 3, 6, 7, 8, 12, 16, 17
FLOATS = {(2, 5): "float16", (2, 8): "bfloat16", (4, 8): "float32", (8, 11): "float64"}


@dataclass(frozen=True)
class Array:
    """An array of the file.

    Attributes:
        name: path inside the file, without the leading slash.
        shape: of the array.
        dtype: in torch's words.
        load: gives its numbers.
        problem: why they cannot be read, if so.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Loader
    problem: str = ""


@dataclass
class Object:
    """What an object header says: of a group, where its members are; of an array, what and where it is."""

    messages: list[tuple[int, bytes]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)

    def get(self, kind: int) -> bytes | None:
        """The first message of a kind."""
        return next((data for found, data in self.messages if found == kind), None)


class Hdf5:
    """One HDF5 file, which may be ``size`` bytes from ``base`` on of another (a member of an archive)."""

    def __init__(self, path: AnyPath, file: BinaryIO, base: int, size: int) -> None:
        """Check the superblock of the open ``file``."""
        self.path, self.file, self.base, self.size = path, file, base, size
        self.seen: set[int] = set()
        self.budget = GUARD.fields
        self.attributes: dict[str, dict[str, str]] = {}
        self.root = self._superblock()

    def arrays(self) -> Iterator[Array]:
        """Give every array, in the order of the groups; `attributes` holds the texts of each group passed."""
        yield from self._group("", self.root, 0)

    # ---- bytes -------------------------------------------------------------------------------------------------------

    def _broken(self, what: str, name: str = "") -> NoReturn:
        refuse(self.path, f"{what}; fetch it again", name)

    def _spend(self, cost: int) -> None:
        """Count work, and refuse a file that asks for too much before its arrays are known."""
        self.budget -= cost
        if self.budget < 0:
            refuse(self.path, f"has more than {GUARD.fields} parts before its arrays are known")

    def _at(self, place: int, length: int) -> bytes:
        """``length`` bytes from ``place`` on."""
        self._spend(1 + length // 4096)
        if place + length > self.size:
            self._broken(f"is truncated or broken: an address leads to byte {place + length}, the file has {self.size}")
        self.file.seek(self.base + place)
        data = self.file.read(length)
        if len(data) < length:
            self._broken("ends early; was it changed while it was read?")
        return data

    def _numbers(self, layout: str, data: bytes, place: int = 0) -> tuple[Any, ...]:
        kind = struct.Struct(f"<{layout}")
        if place + kind.size > len(data):
            self._broken("has a header message that ends early")
        return kind.unpack_from(data, place)

    def _once(self, place: int, what: str) -> int:
        if place in self.seen:
            self._broken(f"has {what} that stands in two places")
        self.seen.add(place)
        return place

    def _superblock(self) -> int:
        """Address of the root group's header."""
        start = self._at(0, min(96, self.size))
        if not start.startswith(MAGIC) or len(start) < 48:
            self._broken("is truncated: no HDF5 superblock")
        version = start[8]
        if version > 3:
            refuse(self.path, f"has an HDF5 superblock of version {version}, readable are 0 to 3")
        sizes = start[13:15] if version < 2 else start[9:11]
        first = {0: 24, 1: 28}.get(version, 12)
        base, _, end = self._numbers("3Q", start, first)
        [root] = self._numbers("Q", start, first + 40) if version < 2 else self._numbers("Q", start, 36)
        if sizes != b"\x08\x08" or base:
            refuse(self.path, "is an HDF5 file of 32-bit addresses or with a block before it, which is not read")
        if end > self.size:
            self._broken(f"is truncated: it says that it has {end} bytes, and has {self.size}")
        return root

    # ---- objects -----------------------------------------------------------------------------------------------------

    def _object(self, place: int) -> Object:
        """The header at ``place``, either version, with its continuations."""
        found = Object()
        start = self._at(place, 16)
        if start.startswith(b"OHDR"):
            flags = start[5]
            begin = 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
            width = 1 << (flags & 3)
            length = int.from_bytes(self._at(place + begin, width), "little")
            blocks, new, order = [(place + begin + width, length)], True, bool(flags & 4)
        elif start[0] == 1:
            blocks, new, order = [(place + 16, int.from_bytes(start[8:12], "little"))], False, False
        else:
            self._broken(f"has no object header at byte {place}")
        for begin, length in blocks:
            if length > GUARD.header_bytes or len(blocks) > GUARD.entries:
                self._broken(f"has an object header of {length} bytes at byte {begin}")
            data = self._at(begin, length)
            for kind, message in self._messages(data, new, order):
                if kind == MORE:
                    there, size = self._numbers("2Q", message)
                    blocks.append((there + 4, size - 8) if new and size >= 8 else (there, size))
                elif kind == ATTRIBUTE:
                    self._attribute(found, message)
                else:
                    found.messages.append((kind, message))
        return found

    def _messages(self, data: bytes, new: bool, order: bool) -> Iterator[tuple[int, bytes]]:
        """The messages of one block of an object header."""
        place, head = 0, (4 + 2 * order) if new else 8
        while place + head <= len(data):
            self._spend(1)
            kind = data[place] if new else int.from_bytes(data[place : place + 2], "little")
            length = int.from_bytes(data[place + (1 if new else 2) :][:2], "little")
            flags = data[place + (3 if new else 4)]
            place += head
            if place + length > len(data):
                self._broken("has a header message that ends early")
            if kind and not flags & 2:
                yield kind, data[place : place + length]
            place += length

    def _attribute(self, found: Object, data: bytes) -> None:
        """Keep an attribute that is one text; pass over all others."""
        version, _, name, kind, space = self._numbers("2B3H", data)
        place = 9 if version == 3 else 8
        parts = []
        for length in (name, kind, space):
            parts.append(data[place : place + length])
            place += -(-length // 8) * 8 if version == 1 else length
        key = parts[0].split(b"\0")[0].decode("utf-8", "replace")
        if len(parts[1]) < 8 or len(parts[2]) < 2 or parts[2][1]:
            return
        value = data[place:]
        if parts[1][0] & 15 == 9 and parts[1][1] & 15 == 1 and len(value) >= 16:
            length, heap, item = self._numbers("LQL", value)
            value = self._heaped(heap, item)[:length]
        elif parts[1][0] & 15 != 3:
            return
        found.attributes[key] = value.rstrip(b"\0").decode("utf-8", "replace")

    def _heaped(self, place: int, item: int) -> bytes:
        """A text of the global heap."""
        start = self._at(place, 16)
        size = int.from_bytes(start[8:], "little")
        if not start.startswith(b"GCOL") or size > GUARD.header_bytes:
            self._broken(f"has no heap of texts at byte {place}")
        data, at = self._at(place, size), 16
        while at + 16 <= size:
            self._spend(1)
            index, _, _, length = self._numbers("2HLQ", data, at)
            if index == item:
                return data[at + 16 : at + 16 + length]
            if not index:
                break
            at += 16 + -(-length // 8) * 8
        return b""

    # ---- groups ------------------------------------------------------------------------------------------------------

    def _group(self, name: str, place: int, depth: int) -> Iterator[Array]:
        """The arrays of an object and all below it."""
        if depth > GUARD.nesting:
            refuse(self.path, f"has groups nested deeper than {GUARD.nesting}", name)
        found = self._object(self._once(place, f"an object ({printable(name, 80)})"))
        self.attributes[name] = found.attributes
        if found.get(LAYOUT) is not None:
            yield self._array(name, found)
            return
        for link, there in self._links(name, found):
            inner = GUARD.name(self.path, f"{name}/{link}" if name else link)
            yield from self._group(inner, there, depth + 1)

    def _links(self, name: str, found: Object) -> Iterator[tuple[str, int]]:
        """(name, address of the header) of a group's members."""
        table = found.get(TABLE)
        if table is not None:
            tree, heap = self._numbers("2Q", table)
            start = self._at(heap, 32)
            if not start.startswith(b"HEAP"):
                self._broken("has a group without names", name)
            size, _, names = self._numbers("3Q", start, 8)
            if size > GUARD.header_bytes:
                self._broken(f"has {size} bytes of names", name)
            yield from self._tree(name, tree, self._at(names, size), 0)
        known = found.get(LINKS)
        if known is not None:
            [heap] = self._numbers("Q", known, 2 + (8 if known[1:2] and known[1] & 1 else 0))
            if heap != NOWHERE:
                refuse(self.path, "has its members in the newest layout (libver='latest'); save it with the default",
                       name or "/")  # fmt: skip
        for kind, message in found.messages:
            if kind == LINK:
                yield self._link(name, message)

    def _tree(self, name: str, place: int, names: bytes, depth: int) -> Iterator[tuple[str, int]]:
        """The members below a node of a group's tree."""
        start = self._at(self._once(place, "a group's node"), 24)
        level, count = start[5], int.from_bytes(start[6:8], "little")
        if not start.startswith(b"TREE\0") or depth > GUARD.nesting:
            self._broken("has a broken group", name)
        entries = self._at(place + 24, 16 * count + 8)
        for position in range(count):
            [child] = self._numbers("Q", entries, 8 + 16 * position)
            if level:
                yield from self._tree(name, child, names, depth + 1)
                continue
            leaf = self._at(self._once(child, "a group's leaf"), 8)
            if not leaf.startswith(b"SNOD"):
                self._broken("has a broken group", name)
            symbols = int.from_bytes(leaf[6:8], "little")
            data = self._at(child + 8, 40 * symbols)
            for symbol in range(symbols):
                text, there, cached = self._numbers("2QL", data, 40 * symbol)
                end = names.find(b"\0", text, text + GUARD.name_bytes)
                if end < 0:
                    self._broken("has a member without a name", name)
                self._spend((end - text) // 4096)
                if cached == 2:
                    self._soft(name, names[text:end])
                yield self._text(names[text:end]), there

    def _link(self, name: str, data: bytes) -> tuple[str, int]:
        """The member that a link message names."""
        version, flags = self._numbers("2B", data)
        place = 2
        kind = data[place] if flags & 8 and len(data) > 2 else 0
        place += bool(flags & 8) + 8 * bool(flags & 4) + bool(flags & 16)
        width = 1 << (flags & 3)
        length = int.from_bytes(data[place : place + width], "little")
        text = data[place + width : place + width + length]
        if version != 1 or len(text) < length or not length:
            self._broken("has a broken link", name)
        if kind:
            self._soft(name, text)
        [there] = self._numbers("Q", data, place + width + length)
        return self._text(text), there

    def _soft(self, name: str, text: bytes) -> NoReturn:
        refuse(self.path, "is a soft or external link, which is not followed", f"{name}/{self._text(text)}")

    def _text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self._broken(f"has a name that is not UTF-8: {printable(repr(data), 80)}")

    # ---- arrays ------------------------------------------------------------------------------------------------------

    def _array(self, name: str, found: Object) -> Array:
        """The array that an object header describes."""
        kind, space, layout = found.get(TYPE) or b"", found.get(SPACE) or b"", found.get(LAYOUT) or b""
        shape = self._shape(name, space)
        dtype, swapped, problem = self._dtype(kind)
        if found.get(EXTERNAL) is not None:
            problem = "its numbers are in another file, which is not opened"
        place, length, unread = self._place(layout)
        problem = problem or unread
        size = math.prod(shape) * ITEMSIZE.get(dtype, 1)
        if not problem and not size:
            place = length = 0
        if not problem and place == NOWHERE:
            problem = "its numbers were never written"
        if not problem and (length != size or place + length > self.size):
            refuse(self.path, f"{dtype} {list(shape)} has {size} bytes, stored are {length} at {place} of {self.size}",
                   name)  # fmt: skip
        raw = StoredTensor(self.path, self.base + place, shape, dtype)
        return Array(name, shape, dtype, Turned(raw, False, True) if swapped else raw, problem)

    def _shape(self, name: str, data: bytes) -> tuple[int, ...]:
        version, axes, _, kind = self._numbers("4B", data)
        if version not in (1, 2) or axes > GUARD.dimensions:
            self._broken(f"has {axes} axes, allowed are {GUARD.dimensions}", name)
        if version == 2 and kind == 2:
            return (0,)
        return GUARD.shape(self.path, name, list(self._numbers(f"{axes}Q", data, 8 if version == 1 else 4)))

    def _dtype(self, data: bytes) -> tuple[str, bool, str]:
        """(name in torch's words, whether big-endian, why it cannot be read)."""
        head, bits, size = self._numbers("BB2xL", data)
        kind = head & 15
        if kind == 8 and size == 1:
            return "bool", False, ""
        if kind == 0 and size in (1, 2, 4, 8):
            return f"{'' if bits & 8 else 'u'}int{8 * size}", bool(bits & 1) and size > 1, ""
        if kind == 1 and len(data) > 13 and (size, data[13]) in FLOATS and not bits & 64:
            return FLOATS[size, data[13]], bool(bits & 1), ""
        named = {0: "whole numbers", 1: "floats", 2: "times", 3: "texts", 6: "records", 7: "references", 9: "lists"}
        what = f"{named.get(kind, f'the HDF5 class {kind}')} of {size} bytes"
        return what, False, f"holds {what}, which torch cannot hold"

    def _place(self, data: bytes) -> tuple[int, int, str]:
        """(address, bytes, why they cannot be read) of an array's numbers."""
        version, kind = self._numbers("2B", data)
        if version in (3, 4) and kind == 1:
            return (*self._numbers("2Q", data, 2), "")
        ways = {0: "inside its header", 1: "by an old layout", 2: "in chunks", 3: "as a view of other files"}
        if version not in (3, 4):
            return 0, 0, "stored by an old layout, which is not read"
        return 0, 0, f"stored {ways.get(kind, f'by the layout {kind}')}, which is not read: save it in one piece"
