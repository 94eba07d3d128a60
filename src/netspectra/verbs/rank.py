"""Rank several checkpoints of one family by their spectra, and say how far the metrics agree."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from netspectra.aggregate import aggregate
from netspectra.analysis import Analysis
from netspectra.errors import InputRefused
from netspectra.metrics import METRICS, chosen
from netspectra.record import Record
from netspectra.runfile import RunFile
from netspectra.written import columns, strict_json, write_by_suffix

__all__ = ["CAUTION", "RANKED", "RankedMetric", "Ranking", "rank"]

RANKED = (
    "spectral_norm",
    "frobenius_norm",
    "stable_rank",
    "effective_rank",
    "alpha",
    "hill_alpha",
    "alpha_hat",
    "mp_softrank",
)
CAUTION = (
    "Spectra rank models of one family; they do not certify quality, and no metric here says which end is better. "
    "In this project's study the size of the weights went with the generalization gap, the shape of the spectrum did "
    "not (benchmarks/generalization)."
)
DRAWS = 500


@dataclass(frozen=True)
class RankedMetric:
    """One metric over all candidates.

    Attributes:
        name: of the metric.
        title: what a person calls it.
        values: its mean over the weights of each candidate, in their order; None where no weight has a known value.
        ranks: 1 for the smallest; equal values share the mean of their places; None where unknown.
        order: names of the candidates whose value is known, the smallest first.
        held: for each neighbouring pair of ``order`` the share of redrawn sets of weights that keep it.
        weights: how many weights each mean is over, in the order of the candidates.
        unknown: how many weights were left out of each because the value is unknown there (or, where the candidates
            are compared weight by weight, in another candidate).
    """

    name: str
    title: str
    values: tuple[float | None, ...]
    ranks: tuple[float | None, ...]
    order: tuple[str, ...]
    held: tuple[float, ...]
    weights: tuple[int, ...]
    unknown: tuple[int, ...]


@dataclass(frozen=True)
class Ranking:
    """How several checkpoints compare, metric by metric.

    Attributes:
        candidates: their names.
        paired: whether all hold the same weights (names and shapes), so that means are over the same ones.
        metrics: one a metric, in the order asked for.
        agreement: Kendall's W over the metrics all of whose values are known, each turned so that it goes with the
            first: 1 if all rank alike or in reverse; None with fewer than two metrics that rank.
        chance: what as many random rankings give on average (not 0, since they are turned too).
        caution: what must not be concluded.
    """

    candidates: tuple[str, ...]
    paired: bool
    metrics: tuple[RankedMetric, ...]
    agreement: float | None
    chance: float | None
    caution: str = CAUTION

    def __getitem__(self, name: str) -> RankedMetric:
        """Find a metric by name."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise KeyError(f"{name!r} was not ranked; there are {', '.join(metric.name for metric in self.metrics)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return {"schema": 1, **asdict(self)}

    def save(self, path: str | Path) -> None:
        """Write it to a ``.json`` file; never half a file."""
        text = strict_json(self.to_dict())
        write_by_suffix(path, {".json": lambda: text})

    def __str__(self) -> str:
        """Show a table: for each metric the value of each candidate with its rank, and how sure the order is."""
        rows = [["metric", *_ends(self.candidates), "order held"], *self._rows()]
        return "\n".join([*columns(rows), "", *self._remarks()])

    def _repr_html_(self) -> str:
        """Show the table in notebooks."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in ("metric", *_ends(self.candidates), "order held"))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        remarks = "".join(f"<p>{html.escape(line)}</p>" for line in self._remarks())
        return f"<table><tr>{head}</tr>{body}</table>{remarks}"

    def _rows(self) -> list[list[str]]:
        return [
            [
                metric.title,
                *(
                    "-" if value is None or place is None else f"{value:.4g} ({place:g})"
                    for value, place in zip(metric.values, metric.ranks, strict=True)
                ),
                f"{min(metric.held):.0%}" if metric.held else "-",
            ]
            for metric in self.metrics
        ]

    def _remarks(self) -> list[str]:
        remarks = ["Rank 1 is the smallest value. 'Order held': how often the least sure pair keeps its order when the"]
        remarks[0] += " weights are redrawn."
        if not self.paired:
            remarks.append(
                "The candidates do not hold the same weights: differences of architecture are in the numbers."
            )
        if self.agreement is not None:
            remarks.append(
                f"Agreement of the metrics, in either direction: Kendall's W = {self.agreement:.2f}; random rankings "
                f"give {self.chance:.2f}."
            )
        return [*remarks, self.caution]


def _ends(names: Sequence[str]) -> list[str]:
    """Paths by their ends, as much of each as tells them apart.

    >>> _ends(["/long/way/a/model.pt", "/long/way/b/model.pt", "BertModel"])
    ['a/model.pt', 'b/model.pt', 'BertModel']
    """
    parts = [name.rstrip("/").split("/") for name in names]
    longest = max(map(len, parts), default=1)
    tails = (["/".join(part[-count:]) for part in parts] for count in range(1, longest + 1))
    return next((tail for tail in tails if len(set(tail)) == len(names)), list(names))


def rank(
    candidates: Mapping[str, Analysis | str | Path] | Sequence[Analysis | str | Path],
    *,
    metrics: Sequence[str] = RANKED,
    seed: int = 0,
) -> Ranking:
    """Rank checkpoints of one family, each metric by its mean over the weights.

    Where all candidates hold the same weights (names and shapes), a mean is over the weights whose value is known in
    every one of them, so that a tail that cannot be fitted in one does not move its place. Otherwise each mean is over
    the candidate's own known values. Unknown values are counted, never averaged in.

    How sure an order is, is told by redrawing the weights 500 times (with replacement, the same draw for all where
    they are paired): the share of draws that keep each neighbouring pair in order. Weights of one network are not
    independent; take it for the order's dependence on single layers.

    Args:
        candidates: analyses or run files, named by the mapping; without names by their sources' paths.
        metrics: names from the registry; each must have been measured in every candidate.
        seed: of the draws.

    Returns:
        A `Ranking`.

    Raises:
        InputRefused: fewer than two candidates, an empty one, or a metric that was not measured.

    Source: Kendall & Babington Smith 1939, Ann. Math. Statist. 10 (W). Cost: 500 means a metric.

    >>> import torch, netspectra as ns
    >>> models = {name: {f"{i}.w": scale * torch.eye(8) for i in range(3)} for name, scale in (("a", 2), ("b", 1))}
    >>> found = rank({name: ns.analyze(model) for name, model in models.items()}, metrics=["spectral_norm"])
    >>> found["spectral_norm"].order, found["spectral_norm"].values, found["spectral_norm"].held
    (('b', 'a'), (2.0, 1.0), (1.0,))
    """
    named = _named(candidates)
    entries = chosen(metrics)
    for name, analysis in named.items():
        missing = [entry.name for entry in entries if entry.name not in analysis.metric_names]
        if missing:
            raise InputRefused(f"{name}: {missing[0]} was not measured; analyze it again with --metrics or without")
    keys = [{(record.name, record.shape) for record in analysis} for analysis in named.values()]
    paired = all(key == keys[0] for key in keys)
    rng = np.random.default_rng(seed)
    rows = tuple(_ranked(entry.name, named, paired, rng) for entry in entries)
    agreement = _agreement([row.ranks for row in rows])
    known = sum(None not in row.ranks for row in rows)
    chance = None if agreement is None else _by_chance(known, len(named), rng)
    return Ranking(tuple(named), paired, rows, agreement, chance)


def _named(candidates: Mapping[str, Analysis | str | Path] | Sequence[Analysis | str | Path]) -> dict[str, Analysis]:
    if isinstance(candidates, Mapping):
        named = {name: _opened(candidate) for name, candidate in candidates.items()}
    else:
        found = [_opened(candidate) for candidate in candidates]
        names = [str(analysis.source["path"]) for analysis in found]
        unique = names if len(set(names)) == len(names) else [f"{i}: {name}" for i, name in enumerate(names, 1)]
        named = dict(zip(unique, found, strict=True))
    if len(named) < 2:
        raise InputRefused("a ranking needs at least two candidates")
    for name, analysis in named.items():
        if not len(analysis):
            raise InputRefused(f"{name}: holds no analysed weight")
    return named


def _opened(candidate: Analysis | str | Path) -> Analysis:
    return candidate if isinstance(candidate, Analysis) else Analysis.from_run(RunFile.read(candidate))


def _ranked(name: str, named: Mapping[str, Analysis], paired: bool, rng: np.random.Generator) -> RankedMetric:
    records = [sorted(analysis, key=lambda record: record.name) for analysis in named.values()]
    kept = _kept(name, records, paired)
    gathered = [aggregate(found, name) for found in kept]
    values = tuple(one.mean for one in gathered)
    ranks = _ranks(values)
    known = [i for _, i in sorted((value, i) for i, value in enumerate(values) if value is not None)]
    drawn = _drawn([np.array([float(r.metrics[name]) for r in kept[i]]) for i in known], paired, rng)
    names = list(named)
    return RankedMetric(
        name=name,
        title=METRICS[name].title,
        values=values,
        ranks=ranks,
        order=tuple(names[i] for i in known),
        held=tuple(float(np.mean(low < high)) for low, high in itertools.pairwise(drawn)),
        weights=tuple(len(found) for found in kept),
        unknown=tuple(len(found) - len(left) for found, left in zip(records, kept, strict=True)),
    )


def _kept(name: str, records: list[list[Record]], paired: bool) -> list[list[Record]]:
    """The records whose value is known: in every candidate, if they are paired."""
    if not paired:
        return [[record for record in found if record.metrics[name].known] for found in records]
    rows = [row for row in zip(*records, strict=True) if all(record.metrics[name].known for record in row)]
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in records]


def _drawn(values: list[np.ndarray], paired: bool, rng: np.random.Generator) -> list[np.ndarray]:
    """Means over redrawn weights, one array of draws a candidate."""
    if paired and values:
        places = rng.integers(len(values[0]), size=(DRAWS, len(values[0])))
        return [column[places].mean(1) for column in values]
    return [column[rng.integers(len(column), size=(DRAWS, len(column)))].mean(1) for column in values]


def _ranks(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """1 for the smallest; ties share the mean of their places."""
    known = [value for value in values if value is not None]
    return tuple(
        None
        if value is None
        else sum(other < value for other in known) + (sum(other == value for other in known) + 1) / 2
        for value in values
    )


def _agreement(rows: Sequence[Sequence[float | None]]) -> float | None:
    """Kendall's W of complete rows, each turned to go with the first; None where there is nothing to compare."""
    complete = [np.array(row, dtype=float) for row in rows if None not in row]
    complete = [row for row in complete if len(set(row)) > 1]
    if len(complete) < 2:
        return None
    n = len(complete[0])
    first = complete[0] - complete[0].mean()
    turned = [row if float(first @ (row - row.mean())) >= 0 else n + 1 - row for row in complete]
    sums = np.sum(turned, axis=0)
    most = float(np.sum([np.sum((row - row.mean()) ** 2) for row in turned])) * len(turned)
    return min(1.0, float(((sums - sums.mean()) ** 2).sum() / most)) if most > 0 else None


def _by_chance(rankings: int, candidates: int, rng: np.random.Generator) -> float:
    """Mean agreement of so many random rankings of so many candidates."""
    places = np.arange(1.0, candidates + 1)
    drawn = [_agreement([rng.permutation(places).tolist() for _ in range(rankings)]) for _ in range(DRAWS)]
    return float(np.mean([one for one in drawn if one is not None]))
