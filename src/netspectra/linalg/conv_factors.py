"""Convolution kernels as chains of smaller ones: channel, spatial (Jaderberg) and Tucker-2, with or without data.

A kernel is (c_out, c_in, *taps) of one group, float64. ``A`` is the second moment of its im2col patches, (n, n) with
n = c_in prod(taps), the channel before the taps as ``F.unfold`` has them; ``G`` (c_out, c_out) that of the gradient at
its output. None stands for the identity.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.features import on_features
from netspectra.linalg.moments import root
from netspectra.linalg.weighted import projected

__all__ = ["composed", "spatial", "spatial_bases", "tucker", "tucker_bases"]


def composed(first: Tensor, second: Tensor, groups: int = 1) -> Tensor:
    """The kernel of one convolution after another, where on each axis at most one of them has more than one tap.

    Args:
        first: (r, c_in / groups, *taps).
        second: (c_out, r / groups, *taps).
        groups: of both.

    >>> composed(torch.ones(2, 3, 3, 1), torch.ones(5, 2, 1, 3)).shape
    torch.Size([5, 3, 3, 3])
    """
    a = first.reshape(groups, -1, *first.shape[1:])
    b = second.reshape(groups, -1, *second.shape[1:])
    chained = torch.stack([(y[:, :, None] * x[None]).sum(1) for x, y in zip(a, b, strict=True)])
    return chained.reshape(-1, *chained.shape[2:])


def spatial_bases(kernel: Tensor, A: Tensor | None = None, G: Tensor | None = None) -> Tensor:
    """Vertical filters (q, c_in, k_1), best first: any first r of them belong to rank r.

    The kernel as a matrix of (c_out, other taps) by (c_in, first taps), weighed by what enters a vertical strip, the
    mean over the other taps, and by G.

    Source: Jaderberg, Vedaldi & Zisserman 2014, arXiv:1405.3866 (without the weights).
    """
    o, i, k, *rest = kernel.shape
    w = math.prod(rest)
    matrix = kernel.reshape(o, i, k, w)
    LW = matrix if G is None else torch.einsum("po,oikw->pikw", root(G).mT, matrix)
    strip = None
    if A is not None:
        strip = torch.einsum("iawjbw->iajb", A.reshape(i, k, w, i, k, w)).reshape(i * k, i * k) / w
    right = projected(LW.permute(0, 3, 1, 2).reshape(o * w, i * k), None, None if strip is None else root(strip))[1]
    return _orthonormal(right).reshape(-1, i, k)


def spatial(
    kernel: Tensor, bases: Tensor, rank: int, A: Tensor | None = None, G: Tensor | None = None
) -> tuple[Tensor, Tensor, float]:
    """A (k_1, 1) convolution to ``rank`` channels, then the best (1, k_2) one on them, and the loss that remains.

    Returns:
        first (rank, c_in, k_1, 1, ...), second (c_out, rank, 1, k_2, ...), tr(G E A E^T) of the error E.
    """
    o, i, k, *rest = kernel.shape
    w = math.prod(rest)
    first = bases[:rank]
    T = torch.einsum("rik,vw->rvikw", first, torch.eye(w, dtype=kernel.dtype, device=kernel.device))
    new, loss = on_features(kernel.reshape(o, -1), A, T.reshape(len(first) * w, i * k * w), G)
    return first.reshape(-1, i, k, *(1 for _ in rest)), new.reshape(o, len(first), 1, *rest), loss


def tucker_bases(kernel: Tensor, A: Tensor | None = None, G: Tensor | None = None) -> Tensor:
    """Mixtures of the input channels (q, c_in), best first, for the first 1 x 1 convolution.

    Source: Kim et al. 2015, arXiv:1511.06530 (without the weights).
    """
    o, i = kernel.shape[:2]
    taps = math.prod(kernel.shape[2:])
    matrix = kernel.reshape(o, i, taps)
    LW = matrix if G is None else torch.einsum("po,oit->pit", root(G).mT, matrix)
    channel = None if A is None else torch.einsum("itjt->ij", A.reshape(i, taps, i, taps)) / taps
    right = projected(LW.permute(0, 2, 1).reshape(o * taps, i), None, None if channel is None else root(channel))[1]
    return _orthonormal(right)


def tucker(
    kernel: Tensor, bases: Tensor, rank_in: int, A: Tensor | None = None, G: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    """1 x 1 to ``rank_in`` channels, k x k to r of them, 1 x 1 to the outputs: for every r at once.

    Returns:
        first (rank_in, c_in, 1, ...), core (q, rank_in, *taps), last (c_out, q, 1, ...): the first r of q belong to
        rank r; and losses (q + 1,) for r = 0 ... q.
    """
    o, i, *taps = kernel.shape
    count = math.prod(taps)
    first = bases[:rank_in]
    eye = torch.eye(count, dtype=kernel.dtype, device=kernel.device)
    T = torch.einsum("ri,vt->rvit", first, eye).reshape(len(first) * count, i * count)
    reduced, loss = on_features(kernel.reshape(o, -1), A, T, G)
    inner = T @ T.mT if A is None else T @ A @ T.mT
    last, core, s = projected(reduced, None if G is None else root(G), root(inner))
    ones = [1] * len(taps)
    losses = np.append(s.square().flip(0).cumsum(0).flip(0).cpu().numpy(), 0.0) + loss
    return first.reshape(-1, i, *ones), core.reshape(-1, len(first), *taps), last.reshape(o, -1, *ones), losses


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows whose first r span the first r given ones."""
    return torch.linalg.qr(rows.mT).Q.mT
