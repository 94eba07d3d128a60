"""keras: HDF5 weights as Keras writes them, ``.h5``, ``.weights.h5`` and the archive ``.keras``, by offset.

Keras keeps inputs before outputs; what a layer's configuration or the array's path tells is used to hand over
matrices with that said, and convolution kernels in torch's order of axes: (out, in, ...), for transposed ones (in,
out, ...), for depthwise ones (in * multiplier, 1, ...). Gates of LSTM and GRU are named. Arrays of other programs'
HDF5 files are listed as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from netspectra.sources import FORMATS
from netspectra.sources.guard import GUARD, refuse
from netspectra.sources.hdf5 import MAGIC, Array, Hdf5
from netspectra.sources.members import STORED, members, starts_with_member
from netspectra.sources.packed import Arranged
from netspectra.sources.remote import AnyPath
from netspectra.sources.stored import opened
from netspectra.weight import TensorRef

WEIGHTS, CONFIG = "model.weights.h5", "config.json"
# What a Keras 3 layer of this kind keeps as its numbered variables.
NUMBERED = (
    (r"separable_conv", ("depthwise_kernel", "pointwise_kernel", "bias")),
    (r"depthwise_conv", ("depthwise_kernel", "bias")),
    (r"embedding", ("embeddings",)),
    (r"conv|dense", ("kernel", "bias")),
    (r"lstm|gru|rnn", ("kernel", "recurrent_kernel", "bias")),
)
GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("z", "r", "n")}
ATTENTION = re.compile(r"(^|/)(query|key|value|attention_output|(query|key|value|output)_dense)(/|$)")


class Keras:
    """The reader."""

    name = "keras"
    extra: str | None = None
    needs: tuple[str, ...] = ()

    def claims(self, path: AnyPath) -> bool:
        """A file that begins as HDF5 does, or a zip archive that begins as ``.keras`` does, whatever its suffix."""
        if path.is_dir():
            return False
        with opened(path) as file:
            start = file.read(len(MAGIC))
        return start == MAGIC or starts_with_member(path) in ("metadata.json", CONFIG, WEIGHTS)

    def files(self, path: AnyPath) -> list[AnyPath]:
        """The file itself."""
        return [path]

    def tensors(self, path: AnyPath) -> Iterator[TensorRef]:
        """Yield every array, by headers alone, in the order of the file's groups."""
        base, size, text = 0, GUARD.regular(path), b""
        with opened(path) as file:
            if file.read(len(MAGIC)) != MAGIC:
                base, size, text = _archived(path)
            held = Hdf5(path, file, base, size)
            arrays = list(held.arrays())
        if len(arrays) > GUARD.tensors:
            refuse(path, f"holds {len(arrays)} arrays, allowed are {GUARD.tensors}")
        text = text or held.attributes.get("", {}).get("model_config", "").encode()
        layers: dict[str, tuple[str, Mapping[str, Any]]] = {}
        if text:
            _layers(GUARD.json(path, text), layers, 0)
        for array in arrays:
            yield _ref(array, held.attributes, layers)

    def config(self, path: AnyPath) -> Mapping[str, Any]:
        """Nothing: what Keras says of a model is said layer by layer."""
        return {}


def _archived(path: AnyPath) -> tuple[int, int, bytes]:
    """(offset, length) of the weights inside a ``.keras`` archive, and the text of its configuration."""
    found = {member.name: member for member in members(path)}
    if WEIGHTS not in found:
        refuse(path, f"is a zip archive without {WEIGHTS}")
    weights, config = found[WEIGHTS], found.get(CONFIG)
    if weights.method != STORED:
        refuse(path, "is deflated; unpack the archive and name the unpacked file", WEIGHTS)
    if config is None or config.size > GUARD.header_bytes:
        return weights.offset, weights.size, b""
    return weights.offset, weights.size, b"".join(config.blocks())


def _layers(config: Any, found: dict[str, tuple[str, Mapping[str, Any]]], depth: int) -> None:
    """Collect (class, configuration) of each named layer, however deep."""
    if depth > GUARD.nesting or not isinstance(config, dict | list):
        return
    inner = config.get("config") if isinstance(config, dict) else None
    if isinstance(config, dict) and isinstance(inner, dict) and isinstance(config.get("class_name"), str):
        name = inner.get("name")
        if isinstance(name, str):
            found[name] = (config["class_name"], inner)
    for value in config.values() if isinstance(config, dict) else config:
        _layers(value, found, depth + 1)


def _ref(
    array: Array, attributes: Mapping[str, Mapping[str, str]], layers: Mapping[str, tuple[str, Mapping[str, Any]]]
) -> TensorRef:
    """The reference to an array, arranged as torch would keep it."""
    folder, _, last = array.name.rpartition("/")
    name = attributes.get(folder, {}).get("name", "")
    owner = next((layers[part] for part in (name, *reversed(folder.split("/"))) if part in layers), ("", {}))
    kind = "/".join((_snake(owner[0]), name, folder)).lower()
    role = last.removesuffix(":0")
    if folder.endswith("vars") and role.isdigit():
        words = next((words for pattern, words in NUMBERED if re.search(pattern, kind)), ())
        role = words[int(role)] if int(role[:9]) < len(words) else role
    facts: dict[str, Any] = {"module": owner[0]} if owner[0] else {}
    if array.name.startswith("optimizer"):
        facts["buffer"] = True
    arranged = None if array.problem else _arranged(array.shape, role, kind, owner[1], facts)
    if arranged is None:
        return TensorRef(array.name, array.shape, array.dtype, array.load, facts, problem=array.problem)
    order, shape = arranged
    return TensorRef(array.name, shape, array.dtype, Arranged(array.load, order, shape), facts)


def _snake(name: str) -> str:
    """``Conv2DTranspose`` as Keras writes it in paths.

    >>> _snake("Conv2DTranspose"), _snake("DepthwiseConv2D"), _snake("LSTM")
    ('conv2d_transpose', 'depthwise_conv2d', 'lstm')
    """
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", re.sub(r"([0-9]D)([A-Z])", r"\1_\2", name)).lower()


def _arranged(
    shape: tuple[int, ...], role: str, kind: str, config: Mapping[str, Any], facts: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(order of the axes, shape after that) for what is not handed over as it is; completes the facts."""
    axes = len(shape)
    if role == "bias":
        facts["bias"] = True
    elif role == "embeddings":
        facts["embedding"] = True
    elif role in ("kernel", "recurrent_kernel") and axes == 2:
        facts["input_first"] = True
        cell = next((cell for cell in GATES if cell in kind), "")
        if cell and shape[1] % len(GATES[cell]) == 0:
            facts.update(recurrent=cell.upper(), gates=GATES[cell])
    elif role == "kernel" and axes == 3 and "conv" not in kind and ATTENTION.search(kind):
        facts["input_first"] = True
        out = re.search(r"(^|/)(attention_output|output_dense)(/|$)", kind) is not None
        return (), (shape[0] * shape[1], shape[2]) if out else (shape[0], shape[1] * shape[2])
    elif role in ("kernel", "depthwise_kernel", "pointwise_kernel") and 3 <= axes <= 5 and "dense" not in kind:
        return _kernel(shape, role, kind, config, facts)
    return None


def _kernel(
    shape: tuple[int, ...], role: str, kind: str, config: Mapping[str, Any], facts: dict[str, Any]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A convolution's kernel, (..., in, out), as torch keeps it."""
    places = tuple(range(len(shape) - 2))
    *kernel, inputs, outputs = shape
    depthwise = role == "depthwise_kernel" or "depthwise_conv" in kind
    transposed = "transpose" in kind
    if role == "pointwise_kernel":
        config = {"groups": 1}
    if config or depthwise or transposed:
        ones = (1,) * len(kernel)
        groups = config.get("groups", 1)
        facts.update(
            conv=True,
            kernel_size=tuple(kernel),
            stride=_sizes(config.get("strides"), ones),
            padding=config.get("padding", "valid") if isinstance(config.get("padding"), str) else "valid",
            dilation=_sizes(config.get("dilation_rate"), ones),
            groups=inputs if depthwise else groups if _divides(groups, outputs) else 1,
            transposed=transposed,
        )
    if depthwise:
        return (len(places), len(places) + 1, *places), (inputs * outputs, 1, *kernel)
    order = (len(places) + 1, len(places), *places)
    return order, tuple(shape[axis] for axis in order)


def _divides(groups: Any, outputs: int) -> bool:
    return type(groups) is int and groups > 0 and outputs % groups == 0


def _sizes(found: Any, default: tuple[int, ...]) -> tuple[int, ...]:
    if type(found) is int:
        return (found,) * len(default)
    if isinstance(found, list) and len(found) == len(default) and all(type(size) is int for size in found):
        return tuple(found)
    return default


FORMATS.add(Keras.name, Keras(), __name__)
