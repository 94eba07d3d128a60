"""Sums over pairs of what is seen and what is wanted, and the matrix between them that other samples agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LEVELS", "Pairs", "anchored"]

LEVELS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 1e3)  # of the ridge, in mean variances of z; the last is as good as no fit


@dataclass(eq=False)
class Pairs:
    """Sums of z z^T, y z^T, z, y over tokens with features z and target y, and how many; float64.

    Attributes:
        zz: (q, q).
        yz: (m, q).
        z: (q,).
        y: (m,).
        count: tokens.
    """

    zz: Tensor
    yz: Tensor
    z: Tensor
    y: Tensor
    count: int = 0

    @classmethod
    def zeros(cls, m: int, q: int) -> Pairs:
        """Nothing seen yet."""
        zz, yz, z, y = (torch.zeros(shape, dtype=torch.float64) for shape in ((q, q), (m, q), (q,), (m,)))
        return cls(zz, yz, z, y)

    def add_(self, z: Tensor, y: Tensor) -> Pairs:
        """Add rows (n, q) and (n, m); multiplied as they are, summed in float64."""
        self.zz += (z.mT @ z).to(self.zz)
        self.yz += (y.mT @ z).to(self.yz)
        self.z += z.sum(0, dtype=torch.float64).to(self.z)
        self.y += y.sum(0, dtype=torch.float64).to(self.y)
        self.count += len(z)
        return self

    def __add__(self, other: Pairs) -> Pairs:
        """What both saw."""
        count = self.count + other.count
        return Pairs(self.zz + other.zz, self.yz + other.yz, self.z + other.z, self.y + other.y, count)

    def means(self) -> tuple[Tensor, Tensor]:
        """E[z], E[y]."""
        return self.z / max(self.count, 1), self.y / max(self.count, 1)

    def moments(self, about: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """E[z z^T], E[y z^T]; about two vectors, where given.

        >>> seen = Pairs.zeros(1, 1).add_(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]]))
        >>> [moment.item() for moment in seen.moments()], [moment.item() for moment in seen.moments(seen.means())]
        ([5.0, 10.0], [1.0, 2.0])
        """
        zz, yz = self.zz / max(self.count, 1), self.yz / max(self.count, 1)
        if about is None:
            return zz, yz
        (a, b), (z, y) = about, self.means()
        return (
            zz - torch.outer(a, z) - torch.outer(z, a) + torch.outer(a, a),
            yz - torch.outer(b, z) - torch.outer(y, a) + torch.outer(b, a),
        )


def anchored(halves: Sequence[Pairs], prior: Tensor, *, centred: bool = False) -> Tensor:
    """T such that y is about T z: ridge regression towards a prior, its strength by two-fold cross-validation.

        T = (B + l P) (A + l I)^-1,    A = E[z z^T],  B = E[y z^T]

    l is what predicts either half of the samples best from the other, of `LEVELS` times the mean variance; with one
    half alone the prior stays.

    Args:
        halves: sums over either half of the samples.
        prior: P (m, q).
        centred: about the means of both halves together, where a bias takes these.

    Cost: q^3 and m q^2 a level, three times.

    >>> z = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    >>> halves = [Pairs.zeros(1, 1).add_(part, 3 * part) for part in (z[::2], z[1::2])]
    >>> round(anchored(halves, torch.zeros(1, 1).double()).item(), 3)
    3.0
    """
    halves = [half for half in halves if half.count]
    if len(halves) < 2:
        return prior
    whole = halves[0] + halves[1]
    about = whole.means() if centred else None
    parts = [half.moments(about) for half in halves]
    errors = torch.zeros(len(LEVELS), dtype=prior.dtype)
    for mine, (A, B) in zip(parts, reversed(parts), strict=True):
        for place, T in enumerate(_ridge(*mine, prior, LEVELS)):
            errors[place] += ((T @ A - 2 * B) * T).sum()
    return _ridge(*whole.moments(about), prior, [LEVELS[int(errors.argmin())]])[0]


def _ridge(A: Tensor, B: Tensor, prior: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """T at every level, given as a share of the mean variance."""
    values, vectors = torch.linalg.eigh(A)
    levels = [max(share * float(values.sum()) / len(A), torch.finfo(A.dtype).tiny) for share in shares]
    turned, anchor = B @ vectors, prior @ vectors
    return [(turned + level * anchor) / (values.clamp_min(0) + level) @ vectors.mT for level in levels]
