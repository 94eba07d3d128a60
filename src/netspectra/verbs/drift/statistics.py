"""What is compared between reference and window: how rows lie, how far they spread, and what is left outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from netspectra.verbs.drift.basis import Coordinates

__all__ = ["STATISTICS", "Measured", "Pooled", "Statistic", "unit"]

SPECTRUM = 16  # eigenvalues that are compared
FLOOR = 0.02  # of the mean eigenvalue, added before a logarithm is taken


@dataclass(frozen=True, eq=False)
class Pooled:
    """Reference and window in one heap, and which rows are called the window's.

    Attributes:
        along: (N, k) coordinates less their mean.
        beside: log energy outside, or empty.
        window: (B, N) boolean, the truth first.
    """

    along: np.ndarray
    beside: np.ndarray
    window: np.ndarray

    @classmethod
    def of(cls, reference: Coordinates, window: Coordinates, labels: np.ndarray) -> Pooled:
        """Both heaps in one; what is taken from the whole heap does not change when labels are exchanged."""
        both = Coordinates.joined([reference, window])
        along = both.along.astype(float)
        return cls(along - along.mean(0), both.beside.astype(float), labels)

    @property
    def alike(self) -> np.ndarray:
        """The coordinates, each over its standard deviation."""
        return unit(self.along)

    def means(self, rows: np.ndarray) -> np.ndarray:
        """Mean of (N, ...) over the window of every labelling: (B, ...)."""
        count = int(self.window[0].sum())
        return (self.window @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:]) / count

    def contrast(self, rows: np.ndarray) -> np.ndarray:
        """Mean over the window less mean over the reference, of every labelling."""
        count = int(self.window[0].sum())
        rest = len(rows) - count
        return (self.means(rows) * len(rows) - rows.sum(0)) / rest


def unit(rows: np.ndarray) -> np.ndarray:
    """Columns over their standard deviations; a constant one stays as it is."""
    deviation = rows.std(0)
    return rows / np.where(deviation > 0, deviation, 1.0)


@dataclass(frozen=True, eq=False)
class Measured:
    """One statistic under every labelling: what is ranked, and how large the effect is in words of its own."""

    ranked: np.ndarray
    effect: np.ndarray


@dataclass(frozen=True)
class Statistic:
    """One way to compare.

    Attributes:
        name: short.
        effect: what its effect size means.
        measure: the function; None where the layer has nothing to measure.
    """

    name: str
    effect: str
    measure: Callable[[Pooled], Measured | None]


def _energy(rows: np.ndarray, pooled: Pooled) -> Measured:
    """Energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013), and its share of 2 E|X - Y|."""
    squares = np.einsum("ij,ij->i", rows, rows)
    distance = rows @ rows.T
    distance *= -2.0
    distance += squares[:, None]
    distance += squares
    distance = np.sqrt(np.maximum(distance, 0.0)).astype(np.float32)
    np.fill_diagonal(distance, 0.0)
    count = int(pooled.window[0].sum())
    rest = len(rows) - count
    inside = pooled.window.astype(np.float32)
    to_window = inside @ distance  # (B, N)
    within = np.einsum("ij,ij->i", to_window, inside).astype(float)
    across = to_window.sum(1, dtype=float) - within
    whole = float(distance.sum(dtype=float))
    among = whole - within - 2 * across
    energy = 2 * across / (count * rest) - within / count**2 - among / rest**2
    return Measured(energy, _beyond_chance(energy) / np.maximum(2 * across / (count * rest), np.finfo(float).tiny))


def _beyond_chance(values: np.ndarray) -> np.ndarray:
    """What is left of values that chance alone makes positive."""
    return np.maximum(values - values.mean(), 0.0)


def _standard(values: np.ndarray) -> np.ndarray:
    """Sum of squares of (B, d), each column standardised over the labellings."""
    spread = values.std(0)
    return (((values - values.mean(0)) / np.where(spread > 0, spread, 1.0)) ** 2).sum(1)


def _distribution(pooled: Pooled) -> Measured:
    return _energy(pooled.along, pooled)


def _every_direction(pooled: Pooled) -> Measured:
    return _energy(pooled.alike, pooled)


def _spread(pooled: Pooled) -> Measured:
    """Log variance along each direction of the reference."""
    rows = pooled.alike
    variance = pooled.means(rows**2) - pooled.means(rows) ** 2
    logs = 0.5 * np.log(variance + FLOOR)
    far = ((logs - logs.mean(0)) ** 2).mean(1)
    return Measured(_standard(logs), np.sqrt(_beyond_chance(far)))


def _spectrum(pooled: Pooled) -> Measured:
    """Log eigenvalues of the window's covariance in the leading directions of the reference."""
    rows = pooled.along[:, :SPECTRUM]
    i, j = np.triu_indices(rows.shape[1])
    mean, second = pooled.means(rows), pooled.means(rows[:, i] * rows[:, j])
    covariance = np.empty((len(mean), rows.shape[1], rows.shape[1]))
    covariance[:, i, j] = covariance[:, j, i] = second
    covariance -= mean[:, :, None] * mean[:, None, :]
    level = float(np.einsum("ij,ij->", rows, rows)) / rows.size
    logs = 0.5 * np.log(np.maximum(np.linalg.eigvalsh(covariance), 0.0) + FLOOR * max(level, np.finfo(float).tiny))
    far = ((logs - logs.mean(0)) ** 2).mean(1)
    return Measured(_standard(logs), np.sqrt(_beyond_chance(far)))


def _residual(pooled: Pooled) -> Measured | None:
    """Log energy outside the reference's directions: more of it or less."""
    if not len(pooled.beside):
        return None
    change = pooled.contrast(pooled.beside)
    return Measured(np.abs(change), np.exp(change))


STATISTICS = (
    Statistic("distribution", "energy coefficient, 0 ... 1", _distribution),
    Statistic("every direction", "energy coefficient with all directions alike, 0 ... 1", _every_direction),
    Statistic("spread", "typical log ratio of standard deviations along the directions", _spread),
    Statistic("spectrum", "typical log ratio of the covariance's singular values", _spectrum),
    Statistic("residual", "ratio of energies outside the directions, window to reference", _residual),
)
