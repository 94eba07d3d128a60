"""What a layer's reference rows span: centre, scale and principal directions, learnt from rows that come by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from netspectra.linalg.moments import Moments
from netspectra.linalg.sketch import FrequentDirections

__all__ = ["Basis", "Coordinates", "Learner"]

PILOT = 256  # rows that set centre and scale
SKETCHED = 4  # rows of the sketch a direction
FLAT = 1e-6  # of the largest deviation: a column that moves less counts as constant
RELATIVE_FLOOR = 1e-2  # of the mean energy, added before a logarithm is taken
FAR = 1e15  # standard deviations: nothing further out is told apart, and squares stay finite in float32
LEAST_RESIDUAL = 1e-4  # of the whole variance: a level above rounding where there is nothing outside
NEGLIGIBLE = 1e-6  # of the largest variance: a direction with less is none


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Rows as a reference keeps them: (count, k) along its directions, and the logarithms of two energies.

    Attributes:
        along: coordinates along the principal directions, in standard deviations of the layer's columns.
        beside: log of the squared length outside their span; empty where the span is everything.
        whole: log of the squared length.
    """

    along: np.ndarray
    beside: np.ndarray
    whole: np.ndarray

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.along)

    def __getitem__(self, rows: np.ndarray | slice) -> Coordinates:
        """Some of the rows."""
        return Coordinates(self.along[rows], self.beside[rows] if len(self.beside) else self.beside, self.whole[rows])

    @staticmethod
    def joined(parts: list[Coordinates]) -> Coordinates:
        """All rows of several, in order."""
        return Coordinates(
            np.concatenate([part.along for part in parts]),
            np.concatenate([part.beside for part in parts]),
            np.concatenate([part.whole for part in parts]),
        )


@dataclass(frozen=True, eq=False)
class Basis:
    """Centre, scale and principal directions of one layer's rows.

        along = V^T (x - centre) / scale

    Attributes:
        centre: (n,).
        scale: (n,), above zero.
        V: (n, k), orthonormal columns, the largest variance first.
        variances: (k,) along V.
        total: variance in all directions.
        sketched: whether the directions come from a sketch.
    """

    centre: np.ndarray
    scale: np.ndarray
    V: np.ndarray
    variances: np.ndarray
    total: float
    sketched: bool

    @property
    def beside(self) -> float:
        """Typical energy outside the span of V, kept above rounding; zero where the span is everything."""
        if self.V.shape[1] == self.V.shape[0]:
            return 0.0
        return max(self.total - float(self.variances.sum()), LEAST_RESIDUAL * self.level)

    @property
    def level(self) -> float:
        """Typical energy of a row; one where nothing ever varied."""
        return self.total if self.total > 0 else 1.0

    def coordinates(self, rows: np.ndarray) -> Coordinates:
        """Rows (count, n) as the reference keeps them."""
        z = np.clip((rows - self.centre) / self.scale, -FAR, FAR)
        along = z @ self.V
        whole = np.einsum("ij,ij->i", z, z)
        left = self.beside
        outside = np.maximum(whole - np.einsum("ij,ij->i", along, along), 0.0) if left else np.zeros(0)
        return Coordinates(
            along.astype(np.float32),
            np.log(outside + RELATIVE_FLOOR * left).astype(np.float32) if left else np.zeros(0, np.float32),
            np.log(whole + RELATIVE_FLOOR * self.level).astype(np.float32),
        )


class Learner:
    """Learns a `Basis` in one pass: the first rows set centre and scale, all of them the directions.

    Memory: 8 n^2 bytes up to width ``exact``, beyond it 64 n bytes a direction (Frequent Directions).

    >>> rows = np.random.default_rng(0).standard_normal((500, 3)) * [1.0, 1.0, 9.0] + 5.0
    >>> learner = Learner(3, directions=2, exact=1024)
    >>> learner.add_(rows)
    >>> basis = learner.basis()
    >>> basis.V.shape, bool(abs(basis.scale[2] - 9.0) < 1.0)
    ((3, 2), True)
    """

    def __init__(self, n: int, *, directions: int, exact: int) -> None:
        """Start with nothing: rows of ``n`` numbers."""
        self.n, self.k, self.exact = n, directions, n <= exact
        self.count = 0
        self._pilot: list[np.ndarray] = []
        self._frame: tuple[np.ndarray, np.ndarray] | None = None
        self._moments = Moments.zeros(n) if self.exact else None
        self._sketch = None if self.exact else FrequentDirections(n, SKETCHED * directions)
        self._sum, self._squares = np.zeros(n), 0.0

    def add_(self, rows: np.ndarray) -> None:
        """Take rows, (count, n)."""
        self.count += len(rows)
        if self._frame is not None:
            self._take(rows)
            return
        self._pilot.append(rows.copy())
        if self.count >= PILOT:
            self._begin()

    def basis(self) -> Basis:
        """What was learnt.

        Directions that fewer than four rows each would have to determine are left out.
        """
        if self._frame is None:
            self._begin()
        assert self._frame is not None
        k = max(1, min(self.k, self.n, self.count // 4))
        mean = self._sum / self.count
        total = max(self._squares / self.count - float(mean @ mean), 0.0)
        if self._moments is not None:
            values, V = np.linalg.eigh(self._moments.covariance.numpy())
            values, V = values[::-1][:k], V[:, ::-1][:, :k]
        else:
            assert self._sketch is not None
            values, V = self._sketch.leading(k)
            values = values / self.count
        kept = values > NEGLIGIBLE * max(float(values.max(initial=0.0)), np.finfo(float).tiny)
        kept[:1] = True
        values, V = np.maximum(values[kept], 0.0), V[:, kept]
        signs = np.where(V[np.abs(V).argmax(0), np.arange(V.shape[1])] < 0, -1.0, 1.0)
        V = (V * signs).astype(np.float32).astype(float)  # as a file keeps it
        return Basis(self._frame[0], self._frame[1], V, values, total, not self.exact)

    def _begin(self) -> None:
        pilot = np.concatenate(self._pilot).astype(float)
        deviation = pilot.std(0)
        widest = float(deviation.max(initial=0.0))
        scale = np.where(deviation > FLAT * widest, deviation, widest if widest > 0 else 1.0)
        self._frame = pilot.mean(0), scale
        self._pilot = []
        self._take(pilot)

    def _take(self, rows: np.ndarray) -> None:
        assert self._frame is not None
        z = (rows - self._frame[0]) / self._frame[1]
        self._sum += z.sum(0)
        self._squares += float(np.einsum("ij,ij->", z, z))
        if self._moments is not None:
            self._moments.add_(torch.from_numpy(np.ascontiguousarray(z)))
        elif self._sketch is not None:
            self._sketch.add_(z)
