"""What few levels make of a weight: codes, a thin correction, and what each rank of it is predicted to leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from netspectra.forms import Site
from netspectra.linalg.rounding import Coded, Grid, compensated, nearest
from netspectra.linalg.weighted import leading, weighed
from netspectra.methods import METHODS

__all__ = ["BITS", "Coding", "Found", "Stored", "corrected", "made"]

BITS = (8, 6, 5, 4, 3, 2)
HEAVY = 0.5  # share of a weight's squares from which on its own leading part is tried as the correction's beginning


@dataclass(frozen=True)
class Coding:
    """How weights become codes.

    Attributes:
        group: inputs that share a scale, at most; 0: all of a row. See `netspectra.linalg.rounding.group_of`.
        symmetric: no zero points.
        compensate: later inputs make up for the errors of earlier ones (GPTQ) where calibration data is known.
        ranks: of the corrections that are weighed; 0: none.
        weighed: the correction takes moments into account; else it is that of the bare error.
        rounds: times that codes and correction are made anew, each for what the other leaves; 1: once each. Where the
            weight itself is nearly of the correction's rank, codes are made for what it leaves of it, too.
        bits: numbers of bits that are worked out together, as they share most of the work.
        scales: their dtype; None: bfloat16 in a model of that dtype, else float16.
    """

    group: int = 64
    symmetric: bool = False
    compensate: bool = True
    ranks: tuple[int, ...] = (0, 8, 16, 32)
    weighed: bool = True
    rounds: int = 1
    bits: tuple[int, ...] = BITS
    scales: Literal["float16"] | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What one grid makes of a member, in the orientation in which its weight is stored.

    Attributes:
        coded: codes; for 16 bits the matrix itself.
        left: (rows, R) for the largest rank R.
        right: (R, columns).
        losses: predicted, by rank.
        own: by rank, codes and correction that were made for one another.
    """

    coded: Coded | Tensor
    left: Tensor
    right: Tensor
    losses: dict[int, float]
    own: dict[int, Found] = field(default_factory=dict)

    def at(self, rank: int) -> Found:
        """What is best for a rank."""
        return self.own.get(rank, self)


@dataclass(frozen=True, eq=False)
class Stored:
    """A member as its weight is stored: rows that are coded one by one, and what an error in them is worth.

    Attributes:
        W: (rows, columns): an embedding's rows are its tokens.
        columns: E[x x^T] on the side of the columns: (columns, columns), (columns,) or None.
        rows: the same on the side of the rows.
        mean: (columns,) what ``columns`` is about, where the bias takes the error of the mean; None: zero.
    """

    W: Tensor
    columns: Tensor | None
    rows: Tensor | None
    mean: Tensor | None = None

    @classmethod
    def of(cls, site: Site) -> Stored:
        """Of a site of one module, with the moments that its method uses."""
        member, needs = site.member, METHODS[site.method].needs
        A = member.A if "inputs" in needs else None
        G = member.G if "outputs" in needs else None
        if site.kind == "embedding":
            return cls(member.W.mT, G, A)
        return cls(member.W, A, G, None if A is None else member.mean)


def made(stored: Stored, coding: Coding, grids: Sequence[Grid], ranks: Sequence[int], positions: float) -> list[Found]:
    """What each grid makes of a matrix.

    Args:
        stored: the matrix and its moments.
        coding: how.
        grids: one answer for each.
        ranks: of the corrections that are weighed; 0 among them.
        positions: rows that the layer sees of a sample.

    Cost: one rounding for all grids, one `leading` for each; again for each rank with which
    codes and correction are made for one another.
    """
    coded = _coded(stored, grids, coding)
    found = [corrected(stored, one, coding, max(ranks), positions) for one in coded]
    if max(ranks) and coding.weighed:
        left, right, s, whole = leading(stored.W, None, None, max(ranks))
        for rank in filter(None, ranks):
            heavy = float(s[:rank].sum()) >= HEAVY * whole
            thin = left[:, :rank] @ right[:rank] if heavy else None
            found = _jointly(stored, coding, grids, rank, found, thin, positions)
    return found


def _jointly(
    stored: Stored,
    coding: Coding,
    grids: Sequence[Grid],
    rank: int,
    found: Sequence[Found],
    thin: Tensor | None,
    positions: float,
) -> list[Found]:
    """The same, with codes made for what a correction of one rank leaves of the weight, where that loses less.

    Alternating minimization: codes for W - left right, correction for W - codes. Its two starts are a correction of 0,
    which is what ``found`` has, and the weight's own leading part ``thin``: what it takes away need not fit the levels.
    """

    def again(thin: Tensor, some: Sequence[Grid]) -> list[Found]:
        rest = replace(stored, W=stored.W - thin)
        return [corrected(stored, one, coding, rank, positions) for one in _coded(rest, some, coding)]

    best = [*found]
    others = again(thin, grids) if thin is not None else found
    for i, (first, other) in enumerate(zip(found, others, strict=True)):
        now = min(first, other, key=lambda one: one.losses[rank])
        for _ in range(coding.rounds - 1):
            [new] = again(now.left[:, :rank] @ now.right[:rank], [grids[i]])
            now = min(now, new, key=lambda one: one.losses[rank])
        if now is not first:
            losses = first.losses | {rank: now.losses[rank]}
            best[i] = replace(first, losses=losses, own=first.own | {rank: now})
    return best


def _coded(stored: Stored, grids: Sequence[Grid], coding: Coding) -> list[Coded]:
    W, A = stored.W, stored.columns
    if A is not None and A.dim() == 3:
        parts = [
            _coded(Stored(w, a, None), grids, coding) for w, a in zip(W.chunk(len(A)), A, strict=True)
        ]  # fmt: skip
        return [_stacked(some) for some in zip(*parts, strict=True)]
    if A is not None and A.dim() == 2 and coding.compensate:
        return compensated(W, grids, A)
    return [nearest(W, grid, A) for grid in grids]


def _stacked(parts: tuple[Coded, ...]) -> Coded:
    kinds = {part.scale.dtype for part in parts}
    wide = torch.bfloat16 if torch.bfloat16 in kinds else torch.float16
    return Coded(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scale.to(wide) for part in parts]),
        torch.cat([part.zero for part in parts]),
        parts[0].bits,
    )


def corrected(stored: Stored, coded: Coded | Tensor, coding: Coding, rank: int, positions: float) -> Found:
    """The correction of the largest rank, and what each rank is predicted to leave.

    Where the bias takes the error of the inputs' mean, the correction is still fitted about zero, A + mean mean^T: the
    bias is right for one mean, the calibration's; what the correction takes of it is right for others too. The
    predicted losses are about the mean: tr(G E (A + mean mean^T) E^T) less (E mean)^T G (E mean).
    """
    numbers = coded.to(stored.W.dtype) if isinstance(coded, Tensor) else coded.numbers()
    error = stored.W - numbers
    A, G = stored.columns, stored.rows
    if A is not None and A.dim() == 3:
        whole = sum(weighed(e, a, None if G is None else g) for e, a, g in zip(
            error.chunk(len(A)), A, _blocks(G, len(A)), strict=True))  # fmt: skip
        empty = error.new_zeros
        return Found(coded, empty((len(error), 0)), empty((0, error.shape[1])), {0: whole * positions})
    if not rank:
        empty = error.new_zeros
        return Found(coded, empty((len(error), 0)), empty((0, error.shape[1])),
                      {0: weighed(error, A, G) * positions})  # fmt: skip
    if coding.weighed:
        mean = stored.mean if A is not None and A.dim() == 2 else None
        about = A if A is None or mean is None else torch.addr(A, mean, mean)
        left, right, s, whole = leading(error, about, G, rank)
        losses = {r: (whole - float(s[:r].sum())) * positions for r in range(rank + 1)}
        if mean is not None:
            taken = torch.cat([(error @ mean)[:, None], -left * (right @ mean)], 1).cumsum(1)  # by rank: error of mean
            worth = taken if G is None else G[:, None] * taken if G.dim() == 1 else G @ taken
            folded = (taken * worth).sum(0)
            losses = {r: loss - float(folded[r]) * positions for r, loss in losses.items()}
        return Found(coded, left, right, {r: max(loss, 0.0) for r, loss in losses.items()})
    left, right, _, _ = leading(error, None, None, rank)
    losses = {
        r: weighed(error - left[:, :r] @ right[:r], A, G) * positions for r in {0, *coding.ranks} if r <= rank
    }  # fmt: skip
    return Found(coded, left, right, losses)


def _blocks(G: Tensor | None, count: int) -> list[Tensor]:
    """The diagonal blocks of the groups."""
    if G is None:
        return [torch.empty(0)] * count
    size = len(G) // count
    return [G[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)]
