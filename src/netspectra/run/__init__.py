"""How a map over weights is carried out: a function type, so that a cluster can be passed in where a loop stood.

A ``Run`` is ``(function, weights) -> iterator of (weight, result)``: streaming, in any order, each weight once. An
exception of the function ends the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from netspectra.weight import Weight

R = TypeVar("R")

__all__ = ["Run"]


class Run(Protocol):
    """The signature of every engine."""

    def __call__(self, function: Callable[[Weight], R], weights: Iterable[Weight]) -> Iterator[tuple[Weight, R]]:
        """Apply ``function`` to every weight, yielding results as they come."""
        ...
