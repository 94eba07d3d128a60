"""Zip archives as containers of tensors: the table of contents checked strictly, members read or inflated in blocks.

No member is ever extracted to disk, and a member's name is never used as a path (layout: PKWARE APPNOTE 6.3.10).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NoReturn

from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.stored import opened

__all__ = ["Member", "members", "starts_with_member"]

BLOCK = 1 << 20
END, END64, PLACE64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ENTRY, LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
STORED, DEFLATED = 0, 8


@dataclass(frozen=True)
class Member:
    """One file inside an archive; holds no handle, so it pickles.

    Attributes:
        path: of the archive.
        name: as the archive gives it.
        offset: where its bytes begin in the archive.
        packed: how many bytes it takes there.
        size: how many it has.
        crc: checksum of its bytes.
        method: 0 as it is, 8 deflated.
    """

    path: Path
    name: str
    offset: int
    packed: int
    size: int
    crc: int
    method: int

    def blocks(self) -> Iterator[bytes]:
        """Give its bytes, block by block; who reads to the end has its length and checksum checked."""
        length, crc = 0, 0
        for block in self._stored() if self.method == STORED else self._inflated():
            length, crc = length + len(block), zlib.crc32(block, crc)
            if length > self.size:
                self._refuse(f"holds more than the {self.size} bytes that it claims")
            yield block
        if length < self.size:
            self._refuse(f"ends after {length} bytes of {self.size}; fetch it again")
        if crc != self.crc:
            self._refuse("does not have the checksum that the archive gives; fetch it again")

    def read_into(self, view: memoryview, start: int) -> None:
        """Fill ``view`` with the bytes from ``start`` on; where that is up to the end, the checksum is checked."""
        place, last = 0, start + len(view)
        for block in self.blocks():
            wanted = block[max(0, start - place) : max(0, last - place)]
            if wanted:
                begin = max(place, start) - start
                view[begin : begin + len(wanted)] = wanted
            place += len(block)
            if place >= last and last < self.size:
                return

    def _stored(self) -> Iterator[bytes]:
        left = self.packed
        with opened(self.path) as file:
            file.seek(self.offset)
            while left > 0:
                block = file.read(min(BLOCK, left))
                if not block:
                    return
                left -= len(block)
                yield block

    def _inflated(self) -> Iterator[bytes]:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for packed in self._stored():
                while packed and not inflater.eof:
                    yield inflater.decompress(packed, BLOCK)
                    packed = inflater.unconsumed_tail
            while not inflater.eof:
                block = inflater.decompress(b"", BLOCK)
                if not block:
                    return
                yield block
        except zlib.error as wrong:
            self._refuse(f"cannot be inflated ({printable(str(wrong), 80)}); fetch it again")

    def _refuse(self, what: str) -> NoReturn:
        refuse(self.path, what, self.name)


def starts_with_member(path: Path) -> str:
    """Name of the member that a zip archive begins with; empty for what is no zip archive."""
    with opened(path) as file:
        start = file.read(LOCAL.size)
        if len(start) < LOCAL.size or not start.startswith(b"PK\x03\x04"):
            return ""
        return file.read(min(LOCAL.unpack(start)[9], 4096)).decode("utf-8", "replace")


def members(path: Path) -> list[Member]:
    """Every member of a zip archive, in the order of its table, once no two overlap or share a name."""
    size = GUARD.regular(path)
    with opened(path) as file:
        start, length, count = _table(path, file, size)
        file.seek(start)
        table = file.read(length)
        found: list[Member] = []
        spans: list[tuple[int, int, str]] = []
        place = 0
        for _ in range(count):
            entry, begin, place = _entry(path, table, place)
            member = _located(file, entry, begin, start)
            found.append(member)
            spans.append((begin, member.offset + member.packed, member.name))
    if place != length:
        refuse(path, f"its table of contents has {length} bytes, its entries take {place}")
    names: set[str] = set()
    for member in found:
        if member.name in names:
            refuse(path, "the member stands twice in the archive", member.name)
        names.add(member.name)
    for (_, end, one), (begin, _, other) in pairwise(sorted(spans)):
        if begin < end:
            refuse(path, f"begins at {begin}, before {printable(one, 80)} ends at {end}: overlap", other)
    return found


def _table(path: Path, file: BinaryIO, size: int) -> tuple[int, int, int]:
    """(offset, length, number of entries) of the table of contents."""
    behind = min(size, END.size + 0xFFFF)
    file.seek(size - behind)
    tail = file.read(behind)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or place + END.size > len(tail):
        refuse(path, "is a zip archive without its table of contents: truncated? fetch it again")
    _, disk, first_disk, _, count, length, start, comment = END.unpack_from(tail, place)
    if place + END.size + comment != len(tail):
        refuse(path, "is a zip archive with bytes behind its end; fetch it again")
    end = size - behind + place
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):
        start, length, count, end = _table64(path, file, end)
    if disk or first_disk:
        refuse(path, "is one part of a zip archive in several; join them first")
    if length > GUARD.directory_bytes:
        refuse(path, f"has a table of contents of {length} bytes, allowed are {GUARD.directory_bytes}")
    if start + length != end:
        refuse(path, f"has its table of contents at {start} to {start + length}, where {end} is its end: truncated?")
    if count > length // ENTRY.size:
        refuse(path, f"claims {count} members in a table of contents of {length} bytes")
    return start, length, count


def _table64(path: Path, file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """(offset, length, entries, end) of the table of contents of a zip64 archive."""
    file.seek(max(0, end - PLACE64.size))
    locator = file.read(PLACE64.size)
    if len(locator) < PLACE64.size or not locator.startswith(b"PK\x06\x07"):
        refuse(path, "is a large zip archive without its zip64 record: truncated? fetch it again")
    place = PLACE64.unpack(locator)[2]
    file.seek(min(place, end))
    record = file.read(END64.size)
    if len(record) < END64.size or not record.startswith(b"PK\x06\x06"):
        refuse(path, "has a zip64 record that does not lie where it says")
    *_, count, length, start = END64.unpack(record)
    return start, length, count, place


def _entry(path: Path, table: bytes, place: int) -> tuple[Member, int, int]:
    """A member whose bytes are not yet located, the offset of its local header, and where the next entry begins."""
    if place + ENTRY.size > len(table) or not table.startswith(b"PK\x01\x02", place):
        refuse(path, "has a broken table of contents; fetch it again")
    fields = ENTRY.unpack_from(table, place)
    flags, method, (crc, packed, size, name_length, extra_length, comment) = fields[3], fields[4], fields[7:13]
    begin = place + ENTRY.size
    end = begin + name_length + extra_length + comment
    if end > len(table):
        refuse(path, "has a broken table of contents; fetch it again")
    try:
        name = table[begin : begin + name_length].decode("utf-8" if flags & 0x800 else "cp437")
    except UnicodeDecodeError:
        refuse(path, "has a member whose name is not UTF-8")
    extra = table[begin + name_length : begin + name_length + extra_length]
    size, packed, start = _large(path, name, extra, size, packed, fields[16])
    if flags & 1:
        refuse(path, "is encrypted", name)
    if method not in (STORED, DEFLATED):
        refuse(path, f"is packed by the zip method {method}, readable are 0 (stored) and 8 (deflated)", name)
    if method == STORED and packed != size:
        refuse(path, f"is stored in {packed} bytes and claims {size}", name)
    GUARD.inflates(path, name, packed, size)
    return Member(path, GUARD.name(path, name), 0, packed, size, crc, method), start, end


def _large(path: Path, name: str, extra: bytes, *sizes: int) -> tuple[int, ...]:
    """Replace sizes that stand in the zip64 extra field by what it says."""
    place = 0
    while place + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, place)
        if kind == 1:
            numbers = [int.from_bytes(extra[i : i + 8], "little") for i in range(place + 4, place + 4 + length - 7, 8)]
            if len(numbers) < sizes.count(0xFFFFFFFF):
                refuse(path, "has a broken zip64 field", name)
            left = iter(numbers)
            return tuple(next(left) if size == 0xFFFFFFFF else size for size in sizes)
        place += 4 + length
    return sizes


def _located(file: BinaryIO, member: Member, begin: int, table: int) -> Member:
    """The member with the place of its bytes, once its local header agrees with the table of contents."""
    if begin > table:
        refuse(member.path, f"begins at {begin}, behind the last byte {table}", member.name)
    file.seek(begin)
    local = file.read(LOCAL.size)
    if len(local) < LOCAL.size or not local.startswith(b"PK\x03\x04"):
        refuse(member.path, "does not begin where the table of contents says", member.name)
    _, _, flags, method, _, _, _, _, _, name_length, extra_length = LOCAL.unpack(local)
    name = file.read(name_length).decode("utf-8" if flags & 0x800 else "cp437", "replace")
    if name != member.name or method != member.method:
        refuse(member.path, "is another member in its own header than in the table of contents", member.name)
    offset = begin + LOCAL.size + name_length + extra_length
    if offset + member.packed > table:
        refuse(member.path, f"ends at {offset + member.packed}, behind the last byte {table}", member.name)
    return Member(member.path, name, offset, member.packed, member.size, member.crc, method)
