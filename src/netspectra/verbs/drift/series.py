"""Weights over a series of checkpoints: where their spectra, or how fast they move, changed, and how sure that is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student

from netspectra.errors import InputRefused
from netspectra.record import Record, Verdict
from netspectra.report.series_page import render_series
from netspectra.verbs.drift.permutation import combined, ranked
from netspectra.written import strict_json, write_by_suffix

__all__ = ["FEATURES", "Change", "Series", "WeightChange", "series"]

FEATURES = ("spectral_norm", "frobenius_norm", "stable_rank", "effective_rank")
LEAST = 2  # checkpoints (or steps) on either side of a change
FEWEST = 6
REDRAWS = 200
AROUND = 2  # steps on either side of which the median is the usual size
SHOWN = 12
Kind = Literal["training", "independent"]


@dataclass(frozen=True)
class WeightChange:
    """What happened to one metric of one weight at a change.

    Attributes:
        weight: its name.
        metric: of `FEATURES`.
        ratio: of the metric, mean after to mean before; for steps of a training the ratio of one step after to one
            before; for a single checkpoint that to its neighbours.
        p: adjusted for all weights and metrics; None for single checkpoints, which are judged all weights together.
    """

    weight: str
    metric: str
    ratio: float
    p: float | None


@dataclass(frozen=True)
class Change:
    """A place in the series at which something changed.

    Attributes:
        kind: ``level`` (independent checkpoints), ``rate`` (a training moves otherwise than before), ``jump`` (one step
            or checkpoint stands out).
        at: the first checkpoint after it.
        low: first and last checkpoint at which it may have been, by 95 % of redraws; both ``at`` for a jump.
        high: likewise.
        p: by exchanging checkpoints (or steps); for a jump by Grubbs' test, which takes log sizes for normal.
        weights: those that changed most.
    """

    kind: Literal["level", "rate", "jump"]
    at: str
    low: str
    high: str
    p: float
    weights: tuple[WeightChange, ...]


@dataclass(frozen=True)
class Series:
    """What a series of checkpoints shows.

    Attributes:
        names: of the checkpoints, in order.
        kind: how they were taken: steps of one training, or independent ones.
        alpha: level.
        changes: in order of the series.
        notes: what a reader should know.
        values: for the picture: metric -> weight -> value at each checkpoint.
    """

    names: tuple[str, ...]
    kind: Kind
    alpha: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()
    values: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def verdict(self) -> Verdict:
        """The finding as a sentence."""
        if not self.changes:
            return Verdict("no-drift", "ok", f"no change over {len(self.names)} checkpoints", {"changes": 0})
        told = "; ".join(f"{_KINDS[c.kind]} at {c.at} (p = {c.p:.3g})" for c in self.changes)
        return Verdict("drift", "error", told, {"changes": len(self.changes)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        found = asdict(self) | {"verdict": asdict(self.verdict)}
        return json.loads(json.dumps(found, allow_nan=False))

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict(), indent=1)

    def to_html(self) -> str:
        """A self-contained page: every metric over the checkpoints, and where it changed."""
        return render_series(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.html``."""
        write_by_suffix(path, {".json": self.to_json, ".html": self.to_html})

    def __str__(self) -> str:
        """Show the verdict and what changed most."""
        lines = [f"{self.verdict.rule}: {self.verdict.message}", *self.notes]
        for change in self.changes:
            where = f", between {change.low} and {change.high}" if change.low != change.high else ""
            lines += ["", f"{_KINDS[change.kind]} at {change.at}{where}, p = {change.p:.3g}"]
            for one in change.weights[:6]:
                sure = "" if one.p is None else f", p {one.p:.3g}"
                lines.append(f"  {one.weight} {one.metric}: x {one.ratio:.3f}{sure}")
        return "\n".join(lines)


_KINDS = {"level": "the level changed", "rate": "the pace changed", "jump": "a jump"}


@dataclass(frozen=True, eq=False)
class _Table:
    """Logarithms of metrics over the series: (checkpoints, columns), and what the columns are."""

    names: tuple[str, ...]
    columns: tuple[tuple[str, str], ...]
    logs: np.ndarray


def series(
    checkpoints: Sequence[tuple[str, Sequence[Record]]],
    *,
    kind: Kind = "training",
    alpha: float = 0.05,
    permutations: int = 499,
    seed: int = 0,
) -> Series:
    """Find change points of weights' spectra; `netspectra.change_points` is the door and describes it.

    Args:
        checkpoints: name and records of each, in order.
        kind: ``training``: consecutive steps, whose increments are exchanged; ``independent``: each made on its own.
        alpha: level of every test.
        permutations: exchanges.
        seed: of them.
    """
    if len(checkpoints) < FEWEST:
        raise InputRefused(f"a series of {len(checkpoints)} checkpoints shows no change: give {FEWEST} at least")
    table, notes = _table(checkpoints)
    steps = np.diff(table.logs, axis=0) if kind == "training" else table.logs
    rng = np.random.default_rng(seed)
    found = _segmented(table, steps, kind, (0, len(steps)), alpha, permutations, rng)
    found += _jumps(table, kind, alpha)
    found.sort(key=lambda change: table.names.index(change.at))
    least = 1 / math.comb(len(steps), min(LEAST, len(steps) // 2))
    if least > alpha / 2:
        what = "steps" if kind == "training" else "checkpoints"
        notes.append(f"{len(steps)} {what} are hardly enough: only a jump, or a change of everything, can show")
    return Series(table.names, kind, alpha, tuple(found), tuple(notes), _pictured(table))


def _table(checkpoints: Sequence[tuple[str, Sequence[Record]]]) -> tuple[_Table, list[str]]:
    """What is known and above zero in every checkpoint."""
    held = [{record.name: record.metrics for record in records} for _, records in checkpoints]
    shared = [name for name in held[0] if all(name in one for one in held)]
    columns, logs = [], []
    for name in shared:
        for metric in FEATURES:
            values = [one[name].get(metric) for one in held]
            if all(v is not None and v.known and v > 0 for v in values):
                columns.append((name, metric))
                logs.append(np.log([float(v) for v in values if v is not None]))
    if not columns:
        raise InputRefused("the checkpoints share no weight whose spectrum is known in all of them")
    left = len(set().union(*held)) - len(shared)
    notes = [f"{left} weights are not in every checkpoint and are left out"] if left else []
    return _Table(tuple(name for name, _ in checkpoints), tuple(columns), np.array(logs).T), notes


def _cusum(ranks: np.ndarray) -> np.ndarray:
    """Standardised differences of mean ranks before and after every place: (..., L - 1, C)."""
    count = ranks.shape[-2]
    before = np.arange(1, count)[:, None]
    sums = np.cumsum(ranks - ranks.mean(-2, keepdims=True), axis=-2)[..., :-1, :]
    deviation = ranks.std(-2, keepdims=True)
    z = sums / np.sqrt(before * (count - before) / count) / np.where(deviation > 0, deviation, 1.0)
    return z[..., LEAST - 1 : count - LEAST, :]


def _segmented(
    table: _Table,
    steps: np.ndarray,
    kind: Kind,
    part: tuple[int, int],
    alpha: float,
    permutations: int,
    rng: np.random.Generator,
) -> list[Change]:
    """Binary segmentation: the place at which ranks differ most, if sure enough, then both sides of it."""
    first, last = part
    rows = steps[first:last]
    if len(rows) < 2 * LEAST:
        return []
    ranks = rankdata(rows, axis=0)
    truth = _cusum(ranks)
    shared, single = [(truth**2).mean(-1).max()], [np.abs(truth).max()]
    for _ in range(permutations):
        z = _cusum(ranks[rng.permutation(len(rows))])
        shared.append((z**2).mean(-1).max())
        single.append(np.abs(z).max())
    p = ranked(np.array([shared, single]))
    together = float(combined(p)[0])
    if together > alpha:
        return []
    own = np.abs(truth).max(0)
    moved = own >= min(np.quantile(single, 1 - alpha), own.max())  # columns that show it by themselves
    telling = moved if p[1, 0] <= alpha else np.ones(len(own), bool)
    place = int((truth[:, telling] ** 2).mean(1).argmax()) + LEAST
    places = [_redrawn(rows[:, telling], place, rng) for _ in range(REDRAWS)]
    earliest, latest = (int(q) for q in np.quantile(places, [0.025, 0.975], method="nearest"))
    behind = 1 if kind == "training" else 0  # step i leads to checkpoint i + 1
    at, low, high = (table.names[first + i + behind] for i in (place, earliest, latest))
    weights = _moved(table, rows, place, own, np.array(single))
    found = Change("rate" if kind == "training" else "level", at, low, high, together, weights)
    left = _segmented(table, steps, kind, (first, first + place), alpha, permutations, rng)
    right = _segmented(table, steps, kind, (first + place, last), alpha, permutations, rng)
    return [*left, found, *right]


def _redrawn(rows: np.ndarray, place: int, rng: np.random.Generator) -> int:
    """Where the change is found when rows are drawn anew on both sides of it."""
    before = rng.integers(0, place, place)
    after = rng.integers(place, len(rows), len(rows) - place)
    z = _cusum(rankdata(rows[np.concatenate([before, after])], axis=0))
    return int((z**2).mean(-1).argmax()) + LEAST


def _moved(
    table: _Table, rows: np.ndarray, place: int, own: np.ndarray, largest: np.ndarray
) -> tuple[WeightChange, ...]:
    """The columns that changed most, with what is left of their p-values after all were looked at."""
    change = rows[place:].mean(0) - rows[:place].mean(0)
    order = np.lexsort((-np.abs(change), -own))[:SHOWN]
    return tuple(_named(table, i, float(np.exp(change[i])), float((largest >= own[i] - 1e-12).mean())) for i in order)


def _named(table: _Table, column: int, ratio: float, p: float | None) -> WeightChange:
    weight, metric = table.columns[column]
    return WeightChange(weight, metric, ratio, p)


def _jumps(table: _Table, kind: Kind, alpha: float) -> list[Change]:
    """Single steps (or checkpoints) that are larger (or lie further off) than their neighbours; Grubbs 1950."""
    moved = np.diff(table.logs, axis=0) if kind == "training" else table.logs - np.median(table.logs, axis=0)
    usual = np.median(np.abs(moved), axis=0)
    alive = usual > 0
    if not alive.any():
        return []
    sizes = np.log(np.sqrt(((moved[:, alive] / usual[alive]) ** 2).mean(1)) + 1e-12)
    around = [np.delete(sizes[max(0, i - AROUND) : i + AROUND + 1], min(i, AROUND)) for i in range(len(sizes))]
    excess = sizes - np.array([np.median(some) for some in around])
    found, left = [], np.ones(len(sizes), bool)
    while left.sum() >= FEWEST - 1:
        some = excess[left]
        i = int(np.flatnonzero(left)[some.argmax()])
        p = _grubbs(some)
        if p > alpha:
            break
        left[i] = False
        name = table.names[i + 1 if kind == "training" else i]
        order = np.argsort(-np.abs(moved[i]) / np.where(alive, usual, np.inf), kind="stable")[:SHOWN]
        weights = tuple(_named(table, c, float(np.exp(moved[i, c])), None) for c in order)
        found.append(Change("jump", name, name, name, p, weights))
    return found


def _grubbs(values: np.ndarray) -> float:
    """The chance that the largest of so many normal values stands out as much (Grubbs 1950).

    >>> 0.01 < _grubbs(np.array([0.0, 1.0, -1.0, 0.5, -0.5, 3.0])) < 0.2
    True
    """
    n, spread = len(values), float(values.std(ddof=1))
    if spread == 0:
        return 1.0
    g = float(values.max() - values.mean()) / spread
    rest = (n - 1) ** 2 / n - g**2
    if rest <= 0:
        return 0.0
    return min(1.0, n * float(student.sf(math.sqrt((n - 2) * g**2 / rest), n - 2)))


def _pictured(table: _Table) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {metric: {} for metric in FEATURES}
    for (weight, metric), logs in zip(table.columns, table.logs.T, strict=True):
        found[metric][weight] = [float(f"{v:.6g}") for v in np.exp(logs)]
    return {metric: weights for metric, weights in found.items() if weights}
