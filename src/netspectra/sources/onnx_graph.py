"""The graph of an ONNX file: its nodes, and its tensors by the place of their bytes (fields: onnx.proto, IR 13).

Bodies of If, Loop and Scan are walked too. Their values get names of their own where they hide those of the graph
around them, so that one flat table of values is left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count

from netspectra.sources.guard import GUARD, printable, refuse
from netspectra.sources.protobuf import BYTES, Field, Wire
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import opened
from netspectra.weight import ITEMSIZE

__all__ = ["Graph", "Held", "Node", "read"]

# Element types that torch holds, by their code in the file.
TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu",
    21: "uint4", 22: "int4",
}  # fmt: skip
OTHERS = {8: "texts", 23: "float4", 25: "uint2", 26: "int2", 27: "float6", 28: "float6"}
# Fields of a tensor that hold numbers as they are, and those that hold them as varints.
FIXED = {4: ("float32", "complex64"), 9: tuple(TYPES.values()), 10: ("float64", "complex128")}
TEXTS = ("auto_pad", "direction")
LOOSE = {
    5: tuple(set(TYPES.values()) - {"float32", "float64", "int64", "uint32", "uint64", "complex64", "complex128"}),
    7: ("int64",),
    11: ("uint32", "uint64"),
}


@dataclass(frozen=True)
class Held:
    """A tensor in the file, or in one beside it, by the place of its bytes.

    Attributes:
        name: in its graph.
        shape: of the tensor.
        dtype: in torch's words, but for ``uint4`` and ``int4``.
        path: of the file that holds the numbers.
        start: where they begin there.
        stop: where they end.
        loose: whether they are varints.
        problem: why they cannot be read, if so.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    path: AnyPath
    start: int = 0
    stop: int = 0
    loose: bool = False
    problem: str = ""

    @property
    def nbytes(self) -> int:
        """How many bytes its numbers take, as they are."""
        numel = math.prod(self.shape)
        return -(-numel // 2) if self.dtype in ("uint4", "int4") else numel * ITEMSIZE.get(self.dtype, 1)


@dataclass
class Node:
    """An operation: values in, values out, and attributes of the kinds that matter here."""

    op: str = ""
    name: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    ints: dict[str, list[int]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    constants: list[Held] = field(default_factory=list)
    bodies: list[tuple[str, Field]] = field(default_factory=list)

    def get(self, name: str, default: int) -> int:
        """The attribute that is one whole number."""
        found = self.ints.get(name)
        return found[0] if found else default

    def input(self, slot: int | None) -> str:
        """The value at a place of the inputs; empty where there is none."""
        return self.inputs[slot] if slot is not None and slot < len(self.inputs) else ""


@dataclass
class Graph:
    """All nodes and tensors of a model, those of bodies included.

    Attributes:
        nodes: in the order of the file, bodies behind the node they belong to.
        tensors: value -> tensor, for initializers and constants.
        producers: value -> the node that computes it.
        consumers: value -> the nodes that take it.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Held] = field(default_factory=dict)
    producers: dict[str, Node] = field(default_factory=dict)
    consumers: dict[str, list[Node]] = field(default_factory=dict)


def read(path: AnyPath) -> Graph:
    """Walk the whole file but for the weights' bytes."""
    size = GUARD.regular(path)
    with opened(path) as file:
        wire = Wire(path, file, size)
        top = [found for found in wire.fields(0, size, "the model") if found.number == 7]
        if len(top) != 1 or top[0].wire != BYTES:
            refuse(path, f"holds {len(top)} graphs, an ONNX model has one")
        graph = Graph()
        _Walk(wire, graph).body(top[0], {}, 0)
    for node in graph.nodes:
        for value in node.outputs:
            graph.producers[value] = node
        for value in dict.fromkeys(node.inputs):
            graph.consumers.setdefault(value, []).append(node)
    return graph


class _Walk:
    """Collects nodes and tensors of one file."""

    def __init__(self, wire: Wire, graph: Graph) -> None:
        self.wire, self.graph = wire, graph
        self.taken: set[str] = set()
        self.bodies = count(1)

    def body(self, place: Field, outside: Mapping[str, str], depth: int) -> None:
        """Add what a graph holds; ``outside`` gives the values that it sees of the graphs around it."""
        if depth > GUARD.nesting:
            refuse(self.wire.path, f"has bodies nested deeper than {GUARD.nesting}")
        nodes: list[Node] = []
        tensors: list[Held] = []
        inside: list[str] = []
        for found in self.wire.fields(place.start, place.stop, "the graph"):
            if found.number == 1:
                nodes.append(self.node(found))
            elif found.number == 5:
                tensors.append(self.tensor(found))
            elif found.number == 15:
                tensors.append(self.sparse(found))
            elif found.number == 11:
                inside.extend(self.names(found, 1))
        number = next(self.bodies)
        held = [tensor.name for tensor in tensors]
        if len(set(held)) < len(held):
            twice = next(name for name in held if held.count(name) > 1)
            refuse(self.wire.path, "the tensor stands twice in one graph", twice)
        local = dict(outside)
        for name in (*inside, *held, *(value for node in nodes for value in node.outputs)):
            if name:
                local[name] = name if name not in self.taken else f"{name}@{number}"
        self.taken.update(local[name] for name in local if name not in outside or local[name] != outside[name])
        for tensor in tensors:
            self.add(local.get(tensor.name, tensor.name), tensor)
        for node in nodes:
            self.place(node, local, depth)

    def place(self, node: Node, local: Mapping[str, str], depth: int) -> None:
        """Add a node with its values' final names, then its bodies."""
        node.inputs = [local.get(value, value) for value in node.inputs]
        node.outputs = [local.get(value, value) for value in node.outputs]
        if node.op == "Constant" and node.outputs:
            for tensor in node.constants:
                self.add(node.outputs[0], tensor)
        self.graph.nodes.append(node)
        for _, body in node.bodies:
            self.body(body, local, depth + 1)

    def add(self, value: str, tensor: Held) -> None:
        """Add a tensor under the final name of its value."""
        if len(self.graph.tensors) >= GUARD.tensors:
            refuse(self.wire.path, f"holds more than {GUARD.tensors} tensors")
        self.graph.tensors[value] = tensor

    def names(self, message: Field, number: int) -> Iterator[str]:
        """The texts of one field of a message."""
        if message.wire == BYTES:
            for found in self.wire.fields(message.start, message.stop, "a value"):
                if found.number == number:
                    yield self.wire.text(found, "a name")

    def node(self, place: Field) -> Node:
        """Read one node."""
        node, wire = Node(), self.wire
        self.message(place, "a node")
        for found in wire.fields(place.start, place.stop, "a node"):
            if found.number == 1:
                node.inputs.append(wire.text(found, "a node's input"))
            elif found.number == 2:
                node.outputs.append(wire.text(found, "a node's output"))
            elif found.number == 3:
                node.name = wire.text(found, "a node's name")
            elif found.number == 4:
                node.op = wire.text(found, "a node's type")
            elif found.number == 7:
                node.domain = wire.text(found, "a node's domain")
            elif found.number == 5:
                self.attribute(node, found)
        return node

    def attribute(self, node: Node, place: Field) -> None:
        """Read one attribute of a node: whole numbers, a text, a tensor or bodies; others are passed over."""
        wire, what = self.wire, f"an attribute of {printable(node.name or node.op, 80)}"
        self.message(place, what)
        name, ints, bodies, text = "", [], [], None
        for found in wire.fields(place.start, place.stop, what):
            if found.number == 1:
                name = wire.text(found, what)
            elif found.number in (3, 8):
                ints.extend(wire.integers(found, what))
            elif found.number == 4:
                text = found
            elif found.number == 5 and node.op in ("Constant", ""):
                node.constants.append(self.tensor(found))
            elif found.number in (6, 11):
                bodies.append(found)
        if ints:
            node.ints[name] = ints
        if text and name in TEXTS:
            node.texts[name] = wire.text(text, what)
        node.bodies.extend((name, body) for body in bodies if self.message(body, what))

    def message(self, place: Field, what: str) -> bool:
        """Refuse a number where a message belongs."""
        if place.wire != BYTES:
            self.wire.broken(what, "a number where a message belongs")
        return True

    def sparse(self, place: Field) -> Held:
        """Read the name of a sparse tensor, which is not decoded."""
        self.message(place, "a sparse tensor")
        for found in self.wire.fields(place.start, place.stop, "a sparse tensor"):
            if found.number == 1:
                values = self.tensor(found)
                return Held(values.name, (), values.dtype, values.path, problem="a sparse tensor, which is not read")
        self.wire.broken("a sparse tensor", "no values")

    def tensor(self, place: Field) -> Held:
        """Read where a tensor's numbers lie, and check that they are as many as its shape says."""
        wire = self.wire
        self.message(place, "a tensor")
        name, code, dims, outside = "", 0, [], False
        numbers: list[Field] = []
        entries: dict[str, str] = {}
        for found in wire.fields(place.start, place.stop, "a tensor"):
            if found.number == 1:
                dims.extend(wire.integers(found, "a tensor's shape"))
            elif found.number == 2:
                code = found.value
            elif found.number == 8:
                name = wire.text(found, "a tensor's name")
            elif found.number in FIXED or found.number in LOOSE:
                numbers.append(found)
            elif found.number == 13:
                entries.update(self.entry(found))
            elif found.number == 14:
                outside = found.value == 1
        GUARD.name(wire.path, name)
        shape = GUARD.shape(wire.path, name, dims)
        if code not in TYPES:
            kind = OTHERS.get(code, f"type {code}")
            return Held(name, shape, kind, wire.path, problem=f"stored as {kind}, which is not read")
        held = Held(name, shape, TYPES[code], wire.path)
        return self.external(held, entries) if outside else self.filled(held, numbers)

    def entry(self, place: Field) -> dict[str, str]:
        """One key and value of external data."""
        self.message(place, "external data")
        found = {field.number: field for field in self.wire.fields(place.start, place.stop, "external data")}
        if set(found) < {1, 2}:
            return {}
        return {self.wire.text(found[1], "external data"): self.wire.text(found[2], "external data")}

    def filled(self, held: Held, numbers: list[Field]) -> Held:
        """The tensor with the place of its numbers inside the file."""
        numel = math.prod(held.shape)
        numbers = [found for found in numbers if found.stop > found.start]
        if not numel and not numbers:
            return held
        if not numbers:
            refuse(self.wire.path, f"{held.dtype} {list(held.shape)} has no numbers", held.name)
        [found, *more] = numbers
        if more or found.wire != BYTES:
            return replace(held, problem="its numbers are written one by one, which is not read")
        length = found.stop - found.start
        if found.number in FIXED and held.dtype in FIXED[found.number]:
            if length != held.nbytes:
                refuse(self.wire.path, f"{held.dtype} {list(held.shape)} has {held.nbytes} bytes, the file {length}",
                       held.name)  # fmt: skip
            return replace(held, start=found.start, stop=found.stop)
        packed = numel if held.dtype not in ("uint4", "int4") else held.nbytes
        if held.dtype not in LOOSE.get(found.number, ()) or not packed <= length <= 10 * packed:
            refuse(self.wire.path, f"{held.dtype} {list(held.shape)} cannot be the {length} bytes of field "
                   f"{found.number}", held.name)  # fmt: skip
        return replace(held, start=found.start, stop=found.stop, loose=True)

    def external(self, held: Held, entries: Mapping[str, str]) -> Held:
        """The tensor with the place of its numbers in a file beside it."""
        path = GUARD.inside(self.wire.path.parent, entries.get("location"))
        numbers = [entries.get("offset", "0"), entries.get("length", str(held.nbytes))]
        if not all(re.fullmatch("[0-9]{1,18}", number) for number in numbers):
            refuse(self.wire.path, "has external data whose place is not two whole numbers", held.name)
        offset, length = map(int, numbers)
        if length != held.nbytes:
            refuse(self.wire.path, f"{held.dtype} {list(held.shape)} has {held.nbytes} bytes, external are {length}",
                   held.name)  # fmt: skip
        size = GUARD.regular(path)
        if offset + length > size:
            refuse(path, f"is truncated: the tensor ends at byte {offset + length}, the file has {size}; "
                         "fetch it again", held.name)  # fmt: skip
        return replace(held, path=path, start=offset, stop=offset + length)
