"""Ways to approximate one matrix: what counts as an error, and the best factors of every rank under it.

A method is a function ``(W, A, G) -> Decomposition`` in a file of its own under `method`: W is (m, n) in float64,
A = E[x x^T] (n, n) or (n,), G = E[g g^T] (m, m), either None where it is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.registry import Registry

__all__ = ["METHODS", "Decomposition", "Method", "method", "required"]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The best approximations W' = left right of every rank in one method's norm.

    Attributes:
        left: (m, k); its first r columns belong to rank r.
        right: (k, n); its first r rows.
        losses: (k + 1,) squared error of rank 0 ... k in the method's norm: sum_{i > r} s_i^2, descending.
    """

    left: Tensor
    right: Tensor
    losses: np.ndarray

    @classmethod
    def of(cls, left: Tensor, right: Tensor, s: Tensor) -> Decomposition:
        """From what `netspectra.linalg.weighted.projected` gives."""
        energy = s.square().flip(0).cumsum(0).flip(0)  # the small ones first, so that tails keep their digits
        return cls(left, right, np.append(energy.cpu().numpy(), 0.0))

    @property
    def rank(self) -> int:
        """k: the largest rank."""
        return self.right.shape[0]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """(m, r) and (r, n)."""
        return self.left[:, :rank], self.right[:rank]


Compute = Callable[[Tensor, Tensor | None, Tensor | None], Decomposition]


@dataclass(frozen=True)
class Method:
    """A registered method.

    Attributes:
        name: what users type.
        compute: the function.
        needs: ``inputs`` (A), ``outputs`` (G).
        comparable: its losses are in units of the model's loss, so that layers can be weighed against one another.
        reference: where it comes from.
    """

    name: str
    compute: Compute
    needs: frozenset[str]
    comparable: bool
    reference: str


METHODS: Registry[Method] = Registry("netspectra.methods", "method")


def method(
    name: str, *, reference: str, needs: tuple[str, ...] = (), comparable: bool = False
) -> Callable[[Compute], Compute]:
    """Register a method under a name."""

    def register(compute: Compute) -> Compute:
        METHODS.add(name, Method(name, compute, frozenset(needs), comparable, reference), compute.__module__)
        return compute

    return register


def required(moment: Tensor | None, name: str, which: str) -> Tensor:
    """The moment, or an error that says what the method lacks."""
    if moment is None:
        raise InputRefused(f"method {name} needs moments of {which}: give calibration data, or use method plain")
    return moment
