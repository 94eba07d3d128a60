"""Linear maps known by their products: the protocol, and the dense and block-diagonal cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BlockDiagonal", "Dense", "LinearOperator", "LowRank"]


@runtime_checkable
class LinearOperator(Protocol):
    """A linear map from R^n to R^m, known by its products with blocks of vectors."""

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its products."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its products are computed."""
        ...

    def matmat(self, X: Tensor) -> Tensor:
        """A X, for X of shape (n, k)."""
        ...

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^H Y, for Y of shape (m, k)."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """A matrix that is held as it is."""

    matrix: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self.matrix.shape
        return m, n

    @property
    def dtype(self) -> torch.dtype:
        """The matrix's dtype."""
        return self.matrix.dtype

    @property
    def device(self) -> torch.device:
        """The matrix's device."""
        return self.matrix.device

    def matmat(self, X: Tensor) -> Tensor:
        """A X."""
        return self.matrix @ X

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^H Y."""
        return self.matrix.mH @ Y

    def dense(self) -> Tensor:
        """The matrix itself."""
        return self.matrix


@dataclass(frozen=True, eq=False)
class BlockDiagonal:
    """diag(A_1, ..., A_g) of g blocks of one shape, held as a tensor (g, m, n): a grouped convolution, unfolded."""

    blocks: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(g m, g n)."""
        g, m, n = self.blocks.shape
        return g * m, g * n

    @property
    def dtype(self) -> torch.dtype:
        """The blocks' dtype."""
        return self.blocks.dtype

    @property
    def device(self) -> torch.device:
        """The blocks' device."""
        return self.blocks.device

    def matmat(self, X: Tensor) -> Tensor:
        """A X."""
        g, _, n = self.blocks.shape
        return (self.blocks @ X.reshape(g, n, -1)).reshape(self.shape[0], -1)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^H Y."""
        g, m, _ = self.blocks.shape
        return (self.blocks.mH @ Y.reshape(g, m, -1)).reshape(self.shape[1], -1)

    def dense(self) -> Tensor:
        """The whole matrix, zeros included."""
        return torch.block_diag(*self.blocks)


@dataclass(frozen=True, eq=False)
class LowRank:
    """U diag(S) Vh with k columns, rows and values, and what it leaves out.

    Attributes:
        U: (m, k), orthonormal columns.
        S: (k,), descending.
        Vh: (k, n), orthonormal rows.
        frobenius2: squared Frobenius norm of the matrix it approximates.
        error: bound on each singular value's error, absolute.
        residual: largest norm of ``A v - s u`` and ``A^H u - s v``, relative to sigma_1; measured, not assumed.
        route: the algorithm that answered.
        orthogonality: largest entry of ``U^H U - 1`` and ``Vh Vh^H - 1``; measured.
    """

    U: Tensor
    S: Tensor
    Vh: Tensor
    frobenius2: float
    error: float
    residual: float
    route: str = ""
    orthogonality: float = 0.0

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def rank(self) -> int:
        """k."""
        return self.S.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The factors' dtype."""
        return self.U.dtype

    @property
    def device(self) -> torch.device:
        """The factors' device."""
        return self.U.device

    @property
    def relative_error(self) -> float:
        """||A - U S Vh||_F / ||A||_F by Eckart-Young: sqrt(1 - sum of the kept sigma^2 / ||A||_F^2)."""
        if self.frobenius2 == 0:
            return 0.0
        kept = float(self.S.double().square().sum())
        return max(0.0, 1.0 - kept / self.frobenius2) ** 0.5

    def matmat(self, X: Tensor) -> Tensor:
        """U (S (Vh X)): k (m + n) multiplications a vector instead of m n."""
        return self.U @ (self.S[:, None] * (self.Vh @ X))

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^H Y."""
        return self.Vh.mH @ (self.S[:, None] * (self.U.mH @ Y))

    def dense(self) -> Tensor:
        """The m x n product."""
        return (self.U * self.S) @ self.Vh
