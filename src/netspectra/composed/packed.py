"""Codes of a few bits packed into 32-bit words, with scales and zero points a group of input columns.

Layouts: compressed-tensors' documentation of the "pack-quantized" format; AutoGPTQ's and GPTQModel's documentation of
``qweight``, ``qzeros``, ``scales``, ``g_idx`` and of the formats ``gptq`` (zero points stored less one) and
``gptq_v2``; AutoAWQ's documentation of its GEMM order.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.composed.group import Answer, CompositionRule, Group, floating
from netspectra.composed.scaled import weight_settings
from netspectra.errors import InputRefused
from netspectra.weight import Index, Loader, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PACKED", "AwqCodes", "CompressedCodes", "GptqCodes"]

BITS = (2, 4, 8)  # that fill words without a rest
GPTQ = (2, 3, 4, 8)  # three words hold 32 codes of 3 bits
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the code at shift 4 i is that of column 8 w + AWQ_ORDER[i]


@dataclass(frozen=True)
class CompressedCodes:
    """w = (q - zero) scale with q packed along the inputs, offset by 2^(bits - 1); zeros packed along the outputs."""

    words: Loader
    scale: Loader
    zero: Loader | None
    g_idx: Loader | None
    shape: tuple[int, int]
    bits: int
    grid: tuple[int, int]
    packed_zero: bool = False

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode, then select."""
        from netspectra.composed.codes import scaled, spread

        (m, n), (a, b) = self.shape, self.grid
        codes = _dense(self.words(), self.bits, n)
        middle = 2 ** (self.bits - 1)
        scale = self.scale().reshape(a, b)
        zero = scale.new_full((a, b), float(middle)).float()
        if self.zero is not None:
            stored = self.zero()
            plain = stored.reshape(a, b).float() + middle if not self.packed_zero else None
            zero = _dense(stored.mT, self.bits, a).mT.float() if plain is None else plain
        columns = spread(n, -(-n // b))
        if self.g_idx is not None:
            order = self.g_idx().reshape(-1).long()
            columns = columns if int(order.max()) < 0 else order
        found = scaled(codes, scale, zero, spread(m, m // a), columns)
        return found[index] if index else found


@dataclass(frozen=True)
class GptqCodes:
    """w^T = (q - zero) scale with q packed along the inputs and zeros along the outputs; given outputs by inputs."""

    words: Loader
    zeros: Loader
    scales: Loader
    g_idx: Loader | None
    shape: tuple[int, int]
    bits: int
    offset: int

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode, then select."""
        from netspectra.composed.codes import scaled, spread

        m, n = self.shape
        codes = _dense(self.words().mT, self.bits, n)
        scale = self.scales().mT
        stored = _dense(self.zeros(), self.bits, m).mT
        zero = (stored.int() + self.offset) & (2**self.bits - 1)
        columns = spread(n, -(-n // scale.shape[1])) if self.g_idx is None else self.g_idx().reshape(-1).long()
        found = scaled(codes, scale, zero, spread(m, 1), columns)
        return found[index] if index else found


@dataclass(frozen=True)
class AwqCodes:
    """w^T = (q - zero) scale with q and zeros of four bits packed along the outputs in AWQ's order."""

    words: Loader
    zeros: Loader
    scales: Loader
    shape: tuple[int, int]

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode, then select."""
        from netspectra.composed.codes import scaled, spread, unpacked

        m, n = self.shape
        codes = unpacked(self.words(), 4, 1, m, AWQ_ORDER).mT
        zero = unpacked(self.zeros(), 4, 1, m, AWQ_ORDER).mT
        scale = self.scales().mT
        found = scaled(codes, scale, zero, spread(m, 1), spread(n, n // scale.shape[1]))
        return found[index] if index else found


def _dense(words: Tensor, bits: int, count: int) -> Tensor:
    """Codes out of int32 words along the last axis, with no bits between them; some lie in two words."""
    import torch

    from netspectra.linalg.packing import unpack

    rows, width = words.shape
    lying = words.contiguous().reshape(-1).view(torch.uint8).reshape(rows, 4 * width)  # one word a row has odd strides
    return unpack(lying[:, : -(-count * bits // 8)], bits, count)


# ---- compressed-tensors ------------------------------------------------------------------------------------------


def _compressed(group: Group) -> Answer:
    words, scale = group.members["_packed"], group.members.get("_scale")
    if words.dtype != "int32" or len(words.shape) != 2:
        return f"packed into {words.dtype} {list(words.shape)}; read are int32 matrices"
    if scale is None or not floating(scale) or "" in group.members or "_global_scale" in group.members:
        return "packed words without scales of their own, or with a weight beside them"
    settings = weight_settings(group)
    if not settings:
        return "how many bits a code has stands in config.json (quantization_config), which is not there"
    shape = _told_shape(group)
    fitting = [entry for entry in settings if _fits(entry, words.shape, shape)]
    bits = {entry["num_bits"] for entry in fitting}
    if len(bits) != 1:
        return f"{len(bits)} of the config's numbers of bits fit words of shape {list(words.shape)}"
    [width] = bits
    m, n = shape or (words.shape[0], words.shape[1] * 32 // width)
    grid = _scale_grid(scale.shape, (m, n), "_g_idx" in group.members)
    zero = group.members.get("_zero_point")
    packed_zero = zero is not None and zero.dtype == "int32" and zero.shape == (-(-grid[0] * width // 32), grid[1])
    plain_zero = zero is not None and zero.dtype == "int8" and zero.shape == scale.shape
    if zero is not None and not (packed_zero or plain_zero):
        return f"zero points {zero.dtype} {list(zero.shape)} beside scales {list(scale.shape)}"
    if zero is None and all(entry.get("symmetric") is False for entry in fitting):
        return "the config says asymmetric, but there are no zero points"
    if "_g_idx" in group.members and group.shape("_g_idx") != (n,):
        return f"group numbers of shape {list(group.shape('_g_idx'))} for {n} columns"
    load = CompressedCodes(
        words.load, scale.load, group.load("_zero_point"), group.load("_g_idx"), (m, n), width, grid, packed_zero
    )
    return group.made("_packed", load, f"int{width} with scales", shape=(m, n))


def _told_shape(group: Group) -> tuple[int, int] | None:
    """The two numbers of ``weight_shape``."""
    ref = group.members.get("_shape")
    if ref is None:
        return None
    if ref.shape != (2,) or not ref.dtype.startswith("int"):
        raise InputRefused(f"weight_shape is {ref.dtype} {list(ref.shape)}, not two whole numbers")
    m, n = (int(size) for size in ref.load())
    return m, n


def _fits(entry: dict[str, Any], words: tuple[int, ...], shape: tuple[int, int] | None) -> bool:
    bits = entry.get("num_bits")
    if type(bits) is not int or not 1 < bits <= 8 or entry.get("type", "int") != "int":
        return False
    if shape is None:
        return bits in BITS  # of others, the words do not say how many codes they hold
    return shape[0] == words[0] and shape[1] >= 0 and -(-shape[1] * bits // 32) == words[1]


def _scale_grid(scale: tuple[int, ...], shape: tuple[int, int], ordered: bool) -> tuple[int, int]:
    m, n = shape
    if math.prod(scale) == 1:
        return (1, 1)
    if scale in ((m,), (m, 1)):
        return (m, 1)
    if len(scale) == 2 and scale[0] == m and scale[1] and (n % scale[1] == 0 or ordered):
        return (m, scale[1])
    raise InputRefused(f"scales of shape {list(scale)} do not fit a matrix of {m} x {n}")


# ---- GPTQ and AWQ ------------------------------------------------------------------------------------------------


def _grouped(group: Group) -> Answer:
    missing = [role for role in ("qweight", "qzeros", "scales") if role not in group.members]
    if missing:
        return f"{', '.join(missing)} missing"
    words, zeros, scales = (group.members[role] for role in ("qweight", "qzeros", "scales"))
    if (words.dtype, zeros.dtype) != ("int32", "int32") or not floating(scales):
        return f"{words.dtype} codes, {zeros.dtype} zero points, {scales.dtype} scales: not the layout of GPTQ or AWQ"
    if any(len(ref.shape) != 2 or not ref.numel for ref in (words, zeros, scales)):
        return "codes, zero points and scales are not all matrices"
    method = group.quantization.get("quant_method")
    if method == "gptq":
        return _gptq(group, words, zeros, scales)
    if method == "awq":
        return _awq(group, words, zeros, scales)
    return "whether GPTQ or AWQ stands in config.json (quantization_config), which does not say"


def _gptq(group: Group, words: TensorRef, zeros: TensorRef, scales: TensorRef) -> Answer:
    groups, m = scales.shape
    width = 32 * zeros.shape[1] // m
    if width not in GPTQ or zeros.shape != (groups, -(-m * width // 32)) or words.shape[1] != m:
        return (f"codes {list(words.shape)}, zero points {list(zeros.shape)} and scales {list(scales.shape)} "
                f"fit no width of {', '.join(map(str, GPTQ))} bits")  # fmt: skip
    told = group.quantization.get("bits")
    if told != width and not group.quantization.get("dynamic"):
        return f"config.json says {told!r} bits, the shapes say {width}"
    form = group.quantization.get("checkpoint_format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        return f"the checkpoint format {str(form)[:40]!r} is not read"
    n = words.shape[0] * 32 // width
    order = group.members.get("g_idx")
    if order is not None and (order.shape != (n,) or order.dtype not in ("int32", "int64")):
        return f"group numbers {order.dtype} {list(order.shape)} for {n} inputs"
    if order is None and n % groups:
        return f"{groups} groups do not divide {n} inputs"
    load = GptqCodes(words.load, zeros.load, scales.load, group.load("g_idx"), (m, n), width, int(form == "gptq"))
    return group.made("qweight", load, f"int{width} with scales", shape=(m, n), name=f"{group.base}weight")


def _awq(group: Group, words: TensorRef, zeros: TensorRef, scales: TensorRef) -> Answer:
    groups, m = scales.shape
    version = str(group.quantization.get("version", "gemm")).lower()
    bits = group.quantization.get("bits", group.quantization.get("w_bit"))
    if version != "gemm" or bits != 4:
        return f"AWQ of version {version[:20]!r} with {bits!r} bits is not read; read is gemm with 4"
    n = words.shape[0]
    if m % 8 or words.shape[1] != m // 8 or zeros.shape != (groups, m // 8) or n % groups or "g_idx" in group.members:
        return (f"codes {list(words.shape)}, zero points {list(zeros.shape)} and scales {list(scales.shape)} "
                "do not fit AWQ's layout")  # fmt: skip
    load = AwqCodes(words.load, zeros.load, scales.load, (m, n))
    return group.made("qweight", load, "int4 with scales", shape=(m, n), name=f"{group.base}weight")


PACKED = (
    CompositionRule(
        "packed codes",
        re.compile(r"(?P<base>.*?)(?P<role>|_packed|_scale|_zero_point|_g_idx|_shape|_global_scale)"),
        ("_packed",), _compressed, ("_packed",), ("_packed",),
    ),
    CompositionRule(
        "packed groups", re.compile(r"(?P<base>(.*\.)?)(?P<role>qweight|qzeros|scales|g_idx)"),
        ("qweight",), _grouped, ("qweight",), ("qweight",),
    ),
)  # fmt: skip
