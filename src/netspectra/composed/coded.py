"""Codes of a few bits beside their scales, row by row: netspectra's own folders, and torchao's safetensors.

Layouts: `netspectra.forms.coded` (``codes`` dense along the inputs, ``scale``, ``zero``, and the thin correction
``left right``; how many bits stands in ``netspectra.json``); torchao's documentation of its safetensors support
(``_weight_qdata`` a byte a number whatever its width, ``_weight_scale``, ``_weight_zero_point``).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.composed.group import Answer, CompositionRule, Group, floating
from netspectra.weight import Index, Loader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CODED", "Bytewise", "Dense"]

EIGHT = ("int8", "float8_e4m3fn", "float8_e5m2")
PLAIN = ("float16", "bfloat16", "float32", "float64")
ACTIVATIONS = ("act_scale", "act_quant_scale", "act_zero_point")  # how inputs are rounded: no part of the weight


@dataclass(frozen=True)
class Dense:
    """w = (q - zero) scale + left right, q and zero packed along the rows with no bits between them."""

    codes: Loader
    scale: Loader | None
    zero: Loader | None
    thin: tuple[Loader, Loader] | None
    bits: int
    groups: int
    columns: int
    shape: tuple[int, ...]
    turned: bool

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode, then select."""
        found = self.codes().float() if self.scale is None else self._decoded(self.scale().float())
        if self.thin is not None:
            left, right = self.thin
            found = found + left().float() @ right().float()
        found = found.mT if self.turned else found.reshape(self.shape)
        return found[index] if index else found

    def _decoded(self, scale: Tensor) -> Tensor:
        from netspectra.composed.codes import scaled, spread
        from netspectra.linalg.packing import unpack

        codes = unpack(self.codes(), self.bits, self.columns)
        middle = scale.new_full(scale.shape, float(2 ** (self.bits - 1)))
        zero = middle if self.zero is None else unpack(self.zero(), self.bits, self.groups).float()
        size = self.columns // self.groups
        return scaled(codes, scale, zero, spread(len(codes), 1), spread(self.columns, size))


@dataclass(frozen=True)
class Bytewise:
    """w = (q - zero) scale, a scale for each block of ``rows`` by ``columns`` of the flattened kernel."""

    codes: Loader
    scale: Loader
    zero: Loader | None
    grid: tuple[int, int]

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode, then select."""
        from netspectra.composed.codes import scaled, spread

        codes, (a, b) = self.codes(), self.grid
        matrix = codes.reshape(len(codes), -1)
        zero = None if self.zero is None else self.zero().reshape(a, b)
        m, n = matrix.shape
        places = spread(m, max(m // a, 1)), spread(n, max(n // b, 1))
        found = scaled(matrix, self.scale().reshape(a, b), zero, *places).reshape(codes.shape)
        return found[index] if index else found


# ---- netspectra's own --------------------------------------------------------------------------------------------


def _own(group: Group) -> Answer:
    table = group.config.get("netspectra")
    spec = table.get(group.base.removesuffix(".")) if isinstance(table, Mapping) else None
    if not isinstance(spec, Mapping):
        return None
    codes, bits, kernel = group.members["codes"], spec.get("bits"), spec.get("kernel", [])
    if not (isinstance(kernel, list) and len(kernel) <= 4 and all(type(k) is int and 0 < k < 2**40 for k in kernel)):
        return "netspectra.json: the kernel is not a list of sizes"
    if len(codes.shape) != 2:
        return f"codes of shape {list(codes.shape)} are no matrix"
    named, turned = {"name": f"{group.base}weight"}, spec.get("turned") is True
    if bits == 16:
        if not floating(codes):
            return f"16 bits in {codes.dtype}"
        m, n = codes.shape
        found = _shape(m, n, kernel, turned)
        load = Dense(codes.load, None, None, None, 16, 1, n, found or (), turned)
        return group.made("codes", load, codes.dtype, shape=found, **named) if found else _misfit(kernel, n)
    scale = group.members.get("scale")
    if type(bits) is not int or not 2 <= bits <= 8 or codes.dtype != "uint8":
        return f"{str(bits)[:20]} bits in {codes.dtype}; read are 2 to 8 in uint8"
    if scale is None or not floating(scale) or len(scale.shape) != 2 or scale.shape[0] != codes.shape[0]:
        return f"codes of shape {list(codes.shape)} without a row of scales each"
    (m, groups), size = scale.shape, spec.get("group")
    n = groups * size if type(size) is int and 0 < size < 2**40 else 0
    if not n or codes.shape[1] != -(-n * bits // 8):
        return f"{codes.shape[1]} bytes a row for {groups} groups of {str(size)[:20]} codes of {bits} bits"
    zero, left, right = (group.members.get(role) for role in ("zero", "left", "right"))
    if zero is not None and (zero.dtype != "uint8" or zero.shape != (m, -(-groups * bits // 8))):
        return f"zero points {zero.dtype} {list(zero.shape)} beside scales {list(scale.shape)}"
    if (left is None) != (right is None):
        return "one factor of the correction is missing"
    thin = None
    if left is not None and right is not None:
        shapes = left.shape[:1], left.shape[1:], right.shape[1:]
        if shapes != ((m,), right.shape[:1], (n,)) or not (floating(left) and floating(right)):
            return f"a correction of shapes {list(left.shape)} and {list(right.shape)} for a matrix of {m} x {n}"
        thin = left.load, right.load
    found = _shape(m, n, kernel, turned)
    if found is None:
        return _misfit(kernel, n)
    load = Dense(codes.load, scale.load, group.load("zero"), thin, bits, groups, n, found, turned)
    kind = f"int{bits} in groups of {size}{f' and rank {thin and left.shape[1]}' if thin and left else ''}"
    return group.made("codes", load, kind, shape=found, **named)


def _shape(m: int, n: int, kernel: list[int], turned: bool) -> tuple[int, ...] | None:
    """Of the weight as its module has it; None where the kernel does not fit."""
    if turned:
        return (n, m)
    return (m, *kernel) if kernel and math.prod(kernel) == n else None if kernel else (m, n)


def _misfit(kernel: list[int], n: int) -> str:
    return f"netspectra.json: a kernel of {kernel} for rows of {n} numbers"


# ---- torchao's ---------------------------------------------------------------------------------------------------


def _torchao(group: Group) -> Answer:
    codes, scale, zero = (group.members.get(role) for role in ("qdata", "scale", "zero_point"))
    assert codes is not None
    extra = sorted(set(group.members) - {"qdata", "scale", "zero_point", *ACTIVATIONS})
    if codes.dtype not in EIGHT or scale is None or scale.dtype not in PLAIN or extra:
        beside = f", {', '.join(extra)}" if extra else ""
        return (f"{codes.dtype} codes with scales {scale.dtype if scale else 'missing'}{beside}: read are those of "
                "torchao that give a number a byte (Int8, IntxUnpackedToInt8, Float8)")  # fmt: skip
    if not 2 <= len(codes.shape) <= 5 or not codes.numel:
        return f"codes of shape {list(codes.shape)} are no matrix"
    grid = _grid(scale.shape, codes.shape)
    if grid is None or (zero is not None and zero.numel != scale.numel):
        return (f"scales {list(scale.shape)} and zero points {list(zero.shape) if zero else 'none'} for codes of "
                f"{list(codes.shape)}")  # fmt: skip
    load = Bytewise(codes.load, scale.load, group.load("zero_point"), grid)
    told = _told_width(group) if codes.dtype == "int8" else ""
    return group.made("qdata", load, f"{told or codes.dtype} with scales", name=f"{group.base}weight")


def _grid(scale: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Scales as (rows, columns) of blocks of the flattened kernel; None where they do not fit."""
    if math.prod(scale) == 1:
        return (1, 1)
    a, *rest = scale
    b = rest[0] if rest else 1
    whole = all(size == 1 for size in rest[1:]) and len(scale) <= len(shape)
    return (a, b) if whole and a and b and shape[0] % a == 0 and shape[1] % b == 0 else None


def _told_width(group: Group) -> str:
    """``int5`` and the like, where ``config.json`` says it of this module or of all; else empty."""
    config: Any = group.quantization
    for key in ("quant_type", "default", "_data"):
        config = config.get(key) if isinstance(config, Mapping) else None
    table = config.get("fqn_to_config") if isinstance(config, Mapping) else None
    if isinstance(table, Mapping):
        entry = table.get(group.base.removesuffix("."))
        config = entry.get("_data") if isinstance(entry, Mapping) else None
    dtype = config.get("weight_dtype") if isinstance(config, Mapping) else None
    name = dtype.get("_data") if isinstance(dtype, Mapping) else None
    return name if isinstance(name, str) and re.fullmatch(r"int[1-8]", name) else ""


CODED = (
    CompositionRule(
        "netspectra's codes", re.compile(r"(?P<base>(.*\.)?)(?P<role>codes|scale|zero|left|right)"),
        ("codes",), _own, ("codes",), ("codes",),
    ),
    CompositionRule(
        "torchao's codes", re.compile(r"(?P<base>(.*\.)?)_weight_(?P<role>\w+)"),
        ("qdata",), _torchao, ("qdata",), ("_weight_qdata",),
    ),
)  # fmt: skip
