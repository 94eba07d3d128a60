"""A loss that draws a student's features to the principal subspace of its teacher's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.linalg.features import least_squares

__all__ = ["SubspaceLoss"]


class SubspaceLoss(nn.Module):
    """Relative squared error of the teacher's leading principal components, predicted from the student's features.

        loss = sum |A s + c - P (t - mean)|^2 / sum |P (t - mean)|^2

    P (k, d) are the directions that hold ``share`` of the teacher's variance, so that what the teacher does not use
    costs the student nothing; A (k, d') is trained with the student, because the student need not have the same axes.
    0: everything that counts can be read off the student linearly; 1: as good as predicting the mean.

    Args:
        teacher: (N, d) features of the teacher to take P from; at least as many rows as k.
        width: d', the student's features.
        share: of the variance that P holds.
        most: directions at most; by default ``width``: more cannot be read off linearly.

    Raises:
        InputRefused: fewer than two rows, or features that do not vary.

    Reference: matching hidden features through a learned map: Romero et al. 2015 (FitNets), arXiv 1412.6550; on the
    principal subspace only: this package.

    >>> draw = torch.Generator().manual_seed(0)
    >>> teacher = torch.randn(200, 3, generator=draw) @ torch.randn(3, 16, generator=draw)
    >>> match = SubspaceLoss(teacher, width=4)
    >>> len(match.basis), float(match.fit_(teacher[:, :4], teacher)(teacher[:, :4], teacher)) < 1e-3
    (3, True)
    """

    basis: Tensor
    mean: Tensor

    def __init__(self, teacher: Tensor, width: int, *, share: float = 0.99, most: int | None = None) -> None:
        """Find P; A starts at zero, which predicts the mean."""
        super().__init__()
        rows = teacher.detach().reshape(-1, teacher.shape[-1]).double()
        if len(rows) < 2:
            raise InputRefused("a principal subspace needs at least two rows of the teacher's features")
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).mT @ (rows - mean) / len(rows))
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        if float(values[0]) == 0.0:
            raise InputRefused("the teacher's features do not vary on this data")
        held = values.cumsum(0) / values.sum()
        k = min(int((held < share).sum()) + 1, most or width, len(values))
        self.register_buffer("basis", vectors[:, :k].mT.float().contiguous())
        self.register_buffer("mean", mean.float())
        self.read = nn.Linear(width, k)
        nn.init.zeros_(self.read.weight)
        nn.init.zeros_(self.read.bias)

    @torch.no_grad()
    def fit_(self, student: Tensor, teacher: Tensor) -> SubspaceLoss:
        """Set A and c to the least-squares fit on these features (..., d') and (..., d); return itself."""
        s, target = self._rows(student), self._wanted(teacher)
        s, target = s.double(), target.double()
        mean, centre = s.mean(0), target.mean(0)
        s, target = s - mean, target - centre
        C = s.mT @ s
        C = C + 1e-6 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype, device=C.device)
        A = least_squares(C, s.mT @ target).mT
        self.read.weight.copy_(A)
        self.read.bias.copy_(centre - A @ mean)
        return self

    def forward(self, student: Tensor, teacher: Tensor, keep: Tensor | None = None) -> Tensor:
        """The loss of features (..., d') and (..., d) of the same tokens; ``keep``: boolean (...), those that count."""
        if keep is not None:
            student, teacher = student[keep], teacher[keep]
        wanted = self._wanted(teacher.detach())
        error = self.read(self._rows(student).to(self.read.weight.dtype)) - wanted
        return error.square().sum() / wanted.square().sum().clamp_min(torch.finfo(wanted.dtype).tiny)

    def _rows(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1])

    def _wanted(self, teacher: Tensor) -> Tensor:
        return (self._rows(teacher).to(self.basis.dtype) - self.mean) @ self.basis.mT

    def extra_repr(self) -> str:
        """Say the sizes."""
        return f"{self.read.in_features} features to {len(self.basis)} of {len(self.mean)} directions"
