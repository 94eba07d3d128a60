"""The leading directions of rows that come by and are not kept: Frequent Directions."""

from __future__ import annotations

import numpy as np

__all__ = ["FrequentDirections"]


class FrequentDirections:
    """A sketch B of a stream of rows A, such that B^T B is A^T A but for little, in every direction.

        0 <= x^T (A^T A - B^T B) x <= lost <= ||A - A_k||_F^2 / (size - k)    for unit x and every k < size

    Cost: 4 size n operations a row; memory 16 size n bytes.

    Reference: Liberty 2013, arXiv 1206.0594; Ghashami, Liberty, Phillips & Woodruff 2016, arXiv 1501.01711.

    Attributes:
        size: rows that B keeps.
        lost: the bound on what any direction lacks.

    >>> sketch = FrequentDirections(3, size=2).add_(np.diag([3.0, 2.0, 0.0]))
    >>> values, directions = sketch.leading(2)
    >>> values.round(6).tolist(), abs(directions).round(6).tolist()
    ([9.0, 4.0], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    """

    def __init__(self, n: int, size: int) -> None:
        """Start with nothing: rows of ``n`` numbers, ``size`` of them kept."""
        self.size, self.lost = size, 0.0
        self._rows = np.zeros((2 * size, n))
        self._filled = 0

    def add_(self, rows: np.ndarray) -> FrequentDirections:
        """Take rows, (count, n)."""
        done = 0
        while done < len(rows):
            if self._filled == len(self._rows):
                self._shrink()
            taken = min(len(self._rows) - self._filled, len(rows) - done)
            self._rows[self._filled : self._filled + taken] = rows[done : done + taken]
            self._filled += taken
            done += taken
        return self

    def leading(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k largest eigenvalues of B^T B, its eigenvectors as columns (n, k); fewer where the rank is less."""
        values, directions = _right(self._rows[: self._filled])
        return values[:k], directions[:k].T

    def _shrink(self) -> None:
        """Make room: every squared singular value loses the one of rank ``size + 1``."""
        values, directions = _right(self._rows)
        floor = float(values[self.size]) if len(values) > self.size else 0.0
        kept = min(self.size, int((values > floor).sum()))
        self._rows[:kept] = np.sqrt(values[:kept] - floor)[:, None] * directions[:kept]
        self._filled = kept
        self.lost += floor


def _right(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values, descending, and right singular vectors as rows: of the rank that float64 can tell."""
    values, left = np.linalg.eigh(rows @ rows.T)
    values, left = values[::-1], left[:, ::-1]
    kept = values > 1e-13 * max(float(values[0]), np.finfo(float).tiny) if len(values) else np.zeros(0, bool)
    values, left = values[kept], left[:, kept]
    return values, (left / np.sqrt(values)).T @ rows
