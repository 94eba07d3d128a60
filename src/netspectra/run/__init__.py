"""How a map over weights is carried out: a function type, so that a cluster can be passed in where a loop stood.

A ``Run`` is ``(function, weights) -> iterator of (weight, result)``: streaming, in any order, each weight once. An
exception of the function ends the run. What is no weight comes as a `netspectra.run.job.Job`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

from netspectra.run.job import Job
from netspectra.weight import Weight

W = TypeVar("W", bound=Weight | Job)
R = TypeVar("R")

__all__ = ["Run"]


class Run(Protocol):
    """The signature of every engine."""

    def __call__(self, function: Callable[[W], R], weights: Iterable[W]) -> Iterator[tuple[W, R]]:
        """Apply ``function`` to every weight, yielding results as they come."""
        ...
