"""Reference against window: every layer, every statistic, under the same exchanges of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from netspectra.verbs.drift.basis import Basis, Coordinates
from netspectra.verbs.drift.permutation import combined, exchanges, ranked, stepped_down
from netspectra.verbs.drift.result import ColumnShift, DirectionShift, LayerDrift, StatisticDrift
from netspectra.verbs.drift.statistics import STATISTICS, Measured, Pooled, Statistic, unit

__all__ = ["Side", "compared", "scene"]

NAMED = 5  # columns named for a direction
DRAWN = 400  # rows of each side in the picture
SHOWN = 8  # directions and columns listed for a layer


@dataclass(frozen=True, eq=False)
class Side:
    """One layer of both heaps.

    Attributes:
        basis: of the reference.
        columns: names of its columns; empty where they have none.
        reference: held-out rows.
        window: rows.
        mean: of the window's rows, every column.
    """

    basis: Basis
    columns: Sequence[str]
    reference: Coordinates
    window: Coordinates
    mean: np.ndarray


def compared(sides: Mapping[str, Side], permutations: int, seed: int) -> tuple[float, tuple[LayerDrift, ...]]:
    """The p-value of everything together, and the layers, the one that says most first."""
    first = next(iter(sides.values()))
    labels = exchanges(len(first.reference), len(first.window), permutations, seed)
    found: dict[str, list[tuple[Statistic, Measured, np.ndarray]]] = {}
    shifts: dict[str, np.ndarray] = {}
    columns: dict[str, np.ndarray] = {}
    for name, side in sides.items():
        pooled = Pooled.of(side.reference, side.window, labels)
        measured = [(s, m) for s in STATISTICS if (m := s.measure(pooled)) is not None]
        found[name] = [(s, m, ranked(m.ranked)) for s, m in measured]
        shifts[name] = np.abs(pooled.contrast(pooled.alike))
        if side.basis.beside == 0:
            columns[name] = np.abs(pooled.contrast(unit(pooled.along @ side.basis.V.T)))
    together = combined(np.concatenate([[p for _, _, p in some] for some in found.values()]))
    each = np.stack([combined(np.stack([p for _, _, p in some])) for some in found.values()])
    adjusted = stepped_down(each)
    largest = np.max([shift.max(1) for shift in shifts.values()], axis=0)
    widest = np.max([shift.max(1) for shift in columns.values()], axis=0) if columns else None
    layers = [
        LayerDrift(
            name,
            float(each[place, 0]),
            float(adjusted[place]),
            _distance(sides[name]),
            tuple(_told(*one) for one in some),
            _directions(sides[name], shifts[name][0], largest),
            _columns(sides[name], columns.get(name), widest),
        )
        for place, (name, some) in enumerate(found.items())
    ]
    strength = {name: float(np.mean([p[0] ** -0.5 for _, _, p in some])) for name, some in found.items()}
    layers.sort(key=lambda layer: (layer.adjusted, layer.p, -strength[layer.layer]))
    return float(together[0]), tuple(layers)


def _distance(side: Side) -> float:
    """Mahalanobis distance of the means along the directions, less what chance makes of it."""
    reference, window = side.reference.along.astype(float), side.window.along.astype(float)
    spread = reference.std(0)
    moved = (window.mean(0) - reference.mean(0)) / np.where(spread > 0, spread, 1.0)
    chance = len(moved) * (1 / len(window) + 1 / len(reference))
    return float(np.sqrt(max(float(moved @ moved) - chance, 0.0)))


def scene(side: Side, found: LayerDrift) -> dict[str, Any]:
    """Rows of both in the two directions that moved most, in standard deviations, for the picture."""
    chosen = [d.direction - 1 for d in found.directions[:2]]
    if len(chosen) < 2:
        return {}
    reference, window = (rows.along[:DRAWN, chosen].astype(float) for rows in (side.reference, side.window))
    middle, spread = reference.mean(0), reference.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    return {
        "directions": [f"direction {i + 1}" for i in chosen],
        "reference": ((reference - middle) / spread).round(2).tolist(),
        "window": ((window - middle) / spread).round(2).tolist(),
    }


def _told(statistic: Statistic, measured: Measured, p: np.ndarray) -> StatisticDrift:
    effect = measured.effect
    if statistic.name == "residual":  # a ratio: as far from one in either direction
        chance = float(np.exp(np.quantile(measured.ranked, 0.95)))
    else:
        chance = float(np.quantile(effect, 0.95))
    return StatisticDrift(statistic.name, float(p[0]), float(effect[0]), chance, statistic.effect)


def _directions(side: Side, shift: np.ndarray, largest: np.ndarray) -> tuple[DirectionShift, ...]:
    """The directions that moved most."""
    reference, window = side.reference.along.astype(float), side.window.along.astype(float)
    spread = reference.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    moved = (window.mean(0) - reference.mean(0)) / spread
    wider = window.std(0) / spread
    whole = side.basis.total or 1.0
    return tuple(
        DirectionShift(
            int(i) + 1,
            float(moved[i]),
            float(wider[i]),
            float((largest >= shift[i]).mean()),
            float(side.basis.variances[i] / whole),
            _loaded(side.basis.V[:, i], side.columns),
        )
        for i in np.argsort(-shift, kind="stable")[:SHOWN]
    )


def _loaded(direction: np.ndarray, columns: Sequence[str]) -> tuple[tuple[str, float], ...]:
    return tuple((_name(i, columns), float(direction[i])) for i in np.argsort(-np.abs(direction))[:NAMED])


def _columns(side: Side, shift: np.ndarray | None, widest: np.ndarray | None) -> tuple[ColumnShift, ...]:
    """The columns that moved most, tested where the directions span them."""
    moved = (side.mean - side.basis.centre) / side.basis.scale

    def p(i: int) -> float | None:
        return None if shift is None or widest is None else float((widest >= shift[0, i]).mean())

    order = np.argsort(-np.abs(moved), kind="stable")[:SHOWN]
    return tuple(ColumnShift(_name(i, side.columns), float(moved[i]), p(i)) for i in order)


def _name(i: int, columns: Sequence[str]) -> str:
    return columns[i] if columns else str(i)
