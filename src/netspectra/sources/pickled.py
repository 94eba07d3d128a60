"""Pickles read as data: an interpreter that builds plain containers and inert placeholders, and never calls anything.

A pickle is a program for a small stack machine (opcodes: the standard library's ``pickletools``). Python's own machine
imports what the program names and calls it. This one has no import and no call: a name becomes a `Global`, a call
becomes an `Inert` object that remembers what would have been called, and only the few names in ``meanings`` are given
a sense, by functions of this package. Mappings become lists of pairs (`Table`), so that nothing from the file is ever
hashed, compared or printed; memory is bounded by the number of steps and the bytes of the pickle.
"""

from __future__ import annotations

import codecs
import gc
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from netspectra.sources.guard import GUARD, printable

__all__ = ["Global", "Inert", "Meanings", "Table", "Unreadable", "unpickle"]

LINE = 4096
INTEGER_BYTES = 1024
ARGUMENTS = 64
ATTRIBUTES = 256
BATCH = 1024


class Unreadable(ValueError):
    """A pickle that is damaged, hostile or beyond the limits; the text says how."""


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The name of a class or function in a pickle; nothing is imported."""

    module: str
    name: str

    @property
    def text(self) -> str:
        """``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Table:
    """A mapping, as the pairs in their order; a later pair overrides an earlier one of the same key."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The value of a text key, or None; for the attributes of an object, which are few."""
        if len(self.pairs) > ATTRIBUTES:
            raise Unreadable(f"the pickle has an object of {len(self.pairs)} attributes")
        for name, value in reversed(self.pairs):
            if isinstance(name, str) and name == key:
                return value
        return None


@dataclass(eq=False, slots=True)
class Inert:
    """What a pickle would have made by calling something: who would have been called, with what, and its state."""

    made_by: Any
    args: Any
    state: Any = None
    items: list[Any] | None = None
    pairs: list[tuple[Any, Any]] | None = None

    @property
    def kind(self) -> str:
        """The class's name as the pickle gives it, fit to be shown."""
        maker = self.made_by
        if isinstance(maker, Global) and maker.name == "_reconstructor" and isinstance(self.args, tuple) and self.args:
            maker = self.args[0]
        return printable(maker.text, 120) if isinstance(maker, Global) else "an object"


# From ``module.name`` to the function that gives a call of it a sense, or None: the call stays inert.
Meanings = Callable[[str], Callable[[tuple[Any, ...]], Any] | None]


def unpickle(
    file: BinaryIO, limit: int, meanings: Meanings, persistent: Callable[[Any], Any], steps: int = GUARD.pickle_steps
) -> Any:
    """Read one pickle from where the file stands.

    Args:
        file: left behind the pickle's last byte.
        limit: most bytes that one pickle may have.
        meanings: what calls of known names make, from their arguments; these functions get untrusted arguments.
        persistent: what a persistent id (torch: a storage) stands for.
        steps: most opcodes.

    Raises:
        Unreadable: the pickle is damaged or beyond the limits.

    Cost: about a microsecond an opcode; at most ``steps`` of them.
    """
    machine = _Machine(file, limit, meanings, persistent, steps)
    collecting = gc.isenabled()
    gc.disable()  # nothing becomes garbage here, and looking for it would take most of the time
    try:
        return machine.run()
    except IndexError:
        raise Unreadable("the pickle is broken: it takes from an empty stack, or ends in the middle") from None
    finally:
        if collecting:
            gc.enable()


def _broken(what: str) -> Unreadable:
    return Unreadable(f"the pickle is broken: {what}")


class _Machine:
    """The stack, the marks and the memo of one run."""

    def __init__(
        self, file: BinaryIO, limit: int, meanings: Meanings, persistent: Callable[[Any], Any], steps: int
    ) -> None:
        self.file = file
        self.end = file.tell() + limit
        self.meanings = meanings
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.steps = self.most = steps

    def run(self) -> Any:
        """Step until STOP."""
        read, values, operations = self.file.read, VALUES, OPERATIONS
        while self.steps > 0:
            self.steps -= BATCH
            for _ in range(BATCH):
                code = read(1)
                if code == b"\x94":  # these three are half of all
                    self.memo[len(self.memo)] = self.stack[-1]
                    continue
                if code == b"h":
                    self.stack.append(_recall(self, read(1)[0]))
                    continue
                if code == b"K":
                    self.stack.append(read(1)[0])
                    continue
                value = values.get(code)
                if value is not None:
                    self.stack.append(value(self))
                    continue
                if code == b".":
                    return self.stack.pop()
                operation = operations.get(code)
                if operation is None:
                    raise _broken(f"unknown opcode {code!r}" if code else "it ends in the middle")
                operation(self)
        raise Unreadable(f"the pickle has more than {self.most} steps")

    # ---- reading --------------------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > LINE and size > self.end - self.file.tell():
            raise _broken(f"it claims a text of {size} bytes, more than may follow")
        found = self.file.read(size)
        if len(found) < size:
            raise _broken("it ends in the middle")
        return found

    def number(self, size: int, signed: bool = False) -> int:
        """A whole number of ``size`` bytes, little-endian."""
        found = self.file.read(size)
        if len(found) < size:
            raise _broken("it ends in the middle")
        return int.from_bytes(found, "little", signed=signed)

    def line(self, limit: int = LINE) -> bytes:
        """Up to the next end of line."""
        found = self.file.readline(limit + 1)
        if not found.endswith(b"\n"):
            raise _broken("it ends in the middle" if len(found) <= limit else f"a line of more than {limit} bytes")
        return found[:-1]

    def to_mark(self) -> list[Any]:
        """What stands above the last mark, taken off the stack."""
        above = self.stack
        self.stack = self.marks.pop()
        return above

    # ---- making ---------------------------------------------------------------------------------------------------

    def call(self, maker: Any, args: Any) -> Any:
        """What the call stands for: the meaning of a known name, else an inert object."""
        if isinstance(maker, Global) and isinstance(args, tuple) and len(args) <= ARGUMENTS:
            meaning = self.meanings(maker.text)
            if meaning is not None:
                self.steps -= sum(len(arg) for arg in args if isinstance(arg, list | tuple))
                return meaning(args)
        return Inert(maker, args)

    def named(self, module: Any, name: Any) -> Global:
        """A name of something elsewhere."""
        if not (isinstance(module, str) and isinstance(name, str)) or len(module) + len(name) > LINE:
            raise _broken("a global name is not a short text")
        return Global(module, name)

    def extend(self, target: Any, items: list[Any]) -> None:
        """Put items at the end of a list or of an inert object."""
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Inert):
            if target.items is None:
                target.items = []
            target.items.extend(items)
        else:
            raise _broken("it appends to what is no list")

    def update(self, target: Any, flat: list[Any]) -> None:
        """Put key, value, key, value, ... into a table or an inert object."""
        if len(flat) % 2:
            raise _broken("a key without a value")
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        if isinstance(target, Inert):
            if target.pairs is None:
                target.pairs = []
            target.pairs.extend(pairs)
        elif isinstance(target, Table):
            target.pairs.extend(pairs)
        else:
            raise _broken("it sets items of what is no dict")


Operation = Callable[[_Machine], None]
OPERATIONS: dict[bytes, Operation] = {}
# The opcodes that only push a value.
VALUES: dict[bytes, Callable[[_Machine], Any]] = {}


def _operation(*codes: bytes) -> Callable[[Operation], Operation]:
    def register(function: Operation) -> Operation:
        OPERATIONS.update(dict.fromkeys(codes, function))
        return function

    return register


# ---- numbers and texts -------------------------------------------------------------------------------------------


def _decimal(machine: _Machine) -> int | bool:
    text = machine.line().removesuffix(b"L")
    if text in (b"00", b"01"):
        return text == b"01"
    try:
        return int(text)
    except ValueError:
        raise _broken("a number that is none") from None


def _float_line(machine: _Machine) -> float:
    try:
        return float(machine.line())
    except ValueError:
        raise _broken("a number that is none") from None


def _long(machine: _Machine, size: int) -> int:
    if not 0 <= size <= INTEGER_BYTES:
        raise _broken(f"a whole number of {size} bytes, allowed are {INTEGER_BYTES}")
    return int.from_bytes(machine.take(size), "little", signed=True)


def _unicode(machine: _Machine, size: int) -> str:
    try:
        return machine.take(size).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise _broken("a text is not UTF-8") from None


def _old_text(machine: _Machine, size: int) -> str:
    """A byte string of Python 2, which knew no other texts."""
    if size < 0:
        raise _broken("a text of negative length")
    found = machine.take(size)
    try:
        return found.decode()
    except UnicodeDecodeError:
        return found.decode("latin-1")


def _quoted(machine: _Machine) -> str:
    line = machine.line(machine.end - machine.file.tell())
    if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
        raise _broken("a text without quotes")
    try:
        return codecs.escape_decode(line[1:-1])[0].decode("latin-1")  # type: ignore[attr-defined]
    except ValueError:
        raise _broken("a text with broken escapes") from None


def _raw_unicode(machine: _Machine) -> str:
    try:
        return machine.line(machine.end - machine.file.tell()).decode("raw-unicode-escape")
    except UnicodeDecodeError:
        raise _broken("a text with broken escapes") from None


VALUES[b"N"] = lambda machine: None
VALUES[b"\x88"] = lambda machine: True
VALUES[b"\x89"] = lambda machine: False
VALUES[b"I"] = _decimal
VALUES[b"L"] = _decimal
VALUES[b"J"] = lambda machine: machine.number(4, signed=True)
VALUES[b"M"] = lambda machine: machine.number(2)
VALUES[b"\x8a"] = lambda machine: _long(machine, machine.number(1))
VALUES[b"\x8b"] = lambda machine: _long(machine, machine.number(4, signed=True))
VALUES[b"F"] = _float_line
VALUES[b"G"] = lambda machine: struct.unpack(">d", machine.take(8))[0]
VALUES[b"S"] = _quoted
VALUES[b"T"] = lambda machine: _old_text(machine, machine.number(4, signed=True))
VALUES[b"U"] = lambda machine: _old_text(machine, machine.number(1))
VALUES[b"V"] = _raw_unicode
VALUES[b"X"] = lambda machine: _unicode(machine, machine.number(4))
VALUES[b"\x8c"] = lambda machine: _unicode(machine, machine.number(1))
VALUES[b"\x8d"] = lambda machine: _unicode(machine, machine.number(8))
VALUES[b"B"] = lambda machine: machine.take(machine.number(4))
VALUES[b"C"] = lambda machine: machine.take(machine.number(1))
VALUES[b"\x8e"] = lambda machine: machine.take(machine.number(8))
VALUES[b"\x96"] = lambda machine: machine.take(machine.number(8))

# ---- containers ---------------------------------------------------------------------------------------------------

VALUES[b")"] = lambda machine: ()
VALUES[b"]"] = lambda machine: []
VALUES[b"}"] = lambda machine: Table()
VALUES[b"\x8f"] = lambda machine: []


@_operation(b"(")
def _mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


@_operation(b"t")
def _tuple(machine: _Machine) -> None:
    found = tuple(machine.to_mark())
    machine.stack.append(found)


@_operation(b"\x85")
def _tuple1(machine: _Machine) -> None:
    machine.stack[-1] = (machine.stack[-1],)


@_operation(b"\x86")
def _tuple2(machine: _Machine) -> None:
    last = machine.stack.pop()
    machine.stack[-1] = (machine.stack[-1], last)


@_operation(b"\x87")
def _tuple3(machine: _Machine) -> None:
    last, middle = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = (machine.stack[-1], middle, last)


@_operation(b"l", b"\x91")
def _list(machine: _Machine) -> None:
    found = machine.to_mark()
    machine.stack.append(found)


@_operation(b"d")
def _dict(machine: _Machine) -> None:
    found, table = machine.to_mark(), Table()
    machine.update(table, found)
    machine.stack.append(table)


@_operation(b"a")
def _append(machine: _Machine) -> None:
    item = machine.stack.pop()
    machine.extend(machine.stack[-1], [item])


@_operation(b"e", b"\x90")
def _appends(machine: _Machine) -> None:
    items = machine.to_mark()
    machine.extend(machine.stack[-1], items)


@_operation(b"s")
def _setitem(machine: _Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    machine.update(machine.stack[-1], [key, value])


@_operation(b"u")
def _setitems(machine: _Machine) -> None:
    flat = machine.to_mark()
    machine.update(machine.stack[-1], flat)


# ---- the stack and the memo --------------------------------------------------------------------------------------


@_operation(b"0")
def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.to_mark()


@_operation(b"1")
def _pop_mark(machine: _Machine) -> None:
    machine.to_mark()


@_operation(b"2")
def _dup(machine: _Machine) -> None:
    machine.stack.append(machine.stack[-1])


def _remember(machine: _Machine, place: int) -> None:
    if not 0 <= place <= machine.most:
        raise _broken("a place beyond the memo")
    machine.memo[place] = machine.stack[-1]


def _recall(machine: _Machine, place: int) -> Any:
    try:
        return machine.memo[place]
    except KeyError:
        raise _broken("it recalls what it never remembered") from None


OPERATIONS[b"p"] = lambda machine: _remember(machine, _decimal(machine))
OPERATIONS[b"r"] = lambda machine: _remember(machine, machine.number(4))


@_operation(b"q")
def _binput(machine: _Machine) -> None:
    machine.memo[machine.number(1)] = machine.stack[-1]


VALUES[b"g"] = lambda machine: _recall(machine, _decimal(machine))
VALUES[b"j"] = lambda machine: _recall(machine, machine.number(4))

# ---- names, calls, persistent ids ---------------------------------------------------------------------------------


def _global_lines(machine: _Machine) -> Global:
    try:
        return machine.named(machine.line().decode(), machine.line().decode())
    except UnicodeDecodeError:
        raise _broken("a global name is not UTF-8") from None


VALUES[b"c"] = _global_lines
VALUES[b"\x82"] = lambda machine: Global("copyreg", f"extension {machine.number(1)}")
VALUES[b"\x83"] = lambda machine: Global("copyreg", f"extension {machine.number(2)}")
VALUES[b"\x84"] = lambda machine: Global("copyreg", f"extension {machine.number(4, signed=True)}")
VALUES[b"P"] = lambda machine: machine.persistent(machine.line().decode("latin-1"))


@_operation(b"\x93")
def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.named(module, name))


@_operation(b"R", b"\x81")
def _reduce(machine: _Machine) -> None:
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


@_operation(b"\x92")
def _newobj_ex(machine: _Machine) -> None:
    _, args = machine.stack.pop(), machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


@_operation(b"i")
def _inst(machine: _Machine) -> None:
    maker = _global_lines(machine)
    args = tuple(machine.to_mark())
    machine.stack.append(machine.call(maker, args))


@_operation(b"o")
def _obj(machine: _Machine) -> None:
    found = machine.to_mark()
    machine.stack.append(machine.call(found[0], tuple(found[1:])))


@_operation(b"b")
def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(target, Inert):
        target.state = state


@_operation(b"Q")
def _persistent(machine: _Machine) -> None:
    machine.stack[-1] = machine.persistent(machine.stack[-1])


# ---- framing -----------------------------------------------------------------------------------------------------


@_operation(b"\x80")
def _protocol(machine: _Machine) -> None:
    version = machine.number(1)
    if version > 5:
        raise _broken(f"pickle protocol {version}")


@_operation(b"\x95")
def _frame(machine: _Machine) -> None:
    machine.number(8)


@_operation(b"\x98")
def _readonly(machine: _Machine) -> None:
    """A buffer is made read-only; here it is bytes anyway."""
