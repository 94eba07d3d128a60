"""How few units of each chain are enough, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.forms.resized import bias_of
from netspectra.linalg.groups import GroupOrder
from netspectra.live.batches import samples_in
from netspectra.record import Value
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.distill.activity import interval, resamples, sample_energies
from netspectra.verbs.distill.channels import Chain

__all__ = ["Width", "widths_of"]

SHARES = (0.01, 0.1)  # of the variance that may be lost
AROUND = (0.5, 0.7, 0.85, 1.0, 1.18, 1.4, 2.0)  # times a width: where resamples are looked at
FEWEST = 8  # samples of which an interval is told


@dataclass(frozen=True)
class Width:
    """How narrow one chain may become.

    Attributes:
        name: what `Distillation.student` calls it.
        kind: neurons, channels, heads.
        width: now.
        suggested: the fewest units from which the reader's output follows linearly up to 1 % of its variance; with a
            95 % interval from resampled samples, for this order of the units.
        tenth: up to 10 %.
    """

    name: str
    kind: str
    width: int
    suggested: Value
    tenth: Value

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {"suggested": interval(self.suggested), "tenth": interval(self.tenth)}
        return {"name": self.name, "kind": self.kind, "width": self.width, **numbers}


def widths_of(
    model: nn.Module,
    batches: Sequence[Any],
    calibration: Calibration,
    orders: Sequence[tuple[Chain, GroupOrder]],
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Width, ...]:
    """Widths of every chain; one more pass over the data sums what each sample loses at widths around them.

    A resample's width is where its loss, interpolated between these widths (its logarithm), crosses the share; a bound
    at the end of the range that was looked at, half to twice the width, means at least that far.
    """
    modules: Mapping[str, nn.Module] = {chain.reader: model.get_submodule(chain.reader) for chain, _ in orders}
    grids = {chain.reader: _grid(order, chain.width) for chain, order in orders}
    measures = {
        (chain.reader, "left"): _left(order, grids[chain.reader], calibration, modules[chain.reader], chain.reader)
        for chain, order in orders
    }
    energies, counts = sample_energies(model, batches, modules, measures, progress)
    weights = resamples(sum(samples_in(batch) for batch in batches), seed)
    found = []
    for chain, order in orders:
        values = [Value(_fewest(order, share)) for share in SHARES]
        energy = energies.get((chain.reader, "left"))
        if energy is not None and int((counts[chain.reader] > 0).sum()) >= FEWEST:
            drawn = (weights @ energy).numpy()
            ratios = drawn[:, 1:] / np.maximum(drawn[:, :1], np.finfo(float).tiny)
            values = [
                _bounded(value, _crossings(ratios, grids[chain.reader], share))
                for value, share in zip(values, SHARES, strict=True)
            ]
        found.append(Width(chain.name, chain.kind, chain.width, *values))
    return tuple(found)


def _fewest(order: GroupOrder, share: float) -> float:
    return float(max(1, int(np.argmax(order.losses <= share * order.losses[0]))))


def _grid(order: GroupOrder, width: int) -> list[int]:
    near = {round(_fewest(order, share) * factor) for share in SHARES for factor in AROUND}
    return sorted({min(max(k, 1), width) for k in near})


def _left(
    order: GroupOrder, grid: Sequence[int], calibration: Calibration, reader: nn.Module, name: str
) -> Callable[[Tensor], Tensor]:
    """Per token |W x|^2 about the mean, and what of it the best fit on the first k units leaves, for every k."""
    device = next(reader.parameters()).device
    W = order.W.to(device, torch.float32)
    fits = []
    for k in grid:
        J = order.features(k)
        fits.append((J.to(device), order.refit(k)[1].to(device, torch.float32)))
    moments = calibration.inputs[calibration.owner[name]]
    centre = moments.mean.to(device, torch.float32) if bias_of(reader) is not None else torch.zeros(1, device=device)

    def measured(x: Tensor) -> Tensor:
        x = x - centre
        y = x @ W.mT
        left = [y, *(y - x[:, J] @ new.mT for J, new in fits)]
        return torch.stack([one.double().square().sum(1) for one in left], 1)

    return measured


def _crossings(ratios: np.ndarray, grid: Sequence[int], share: float) -> np.ndarray:
    """(draws,): the fewest units, between those of the grid, that leave no more than this share."""
    logs = np.log(np.maximum(np.minimum.accumulate(ratios, axis=1), 1e-300))
    target = np.log(share)
    found = []
    for row in logs:
        after = int(np.argmax(row <= target)) if row[-1] <= target else len(row) - 1
        if after == 0 or row[-1] > target:
            found.append(float(grid[after]))
            continue
        part = (row[after - 1] - target) / max(row[after - 1] - row[after], 1e-300)
        found.append(float(np.ceil(grid[after - 1] + part * (grid[after] - grid[after - 1]) - 1e-9)))
    return np.array(found)


def _bounded(value: Value, drawn: np.ndarray) -> Value:
    low, high = (float(np.round(q)) for q in np.quantile(drawn, [0.025, 0.975]))
    return Value(float(value), low=min(low, float(value)), high=max(high, float(value)))
