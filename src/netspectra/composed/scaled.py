"""8-bit numbers, float or integer, beside their scales: one a tensor, a row, a group of columns or a block.

Layouts: compressed-tensors' documentation ("float-quantized", "int-quantized": ``weight_scale``,
``weight_zero_point``); DeepSeek-V3's README_WEIGHTS ("weight_scale_inv", blocks of 128 x 128, multiplied in spite of
the name); transformers' fine-grained FP8 config (``weight_block_size``); bitsandbytes' ``Linear8bitLt`` (``SCB``).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netspectra.composed.group import Answer, CompositionRule, Group, floating, is_simple
from netspectra.errors import InputRefused
from netspectra.weight import Index, Loader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SCALED", "Blocks"]

FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
SCALES = (*FLOAT8, "float8_e8m0fnu", "float16", "bfloat16", "float32", "float64")
USUAL = (128, 128)


@dataclass(frozen=True)
class Blocks:
    """(w - zero) scale factor, with scales of shape ``grid`` for blocks of ``size``; of a stack, slice by slice."""

    weight: Loader
    scale: Loader
    zero: Loader | None
    grid: tuple[int, int]
    size: tuple[int, int]
    factor: float = 1.0

    def __call__(self, index: Index = ()) -> Tensor:
        """Decode; of a stack of matrices only the one that an integer first index selects."""
        import torch

        first = index[:1] if index and isinstance(index[0], int) else ()
        codes = self.weight(first)
        if codes.dim() == 3:
            count = range(codes.shape[0])
            found = torch.stack([self._matrix(codes[i], (i,)) for i in count])
        else:
            found = self._matrix(codes, first)
        rest = index[len(first) :]
        return found[rest] if rest else found

    def _matrix(self, codes: Tensor, place: Index) -> Tensor:
        from netspectra.composed.codes import scaled, spread

        matrix = codes if codes.dim() == 2 else codes.reshape(1, -1)
        rows, columns = spread(matrix.shape[0], self.size[0]), spread(matrix.shape[1], self.size[1])
        scale = self._piece(self.scale, place).float() * self.factor
        zero = None if self.zero is None else self._piece(self.zero, place)
        return scaled(matrix, scale, zero, rows, columns).reshape(codes.shape)

    def _piece(self, load: Loader, place: Index) -> Tensor:
        found = load()
        if found.numel() != math.prod(self.grid):
            found = found[place]
        return found.reshape(self.grid)


def grid_of(scale: tuple[int, ...], shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Scales as (rows, columns) of blocks.

    Raises:
        InputRefused: the scales do not fit the matrix.
    """
    m, n = shape
    if math.prod(scale) == 1:
        return (1, 1)
    if scale in ((m,), (m, 1)):
        return (m, 1)
    if scale == (1, n):
        return (1, n)
    if len(scale) == 2 and scale == (-(-m // block[0]), -(-n // block[1])):
        return (scale[0], scale[1])
    if len(scale) == 2 and scale[0] == m and scale[1] and n % scale[1] == 0:
        return (m, scale[1])
    raise InputRefused(f"scales of shape {list(scale)} do not fit a matrix of {m} x {n} (blocks of {list(block)})")


def size_of(grid: tuple[int, int], shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    if grid == (-(-shape[0] // block[0]), -(-shape[1] // block[1])):
        return block
    return (-(-shape[0] // grid[0]) if grid[0] else 1, -(-shape[1] // grid[1]) if grid[1] else 1)


def block_of(group: Group) -> tuple[int, int]:
    """Block size by the config; 128 x 128 where it says nothing.

    Raises:
        InputRefused: something stands there that is no block size.
    """
    found = group.quantization.get("weight_block_size")
    for entry in weight_settings(group):
        found = found or entry.get("block_structure")
    if found is None:
        return USUAL
    if not (isinstance(found, list) and len(found) == 2 and all(type(b) is int and 0 < b <= 2**20 for b in found)):
        raise InputRefused("config.json: the block size of the weights is not two positive whole numbers")
    return (found[0], found[1])


def weight_settings(group: Group) -> list[dict]:
    """What compressed-tensors' ``config_groups`` say of the weight: the entries that name its module, else all."""
    groups = group.quantization.get("config_groups")
    entries = [entry for entry in groups.values() if isinstance(entry, dict)] if isinstance(groups, dict) else []
    module = group.base.removesuffix(".weight")
    named = [entry for entry in entries if len(entries) > 1 and _targets(entry.get("targets"), module)]
    return [entry["weights"] for entry in named or entries if isinstance(entry.get("weights"), dict)]


def _targets(targets: Any, module: str) -> bool:
    """Whether a list of names and ``re:`` patterns names a module; classes ("Linear") cannot be told apart here."""
    listed = targets if isinstance(targets, list) else []
    return module in listed or any(
        isinstance(one, str) and one.startswith("re:") and is_simple(one[3:], module) and re.match(one[3:], module)
        for one in listed
    )


# ---- rules -------------------------------------------------------------------------------------------------------


def _scaled(group: Group) -> Answer:
    weight = group.members.get("")
    if weight is None or weight.dtype not in (*FLOAT8, "int8"):
        if weight is not None and weight.dtype == "uint8" and len(weight.shape) >= 2:
            return "uint8 codes with scales, in a layout that is not read"
        return None
    roles = [role for role in ("_scale", "_scale_inv") if role in group.members]
    extra = set(group.members) - {"", "_scale", "_scale_inv", "_zero_point", "_shape"}
    if len(roles) != 1 or extra:
        return f"{weight.dtype} with {', '.join(sorted({*roles, *extra}))}: a layout that is not read"
    scale = group.members[roles[0]]
    if scale.dtype not in SCALES:
        return f"the scales are {scale.dtype}, not floating numbers"
    if len(weight.shape) not in (2, 3):
        return f"{weight.dtype} of shape {list(weight.shape)} is no matrix"
    matrix = (weight.shape[-2], weight.shape[-1])
    stacked = len(weight.shape) == 3 and len(scale.shape) == 3 and scale.shape[0] == weight.shape[0]
    one = scale.shape[1:] if stacked else scale.shape
    if len(weight.shape) == 3 and not stacked and math.prod(scale.shape) != 1:
        return f"scales of shape {list(scale.shape)} for a stack of shape {list(weight.shape)}"
    block = block_of(group)
    grid = grid_of(one, matrix, block)
    zero = group.members.get("_zero_point")
    if zero is not None and (zero.shape != scale.shape or stacked):
        return f"zero points of shape {list(zero.shape)} beside scales of {list(scale.shape)}"
    load = Blocks(weight.load, scale.load, group.load("_zero_point"), grid, size_of(grid, matrix, block))
    return group.made("", load, f"{weight.dtype} with scales")


def _rowwise(group: Group) -> Answer:
    weight, scale = group.members.get("weight"), group.members["SCB"]
    if weight is None:
        return "row scales without a weight"
    if weight.dtype != "int8" or len(weight.shape) != 2 or scale.shape != weight.shape[:1] or not floating(scale):
        return f"{weight.dtype} {list(weight.shape)} with row scales {scale.dtype} {list(scale.shape)}"
    layout = group.members.get("weight_format")
    if layout is not None:
        if math.prod(layout.shape) != 1 or not layout.dtype.startswith(("int", "uint")):
            return "weight_format is not a single whole number"
        code = int(layout.load().reshape(()))
        if code != 0:
            return f"stored in the tile order {code} of a GPU: load and save it in row order first"
    m, n = weight.shape
    load = Blocks(weight.load, scale.load, None, (m, 1), (1, max(n, 1)), 1 / 127)
    return group.made("weight", load, "int8 with row scales", name=f"{group.base}weight")


SCALED = (
    CompositionRule(
        "8-bit integers with row scales", re.compile(r"(?P<base>(.*\.)?)(?P<role>weight|SCB|weight_format)"),
        ("SCB",), _rowwise, ("weight",), ("SCB",),
    ),
    CompositionRule(
        "8-bit numbers with scales",
        re.compile(r"(?P<base>.*?)(?P<role>|_scale|_scale_inv|_scale_2|_zero_point|_g_idx|_shape|_global_scale)"),
        ("_scale", "_scale_inv"), _scaled, ("", "_scale", "_scale_inv"), ("_scale",),
    ),
)  # fmt: skip
