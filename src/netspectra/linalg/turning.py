"""How far rounding of the factors turns the singular vectors of their product."""

from __future__ import annotations

import torch
from torch import Tensor

from netspectra.linalg.operator import LowRank

__all__ = ["expected_turns"]


def expected_turns(svd: LowRank, B: Tensor, A: Tensor, eB: float, eA: float) -> tuple[Tensor, Tensor]:
    """Expected sines between the singular vectors of B A and those of (B + dB)(A + dA), to first order.

        E|du_i|^2 = sum_{j != i} (s_i^2 V_ji + s_j^2 V_ij) / (s_i^2 - s_j^2)^2 + (m - r) eB^2 |A v_i|^2 / s_i^2
        V_ji = eB^2 |A v_i|^2 + eA^2 |B^T u_j|^2    the variance of u_j^T (dB A + B dA) v_i

    and likewise for v_i with V transposed. Values close to each other mix their vectors, so that neither has a meaning
    of its own; how close is too close depends on what the numbers are known to. Capped at 1.

    Args:
        svd: all r triplets of B A, as `netspectra.linalg.product.product_svd` gives.
        B: (m, r).
        A: (r, n).
        eB: standard deviation of the independent errors of B's entries.
        eA: likewise of A.

    Returns:
        Sines (r,) for the left and for the right vectors.

    Reference: first-order perturbation of singular vectors, Stewart & Sun 1990, section V.4.

    >>> from netspectra.linalg.product import product_svd
    >>> B, A = torch.eye(3, 2).double(), torch.diag(torch.tensor([2.0, 1.0])).double() @ torch.eye(2, 3).double()
    >>> [round(float(x), 4) for x in expected_turns(product_svd(B, A), B, A, 0.0, 0.01)[1]]
    [0.009, 0.0125]
    """
    U, S, V = svd.U, svd.S, svd.Vh.mT
    B, A = B.to(U), A.to(U)
    reads, writes = (A @ V).square().sum(0), (B.mT @ U).square().sum(0)
    variance = eB**2 * reads[None, :] + eA**2 * writes[:, None]  # (j, i)
    squares = S.square()
    gaps = (squares[None, :] - squares[:, None]).square()  # (j, i)
    off = ~torch.eye(len(S), dtype=torch.bool, device=S.device)
    share = torch.where(off & (gaps > 0), 1 / gaps.clamp_min(torch.finfo(gaps.dtype).tiny), 0.0)
    tied = (off & (gaps == 0) & (variance > 0)).any(0)
    own, other = squares[None, :], squares[:, None]
    left = ((own * variance + other * variance.mT) * share).sum(0)
    right = ((own * variance.mT + other * variance) * share).sum(0)
    safe = squares.clamp_min(torch.finfo(squares.dtype).tiny)
    left = left + (U.shape[0] - len(S)) * eB**2 * reads / safe
    right = right + (V.shape[0] - len(S)) * eA**2 * writes / safe
    one = torch.ones_like(S)
    return (
        torch.where(tied, one, left.sqrt().clamp_max(1.0)),
        torch.where(tied, one, right.sqrt().clamp_max(1.0)),
    )
