"""Sums, products, differences of linear maps, without ever forming them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from netspectra.linalg.operator import LinearOperator

__all__ = ["Difference", "Product", "Scaled", "Sum", "Transposed", "dense"]


class _Derived:
    """dtype, device and dense form of an operator that is made of others."""

    @property
    def _first(self) -> LinearOperator:
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """That of the first part."""
        return self._first.dtype

    @property
    def device(self) -> torch.device:
        """That of the first part."""
        return self._first.device


@dataclass(frozen=True, eq=False)
class Transposed(_Derived):
    """The adjoint A^H."""

    A: LinearOperator

    @property
    def _first(self) -> LinearOperator:
        return self.A

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        m, n = self.A.shape
        return n, m

    def matmat(self, X: Tensor) -> Tensor:
        """A^H X."""
        return self.A.rmatmat(X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A Y."""
        return self.A.matmat(Y)


@dataclass(frozen=True, eq=False)
class Scaled(_Derived):
    """c A, for a real c."""

    A: LinearOperator
    c: float

    @property
    def _first(self) -> LinearOperator:
        return self.A

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.A.shape

    def matmat(self, X: Tensor) -> Tensor:
        """C A X."""
        return self.c * self.A.matmat(X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """C A^H Y."""
        return self.c * self.A.rmatmat(Y)


@dataclass(frozen=True, eq=False)
class _Pair(_Derived):
    """Two maps of one shape."""

    A: LinearOperator
    B: LinearOperator

    def __post_init__(self) -> None:
        """Refuse parts that do not fit."""
        if self.A.shape != self.B.shape:
            what = type(self).__name__.lower()
            raise ValueError(f"a {what} needs equal shapes, got {self.A.shape} and {self.B.shape}")

    @property
    def _first(self) -> LinearOperator:
        return self.A

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.A.shape


class Sum(_Pair):
    """A + B: a weight and its low-rank adapter.

    >>> import torch
    >>> from netspectra.linalg.operator import Dense
    >>> Sum(Dense(torch.eye(2)), Dense(torch.ones(2, 2))).matmat(torch.ones(2, 1)).T
    tensor([[3., 3.]])
    """

    def matmat(self, X: Tensor) -> Tensor:
        """A X + B X."""
        return self.A.matmat(X) + self.B.matmat(X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^H Y + B^H Y."""
        return self.A.rmatmat(Y) + self.B.rmatmat(Y)


class Difference(_Pair):
    """A - B: an update between two checkpoints, or what an approximation leaves out."""

    def matmat(self, X: Tensor) -> Tensor:
        """A X - B X."""
        return self.A.matmat(X) - self.B.matmat(X)

    def rmatmat(self, Y: Tensor) -> Tensor:
        """A^H Y - B^H Y."""
        return self.A.rmatmat(Y) - self.B.rmatmat(Y)


@dataclass(frozen=True, eq=False)
class Product(_Derived):
    """A B: first B, then A, as layers follow one another."""

    A: LinearOperator
    B: LinearOperator

    def __post_init__(self) -> None:
        """Refuse parts that do not fit."""
        if self.A.shape[1] != self.B.shape[0]:
            raise ValueError(f"a product needs fitting shapes, got {self.A.shape} and {self.B.shape}")

    @property
    def _first(self) -> LinearOperator:
        return self.A

    @property
    def shape(self) -> tuple[int, int]:
        """(m of A, n of B)."""
        return self.A.shape[0], self.B.shape[1]

    def matmat(self, X: Tensor) -> Tensor:
        """A (B X)."""
        return self.A.matmat(self.B.matmat(X))

    def rmatmat(self, Y: Tensor) -> Tensor:
        """B^H (A^H Y)."""
        return self.B.rmatmat(self.A.rmatmat(Y))


def dense(A: LinearOperator) -> Tensor:
    """The matrix of a linear map, column after column: m n numbers, so for small maps and tests.

    >>> import torch
    >>> from netspectra.linalg.operator import Dense
    >>> dense(Transposed(Dense(torch.tensor([[1.0, 2.0]]))))
    tensor([[1.],
            [2.]])
    """
    return A.matmat(torch.eye(A.shape[1], dtype=A.dtype, device=A.device))
