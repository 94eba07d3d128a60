"""The looks themselves: what is found at the weights of a live model at one moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from netspectra.linalg.tracking import LeadingValues, Tracker, norms
from netspectra.record import Record
from netspectra.run.cost import flops
from netspectra.verbs.analyze import AnalyzeOptions, measure
from netspectra.verbs.watch.followed import Followed
from netspectra.verbs.watch.options import MonitorOptions
from netspectra.verbs.watch.recent import NormState
from netspectra.weight import Weight

__all__ = ["SIGNALS", "Eyes"]

SIGNALS = ("frobenius_norm", "sigma_1", "gradient_norm", "update_norm")
FIRST_RATE = 3e9  # operations a second, before any was measured
SMALL = 3e-3  # seconds that any full spectrum takes at least


class Eyes:
    """Looks at weights, warm from the last time. Nothing it does is seen by the model."""

    def __init__(self, model: nn.Module, watched: Sequence[Followed], options: MonitorOptions) -> None:
        """Look at these weights of the model."""
        self.watched, self.options = watched, options
        self._leading = LeadingValues(seed=options.seed)
        self._trackers: dict[int, Tracker] = {}
        self._measure = partial(measure, options=AnalyzeOptions(metrics=options.metrics))
        self._seconds, self._operations = 0.0, 0.0
        self.layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _NormBase) and module.track_running_stats and module.running_mean is not None
        }

    def cheap(self, places: Sequence[int], *, all_norms: bool) -> np.ndarray:
        """(W, signals): sigma_1 of the weights at ``places``, norms of all or of these; NaN elsewhere."""
        found = np.full((len(self.watched), len(SIGNALS)), np.nan)
        wanted = range(len(self.watched)) if all_norms else places
        with torch.no_grad():
            matrices = {place: self.watched[place].matrix() for place in {*wanted, *places}}
            tensors: list[Tensor] = []
            homes: list[tuple[int, int]] = []
            for place in wanted:
                held = self.watched[place]
                update = held.update()
                several = [(0, matrices[place]), *((2, gradient) for gradient in held.gradients())]
                for signal, tensor in several if update is None else [*several, (3, update)]:
                    homes.append((place, signal))
                    tensors.append(tensor)
            for (place, signal), value in zip(homes, norms(tensors), strict=True):
                before = found[place, signal]
                found[place, signal] = value if np.isnan(before) else np.hypot(before, value)
            sigma = self._leading.look({str(place): matrices[place] for place in places if matrices[place].numel()})
        for place, value in sigma.items():
            found[int(place), 1] = value
        return found

    def cheap_again(self, places: Sequence[int]) -> np.ndarray:
        """A cheap look for its cost alone."""
        return self.cheap(places, all_norms=True)

    def leading(self, places: Sequence[int], *, steps: int = 1) -> dict[int, np.ndarray]:
        """The leading singular values of these weights, by position; none of block-diagonal ones.

        More ``steps`` of iteration where the weight may have changed much since the last look.
        """
        found = {}
        with torch.no_grad():
            for place in places:
                matrix = self.watched[place].matrix()
                if matrix.dim() == 2 and matrix.numel() and bool(torch.isfinite(matrix).all()):
                    tracker = self._trackers.setdefault(place, Tracker(self.options.leading, seed=self.options.seed))
                    seen = tracker.look(matrix, steps=None if tracker.rows is None else steps)
                    found[place] = seen.S.double().cpu().numpy()
                    self._leading.adopt(str(place), seen.Vh[0])
        return found

    def full(self, weight: Weight, step: int) -> tuple[Record | None, float]:
        """Every singular value with metrics and verdicts (None: there are none), and how many operations that took."""
        finding = self._measure(weight)
        return (replace(finding, step=step) if isinstance(finding, Record) else None), flops(weight)

    def learn(self, operations: float, seconds: float) -> None:
        """Remember what full spectra cost here."""
        self._seconds += seconds
        self._operations += operations

    def expected(self, weight: Weight) -> float:
        """Seconds that a full spectrum will take."""
        rate = self._operations / self._seconds if self._seconds > 0 else FIRST_RATE
        return SMALL + flops(weight) / max(rate, FIRST_RATE / 10)

    def norm_states(self) -> Mapping[str, NormState]:
        """The buffers of the normalization layers that keep statistics."""
        if not self.layers:
            return {}
        layers = list(self.layers.values())
        counters = [m.num_batches_tracked for m in layers]
        counts = torch.stack([torch.zeros((), dtype=torch.long) if c is None else c.cpu() for c in counters]).tolist()
        sizes = norms([b.detach() for m in layers for b in (m.running_mean, m.running_var) if b is not None])
        return {
            name: NormState(
                module.training,
                int(counts[place]),
                bool(np.isfinite(sizes[2 * place : 2 * place + 2]).all()),
                module.weight is not None and module.weight.requires_grad,
            )
            for place, (name, module) in enumerate(self.layers.items())
        }
