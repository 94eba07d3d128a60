"""Metrics: what can be said of a matrix from its singular values. One function, one registration; the rest follows.

The table's column, the command line's choice, the documentation, the report's glossary and the invariance tests are
all made from the registration.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from netspectra.errors import InputRefused
from netspectra.linalg.spectrum import Spectrum
from netspectra.record import Value
from netspectra.registry import Registry

__all__ = ["METRICS", "Metric", "chosen", "evaluate", "metric"]

Needs = Literal["values", "leading"]
Function = Callable[[Spectrum], float]


@dataclass(frozen=True)
class Metric:
    """A registered metric.

    Attributes:
        name: key in JSON, on the command line and in the table.
        title: what a person calls it.
        function: `Spectrum` -> float or `Value`.
        formula: in plain text, with sigma descending, lambda = sigma^2, W of shape m x n, M = min(m, n).
        range: where the values lie.
        reference: authors, year, identifier; or the field's textbook.
        degree: the value of c W is c^degree times that of W; None where scaling follows another rule.
        needs: ``values`` (every singular value) or ``leading`` (the largest few and the total energy).
    """

    name: str
    title: str
    function: Function
    formula: str
    range: str
    reference: str
    degree: int | None
    needs: Needs

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
        }


METRICS: Registry[Metric] = Registry("netspectra.metrics", "metric")


def metric(
    title: str, *, formula: str, range: str, reference: str, degree: int | None, needs: Needs = "values"
) -> Callable[[Function], Function]:
    """Register the decorated function under its own name; its docstring's first paragraph says what it means."""

    def register(function: Function) -> Function:
        name = function.__name__
        METRICS.add(name, Metric(name, title, function, formula, range, reference, degree, needs), function.__module__)
        return function

    return register


def chosen(names: Iterable[str] | None = None) -> tuple[Metric, ...]:
    """Look the named metrics up, all by default; an unknown name is refused with the list of known ones."""
    if names is None:
        return tuple(METRICS.values())
    try:
        return tuple(METRICS[name] for name in names)
    except KeyError as unknown:
        raise InputRefused(f"--metrics: {unknown.args[0]}") from None


def evaluate(metrics: Iterable[Metric], spectrum: Spectrum) -> dict[str, Value]:
    """Evaluate each metric; what a partial or empty spectrum cannot give is unknown, with the reason."""
    found: dict[str, Value] = {}
    for entry in metrics:
        if len(spectrum) == 0:
            found[entry.name] = Value.unknown("the matrix is empty")
        elif entry.needs == "values" and not spectrum.complete:
            found[entry.name] = Value.unknown(f"needs every singular value, the spectrum is {spectrum.how}")
        else:
            answer = entry.function(spectrum)
            found[entry.name] = answer if isinstance(answer, Value) else Value(answer)
    return found
