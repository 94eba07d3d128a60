"""Which groups of features to keep (a channel's taps, a head's dimensions), and the best matrix on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.features import FLOOR, least_squares

__all__ = ["GroupOrder", "Rule", "group_order"]


@dataclass(frozen=True, eq=False)
class GroupOrder:
    """Groups from the most to the least telling, and what keeping the first k of them loses.

    Attributes:
        order: (k,) groups, best first: every prefix is a choice.
        losses: (k + 1,) E|W x - W' x_J|^2 with the best W' on the first 0 ... k groups; descending.
        size: features of a group.
        W: (m, g size).
        H: second moment of x, or its covariance.
    """

    order: Tensor
    losses: np.ndarray
    size: int
    W: Tensor
    H: Tensor

    def kept(self, k: int) -> Tensor:
        """The first k groups, ascending."""
        return self.order[:k].sort().values

    def features(self, k: int) -> Tensor:
        """The features of `kept`."""
        span = torch.arange(self.size, device=self.order.device)
        return (self.kept(k)[:, None] * self.size + span).flatten()

    def refit(self, k: int) -> tuple[Tensor, Tensor]:
        """The k groups kept, ascending, and the least-squares matrix on their features: W H[:, J] H[J, J]^-1."""
        J = self.features(k)
        return self.kept(k), least_squares(self.H[J][:, J], self.H[J] @ self.W.mT).mT


Rule = Literal["forward", "pivoted"]


def group_order(W: Tensor, H: Tensor, size: int, *, rule: Rule = "forward", most: int | None = None) -> GroupOrder:
    """Order groups of consecutive features by what they tell of the output, those that are chosen already left out.

        y = W x,    R = H with the chosen groups projected out
        forward:  next group  argmax tr(W R_:g R_gg^+ R_g: W^T)    the largest fall of the error of y itself
        pivoted:  next group  argmax tr(W_g R_gg W_g^T)            column-pivoted QR, weighed by what y makes of x_g

    Forward selection looks at what remains to be explained of y, so it is far better where few groups are kept (digits,
    4 of 256 neurons: accuracy .68 against .34 at the start, `benchmarks/distill`); pivoting spreads over x.

    Args:
        W: (m, n) output matrix, float64.
        H: (n, n) second moment of x; its covariance where the mean goes into a bias.
        size: features of a group; divides n.
        rule: forward or pivoted.
        most: groups to order; all by default.

    Cost: n^3 / 2 + m n^2 multiplications, as products with a vector.

    Source: Chen, Billings & Luo 1989, doi:10.1080/00207178908953472 (orthogonal least squares); Businger & Golub 1965
    (pivoting).

    >>> H = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]).double()
    >>> found = group_order(torch.ones(1, 3).double(), H, 1)
    >>> found.losses.round(6).tolist(), found.kept(2).tolist(), found.refit(2)[1].round(decimals=6).tolist()
    ([4.5, 0.5, 0.0, 0.0], [0, 2], [[2.0, 1.0]])
    """
    n = H.shape[0]
    if n % size:
        raise ValueError(f"{n} features are no groups of {size}")
    count = n // size
    most = count if most is None else min(most, count)
    floor = FLOOR * float(H.diagonal().max().clamp_min(torch.finfo(H.dtype).tiny))
    groups = torch.arange(n, device=H.device).reshape(count, size)
    blocks = H[groups[:, :, None], groups[:, None, :]]  # R_gg
    WH = W @ H
    seen = WH.reshape(-1, count, size).permute(1, 2, 0)  # (g, s, m)
    told = seen @ seen.mT  # R_g: W^T W R_:g, a block a group
    columns = W.reshape(-1, count, size).permute(1, 2, 0)
    worths = columns @ columns.mT  # W_g^T W_g
    L = torch.zeros((n, most * size), dtype=H.dtype, device=H.device)  # H = L L^T up to what is left
    WL = torch.zeros((len(W), most * size), dtype=H.dtype, device=H.device)
    left = torch.ones(count, dtype=torch.bool, device=H.device)
    losses, order = [max(float((WH * W).sum()), 0.0)], []
    for step in range(most):
        pair = (told, _inverses(blocks, floor)) if rule == "forward" else (worths, blocks)
        worth = (pair[0] * pair[1]).sum((1, 2))
        pick = int(torch.where(left, worth, -torch.inf).argmax())
        J, done = groups[pick], step * size
        values, vectors = torch.linalg.eigh(blocks[pick])
        root = vectors * torch.where(values > floor, values, torch.inf).rsqrt()  # root root^T = R_gg^+
        new = (H[:, J] - L[:, :done] @ L[J, :done].mT) @ root
        new[groups[~left].flatten()] = 0.0  # what is chosen is explained, but for rounding
        effect = W @ new  # (m, s)
        # W R loses effect new^T, and with it every block of its square
        along = effect.mT @ WH - (effect.mT @ WL[:, :done]) @ L[:, :done].mT
        along = along.reshape(size, count, size).permute(1, 2, 0)
        parts = new.reshape(count, size, size)
        mixed = along @ parts.mT
        told = told - mixed - mixed.mT + parts @ (effect.mT @ effect) @ parts.mT
        blocks = blocks - parts @ parts.mT
        L[:, done : done + size], WL[:, done : done + size] = new, effect
        losses.append(max(losses[-1] - float(effect.square().sum()), 0.0))
        left[pick] = False
        order.append(pick)
    return GroupOrder(torch.tensor(order, device=H.device, dtype=torch.long), np.array(losses), size, W, H)


def _inverses(blocks: Tensor, floor: float) -> Tensor:
    """Pseudo-inverses of positive semidefinite blocks (g, s, s); directions of less than ``floor`` count as gone."""
    if blocks.shape[-1] == 1:
        return torch.where(blocks > floor, 1 / blocks, torch.zeros_like(blocks))
    values, vectors = torch.linalg.eigh(blocks)
    scale = torch.where(values > floor, 1 / values, torch.zeros_like(values))
    return (vectors * scale[:, None, :]) @ vectors.mT
