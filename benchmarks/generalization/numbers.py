"""Rows of networks as one table of numbers: outcomes, baselines, and each metric's mean over the hidden matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from netspectra.metrics import METRICS
from netspectra.verdicts import RULES

TARGETS = ("gap", "test_accuracy")
TRAINING: tuple[str, ...] = ("train_loss", "train_accuracy", "margin", "sharpness")
NORMS: tuple[str, ...] = (
    "parameters",
    "log_frobenius_product",
    "log_spectral_product",
    "sum_of_squares",
    "distance_from_start",
    "log_spectral_complexity",
)
DERIVED = ("share_of_first", "flatness", "spread", "alpha_distance", "twin_spikes")
SAME = {"count": "a constant of the architecture", "sigma_max": "spectral_norm by another name"}
LOGARITHMIC = {entry.name for entry in METRICS.values() if entry.degree == 1} | {"condition_number"}
# Which of a network's matrices a metric is averaged over.
PARTS = {"hidden": slice(None, -1), "first": slice(1), "inner": slice(1, -1), "classifier": slice(-1, None)}
SPOKEN = ("heavy-tailed", "wide", "flat", "looks-untrained", "compressible", "correlation-trap", "outlier-spike")


@dataclass(frozen=True)
class Table:
    """All networks of one task.

    Attributes:
        axes: name of a hyper-parameter -> its value for every network.
        columns: name of a number -> its value for every network, NaN where unknown.
        rows: as they were measured.
        group: of each column that predicts: training, norm, size or shape of the spectrum, verdict.
    """

    axes: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    rows: Sequence[dict[str, Any]] = field(repr=False)
    group: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, mask: np.ndarray) -> Table:
        """Only some of the networks."""
        rows = [row for row, kept in zip(self.rows, mask, strict=True) if kept]
        return Table(
            {name: values[mask] for name, values in self.axes.items()},
            {name: values[mask] for name, values in self.columns.items()},
            rows,
            self.group,
        )


def table(rows: Sequence[dict[str, Any]], part: str = "hidden") -> Table:
    """Gather the rows, in the order of the grid; metrics are over one of `PARTS`."""
    rows = sorted(rows, key=lambda row: tuple(map(str, row["network"].values())))
    axes = {name: np.array([row["network"][name] for row in rows]) for name in rows[0]["network"]}
    plain = (*TARGETS, "test_loss", "noise_drop", "feature_dimension", *TRAINING, *NORMS)
    columns = {name: np.array([row[name] for row in rows], dtype=float) for name in plain}
    group: dict[str, str] = dict.fromkeys(TRAINING, "training") | dict.fromkeys(NORMS, "norm")
    for name in (*METRICS, *DERIVED):
        if name not in SAME:
            columns[name] = np.array([averaged(row["layers"][PARTS[part]], name) for row in rows])
            group[name] = "shape" if name in DERIVED or METRICS[name].degree == 0 else "size"
    columns["erg_gap_size"] = np.abs(columns["erg_gap"])
    group["erg_gap_size"] = "shape"
    # how much more the logits move when a layer's input is pushed along v_1 than in a random direction
    columns["push_ratio"] = np.array([np.mean([math.log10(a / b) for a, b in row["push"][:-1]]) for row in rows])
    for rule in SPOKEN:
        assert any(rule == known.name for known in RULES), rule
        name = f"verdict {rule}"
        columns[name] = np.array([np.mean([rule in said for said in row["verdicts"][:-1]]) for row in rows])
        group[name] = "verdict"
    return Table(axes, columns, rows, group)


def averaged(layers: Sequence[dict[str, float | None]], name: str) -> float:
    """Mean over matrices, logarithms where the metric is a size; unknown ones are left out."""
    values = [value for layer in layers if (value := layer[name]) is not None]
    if name in LOGARITHMIC:
        values = [math.log10(value) for value in values if value > 0]
    return float(np.mean(values)) if values else math.nan
