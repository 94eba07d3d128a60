"""Rounding a matrix to few levels: to the nearest, or so that later columns make up for the errors of earlier ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Coded", "Grid", "compensated", "group_of", "nearest"]

BLOCK = 64  # columns between two updates of those that follow
DAMP = 0.01  # of A's mean diagonal, added to it (Frantar et al. 2022)
SHRINKS = 24  # scales that are tried for each group
SMALLEST = 0.35  # of them, the least: as a share of the one that clips nothing
LARGEST = 1 << 22  # numbers in work at a time
CACHED = 1 << 18  # of them, in a search: 2 MB, which a processor keeps at hand
COARSE = 6  # from this many bits on, clipping does not pay, and nothing is searched


@dataclass(frozen=True)
class Grid:
    """Levels a weight may take: 2^bits evenly spaced ones for each group of columns of a row.

    Attributes:
        bits: 2 ... 8.
        group: columns that share a scale, at most; 0: a whole row. See `group_of`.
        symmetric: levels -2^(b-1) ... 2^(b-1) - 1 times the scale; else a zero point for each group is kept.
        scale: dtype of the scales: float16, which gives way to bfloat16 where it cannot hold them; or bfloat16.
    """

    bits: int
    group: int = 64
    symmetric: bool = False
    scale: Literal["float16", "bfloat16"] = "float16"

    def bytes(self, m: int, n: int) -> int:
        """What codes, scales and zero points of an m x n matrix take: bits, 16 bits, bits."""
        size = group_of(n, self.group)
        return m * (
            -(-n * self.bits // 8) + n // size * 2 + (0 if self.symmetric else -(-(n // size) * self.bits // 8))
        )


@dataclass(frozen=True, eq=False)
class Coded:
    """A matrix as codes: w = (code - zero) scale.

    Attributes:
        codes: (m, n) uint8, 0 ... 2^bits - 1.
        scale: (m, n / group), positive, of two bytes each.
        zero: (m, n / group) uint8; all 2^(bits - 1) on a symmetric grid.
        bits: of a code.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int

    def numbers(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix it stands for; exact in float32 and float64, and nearest to that in narrower dtypes."""
        m, n = self.codes.shape
        cut = self.codes.reshape(m, self.scale.shape[1], -1)
        wide = torch.promote_types(dtype, torch.float32)
        found = (cut.to(wide) - self.zero[..., None].to(wide)) * self.scale[..., None].to(wide)
        return found.to(dtype).reshape(m, n)


def group_of(n: int, group: int) -> int:
    """Columns that share a scale: the largest divisor of n between half of ``group`` and ``group``, else all n.

    >>> [group_of(n, 64) for n in (1536, 288, 27, 64, 0)]
    [64, 48, 27, 64, 1]
    """
    found = next((size for size in range(min(group, n), group // 2, -1) if n % size == 0), 0) if group else 0
    return found or max(n, 1)


def nearest(W: Tensor, grid: Grid, A: Tensor | None = None, *, search: bool = True) -> Coded:
    """Round every number to the nearest level.

    Args:
        W: (m, n).
        grid: the levels.
        A: what errors are worth: (n, n) second moment of the inputs, (n,) its diagonal; None: all the same.
        search: up to 5 bits, take the best of 24 scales for each group g under e_g A_gg e_g^T; else nothing is clipped.
            The first of them clips nothing, so that within groups the search cannot lose. By the diagonal of A alone
            it can: clipped numbers all err towards zero, and correlated inputs add that up.

    Cost: m n, or 24 m n times the group's size with a whole A.

    >>> import torch
    >>> nearest(torch.tensor([[1.0, -0.5, 0.1]]), Grid(8, 0, True)).numbers()[0, :2].tolist()
    [0.99993896484375, -0.50390625]
    """
    scale, zero = _scales(W, grid, A, search)
    cut = W.reshape(len(W), scale.shape[1], -1)
    codes = _codes(cut, scale[..., None].to(W.dtype), zero[..., None].to(W.dtype), 2**grid.bits - 1)
    return Coded(codes.reshape(W.shape).to(torch.uint8), scale, zero, grid.bits)


def compensated(W: Tensor, grids: Sequence[Grid], A: Tensor, damp: float = DAMP) -> list[Coded]:
    """Round column by column, each after adding what the errors so far make best there; for several grids at once.

        A + damp I = U D U^T, U unit upper triangular,    w'_k = Q(w_k + sum_{j<k} (w_j - w'_j) U_jk)

    which is the least greedy increase of tr((W - W') A (W - W')^T). Columns of large A_kk come first.

    Args:
        W: (m, n).
        grids: one answer for each; rows know nothing of one another, so all of them share every step.
        A: (n, n) second moment of the inputs; singular is fine.
        damp: added to its diagonal, in units of the mean of it.

    Reference: Frantar et al. 2022 (GPTQ, arXiv:2210.17323), in the form of Chee et al. 2023 (QuIP, arXiv:2307.13304)
    that needs no inverse. Cost: len(grids) m n^2 + n^3 / 3.
    """
    m, n = W.shape
    order = A.diagonal().argsort(descending=True, stable=True)
    U = _feedback(A[order[:, None], order], damp)
    if U is None:
        return [nearest(W, grid) for grid in grids]
    parts = [(*_scales(W, grid, A.diagonal()), grid) for grid in grids]
    if not parts:
        return []
    sizes = {scale.shape[1] for scale, _, _ in parts}
    if len(sizes) > 1:
        return [one for grid in grids for one in compensated(W, [grid], A, damp)]
    place = order // (n // sizes.pop())
    scale = torch.cat([s for s, _, _ in parts]).to(W.dtype)
    zero = torch.cat([z for _, z, _ in parts]).to(W.dtype)
    top = torch.cat([W.new_full((m,), 2**grid.bits - 1) for _, _, grid in parts])
    codes = torch.empty(len(scale), n, dtype=torch.uint8)
    ordered = W[:, order]
    for some in torch.arange(len(scale)).split(max(1, LARGEST // n)):  # rows know nothing of one another
        codes[some] = _one_by_one(ordered[some % m], U, scale[some], zero[some], top[some], place)
    back = torch.empty_like(order)
    back[order] = torch.arange(n)
    return [
        Coded(codes[i * m : (i + 1) * m, back], s, z, grid.bits) for i, (s, z, grid) in enumerate(parts)
    ]  # fmt: skip


def _one_by_one(W: Tensor, U: Tensor, scale: Tensor, zero: Tensor, top: Tensor, place: Tensor) -> Tensor:
    """Codes of some rows, column after column; ``place``: the group of each column."""
    n = W.shape[1]
    error = torch.zeros_like(W)
    codes = torch.empty(W.shape, dtype=torch.uint8)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        moved = W[:, start:stop] + error[:, :start] @ U[:start, start:stop]
        for k in range(start, stop):
            w = moved[:, k - start] + error[:, start:k] @ U[start:k, k]
            s, z = scale[:, place[k]], zero[:, place[k]]
            code = _codes(w, s, z, top)
            error[:, k] = W[:, k] - (code - z) * s
            codes[:, k] = code.to(torch.uint8)
    return codes


def _feedback(A: Tensor, damp: float) -> Tensor | None:
    """U of A + damp = U D U^T; None where A is zero. More is added where that is not positive definite in floats."""
    level = float(A.diagonal().mean())
    if not level > 0:
        return None
    flipped, before = A.flip(0, 1), A.diagonal().flip(0)
    while True:
        flipped.diagonal().copy_(before + damp * level)
        L, failed = torch.linalg.cholesky_ex(flipped)
        if not int(failed):
            break
        damp = max(2 * damp, torch.finfo(A.dtype).eps)
    R = L.flip(0, 1)
    return R.div_(R.diagonal().clone())


def _codes(w: Tensor, scale: Tensor, zero: Tensor, top: Tensor | int) -> Tensor:
    """Nearest codes; a scale of zero (a group of zeros) gives the zero point."""
    codes = (w / torch.where(scale > 0, scale, 1.0)).add_(zero).round_()
    codes = codes.clamp_(0, top) if isinstance(top, int) else torch.minimum(codes.clamp_(min=0), top)
    return torch.where(scale > 0, codes, zero)


def _scales(W: Tensor, grid: Grid, A: Tensor | None, search: bool = True) -> tuple[Tensor, Tensor]:
    """Scale (two bytes each) and zero point (uint8) of every group, (m, n / group)."""
    m, n = W.shape
    size = group_of(n, grid.group)
    cut = W.reshape(m, n // size, size)
    low, high = cut.amin(-1).clamp_max(0), cut.amax(-1).clamp_min(0)
    shares = torch.linspace(1.0, SMALLEST, SHRINKS).tolist() if search and grid.bits < COARSE else [1.0]
    dtype = _dtype(_step(low, high, grid), grid, shares[-1])
    if len(shares) == 1:
        scale, zero = _levels(low, high, grid, dtype)
        return scale.to(dtype), zero.to(torch.uint8)
    worth = None if A is None else _blocks(A.to(W.dtype), size)
    rows = max(1, CACHED // n)
    parts = [
        _best(*some, grid, worth, shares, dtype)
        for some in zip(cut.split(rows), low.split(rows), high.split(rows), strict=True)
    ]
    scale, zero = (torch.cat(some) for some in zip(*parts, strict=True))
    return scale.to(dtype), zero.to(torch.uint8)


def _best(
    cut: Tensor,
    low: Tensor,
    high: Tensor,
    grid: Grid,
    worth: Tensor | None,
    shares: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Of scales that span these shares of each group's range, the one whose error costs least."""
    best, kept = None, None
    for share in shares:
        scale, zero = _levels(low * share, high * share, grid, dtype)
        wide, middle = scale[..., None], zero[..., None]
        cost = _costs(cut - (_codes(cut, wide, middle, 2**grid.bits - 1) - middle) * wide, worth)
        if best is None or kept is None:
            best, kept = cost, (scale, zero)
            continue
        better = cost < best
        best = torch.where(better, cost, best)
        kept = (torch.where(better, scale, kept[0]), torch.where(better, zero, kept[1]))
    assert kept is not None
    return kept


def _blocks(A: Tensor, size: int) -> Tensor:
    """The groups' blocks of A, (groups, size, size); of a diagonal (groups, size)."""
    if A.dim() == 1:
        return A.reshape(-1, size)
    return torch.stack([A[i : i + size, i : i + size] for i in range(0, len(A), size)])


def _costs(off: Tensor, worth: Tensor | None) -> Tensor:
    """What the errors of each group cost, (m, groups)."""
    if worth is None or worth.dim() == 2:
        squares = off.square()
        return squares.sum(-1) if worth is None else (squares * worth).sum(-1)
    return (off * (off.transpose(0, 1) @ worth).transpose(0, 1)).sum(-1)


def _step(low: Tensor, high: Tensor, grid: Grid) -> Tensor:
    """Distance of neighbouring levels that span the numbers between low <= 0 and high >= 0."""
    if grid.symmetric:
        half = 2 ** (grid.bits - 1)
        return torch.maximum(-low / half, high / (half - 1))
    return (high - low) / (2**grid.bits - 1)


def _levels(low: Tensor, high: Tensor, grid: Grid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale, as two bytes hold it, and whole zero point for numbers between low <= 0 and high >= 0."""
    scale = _step(low, high, grid)
    scale = scale.to(dtype).to(scale.dtype)
    if grid.symmetric:
        return scale, torch.full_like(scale, 2 ** (grid.bits - 1))
    return scale, (-low / torch.where(scale > 0, scale, 1.0)).round_().clamp_(0, 2**grid.bits - 1)


def _dtype(scale: Tensor, grid: Grid, least: float) -> torch.dtype:
    """The grid's dtype; float16 only where it holds every scale well, and this share of each."""
    if grid.scale == "bfloat16":
        return torch.bfloat16
    used = scale[scale > 0]
    limits = torch.finfo(torch.float16)
    fits = not len(used) or (float(used.min()) * least >= limits.smallest_normal and float(used.max()) <= limits.max)
    return torch.float16 if fits else torch.bfloat16
