"""onnx: initializers and constants of a graph, with external data; quantized weights are decoded with their scales.

The protocol buffer is walked by offset, strictly, and no tensor's bytes are read before they are asked for; no library
parses it. The nodes that use a tensor tell what it is: how a matrix is laid out, a convolution's groups, a recurrent
cell's gates, which scales belong to whole numbers, and which module a weight with a generated name came from. Tensors
of fewer than two axes in Constant nodes are parts of the arithmetic and are not listed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from netspectra.sources import FORMATS
from netspectra.sources.guard import GUARD
from netspectra.sources.onnx_graph import Graph, Held, Node, read
from netspectra.sources.onnx_names import module_name
from netspectra.sources.packed import Blocks, Nibbles, Scaled, Varints, broadcast
from netspectra.sources.protobuf import BYTES, VARINT, Wire
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import StoredTensor, opened
from netspectra.weight import Loader, TensorRef

# Top-level fields of a model, and how each is written.
MODEL = {1: VARINT, 5: VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)}
STEPS = 16
CODES = ("int8", "uint8", "int16", "uint16", "int32", "int4", "uint4")
# What a recurrent node's rows are, in the words torch uses (ONNX order: i o f c; z r h).
CELLS = {"LSTM": ("i", "o", "f", "g"), "GRU": ("z", "r", "n"), "RNN": ("",)}


@dataclass(frozen=True)
class Slot:
    """A place among a node's inputs that can hold a weight.

    Attributes:
        at: which input.
        scale: the input with its scales, if the node has one.
        zero: the input with its zero points.
        axis: of the weight, on which scales may be given one by one.
    """

    at: int
    scale: int | None = None
    zero: int | None = None
    axis: int = -1


SLOTS = {
    "MatMul": (Slot(1), Slot(0)),
    "FusedMatMul": (Slot(1), Slot(0)),
    "Gemm": (Slot(1), Slot(0)),
    "MatMulInteger": (Slot(1, None, 3), Slot(0, None, 2, 0)),
    "QLinearMatMul": (Slot(3, 4, 5), Slot(0, 1, 2, 0)),
    "DynamicQuantizeMatMul": (Slot(1, 2, 3),),
    "MatMulIntegerToFloat": (Slot(1, 3, 5),),
    "QGemm": (Slot(3, 4, 5),),
    "Attention": (Slot(1),),
    "QAttention": (Slot(1, 4, 7),),
    "Conv": (Slot(1),),
    "ConvTranspose": (Slot(1),),
    "ConvInteger": (Slot(1, None, 3, 0),),
    "QLinearConv": (Slot(3, 4, 5, 0),),
    "Gather": (Slot(0, axis=0),),
    "MatMulNBits": (Slot(1, 2, 3),),
    **dict.fromkeys(CELLS, (Slot(1), Slot(2))),
}


@dataclass
class Use:
    """How a weight reaches the node that uses it.

    Attributes:
        value: the weight's value.
        node: which uses it.
        slot: where.
        turned: whether it is transposed on the way.
        names: values on the way, the weight's first.
        scale: value of its scales, if any.
        zero: value of its zero points, if any.
        axis: of the scales.
        block: length of the blocks they are given in; 0 for none.
    """

    value: str
    node: Node
    slot: Slot
    turned: bool = False
    names: list[str] = field(default_factory=list)
    scale: str = ""
    zero: str = ""
    axis: int = -1
    block: int = 0


class Onnx:
    """The reader."""

    name = "onnx"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A file whose top-level fields are those of an ONNX model, a graph among them, as far as they go."""
        if path.is_dir():
            return False
        size = GUARD.regular(path)
        with opened(path) as file:
            return file.read(1) == b"\x08" and _model(file, path, size)

    def files(self, path: AnyPath) -> list[AnyPath]:
        """The model, and the files of its external data."""
        return [path, *sorted({held.path for held in read(path).tensors.values()} - {path})]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every initializer, and every constant of two or more axes, in the order of the file."""
        graph = read(path)
        uses = _uses(graph)
        helpers = {value for use in uses.values() for value in (use.scale, use.zero)} - {""}
        names = {held.name for value, held in graph.tensors.items() if value not in graph.producers}
        for value, held in graph.tensors.items():
            constant = value in graph.producers
            if constant and len(held.shape) < 2:
                continue
            raw_name = value if constant or "@" in value else held.name
            name, use = raw_name, uses.get(value)
            if use:
                name = module_name(graph, use.node, [raw_name, *use.names[1:]], _suffix(use), names)
                names.add(name)
            facts: dict[str, Any] = {} if name == raw_name else {"raw_name": raw_name}
            if value in helpers:
                facts["scale"] = True
            yield _ref(graph, name, held, use, facts)

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """The ``config.json`` beside the model."""
        return GUARD.config_beside(path)


def _model(file: Any, path: AnyPath, size: int) -> bool:
    """Whether the first fields are those of a model, up to the graph."""
    wire = Wire(path, file, size)
    place = 0
    for _ in range(64):
        found = wire.peek(place, size)
        if found is None or MODEL.get(found.number) != found.wire:
            return False
        if found.number == 7:
            return True
        place = found.stop
    return False


# ---- who uses a tensor, and how --------------------------------------------------------------------------------------


def _uses(graph: Graph) -> dict[str, Use]:
    """The use of each weight: as an embedding if there is one, else the first."""
    found: dict[str, Use] = {}
    for node in graph.nodes:
        for slot in SLOTS.get(node.op, ()):
            use = _traced(graph, node, slot)
            if use is None or len(graph.tensors[use.value].shape) < 2:
                continue
            if use.value not in found or (node.op == "Gather" and found[use.value].node.op != "Gather"):
                found[use.value] = use
    return found


def _traced(graph: Graph, node: Node, slot: Slot) -> Use | None:
    """Follow a node's input back to a tensor, through casts, transpositions and dequantization."""
    use = Use("", node, slot, axis=slot.axis)
    value = node.input(slot.at)
    for _ in range(STEPS):
        use.names.insert(0, value)
        if value in graph.tensors:
            use.value = value
            return _scaled(graph, use)
        maker = graph.producers.get(value)
        if maker is None:
            return None
        if maker.op == "Transpose" and not use.scale and maker.ints.get("perm", [1, 0]) == [1, 0]:
            use.turned = not use.turned
        elif maker.op == "DequantizeLinear" and not use.scale:
            use.scale, use.zero = maker.input(1), _constant(graph, maker.input(2))
            use.axis, use.block = maker.get("axis", 1), maker.get("block_size", 0)
        elif maker.op in ("Mul", "Sub"):
            wanted = maker.input(1)
            first = maker.op == "Mul" and wanted not in graph.tensors
            wanted, value = (maker.input(0), wanted) if first else (wanted, maker.input(0))
            if wanted not in graph.tensors or use.zero or (maker.op == "Mul" and use.scale):
                return None
            use.scale, use.zero = (wanted, use.zero) if maker.op == "Mul" else (use.scale, wanted)
            continue
        elif maker.op not in ("Identity", "Cast"):
            return None
        value = maker.input(0)
    return None


def _scaled(graph: Graph, use: Use) -> Use | None:
    """The use with the scales of whole numbers, found at the node or behind it; None for scaled floats."""
    coded = graph.tensors[use.value].dtype in CODES
    if use.scale:
        use.scale = _constant(graph, use.scale)
        return use if use.scale and (coded or graph.tensors[use.value].dtype.startswith("float8")) else None
    node, slot = use.node, use.slot
    if not coded or node.op == "MatMulNBits":
        return use
    use.scale, use.zero = _constant(graph, node.input(slot.scale)), _constant(graph, node.input(slot.zero))
    for scale, zero in (_scale_behind(graph, node), _scale_by_name(graph, use.value)):
        if not use.scale:
            use.scale, use.zero = scale, use.zero or zero
    if node.op == "QGemm" and node.get("transB", 0):
        use.axis = 0
    return use


def _constant(graph: Graph, value: str) -> str:
    """The tensor behind a value that is only cast or handed on; empty if there is none."""
    for _ in range(STEPS):
        if value in graph.tensors:
            return value
        maker = graph.producers.get(value)
        if maker is None or maker.op not in ("Identity", "Cast"):
            return ""
        value = maker.input(0)
    return ""


def _scale_behind(graph: Graph, node: Node) -> tuple[str, str]:
    """(scale, zero point) that a node's output is multiplied or dequantized with: s_x s_W, or s_W of a table's rows."""
    outputs = node.outputs[:1]
    for _ in range(3):
        behind = [consumer for value in outputs for consumer in graph.consumers.get(value, ())]
        for consumer in behind:
            if consumer.op == "DequantizeLinear":
                return _constant(graph, consumer.input(1)), _constant(graph, consumer.input(2))
            if consumer.op == "Mul":
                others = [value for value in consumer.inputs if value not in outputs]
                both = [graph.producers[value] for value in others if value in graph.producers]
                factors = [*others, *(value for maker in both if maker.op == "Mul" for value in maker.inputs)]
                known = [value for value in factors if value in graph.tensors]
                return (known[0], "") if len(known) == 1 else ("", "")
        outputs = [value for consumer in behind if consumer.op == "Cast" for value in consumer.outputs]
    return "", ""


def _scale_by_name(graph: Graph, value: str) -> tuple[str, str]:
    """(scale, zero point) that bear the weight's name, as onnxruntime's quantizer writes them."""
    stem = value.removesuffix("_quantized")
    scale, zero = f"{stem}_scale", f"{stem}_zero_point"
    if stem == value or scale not in graph.tensors:
        return "", ""
    return scale, zero if zero in graph.tensors else ""


def _suffix(use: Use) -> str:
    """What torch calls the tensor at this place of its module."""
    if use.node.op in CELLS:
        return "weight_ih" if use.slot.at == 1 else "weight_hh"
    return "weight"


# ---- what a tensor is ------------------------------------------------------------------------------------------------


def _ref(graph: Graph, name: str, held: Held, use: Use | None, facts: dict[str, Any]) -> TensorRef:
    """The reference to a tensor, decoded where scales say how."""
    loader = _loader(held)
    dtype = "int8" if held.dtype == "int4" else "uint8" if held.dtype == "uint4" else held.dtype
    if use is None:
        return TensorRef(name, held.shape, dtype, loader, facts, problem=held.problem)
    facts = {**facts, **_facts(use, held.shape)}
    if use.node.op == "MatMulNBits":
        return _blocks(graph, name, held, use.node, facts)
    if not use.scale:
        return TensorRef(name, held.shape, dtype, loader, facts, problem=held.problem)
    scale, zero = graph.tensors[use.scale], graph.tensors.get(use.zero)
    shapes = [broadcast(one.shape, held.shape, use.axis, use.block) for one in (scale, zero or scale)]
    stored = f"{held.dtype} with scales"
    problem = held.problem or scale.problem or (zero.problem if zero else "")
    if shapes[0] is None or shapes[1] is None:
        problem = f"{stored} of shape {list(scale.shape)}, which do not fit it"
        return TensorRef(name, held.shape, "float32", loader, facts, problem=problem, stored=stored)
    axis = use.axis % len(held.shape)
    lined_up = (shapes[0], shapes[1])
    decoded = Scaled(loader, held.shape, _loader(scale), zero and _loader(zero), lined_up, axis, use.block)
    return TensorRef(name, held.shape, "float32", decoded, facts, problem=problem, stored=stored)


def _loader(held: Held) -> Loader:
    """What gives a tensor's numbers."""
    dtype = held.dtype
    if held.loose:
        dtype = "uint8" if dtype in ("int4", "uint4") else dtype
        flat = (held.nbytes,) if held.dtype != dtype else held.shape
        raw: Loader = Varints(held.path, held.start, held.stop, flat, dtype)
    elif dtype in ("int4", "uint4"):
        raw = StoredTensor(held.path, held.start, (held.nbytes,), "uint8")
    else:
        return StoredTensor(held.path, held.start, held.shape, dtype)
    return Nibbles(raw, held.shape, held.dtype == "int4") if held.dtype in ("int4", "uint4") else raw


def _blocks(graph: Graph, name: str, held: Held, node: Node, facts: dict[str, Any]) -> TensorRef:
    """The matrix that MatMulNBits keeps in blocks of columns."""
    rows, columns, bits, block = (node.get(key, 0) for key in ("N", "K", "bits", "block_size"))
    bits = bits or 4
    stored = f"{bits} bits with scales"
    scale, zero = (graph.tensors.get(_constant(graph, node.input(at))) for at in (2, 3))
    numbers = rows * -(-columns // block) if rows > 0 and columns > 0 and block > 0 else -1
    fits = numbers > 0 and held.shape == (rows, numbers // rows, -(-block * bits // 8)) and bits in (4, 8)
    counts = scale is not None and math.prod(scale.shape) == numbers
    padded = rows * -(-(numbers // rows) * bits // 8) if rows > 0 else 0
    if zero is not None and math.prod(zero.shape) != (padded if zero.dtype == "uint8" else numbers):
        counts = False
    unread = held.problem or (scale.problem if scale else "") or (zero.problem if zero else "")
    if not fits or not counts or held.loose or held.dtype != "uint8" or unread or node.input(4) or scale is None:
        problem = unread or f"{stored} in blocks that do not fit {rows} rows of {columns}"
        return TensorRef(name, held.shape, "float32", _loader(held), facts, problem=problem, stored=stored)
    raw = StoredTensor(held.path, held.start, held.shape, "uint8")
    loader = Blocks(raw, (rows, columns), _loader(scale), zero and _loader(zero), bits, block)
    return TensorRef(name, (rows, columns), "float32", loader, facts, stored=stored)


def _facts(use: Use, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the node says of the weight, in the words of `netspectra.sources.module`."""
    node, right = use.node, use.slot.at != 0 and use.slot != Slot(0, 1, 2, 0)
    if "Conv" in node.op:
        return {} if use.turned or len(shape) < 3 else _convolution(node, shape)
    if node.op == "Gather":
        return {"embedding": True} if not use.turned and not node.get("axis", 0) else {}
    if node.op in CELLS:
        return {"module": node.op, "recurrent": node.op, "gates": CELLS[node.op]}
    if node.op == "MatMulNBits":
        return {"input_first": False}
    turned = bool(node.get("transB" if right else "transA", 0)) != use.turned
    facts: dict[str, Any] = {"input_first": turned != right}
    if node.op in ("Attention", "QAttention"):
        facts["qkv"] = tuple(node.ints.get("qkv_hidden_sizes", [shape[-1] // 3] * 3))
    return facts


def _convolution(node: Node, shape: tuple[int, ...]) -> dict[str, Any]:
    kernel = shape[2:]
    ones = (1,) * len(kernel)
    pads = tuple(node.ints.get("pads", [0] * 2 * len(kernel)))
    before, behind = pads[: len(kernel)], pads[len(kernel) :]
    return {
        "module": node.op,
        "conv": True,
        "kernel_size": kernel,
        "stride": tuple(node.ints.get("strides", ones)),
        "padding": before if before == behind else pads,
        "output_padding": tuple(node.ints.get("output_padding", (0,) * len(kernel))),
        "padding_mode": node.texts.get("auto_pad", "zeros"),
        "dilation": tuple(node.ints.get("dilations", ones)),
        "groups": node.get("group", 1),
        "transposed": node.op == "ConvTranspose",
    }


FORMATS.add(Onnx.name, Onnx(), __name__)
