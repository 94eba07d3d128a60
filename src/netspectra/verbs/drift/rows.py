"""Rows as they come: arrays, tables or batches of a model as chunks of one array a layer; a fair draw of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from netspectra.errors import InputRefused

__all__ = ["ROWS", "Chunk", "Reservoir", "as_chunks", "finite"]

Chunk = Mapping[str, np.ndarray]  # layer -> (count, width), the same count in all
ROWS = "rows"  # what a lone array is called
SIZE = 4096


def as_chunks(data: Any) -> tuple[Iterator[Chunk], dict[str, tuple[str, ...]]]:
    """Chunks of rows, and names of their columns where they have any.

    Args:
        data: an array, tensor or data frame of rows; a mapping of layers to such, rows alike; an iterable of these
            (its ``columns``, where it has them, name the columns).
    """
    if hasattr(data, "to_numpy") and hasattr(data, "columns"):
        names = tuple(map(str, data.columns))
        return _cut({ROWS: _matrix(data.to_numpy(), ROWS)}), {ROWS: names}
    if isinstance(data, np.ndarray | torch.Tensor):
        return _cut({ROWS: _matrix(data, ROWS)}), {}
    if isinstance(data, Mapping):
        return _cut({str(name): _matrix(rows, str(name)) for name, rows in data.items()}), {}
    if isinstance(data, str | bytes) or not isinstance(data, Iterable):
        raise InputRefused(f"{type(data).__name__} holds no rows: give an array (rows, width), or a mapping of such")
    if isinstance(data, list) and data and not isinstance(data[0], Mapping) and np.ndim(data[0]) < 2:
        return _cut({ROWS: _matrix(np.asarray(data), ROWS)}), {}
    names = dict(getattr(data, "columns", {}))
    return (chunk for part in data for chunk in as_chunks(part)[0]), names


def _matrix(rows: Any, name: str) -> np.ndarray:
    """Rows as (count, width) float32 or float64; all but the first axis flattened."""
    if isinstance(rows, torch.Tensor):
        rows = rows.detach().cpu()
        rows = (rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows).numpy()
    rows = np.asarray(rows)
    if rows.dtype.kind not in "fiub" or rows.ndim == 0:
        raise InputRefused(f"{name} holds {rows.dtype} of shape {rows.shape}; give numbers, one row a sample")
    return rows.reshape(len(rows), -1) if rows.ndim > 1 else rows[:, None]


def _cut(layers: dict[str, np.ndarray]) -> Iterator[Chunk]:
    counts = {name: len(rows) for name, rows in layers.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in list(counts.items())[:6])
        raise InputRefused(f"layers must have the same rows, one a sample (found {told})")
    count = next(iter(counts.values()), 0)
    for first in range(0, count, SIZE):
        yield {name: finite(rows[first : first + SIZE], name) for name, rows in layers.items()}


def finite(rows: np.ndarray, name: str) -> np.ndarray:
    """The rows, if all are finite."""
    good = np.isfinite(rows).all(1) if rows.dtype.kind == "f" else np.ones(len(rows), bool)
    if not good.all():
        bad = int((~good).sum())
        raise InputRefused(
            f"{name}: {bad} of {len(rows)} rows hold NaN or Inf: drop or fill them, and count them apart"
        )
    return rows


class Reservoir:
    """Keeps a fair draw of ``size`` rows of all that come by, the same rows of every layer (Vitter 1985, algorithm R).

    >>> kept = Reservoir(2, seed=0)
    >>> left = [len(kept.add_({"a": np.ones((3, 1))})["a"]) for _ in range(4)]
    >>> left, kept.count, kept.rows["a"].shape
    ([1, 3, 3, 3], 12, (2, 1))
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start empty."""
        self.size, self.count = size, 0
        self._rng = np.random.default_rng(seed)
        self._kept: dict[str, np.ndarray] = {}

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """What is kept."""
        return dict(self._kept)

    def add_(self, chunk: Chunk) -> dict[str, np.ndarray]:
        """Take a chunk; gives the rows that are not kept, those that had to make room among them."""
        count = len(next(iter(chunk.values())))
        taken = min(count, max(self.size - self.count, 0))
        if taken:
            for name, rows in chunk.items():
                new = rows[:taken].astype(np.float32 if rows.dtype.kind == "f" and rows.itemsize < 8 else float)
                self._kept[name] = np.concatenate([self._kept[name], new]) if name in self._kept else new
        places = self._rng.integers(0, self.count + np.arange(taken, count) + 1)
        self.count += count
        left = {name: rows[taken:].astype(self._kept[name].dtype) for name, rows in chunk.items()}
        for i in np.flatnonzero(places < self.size):
            for name, rows in left.items():
                rows[i], self._kept[name][places[i]] = self._kept[name][places[i]].copy(), rows[i].copy()
        return left

    def halved(self, keep: int) -> dict[str, np.ndarray]:
        """Give up all but ``keep`` of the kept rows, drawn evenly; gives the others."""
        held = min(self.size, self.count)
        order = self._rng.permutation(held)
        others = {name: rows[order[keep:]] for name, rows in self._kept.items()}
        self._kept = {name: rows[np.sort(order[:keep])] for name, rows in self._kept.items()}
        self.size = min(self.size, keep)
        return others
