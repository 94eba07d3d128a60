"""The best matrix on fewer, given features of an input: weighted least squares from a second moment alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["least_squares", "on_features"]

FLOOR = 1e-12  # of the largest diagonal entry: features that depend on one another beyond this are one


def on_features(W: Tensor, A: Tensor | None, T: Tensor, G: Tensor | None = None) -> tuple[Tensor, float]:
    """Least squares of y = W x on z = T x, and what it leaves.

        W' = W A T^T (T A T^T)^-1,    loss = tr(G (W A W^T - W' T A W^T))

    Args:
        W: (m, n), float64.
        A: (n, n) second moment of x; None: identity.
        T: (q, n) the features.
        G: (m, m) second moment of the gradient at y, for the loss only: the optimum does not depend on it.

    Returns:
        W' (m, q) and the loss, never below zero.

    >>> on_features(torch.tensor([[3.0, 4.0]]).double(), None, torch.tensor([[2.0, 0.0]]).double())
    (tensor([[1.5000]], dtype=torch.float64), 16.0)
    """
    TA = T if A is None else T @ A
    sides, block = TA @ W.mT, TA @ T.mT
    new = least_squares(block, sides).mT
    GW = W if G is None else G @ W
    whole = ((GW if A is None else GW @ A) * W).sum()
    kept = ((new if G is None else G @ new) * sides.mT).sum()
    return new, max(float(whole - kept), 0.0)


def least_squares(block: Tensor, sides: Tensor) -> Tensor:
    """Solve block X = sides for a positive semidefinite block; the smallest of equally good answers.

    Args:
        block: (q, q), float64.
        sides: (q, m), within the range of ``block`` up to rounding.

    >>> least_squares(torch.ones(2, 2).double(), torch.ones(2, 1).double()).round(decimals=9).tolist()
    [[0.5], [0.5]]
    """
    if not len(block):
        return torch.zeros_like(sides)
    floor = FLOOR * block.diagonal().max().clamp_min(torch.finfo(block.dtype).tiny)
    factor, failed = torch.linalg.cholesky_ex(block)
    if int(failed) or bool((factor.diagonal().square() < floor).any()):  # features that depend on one another
        return torch.linalg.pinv(block, hermitian=True, rtol=FLOOR) @ sides
    return torch.cholesky_solve(sides, factor)
