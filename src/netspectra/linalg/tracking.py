"""The leading singular values of a matrix that changes a little between looks: warm starts instead of new searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from netspectra.linalg.lanczos import random_rows

__all__ = ["LeadingValues", "Tracked", "Tracker", "norms", "readable"]

COLD = 8  # iterations of a block at the first look of a matrix
COLD_ALONE = 32  # of a single vector, which takes longer to turn


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
        A = readable(A)
        m, n = A.shape
        k = min(self.k, m, n)
        rows = self.rows
        cold = rows is None or rows.shape != (k, n)
        if rows is None or cold:
            rows = random_rows(k, n, self.seed, A.dtype, A.device)
        rows = rows.to(dtype=A.dtype, device=A.device)
        S, left, rows = _step(A, rows)
        for _ in range((steps or (max(COLD, self.steps) if cold else self.steps)) - 1):
            S, left, rows = _step(A, rows)
        self.rows = rows
        back = rows[:1] @ A.mT - S[0] * left[:1]
        residual = float(torch.linalg.vector_norm(back) / S[0]) if float(S[0]) > 0 else 0.0
        return Tracked(S, left.mT, rows.conj() if A.is_complex() else rows, residual)


class LeadingValues:
    """Follows sigma_1 alone, of many matrices at once: one warm power iteration each, norms and scalings together.

    A look multiplies by the matrix and by its adjoint and costs four small operations more for all matrices together,
    where a `Tracker` each would cost eight. The value given is ||A^H u|| / ||u|| with u = A v: a lower bound of
    sigma_1, which one iteration a look keeps within about a percent while training changes A slowly (Miyato et al.
    2018, arXiv:1802.05957); `adopt` gives it a better vector where one is known.

    >>> leading = LeadingValues()
    >>> for _ in range(20):
    ...     found = leading.look({"a": torch.diag(torch.tensor([1.0, 4.0])), "b": torch.eye(3)})
    >>> [round(value, 4) for value in found.values()]
    [4.0, 1.0]
    """

    def __init__(self, *, seed: int = 0) -> None:
        """Start cold, every matrix from a random vector of ``seed``."""
        self.seed = seed
        self._rows: dict[str, Tensor] = {}

    def look(self, matrices: Mapping[str, Tensor]) -> dict[str, float]:
        """One iteration on each matrix from where the last look at it ended.

        Args:
            matrices: by name; (m, n), or (g, m, n) for the block-diagonal matrix of g blocks.

        Returns:
            sigma_1 from below, by name; NaN where the matrix holds NaN or Inf.

        Cost: 4 m n operations a matrix, 32 times that at its first look.
        """
        held = {name: readable(A) for name, A in matrices.items()}
        cold = {name: A for name, A in held.items() if not self._fits(name, A)}
        for name, A in cold.items():
            self._rows[name] = self._start(A)
        for _ in range(COLD_ALONE - 1 if cold else 0):
            self._iterate(cold)
        return self._iterate(held)

    def adopt(self, name: str, v: Tensor) -> None:
        """Go on from this right singular vector (n,) of a matrix (m, n)."""
        self._rows[name] = v.reshape(1, -1)

    def _fits(self, name: str, A: Tensor) -> bool:
        row = self._rows.get(name)
        return row is not None and row.shape == (*A.shape[:-2], 1, A.shape[-1]) and row.device == A.device

    def _start(self, A: Tensor) -> Tensor:
        blocks, n = A.shape[:-2].numel(), A.shape[-1]
        row = random_rows(1, blocks * n, self.seed, A.dtype, A.device)
        return (row / torch.linalg.vector_norm(row)).reshape(*A.shape[:-2], 1, n)

    def _iterate(self, matrices: Mapping[str, Tensor]) -> dict[str, float]:
        if not matrices:
            return {}
        left = [self._rows[name].to(A.dtype) @ A.mH for name, A in matrices.items()]
        back = [u @ A for u, A in zip(left, matrices.values(), strict=True)]
        values = norms([*left, *back])
        found = {}
        for name, row, u, w in zip(matrices, back, values, values[len(left) :], strict=False):
            found[name] = w / u if u > 0 else u
            if 0 < w < float("inf"):  # else there is nothing to go on from
                self._rows[name] = row / w
        return found


def norms(tensors: list[Tensor]) -> list[float]:
    """Euclidean norm of every tensor, with one kernel where they are alike and one transfer to the host a device."""
    found = [0.0] * len(tensors)
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in enumerate(tensors):
        places.setdefault((tensor.device, tensor.dtype), []).append(place)
    for (_, kind), held in places.items():
        wide = torch.float32 if kind in (torch.float16, torch.bfloat16) else None
        # as torch's own clipping of gradients does
        each = torch._foreach_norm([tensors[place] for place in held], 2, dtype=wide)  # pyright: ignore[reportPrivateImportUsage]
        for place, value in zip(held, torch.stack(each).tolist(), strict=True):
            found[place] = value
    return found


def readable(A: Tensor) -> Tensor:
    """The matrix without its gradient, at least float32: narrower products on CPUs are slow, and too coarse."""
    A = A.detach()
    return A.float() if A.dtype in (torch.float16, torch.bfloat16) else A


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
