"""Low-rank matrices stored by their own rows: W = P [I; Z] B, which costs r (m + n - r) numbers and never grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

__all__ = ["BOUND", "Interpolative", "interpolative", "interpolative_parameters", "interpolative_rank"]

BOUND = 2.0  # largest entry of Z: a swap at least doubles a volume, so few are needed; 1 would need many


def interpolative_parameters(m: int, n: int, rank: int) -> int:
    """Numbers that pivoted storage of an m x n matrix of this rank holds: r (m + n - r), never more than m n.

    >>> interpolative_parameters(384, 384, 112), interpolative_parameters(384, 384, 384) == 384 * 384
    (73472, True)
    """
    return rank * (m + n - rank)


def interpolative_rank(m: int, n: int, parameters: int) -> int:
    """The largest rank whose pivoted storage holds at most so many numbers.

    >>> interpolative_rank(384, 384, 384 * 384 // 2)
    112
    """
    rank = int(((m + n) - max(0.0, float((m + n) ** 2 - 4 * parameters)) ** 0.5) / 2) + 1
    while rank > 0 and (rank > min(m, n) or interpolative_parameters(m, n, rank) > parameters):
        rank -= 1
    return rank


@dataclass(frozen=True, eq=False)
class Interpolative:
    """W[pivots] = B and W[rest] = Z B: r rows of a matrix, and how the other rows are made of them.

    Attributes:
        pivots: (r,) rows that are kept, ascending.
        rest: (m - r,) the other rows, ascending.
        Z: (m - r, r), float64.
        B: (r, n), float64.
        swaps: exchanges that pivoted QR needed until no entry of Z exceeded the bound.
    """

    pivots: Tensor
    rest: Tensor
    Z: Tensor
    B: Tensor
    swaps: int

    @property
    def order(self) -> Tensor:
        """(m,) where each row of W stands in [B; Z B]: ``cat([h, Z h])[order]`` is W x for h = B x."""
        return torch.argsort(torch.cat([self.pivots, self.rest]))

    def dense(self) -> Tensor:
        """The matrix W, (m, n)."""
        return torch.cat([self.B, self.Z @ self.B])[self.order]


def interpolative(left: Tensor, right: Tensor, *, bound: float = BOUND) -> Interpolative:
    """Rows that span ``left @ right``, chosen so that every other row is a tame combination of them.

        left right = P [I; Z] B,    max |Z| <= bound,    B = r rows of left right

    QR with column pivoting of an orthonormal basis of the columns proposes the rows; while an entry of Z exceeds the
    bound, its row and column change places, which multiplies |det| of the chosen block by that entry, so the loop ends
    (Gu & Eisenstat 1996, doi:10.1137/0917055, whose condition is this one where the rank is exact). Nothing of the
    matrix is lost: the result equals ``left right`` up to rounding, whatever basis or metric it came from.

    Args:
        left: (m, r) with r <= m; rank-deficient factors are fine.
        right: (r, n).
        bound: largest allowed entry of Z, >= 1.

    Raises:
        ValueError: shapes that do not fit, or a bound below 1.

    Cost: O(m r^2) for the QR and O(m r) a swap.

    >>> import torch
    >>> found = interpolative(torch.tensor([[1.0], [-4.0], [2.0]]), torch.tensor([[3.0, 5.0]]))
    >>> found.pivots.tolist(), found.Z.flatten().tolist(), found.B.tolist()
    ([1], [-0.25, -0.5], [[-12.0, -20.0]])
    """
    m, r = left.shape
    if r > m or right.shape[0] != r:
        raise ValueError(f"factors {tuple(left.shape)} and {tuple(right.shape)} are not (m, r) and (r, n) with r <= m")
    if bound < 1:
        raise ValueError(f"the bound of Z must be at least 1, found {bound}")
    basis = np.linalg.qr(left.detach().double().cpu().numpy())[0]
    order = cast(Any, scipy.linalg.qr(basis.T, mode="r", pivoting=True))[1] if r else np.arange(m)
    pivots, rest = np.sort(order[:r]), np.sort(order[r:])
    Z = _weights(basis, pivots, rest)
    swaps = _exchange(Z, pivots, rest, bound) if Z.size else 0
    if swaps:
        pivots.sort()
        rest.sort()
        Z = _weights(basis, pivots, rest)  # from scratch: the updates gather rounding errors
    B = left.double()[torch.from_numpy(pivots).to(left.device)] @ right.double()
    rows, others, weights = (torch.from_numpy(a).to(left.device) for a in (pivots, rest, Z))
    return Interpolative(rows, others, weights, B, swaps)


def _weights(basis: np.ndarray, pivots: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Z with basis[rest] = Z basis[pivots]."""
    return np.ascontiguousarray(np.linalg.solve(basis[pivots].T, basis[rest].T).T)


def _exchange(Z: np.ndarray, pivots: np.ndarray, rest: np.ndarray, bound: float) -> int:
    """Swap rows into the pivots, in place, until no entry of Z exceeds the bound; return how many swaps it took."""
    swaps = 0
    while True:
        i, j = np.unravel_index(int(np.abs(Z).argmax()), Z.shape)
        if abs(Z[i, j]) <= bound:
            return swaps
        row, column, top = Z[i].copy(), Z[:, j].copy(), Z[i, j]
        change = row.copy()
        change[j] -= 1.0
        Z -= np.outer(column / top, change)
        Z[i] = -row / top
        Z[i, j] = 1.0 / top
        pivots[j], rest[i] = rest[i], pivots[j]
        swaps += 1
