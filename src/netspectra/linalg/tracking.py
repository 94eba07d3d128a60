"""The leading singular values of a matrix that changes a little between looks: warm starts instead of new searches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from netspectra.linalg.lanczos import random_rows

__all__ = ["Tracked", "Tracker"]


@dataclass(frozen=True, eq=False)
class Tracked:
    """What one look found.

    Attributes:
        S: (k,), descending; each a lower bound of the true value of its rank, but for rounding.
        U: (m, k), orthonormal columns.
        Vh: (k, n), orthonormal rows.
        residual: ||A v_1 - s_1 u_1|| / s_1, of the leading triplet; a singular value lies that close, relatively.
    """

    S: Tensor
    U: Tensor
    Vh: Tensor
    residual: float


class Tracker:
    """Follows the k leading singular triplets of one weight through training (warm subspace iteration).

    The right vectors are kept as rows between looks: products with rows are several times faster than with columns.
    For k = 1 this is the warm power iteration of spectral normalization (Miyato et al. 2018, arXiv:1802.05957).

    >>> tracker = Tracker(1)
    >>> A = torch.diag(torch.tensor([1.0, 4.0, 2.0]))
    >>> for _ in range(20):
    ...     found = tracker.look(A)
    >>> round(float(found.S[0]), 4)
    4.0
    """

    def __init__(self, k: int = 1, *, steps: int = 1, seed: int = 0) -> None:
        """Start cold: ``k`` vectors, ``steps`` iterations a look, random start from ``seed``."""
        self.k, self.steps, self.seed = k, steps, seed
        self.rows: Tensor | None = None

    def look(self, A: Tensor, *, steps: int | None = None) -> Tracked:
        """Iterate on the present matrix from where the last look ended.

        Args:
            A: (m, n), float32 or float64; detached here. Narrower dtypes are widened to float32: their products on
                CPUs are slow, and too coarse.
            steps: iterations; by default those of the tracker, 8 at the first look.

        Cost: 4 m n k operations a step and 2 m n k for the residual.
        """
        A = A.detach()
        if A.dtype in (torch.float16, torch.bfloat16):
            A = A.float()
        m, n = A.shape
        k = min(self.k, m, n)
        rows = self.rows
        cold = rows is None or rows.shape != (k, n)
        if rows is None or cold:
            rows = random_rows(k, n, self.seed, A.dtype, A.device)
        rows = rows.to(dtype=A.dtype, device=A.device)
        S, left, rows = _step(A, rows)
        for _ in range((steps or (max(8, self.steps) if cold else self.steps)) - 1):
            S, left, rows = _step(A, rows)
        self.rows = rows
        back = rows[:1] @ A.mT - S[0] * left[:1]
        residual = float(torch.linalg.vector_norm(back) / S[0]) if float(S[0]) > 0 else 0.0
        return Tracked(S, left.mT, rows.conj() if A.is_complex() else rows, residual)


def _step(A: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One multiplication by A^H A with Rayleigh-Ritz: values, left and right vectors as rows."""
    left = _orthonormal(rows @ A.mT)  # (k, m)
    product = left.conj() @ A  # (k, n): rows are U^H A
    Q, R = torch.linalg.qr(product.mH)
    W, S, Zh = torch.linalg.svd(R.mH)
    rows = Zh @ Q.mH
    return S, W.mT @ left, rows.conj() if A.is_complex() else rows


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows with the same span."""
    if len(rows) == 1:
        return rows / torch.linalg.vector_norm(rows).clamp_min(torch.finfo(rows.dtype).tiny)
    return torch.linalg.qr(rows.mT).Q.mT
