"""4-bit weights of bitsandbytes: codes two a byte, a table of their values, a scale a block of numbers.

Layout: bitsandbytes' documentation of 4-bit quantization (``Linear4bit``, ``QuantState``) and transformers' of what it
saves: ``weight`` (uint8), ``weight.absmax``, ``weight.quant_map``, for nested quantization ``weight.nested_absmax`` and
``weight.nested_quant_map``, and ``weight.quant_state.bitsandbytes__nf4``: JSON in bytes.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.composed.group import Answer, CompositionRule, Group, floating
from netspectra.errors import InputRefused
from netspectra.weight import Index, Loader, TensorRef

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BITSANDBYTES", "BlockCodes"]

STATE = "quant_state.bitsandbytes__"
LARGEST = 65_536  # bytes of JSON that are looked at
CHUNK = 1 << 22


@dataclass(frozen=True)
class BlockCodes:
    """w = table[code] absmax[block]; absmax may itself be coded: table2[code] absmax2[block] + offset."""

    codes: Loader
    table: Loader
    absmax: Loader
    blocksize: int
    shape: tuple[int, ...]
    nested: tuple[Loader, Loader, int, float] | None = None

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode, then select."""
        import torch

        from netspectra.composed.codes import nibbles

        count = math.prod(self.shape)
        absmax, table = self._absmax(), self.table().float()
        packed = self.codes().reshape(-1)
        found = torch.empty(count, dtype=torch.float32)
        step = CHUNK // self.blocksize * self.blocksize or self.blocksize + self.blocksize % 2
        for start in range(0, count, step):
            stop = min(count, start + step)
            codes = nibbles(packed[start // 2 : -(-stop // 2)], stop - start)
            blocks = torch.arange(start, stop) // self.blocksize
            found[start:stop] = table[codes.long()] * absmax[blocks]
        found = found.reshape(self.shape)
        return found[index] if index else found

    def _absmax(self) -> Tensor:
        import torch

        found = self.absmax().reshape(-1)
        if self.nested is None:
            return found.float()
        outer, table, blocksize, offset = self.nested
        blocks = torch.arange(len(found)) // blocksize
        return table().float()[found.long()] * outer().float().reshape(-1)[blocks] + offset


def _state(ref: TensorRef) -> dict[str, Any]:
    """Read the JSON of a quant state.

    Raises:
        InputRefused: not the bytes of one small JSON object.
    """
    if ref.dtype != "uint8" or len(ref.shape) != 1 or ref.numel > LARGEST:
        raise InputRefused(f"the quant state is {ref.dtype} {list(ref.shape)}, not at most {LARGEST} bytes")
    try:
        found = json.loads(bytes(ref.load().tolist()).decode("utf-8"))
    except (ValueError, RecursionError):
        raise InputRefused("the quant state is not JSON") from None
    if not isinstance(found, dict):
        raise InputRefused("the quant state is not a JSON object")
    return found


def _size(state: dict[str, Any], name: str) -> int:
    found = state.get(name)
    if type(found) is not int or not 2 <= found <= 2**20 or found % 2:
        raise InputRefused(f"the quant state's {name} is not an even number up to 2^20")
    return found


def _four_bit(group: Group) -> Answer:
    codes = group.members.get("")
    kinds = [role for role in group.members if role.startswith(STATE)]
    if codes is None or len(kinds) != 1:
        return "codes or quant state missing" if kinds else None
    if codes.dtype != "uint8" or "absmax" not in group.members or "quant_map" not in group.members:
        return f"{codes.dtype} codes; absmax and quant_map must stand beside uint8 codes"
    state = _state(group.members[kinds[0]])
    if state.get("quant_type") != kinds[0].removeprefix(STATE) or state["quant_type"] not in ("nf4", "fp4"):
        return "the quant state names another type than its tensor does"
    shape, blocksize = state.get("shape"), _size(state, "blocksize")
    if not (isinstance(shape, list) and 0 < len(shape) <= 5 and all(type(s) is int and 0 <= s < 2**40 for s in shape)):
        return "the quant state's shape is not a list of sizes"
    count = math.prod(shape)
    absmax, table = group.members["absmax"], group.members["quant_map"]
    if -(-count // 2) != codes.numel or -(-count // blocksize) != absmax.numel:
        return (f"shape {shape} with blocks of {blocksize} does not fit {codes.numel} bytes of codes "
                f"and {absmax.numel} scales")  # fmt: skip
    if table.shape != (16,) or not floating(table):
        return f"the table of values is {table.dtype} {list(table.shape)}, not 16 numbers"
    load = BlockCodes(codes.load, table.load, absmax.load, blocksize, tuple(shape), _nested(group, state, absmax))
    return group.made("", load, f"{state['quant_type']} with scales", shape=tuple(shape))


def _nested(group: Group, state: dict[str, Any], absmax: TensorRef) -> tuple[Loader, Loader, int, float] | None:
    outer, table = group.members.get("nested_absmax"), group.members.get("nested_quant_map")
    if outer is None and table is None and floating(absmax):
        return None
    if outer is None or table is None or absmax.dtype != "uint8":
        raise InputRefused(f"scales are {absmax.dtype}, with{'' if outer else 'out'} scales of their own")
    blocksize, offset = _size(state, "nested_blocksize"), state.get("nested_offset")
    if not isinstance(offset, int | float) or isinstance(offset, bool) or not abs(offset) < 1e30:
        raise InputRefused("the quant state's nested_offset is not a number")
    fits = table.shape == (256,) and outer.numel == -(-absmax.numel // blocksize)
    if not fits or not floating(table) or not floating(outer):
        raise InputRefused(f"nested scales {list(outer.shape)}, table {list(table.shape)} for {absmax.numel} scales")
    return outer.load, table.load, blocksize, float(offset)


BITSANDBYTES = (
    CompositionRule(
        "4-bit codes", re.compile(
            r"(?P<base>(.*\.)?weight)(\.(?P<role>absmax|quant_map|nested_absmax|nested_quant_map|"
            r"quant_state\.bitsandbytes__\w+))?"
        ), ("absmax", "quant_map", f"{STATE}nf4", f"{STATE}fp4"), _four_bit, ("",),
        ("weight.absmax", "weight.quant_map", f"weight.{STATE}"),
    ),
)  # fmt: skip
