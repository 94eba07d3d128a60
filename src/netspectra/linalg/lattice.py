"""How finely a weight is stored, so that rounding is told apart from change."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from netspectra.linalg.spectrum import STORED_EPS

__all__ = ["Form", "coded_form", "form_of"]

NARROWER = ("bfloat16", "float16", "float32")  # in the order in which they are tried
SMALLEST = {"float16": 2.0**-25, "bfloat16": 0.0, "float32": 0.0, "float64": 0.0}  # half the smallest step near zero
GROUPS = (128, 64, 32)
SAMPLES = ((8, 1 << 12), (64, 1 << 16))  # groups, and numbers of each, in which a lattice is looked for before all are
REPEATED = 0.97  # different numbers in a row or column, as a share, from which on it lies on no few levels
FEW = 8  # numbers that must show it before a tensor is said to lie on a coarser grid than its dtype's
LEVELS = 300  # steps of a lattice at most: 8 bits and some room
INNER = 0.1  # share of the entries that must be neither zero nor the largest
CLUMP, GAP = 1e-5, 2e-3  # of the largest entry: closer is the same level, wider is another; between is no lattice


@dataclass(frozen=True, eq=False)
class Form:
    """The grid of numbers on which a weight lies.

    Attributes:
        name: ``float32``, ``bfloat16``, ``Q4_1``, ``lattice by row``, ...
        half: largest error of rounding to it, for each entry (or one that broadcasts).
        coded: whether it is a quantizer's.
    """

    name: str
    half: Tensor
    coded: bool = False


def form_of(X: Tensor, dtype: str, stored: str = "") -> Form:
    """Find the grid on which a matrix lies, in what its numbers are rather than what they are stored in.

    A float32 tensor all of whose numbers are bfloat16's is one of bfloat16; one with few evenly spaced levels in every
    row, column or group is a quantizer's. Where the file says how it is packed, the number of bits bounds the step.

    Args:
        X: (m, n), float64.
        dtype: name of the dtype of the loaded tensor.
        stored: how the file keeps it, where that is another.

    >>> form_of(torch.linspace(0.1, 1, 20).bfloat16().double()[None], "float32").name
    'bfloat16'
    """
    found = coded_form(X, dtype, stored)
    if found is not None:
        return found
    for name in NARROWER:
        kind = getattr(torch, name)
        if dtype != name and not _telling(X):
            continue
        if STORED_EPS.get(dtype, 0.0) <= STORED_EPS[name] and torch.equal(X.to(kind).to(X.dtype), X):
            return Form(name, 0.5 * STORED_EPS[name] * X.abs() + SMALLEST[name])
    return Form("float64", 0.5 * STORED_EPS["float64"] * X.abs())


def coded_form(X: Tensor, dtype: str, stored: str = "") -> Form | None:
    """The grid of a quantizer on which a matrix lies; None where its numbers are floating numbers of any dtype.

    Args:
        X: (m, n), floating.
        dtype: name of the dtype of the loaded tensor.
        stored: how the file keeps it, where that is another.
    """
    eight = re.search(r"float8_\w+", stored or dtype)
    if eight:
        name = eight[0]
        return Form(name, 0.5 * STORED_EPS.get(name, 0.25) * X.abs() + 2.0**-19 * X.abs().amax(-1, keepdim=True), True)
    looked = stored[:1] not in ("Q", "T") and dtype != "float64" and (bool(stored) or _repeats(X))
    found = _lattice(X) if looked else None
    if found is not None:
        return Form(stored or found[0], 0.5 * found[1], True)
    if stored and not stored.startswith(("F", "BF", "float", "bfloat")):
        return Form(stored, 0.5 * _step(X, _bits(stored), _group(stored)), True)
    return None


def _repeats(X: Tensor) -> bool:
    """Whether numbers come again and again within some rows or columns, as on few levels they do; quick."""
    for lines in (X, X.mT):
        some = lines[:: -(-len(lines) // 4)][:, : 1 << 12]
        if some.shape[1] >= 16:
            different = (some.sort(1).values.diff(dim=1) != 0).double().mean(1)
            if float(different.min()) < REPEATED:
                return True
    return min(X.shape) < 16


def _telling(X: Tensor) -> bool:
    """Whether enough numbers have more than four significant bits: zeros, ones and halves fit any dtype."""
    mantissa = torch.frexp(X).mantissa * 16
    return int((mantissa != mantissa.round()).sum()) >= FEW


def _bits(stored: str) -> int:
    found = re.search(r"(?:^I?Q|int|nf|fp|TQ|uint)(\d)", stored, re.I)
    return int(found[1]) if found else 8


def _group(stored: str) -> int:
    """Columns that share a scale, where what the file says implies it; 0: all of a row."""
    found = re.search(r"groups of (\d+)", stored)
    return int(found[1]) if found else 32 if stored[:1] in ("Q", "I", "T") else 0


def _step(X: Tensor, bits: int, group: int) -> Tensor:
    """Spacing of 2^bits levels over the range of each group of columns (0: of each row), for each entry."""
    m, n = X.shape
    size = group if group and n % group == 0 else max(n, 1)
    cut = X.reshape(m, n // size, size)
    low, high = cut.amin(-1, keepdim=True), cut.amax(-1, keepdim=True)
    step = torch.maximum((high - low) / (2**bits - 1), torch.maximum(high.abs(), low.abs()) / (2 ** (bits - 1)))
    return step.expand(cut.shape).reshape(m, n)


def _lattice(X: Tensor) -> tuple[str, Tensor] | None:
    """Name and spacing of evenly spaced levels: in the whole matrix, in each row, in each column, in each group."""
    m, n = X.shape
    if X.numel() < 64:
        return None
    cuts = [("matrix", X.reshape(1, -1)), ("row", X), ("column", X.mT)]
    cuts += [(f"group of {g}", X.reshape(-1, g)) for g in GROUPS if n % g == 0 and n > g]
    for name, groups in cuts:
        count, size = groups.shape
        if size < 4:
            continue
        if any(_steps(groups[:: -(-count // most)][:, :width]) is None for most, width in SAMPLES):
            continue
        steps = _steps(groups)
        if steps is None:
            continue
        if name == "matrix":
            return "lattice", steps.expand(1, 1)
        if name == "row":
            return "lattice by row", steps[:, None]
        if name == "column":
            return "lattice by column", steps[None, :]
        return f"lattice by {name}", steps[:, None].expand(count, size).reshape(m, n)
    return None


def _steps(groups: Tensor) -> Tensor | None:
    """The spacing in each group; None unless nearly all groups are lattices."""
    top = groups.abs().amax(1)
    alive = top > 0
    if not alive.any():
        return None
    unit = groups[alive] / top[alive][:, None]
    inner = (unit.abs() > CLUMP) & (unit.abs() < 1 - CLUMP)  # zeros, ones and signs alone make no grid
    if float(inner.double().mean()) < INNER:
        return None
    step = _usual(unit, inner)
    if step is None:
        step = _spaced(unit) if unit.shape[1] >= 16 else None
    if step is None:
        return None
    found = torch.zeros_like(top)
    found[alive] = step * top[alive]
    return found


def _usual(unit: Tensor, inner: Tensor) -> Tensor | None:
    """The spacing of the usual quantizers: 2^(b-1) - 1 or 2^(b-1) steps to the largest, 2^b - 1 over the range."""
    low, high = unit.amin(1, keepdim=True), unit.amax(1, keepdim=True)
    span = torch.where(high > low, high - low, 1.0)
    for bits in (3, 4, 5, 6, 8):  # coarse ones first: 15 steps are 255 steps of a seventeenth, too
        half, full = 2 ** (bits - 1), 2**bits - 1
        for r, step in (
            (unit * (half - 1), torch.full_like(low, 1 / (half - 1))),
            (unit * half, torch.full_like(low, 1 / half)),
            ((unit - low) / span * full, span / full),
        ):
            if float((r - r.round()).abs()[inner].mean()) < 0.002:
                return step[:, 0]
    return None


def _spaced(unit: Tensor) -> Tensor | None:
    """The smallest gap between levels, where all numbers are whole multiples of it."""
    gaps = unit.sort(1).values.diff(dim=1)
    if float(((gaps > CLUMP) & (gaps < GAP)).double().mean()) > 0.002:
        return None
    step = torch.where(gaps >= GAP, gaps, torch.inf).amin(1)
    known = step.isfinite()
    if float(known.double().mean()) < 0.5:
        return None
    r = (unit - unit.amin(1, keepdim=True)) / step[:, None]
    even = ((r - r.round()).abs().mean(1) < 0.03) & (r.amax(1) <= LEVELS) & (r.amax(1) > 2.5)
    if float((even[known]).double().mean()) < 0.8:
        return None
    usual = float(step[known & even].median())
    return torch.where(known & even, step, usual)
