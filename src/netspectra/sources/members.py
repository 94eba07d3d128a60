"""Members of a zip archive as streams: read as they lie, or inflated in blocks, with length and checksum verified.

No member is ever extracted to disk, and a member's name is never used as a path.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from netspectra.sources.archive import Archive, first_name
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import opened

__all__ = ["STORED", "Member", "members", "starts_with_member"]

BLOCK = 1 << 20
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

    path: AnyPath
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


def starts_with_member(path: AnyPath) -> str:
    """Name of the member that a zip archive begins with; empty for what is no zip archive."""
    with opened(path) as file:
        return first_name(file.read(4096))


def members(path: AnyPath) -> list[Member]:
    """Every member of a zip archive, in the order of its bytes, packed as they may be.

    Raises:
        InputRefused: what `Archive` refuses, encrypted members, other packing than deflate, or absurd inflation.
    """
    archive = Archive(path)
    found = []
    for record in sorted(archive.records.values(), key=lambda record: record.header):
        name = GUARD.name(path, record.name.decode("utf-8", "surrogateescape"))
        if record.method not in (STORED, DEFLATED):
            refuse(path, f"is packed by the zip method {record.method}, readable are 0 (stored) and 8 (deflated)", name)
        if record.method == STORED and record.packed != record.size:
            refuse(path, f"is stored in {record.packed} bytes and claims {record.size}", name)
        GUARD.inflates(path, name, record.packed, record.size)
        extent = archive.extent(name, packed=True)
        found.append(Member(path, name, extent.offset, extent.nbytes, record.size, record.crc, record.method))
    return found
