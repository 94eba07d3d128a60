"""One number for many weights: what is unknown is counted, never averaged in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from netspectra.record import Record

__all__ = ["Aggregate", "aggregate"]


@dataclass(frozen=True)
class Aggregate:
    """One metric over many weights; the numbers are None where no weight has a known value.

    Attributes:
        known: weights whose value is known; only these are in the numbers below.
        unknown: weights that were measured without a known value (no tail, a zero matrix, ...).
        bounds: how many of the known are lower bounds (a condition number beyond the rounding floor): with any, mean
            and weighted mean are lower bounds too.
        median: the middle one; of two middle ones the mean.
        mean: every weight counts the same.
        weighted_mean: every weight counts by its parameters.
        smallest: the least value, and the weight that has it.
        largest: the greatest value, and the weight that has it.
    """

    known: int
    unknown: int
    bounds: int = 0
    median: float | None = None
    mean: float | None = None
    weighted_mean: float | None = None
    smallest: tuple[float, str] | None = None
    largest: tuple[float, str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def aggregate(records: Sequence[Record], metric: str) -> Aggregate:
    """Gather one metric over the records that have it.

    Args:
        records: of one model.
        metric: name, as in ``Record.metrics``.

    >>> import torch, netspectra as ns
    >>> found = ns.analyze({"a": torch.eye(4), "b": 3 * torch.eye(4), "c": torch.zeros(4, 4)})
    >>> stable = aggregate(found.records, "stable_rank")
    >>> stable.known, stable.unknown, stable.mean
    (2, 1, 4.0)
    >>> aggregate(found.records, "spectral_norm").largest
    (3.0, 'b')
    """
    measured = [(record, record.metrics[metric]) for record in records if metric in record.metrics]
    known = [(float(value), record) for record, value in measured if value.known]
    unknown = len(measured) - len(known)
    if not known:
        return Aggregate(0, unknown)
    values = sorted(value for value, _ in known)
    total = math.fsum(record.parameters for _, record in known)
    weights = [record.parameters / total if total else 1 / len(known) for _, record in known]
    low, high = (min(known, key=_value), max(known, key=_value))
    return Aggregate(
        known=len(known),
        unknown=unknown,
        bounds=sum(value.known and value.note.startswith("at least") for _, value in measured),
        median=values[len(values) // 2] / 2 + values[(len(values) - 1) // 2] / 2,
        mean=math.fsum(value / len(values) for value in values),
        weighted_mean=math.fsum(value * weight for (value, _), weight in zip(known, weights, strict=True)),
        smallest=(low[0], low[1].name),
        largest=(high[0], high[1].name),
    )


def _value(pair: tuple[float, Record]) -> float:
    return pair[0]
