"""Protocol buffers read by offset: fields are walked one by one, nothing is parsed as a whole or kept.

The wire format is public (https://protobuf.dev/programming-guides/encoding). A message is known by where it lies in the
file, so that gigabytes of weights inside one are stepped over, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, NoReturn

from netspectra.errors import InputRefused
from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.remote import AnyPath

__all__ = ["BYTES", "FIXED32", "FIXED64", "VARINT", "Field", "Wire"]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
BLOCK = 1 << 16
SPARE = 32


class Field(NamedTuple):
    """One field of a message.

    Attributes:
        number: which field.
        wire: how it is written: `VARINT`, `FIXED64`, `BYTES` or `FIXED32`.
        value: the number, of a varint.
        start: where its bytes begin in the file.
        stop: where they end.
    """

    number: int
    wire: int
    value: int
    start: int
    stop: int


class Wire:
    """Walks the messages of one open file; every length is checked against the message around it."""

    def __init__(self, path: AnyPath, file: BinaryIO, size: int) -> None:
        """Read ``file``, which has ``size`` bytes."""
        self.path, self.size = path, size
        self._file = file
        self._block, self._begin = b"", 0
        self._count = 0

    def fields(self, start: int, stop: int, what: str) -> Iterator[Field]:
        """Give the fields of the message at ``start`` to ``stop``, called ``what`` in refusals, in their order."""
        place, make = start, tuple.__new__
        while place < stop:
            self._count += 1
            if self._count > GUARD.fields:
                refuse(self.path, f"has more than {GUARD.fields} fields before its weights are known")
            tag, begin = self._varint(place, stop, what)
            wire, value, end = tag & 7, 0, begin
            if wire == BYTES:
                length, begin = self._varint(begin, stop, what)
                end = begin + length
            elif wire == VARINT:
                value, end = self._varint(begin, stop, what)
            elif wire in (FIXED32, FIXED64):
                end = begin + (4 if wire == FIXED32 else 8)
            else:
                self.broken(what, f"a field of the unknown kind {wire} at byte {place}")
            if tag < 8:
                self.broken(what, f"a field without a number at byte {place}")
            if end > stop:
                self.broken(what, f"a field that ends at byte {end} of {stop}: truncated? fetch it again")
            yield make(Field, (tag >> 3, wire, value, begin, end))
            place = end

    def peek(self, place: int, stop: int) -> Field | None:
        """The field at ``place``, even if it is cut short; None where there is none."""
        try:
            tag, begin = self._varint(place, stop, "")
            value, end = self._varint(begin, stop, "") if tag & 7 in (VARINT, BYTES) else (0, begin)
        except InputRefused:
            return None
        return Field(tag >> 3, tag & 7, value, end, end + value if tag & 7 == BYTES else end)

    def text(self, field: Field, what: str) -> str:
        """The field as a string."""
        if field.wire != BYTES:
            self.broken(what, "a number where a text belongs")
        if field.stop - field.start > GUARD.name_bytes:
            self.broken(what, f"a text of {field.stop - field.start} bytes, allowed are {GUARD.name_bytes}")
        data = self._bytes(field.start, field.stop - field.start)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.broken(what, f"a text that is not UTF-8: {printable(repr(data), 80)}")

    def integers(self, field: Field, what: str) -> list[int]:
        """The signed whole numbers of a repeated field, packed or one of them."""
        if field.wire == VARINT:
            return [_signed(field.value)]
        if field.wire != BYTES:
            self.broken(what, "no whole numbers where they belong")
        found, place = [], field.start
        while place < field.stop:
            self._count += 1
            if self._count > GUARD.fields:
                refuse(self.path, f"has more than {GUARD.fields} numbers before its weights are known")
            value, place = self._varint(place, field.stop, what)
            found.append(_signed(value))
        return found

    def broken(self, what: str, found: str) -> NoReturn:
        """Refuse the file."""
        refuse(self.path, f"{what} has {found}")

    def _varint(self, place: int, stop: int, what: str) -> tuple[int, int]:
        """(value, where it ends) of the varint at ``place``."""
        at = place - self._begin
        if 0 <= at < len(self._block) and place < stop and self._block[at] < 128:
            return self._block[at], place + 1
        if not 0 <= at <= len(self._block) - SPARE:
            self._bytes(place, 0)
            at = 0
        value = shift = 0
        for byte in self._block[at : at + min(10, stop - place)]:
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value & (2**64 - 1), place + shift // 7
        self.broken(what, f"a broken number at byte {place}: truncated? fetch it again")

    def _bytes(self, place: int, length: int) -> bytes:
        at = place - self._begin
        if not 0 <= at <= len(self._block) - length or not length:
            self._file.seek(place)
            self._block, self._begin, at = self._file.read(max(BLOCK, length)), place, 0
        return self._block[at : at + length]


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
