"""Two analyses compared: what singular values and metrics alone can tell of a change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netspectra.analysis import Analysis
from netspectra.errors import InputRefused
from netspectra.record import Record, Value
from netspectra.verbs.compare.delta import number
from netspectra.verbs.rank import RANKED, Ranking, rank
from netspectra.written import strict_json, write_by_suffix

__all__ = ["SpectraComparison", "SpectraDelta", "compare_spectra"]

SHOWN = 12
CANNOT = (
    "Spectra only: singular values say nothing of directions. Not answered: lineage, cosine, the spectrum and rank of "
    "the change, principal angles, new directions; a rotated weight looks unchanged. Compare the checkpoints for these."
)


@dataclass(frozen=True)
class SpectraDelta:
    """One weight's spectrum before and after.

    Attributes:
        name: of the weight.
        shape: (m, n).
        distance: ||sigma - sigma'||_2 / ||W||_F; the relative change of the weight is at least this (Mirsky 1960).
        differs: whether the spectra differ by more than their error bounds: then the weight did change.
        metrics: before and after.
    """

    name: str
    shape: tuple[int, int]
    distance: Value
    differs: bool
    metrics: Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True, eq=False)
class SpectraComparison:
    """Two analyses, weight by weight.

    Attributes:
        names: of the two.
        deltas: one a weight that both hold.
        only_before: weights of the first only, by name and shape.
        only_after: likewise.
        ranking: both by their metrics; None where they share none.
    """

    names: tuple[str, str]
    deltas: tuple[SpectraDelta, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    ranking: Ranking | None
    cannot: str = CANNOT

    @property
    def differs(self) -> bool:
        """Whether it is proven that something changed; the contrary cannot be proven from spectra."""
        return bool(self.only_before or self.only_after or any(d.differs for d in self.deltas))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        rows = [
            {
                "name": d.name,
                "shape": list(d.shape),
                "spectral_distance": number(d.distance),
                "error": number(d.distance.error),
                "differs": d.differs,
                "metric_changes": {name: {"before": a, "after": b} for name, (a, b) in d.metrics.items()},
                "notes": [d.distance.note] if d.distance.note else [],
            }
            for d in self.deltas
        ]
        return {
            "sources": list(self.names),
            "differs": self.differs,
            "weights": rows,
            "only_before": list(self.only_before),
            "only_after": list(self.only_after),
            "ranking": self.ranking.to_dict() if self.ranking else None,
            "cannot": self.cannot,
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write ``.json``; never half a file."""
        write_by_suffix(path, {".json": self.to_json})

    def __str__(self) -> str:
        """Show the weights whose spectra moved most."""
        moved = sum(d.differs for d in self.deltas)
        lines = [
            f"{self.names[0]} -> {self.names[1]}",
            f"spectra of {moved} of {len(self.deltas)} weights differ by more than their error bounds",
        ]
        for side, alone in (("first", self.only_before), ("second", self.only_after)):
            if alone:
                lines.append(f"{len(alone)} weights in the {side} only, such as {alone[0]}")
        most = sorted((d for d in self.deltas if d.differs), key=lambda d: -(number(d.distance) or 0.0))[:SHOWN]
        if most:
            rows = [["weight", "changed by at least"]]
            rows += [[d.name, f"{float(d.distance):.3%}" if d.distance.known else "-"] for d in most]
            width = max(len(row[0]) for row in rows)
            lines += ["", *(f"{name.ljust(width)}  {size:>19}" for name, size in rows)]
        lines += ["", self.cannot]
        if moved and self.ranking:
            lines += ["", str(self.ranking)]
        return "\n".join(lines)


def compare_spectra(before: Analysis, after: Analysis) -> SpectraComparison:
    """Compare two analyses by the names and shapes of their weights.

    Raises:
        InputRefused: they share no weight.
    """
    ours, theirs = ({(r.name, r.shape): r for r in side} for side in (before, after))
    shared = [key for key in ours if key in theirs]
    names = str(before.source["path"]), str(after.source["path"])
    if not shared:
        raise InputRefused(f"{names[0]} and {names[1]} share no weight of one name and shape; compare the checkpoints")
    names = names if names[0] != names[1] else (f"1: {names[0]}", f"2: {names[1]}")
    metrics = [m for m in RANKED if m in before.metric_names and m in after.metric_names]
    ranking = rank({names[0]: before, names[1]: after}, metrics=metrics) if metrics else None
    return SpectraComparison(
        names,
        tuple(_delta(ours[key], theirs[key]) for key in shared),
        tuple(name for name, shape in ours if (name, shape) not in theirs),
        tuple(name for name, shape in theirs if (name, shape) not in ours),
        ranking,
    )


def _delta(one: Record, other: Record) -> SpectraDelta:
    a, b = one.spectrum, other.spectrum
    changes = {
        name: (number(value), number(other.metrics[name]))
        for name, value in one.metrics.items()
        if name in other.metrics
    }
    k = min(len(a), len(b))
    if "estimated" in (a.how, b.how) or not k:
        return SpectraDelta(one.name, one.shape, Value.unknown("an estimated spectrum"), False, changes)
    gap, bound = np.abs(a.values[:k] - b.values[:k]), a.error[:k] + b.error[:k]
    norm = math.sqrt(a.frobenius2)
    if norm == 0:
        return SpectraDelta(
            one.name, one.shape, Value.unknown("the weight was zero"), bool((gap > bound).any()), changes
        )
    distance = Value(float(np.linalg.norm(gap)) / norm, error=float(np.linalg.norm(bound)) / norm)
    return SpectraDelta(one.name, one.shape, distance, bool((gap > bound).any()), changes)
