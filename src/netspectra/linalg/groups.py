"""Which groups of features to keep (a channel's taps, a head's dimensions), and the best matrix on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.features import FLOOR, least_squares
from netspectra.linalg.neurons import neuron_order

__all__ = ["GroupOrder", "group_order"]


@dataclass(frozen=True, eq=False)
class GroupOrder:
    """Groups from the most to the least telling, and what keeping the first k of them loses.

    Attributes:
        order: (g,) groups, best first: every prefix is a choice.
        losses: (g + 1,) E|W x - W' x_J|^2 with the best W' on the first 0 ... g groups; descending.
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


def group_order(W: Tensor, H: Tensor, size: int) -> GroupOrder:
    """Order groups of consecutive features by pivoted QR, a group at a time, each weighed by what its output is worth.

        y = W x,    next group: the largest tr(W_g R_gg W_g^T),    R: H with the chosen groups projected out

    ``size`` 1 is `netspectra.linalg.neurons.neuron_order`, where one pivoted Cholesky factorization does it all.

    Args:
        W: (m, n) output matrix, float64.
        H: (n, n) second moment of x; its covariance where the mean goes into a bias.
        size: features of a group; divides n.

    Cost: n^3 / 3 + m n^2.

    Source: Businger & Golub 1965 for the pivoting, by blocks.

    >>> H = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]).double()
    >>> found = group_order(torch.ones(1, 3).double(), H, 1)
    >>> found.losses.round(6).tolist(), found.kept(2).tolist(), found.refit(2)[1].round(decimals=6).tolist()
    ([4.5, 0.5, 0.0, 0.0], [0, 2], [[2.0, 1.0]])
    """
    n = H.shape[0]
    if n % size:
        raise ValueError(f"{n} features are no groups of {size}")
    if size == 1:
        single = neuron_order(W, H)
        return GroupOrder(single.order, single.losses, 1, W, H)
    count = n // size
    R = H.clone()
    left = torch.ones(count, dtype=torch.bool)
    floor = FLOOR * float(H.diagonal().max().clamp_min(torch.finfo(H.dtype).tiny))
    columns = W.reshape(W.shape[0], count, size)
    losses = [max(float(((W @ R) * W).sum()), 0.0)]
    order: list[int] = []
    for _ in range(count):
        blocks = R.reshape(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        worth = torch.einsum("mgi,gij,mgj->g", columns, blocks, columns)
        pick = int(torch.where(left, worth, -torch.inf).argmax())
        order.append(pick)
        left[pick] = False
        J = slice(pick * size, (pick + 1) * size)
        block, seen = R[J, J], R[:, J].clone()
        inverse = torch.linalg.pinv(block, hermitian=True, atol=floor)
        effect = W @ seen
        losses.append(max(losses[-1] - float(((effect @ inverse) * effect).sum()), 0.0))
        R = R - seen @ inverse @ seen.mT
    return GroupOrder(torch.tensor(order), np.array(losses), size, W, H)
