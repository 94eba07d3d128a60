"""Zip archives whose records lie in the file as they are: where each begins, checked before anything is believed.

Layout: APPNOTE.TXT of PKWARE, sections 4.3.6 to 4.3.16. Records are never extracted, so their names are only keys; a
packed (deflated) record may be there, but is refused when it is asked for (`members` inflates).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from netspectra.sources.guard import GUARD, refuse
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import opened

__all__ = ["Archive", "Extent", "first_name", "is_zip"]

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
END64, LOCATOR64 = b"PK\x06\x06", b"PK\x06\x07"
ABSENT = 0xFFFFFFFF


@dataclass(frozen=True)
class Extent:
    """Bytes of a file: where they begin, how many, and their CRC-32 (0: none was kept)."""

    offset: int
    nbytes: int
    crc: int = 0


@dataclass(frozen=True)
class _Record:
    """One line of the directory; ``header`` counts from the start of the file."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    header: int


def is_zip(start: bytes) -> bool:
    """Whether a file that begins so is a zip archive."""
    return start.startswith((LOCAL, END))


def first_name(start: bytes) -> str:
    """Name of the first record of an archive that begins so; empty where it cannot be read."""
    if not start.startswith(LOCAL) or len(start) < 30:
        return ""
    return start[30 : 30 + int.from_bytes(start[26:28], "little")].decode("utf-8", "replace")


class Archive:
    """The directory of an archive that fills a file, or ``length`` bytes of it from ``start``."""

    def __init__(self, path: AnyPath, start: int = 0, length: int | None = None) -> None:
        """Read and check the directory.

        Raises:
            InputRefused: truncated, no archive, a name twice, overlapping records, more records than allowed.
        """
        self.path = path
        self.start = start
        self.end = start + length if length is not None else GUARD.regular(path)
        with opened(path) as file:
            self.records = self._directory(file)

    def read(self, name: str) -> bytes:
        """The bytes of a record, their checksum verified; at most ``GUARD.header_bytes``."""
        extent = self.extent(name)
        if extent.nbytes > GUARD.header_bytes:
            refuse(self.path, f"has {extent.nbytes} bytes, allowed are {GUARD.header_bytes}", name)
        with opened(self.path) as file:
            file.seek(extent.offset)
            found = file.read(extent.nbytes)
        if len(found) < extent.nbytes:
            refuse(self.path, "ends early; was it changed while it was read?", name)
        if extent.crc and zlib.crc32(found) != extent.crc:
            refuse(self.path, "does not match its checksum: the file is damaged; fetch it again", name)
        return found

    def extent(self, name: str, *, packed: bool = False) -> Extent:
        """Where a record's bytes lie; refused where it is missing or encrypted, or packed unless that is expected."""
        record = self.records.get(name)
        if record is None:
            refuse(self.path, "the archive has no such record; fetch it again", name)
        if record.flags & 0x2041:
            refuse(self.path, "the record is encrypted", name)
        if not packed and (record.method or record.packed != record.size):
            refuse(self.path, "the record is packed, which torch.save never does; unpack and save it again", name)
        with opened(self.path) as file:
            file.seek(record.header)
            local = file.read(30 + len(record.name))
        if len(local) < 30 + len(record.name) or local[:4] != LOCAL or local[30:] != record.name:
            refuse(self.path, "the record is not where the directory says; the archive is damaged", name)
        names, extras = struct.unpack("<HH", local[26:30])
        offset = record.header + 30 + names + extras
        if names != len(record.name) or offset + record.packed > self._limits[record.header]:
            refuse(self.path, "the record overlaps the next; the archive is damaged", name)
        return Extent(offset, record.packed, record.crc)

    # ---- the directory --------------------------------------------------------------------------------------------

    def _damaged(self, what: str) -> NoReturn:
        refuse(self.path, f"the zip directory {what}; the file is damaged or truncated, fetch it again")

    def _directory(self, file: BinaryIO) -> dict[str, _Record]:
        count, size, begin, stop = self._place(file)
        if count > GUARD.records:
            refuse(self.path, f"the archive has {count} records, allowed are {GUARD.records}")
        if size > GUARD.header_bytes:
            refuse(self.path, f"the archive's directory has {size} bytes, allowed are {GUARD.header_bytes}")
        if begin < self.start or begin + size != stop or count * 46 > size:
            self._damaged("is not where the archive's end says")
        file.seek(begin)
        table = file.read(size)
        records: dict[str, _Record] = {}
        place = 0
        for _ in range(count):
            record, place = self._record(table, place)
            name = record.name.decode("utf-8", "surrogateescape")
            if name in records:
                refuse(self.path, "the archive has two records of this name", name)
            records[name] = record
        if place != len(table):
            self._damaged("does not end where it should")
        self._limits = self._disjoint(list(records.values()), begin)
        return records

    def _disjoint(self, records: list[_Record], begin: int) -> dict[int, int]:
        """By each record's place the end of its room: where the next begins."""
        records.sort(key=lambda record: record.header)
        limits: dict[int, int] = {}
        starts = [*(record.header for record in records), begin]
        for record, stop in zip(records, starts[1:], strict=True):
            if record.header < self.start or record.header + 30 + len(record.name) + record.packed > stop:
                self._damaged("describes records that overlap or lie outside")
            limits[record.header] = stop
        return limits

    def _place(self, file: BinaryIO) -> tuple[int, int, int, int]:
        """(records, size, begin, stop) of the directory, from the end of the archive."""
        tail_begin = max(self.start, self.end - 65557 - 76)
        file.seek(tail_begin)
        tail = file.read(self.end - tail_begin)
        at = tail.rfind(END)
        if at < 0 or len(tail) < at + 22 or at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") != len(tail):
            self._damaged("is missing")
        disk, first, here, count, size, begin = struct.unpack("<HHHHII", tail[at + 4 : at + 20])
        stop = tail_begin + at
        if at >= 20 and tail[at - 20 : at - 16] == LOCATOR64:
            place = self.start + struct.unpack("<Q", tail[at - 12 : at - 4])[0]
            if not tail_begin <= place <= stop - 76 or tail[place - tail_begin :][:4] != END64:
                self._damaged("has a broken end")
            fields = tail[place - tail_begin :][:56]
            disk, first, here, count, size, begin = struct.unpack("<IIQQQQ", fields[16:56])
            stop = place
        if disk or first or here != count:
            refuse(self.path, "is one part of an archive split over several files")
        return count, size, self.start + begin, stop

    def _record(self, table: bytes, place: int) -> tuple[_Record, int]:
        """The record at ``place`` of the directory, and the place of the next."""
        if table[place : place + 4] != CENTRAL or len(table) < place + 46:
            self._damaged("is broken")
        flags, method = struct.unpack("<HH", table[place + 8 : place + 12])
        crc, packed, size, names, extras, comments = struct.unpack("<IIIHHH", table[place + 16 : place + 34])
        header = int.from_bytes(table[place + 42 : place + 46], "little")
        after = place + 46 + names
        if len(table) < after + extras + comments:
            self._damaged("is broken")
        size, packed, header = self._wide(table[after : after + extras], size, packed, header)
        name = table[place + 46 : after]
        return _Record(name, flags, method, crc, packed, size, self.start + header), after + extras + comments

    def _wide(self, extra: bytes, *values: int) -> tuple[int, ...]:
        """Replace values that do not fit in 32 bits by those of the zip64 field."""
        if ABSENT not in values:
            return values
        place = 0
        while place + 4 <= len(extra):
            kind, length = struct.unpack("<HH", extra[place : place + 4])
            if kind == 1:
                field = extra[place + 4 : place + 4 + length]
                wide = iter(int.from_bytes(field[at : at + 8], "little") for at in range(0, len(field) - 7, 8))
                return tuple(next(wide, value) if value == ABSENT else value for value in values)
            place += 4 + length
        return values
