"""Metrics: what can be said of a matrix from its singular values. One function, one registration; the rest follows.

The table's column, the command line's choice, the documentation, the report's glossary and the invariance tests are
all made from the registration.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from netspectra.errors import InputRefused
from netspectra.linalg.spectrum import Spectrum
from netspectra.record import Value
from netspectra.registry import Registry

__all__ = ["METRICS", "Metric", "chosen", "evaluate", "metric"]

if TYPE_CHECKING:
    from torch import Tensor

Needs = Literal["values", "leading", "matrix"]
Function = Callable[..., float]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
        name: key in JSON, on the command line and in the table.
        title: what a person calls it.
        function: `Spectrum` -> float or `Value`; (`Spectrum`, matrix) where ``needs`` is ``matrix``. If it has a
            parameter ``rng`` it gets a seeded generator when the work is to be thorough, and None otherwise.
        formula: in plain text, with sigma descending, lambda = sigma^2, W of shape m x n, M = min(m, n).
        range: where the values lie.
        reference: authors, year, identifier; or the field's textbook.
        degree: the value of c W is c^degree times that of W; None where scaling follows another rule.
        needs: ``values`` (every singular value), ``leading`` (the largest few and the total energy), or ``matrix``
            (the spectrum and the matrix itself, m x n as stored).
        thorough: costs about as much as the spectrum or more, and is left out unless asked for.
        interval: is written to JSON as an object with ``value``, ``low``, ``high`` and its detail.
    """

    name: str
    title: str
    function: Function
    formula: str
    range: str
    reference: str
    degree: int | None
    needs: Needs
    thorough: bool = False
    interval: bool = False

    @cached_property
    def draws(self) -> bool:
        """Whether it draws random numbers when the work is thorough."""
        return "rng" in inspect.signature(self.function).parameters

    @property
    def meaning(self) -> str:
        """What it is good for: the first paragraph of the function's docstring."""
        text = inspect.getdoc(self.function) or ""
        return " ".join(text.split("\n\n")[0].split())

    def entry(self) -> dict[str, str]:
        """One row of the glossary."""
        return {
            "name": self.name,
            "title": self.title,
            "formula": self.formula,
            "meaning": self.meaning,
            "reference": self.reference,
            "range": self.range,
            "when": "thorough" if self.thorough else "default",
        }


METRICS: Registry[Metric] = Registry("netspectra.metrics", "metric", first=("norms", "ranks", "bulk", "tails"))


def metric(
    title: str,
    *,
    formula: str,
    range: str,
    reference: str,
    degree: int | None,
    needs: Needs = "values",
    thorough: bool = False,
    interval: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function under its own name; its docstring's first paragraph says what it means."""

    def register(function: F) -> F:
        name = function.__name__
        entry = Metric(name, title, function, formula, range, reference, degree, needs, thorough, interval)
        METRICS.add(name, entry, function.__module__)
        return function

    return register


def chosen(names: Iterable[str] | None = None, *, thorough: bool = False) -> tuple[Metric, ...]:
    """Look the named metrics up; an unknown name is refused with the list of known ones.

    By default all, those that cost much only with ``thorough``.
    """
    if names is None:
        return tuple(entry for entry in METRICS.values() if thorough or not entry.thorough)
    try:
        return tuple(METRICS[name] for name in names)
    except KeyError as unknown:
        raise InputRefused(f"--metrics: {unknown.args[0]}") from None


def evaluate(
    metrics: Iterable[Metric],
    spectrum: Spectrum,
    matrix: Tensor | None = None,
    *,
    seed: tuple[int, ...] | None = None,
) -> dict[str, Value]:
    """Evaluate each metric; what a partial or empty spectrum cannot give is unknown, with the reason.

    Args:
        metrics: which.
        spectrum: of the matrix.
        matrix: itself, m x n, for the metrics that need it; unknown where it is not given.
        seed: of the draws of a thorough evaluation; None for one without draws. Every metric has a generator of its
            own made from the seed and its name, so that a number does not depend on which others are asked for.
    """
    return {entry.name: _evaluated(entry, spectrum, matrix, seed) for entry in metrics}


def _evaluated(entry: Metric, spectrum: Spectrum, matrix: Tensor | None, seed: tuple[int, ...] | None) -> Value:
    if len(spectrum) == 0:
        return Value.unknown("the matrix is empty")
    if entry.needs == "values" and not spectrum.complete:
        return Value.unknown(f"needs every singular value, the spectrum is {spectrum.how}")
    given: list[Any] = [spectrum]
    if entry.needs == "matrix":
        if matrix is None:
            return Value.unknown("needs the matrix as one piece")
        given.append(matrix)
    if entry.draws and (seed is not None or entry.thorough):
        given.append(np.random.default_rng([*(seed or (0,)), zlib.crc32(entry.name.encode())]))
    answer = entry.function(*given)
    return answer if isinstance(answer, Value) else Value(answer)
