"""Leading directions before and after: principal angles, and those that are new."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from netspectra.linalg.svd import svd
from netspectra.record import Value

__all__ = ["LEADING", "directions", "new_directions", "principal"]

LEADING = 10  # leading directions looked at, as in arXiv 2410.21228
NEW = 0.5  # a leading direction is new where its cosine with every old one is below

Sides = tuple[tuple[float, ...], tuple[float, ...]]


def directions(A: Tensor, B: Tensor, wanted: bool) -> tuple[Sides, Value]:
    """Cosines of the principal angles and the number of new directions, of (1, m, n) tensors."""
    if not wanted:
        return ((), ()), Value.unknown("directions are compared where the weights are related and changed")
    if len(A) > 1:
        return ((), ()), Value.unknown("directions of grouped weights are not compared")
    k = min(LEADING, *A.shape[1:])
    X, Y = A[0].float(), B[0].float()
    old, new = svd(X, k=k), svd(Y, k=k)
    return principal((old.U, old.Vh), (new.U, new.Vh)), new_directions(lambda: svd(X).U, old.U, new.U)


def principal(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Sides:
    """Cosines of the principal angles between the left, and the right, subspaces given by (U, Vh)."""
    left = torch.linalg.svdvals(old[0].double().mT @ new[0].double())
    right = torch.linalg.svdvals(old[1].double() @ new[1].double().mT)
    return tuple(left.clamp(max=1.0).tolist()), tuple(right.clamp(max=1.0).tolist())


def new_directions(every: Callable[[], Tensor], old: Tensor, new: Tensor) -> Value:
    """How many new leading left vectors have a cosine below `NEW` with every old one.

    The leading old ones settle most: a large cosine with one, or so little left that no other can have one.
    """
    cosines = (old.mT @ new).double().abs()
    rest = (1 - (cosines**2).sum(0)).clamp_min(0).sqrt()
    open_ = (cosines.amax(0) < NEW) & (rest >= NEW)
    known = int(((cosines.amax(0) < NEW) & ~open_).sum())
    if bool(open_.any()):
        known += int(((every().mT @ new[:, open_]).abs().amax(0) < NEW).sum())
    return Value(float(known), detail={"of": new.shape[1], "cosine below": NEW})
