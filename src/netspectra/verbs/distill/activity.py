"""How many directions each layer's activations and its action use on real data, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.linalg.moments import root
from netspectra.live.batches import call, samples_in
from netspectra.live.untouched import untouched
from netspectra.record import Value
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, Calibration, rows
from netspectra.verbs.compress.objective import token_mask
from netspectra.verbs.compress.sites import matrix

__all__ = ["Activity", "Use", "activities", "interval", "resamples", "sample_energies"]

DRAWS = 200
CURVE = 128  # points of a spectrum that are kept


@dataclass(frozen=True, eq=False)
class Use:
    """How a variance is spread over directions.

    Attributes:
        size: directions there are.
        effective_rank: exp of the entropy of the singular values (square roots of the variances).
        k90: directions that hold 90 % of the variance.
        k99: 99 %.
        curve: shares of the variance, descending, thinned to at most 128 of them; ``places`` are their numbers.
        places: from 0.
    """

    size: int
    effective_rank: Value
    k90: Value
    k99: Value
    curve: tuple[float, ...]
    places: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        numbers = {name: interval(getattr(self, name)) for name in ("effective_rank", "k90", "k99")}
        return {"size": self.size, **numbers, "curve": list(self.curve), "places": list(self.places)}


def interval(value: Value) -> dict[str, float | None]:
    """A value and its bounds as plain data."""
    return {"value": float(value) if value.known else None, "low": value.low, "high": value.high}


@dataclass(frozen=True, eq=False)
class Activity:
    """One layer on the data.

    Attributes:
        name: of the module.
        shape: (m, n) of its matrix.
        tokens: how many inputs were seen.
        inputs: of its inputs x, about their mean.
        plain: of the matrix W alone: its squared singular values.
        used: of its action W x on the data, about the mean: the activation-weighted spectrum.
    """

    name: str
    shape: tuple[int, int]
    tokens: float
    inputs: Use
    plain: Use
    used: Use

    @property
    def enough(self) -> bool:
        """Whether there were at least ten inputs a dimension: with fewer, ranks are underestimated."""
        return self.tokens >= 10 * self.shape[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        uses = {name: getattr(self, name).to_dict() for name in ("inputs", "plain", "used")}
        return {"name": self.name, "shape": list(self.shape), "tokens": self.tokens, "enough": self.enough, **uses}


def activities(
    model: nn.Module,
    batches: Iterable[Any],
    calibration: Calibration,
    modules: Mapping[str, nn.Module],
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[Activity, ...]:
    """Measure every layer; intervals by resampling *samples*, because tokens of one text are not independent.

    Two passes: the calibration's moments give the principal directions V; a second pass sums the energy of each sample
    along each of them. A resample's variances are v_i^T C_b v_i, the first-order eigenvalues, so that no matrix is
    decomposed again and the resamples' own bias (fewer distinct samples, smaller rank) does not enter.

    Args:
        model: it comes back untouched.
        batches: those of the calibration.
        calibration: their moments.
        modules: layers by name.
        seed: of the resampling.
        progress: told the share done.
    """
    bases: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for name, module in modules.items():
        owner = calibration.owner.get(name)
        if owner is None or isinstance(module, nn.Embedding) or calibration.inputs[owner].total.dim() != 2:
            continue
        moments = calibration.inputs[owner]
        C = moments.covariance
        W = matrix(module)
        U, s, _ = torch.linalg.svd(W @ root(C), full_matrices=False)
        found = {"used": (U.mT @ W, _above(s.square(), ((W @ moments.second) * W).sum()))}
        if owner == name:
            values, vectors = torch.linalg.eigh(C)
            found["inputs"] = (vectors.flip(1).mT, _above(values.flip(0), moments.second.trace()))
        bases[name] = found
    batches = list(batches)
    measures = {
        (name, what): _along(basis, calibration.inputs[calibration.owner[name]].mean, modules[name])
        for name, found in bases.items()
        for what, (basis, _) in found.items()
    }
    energies, counts = sample_energies(model, batches, modules, measures, progress)
    weights = resamples(sum(samples_in(batch) for batch in batches), seed)
    uses: dict[tuple[str, str], Use] = {}
    for (name, what), energy in energies.items():
        uses[name, what] = _use(bases[name][what][1], energy, counts[name], weights)
    return tuple(
        Activity(
            name,
            tuple(matrix(modules[name]).shape),  # type: ignore[arg-type]
            calibration.inputs[calibration.owner[name]].count,
            uses[calibration.owner[name], "inputs"],
            _plain(torch.linalg.svdvals(matrix(modules[name])).square()),
            uses[name, "used"],
        )
        for name in calibration.order
        if name in bases
    )


def _above(variances: Tensor, energy: Tensor) -> Tensor:
    """Variances above what rounding of float32 activations of this energy may make; the others are zero."""
    floor = torch.finfo(torch.float32).eps * float(energy)
    return torch.where(variances > floor, variances, torch.zeros_like(variances))


def _along(basis: Tensor, mean: Tensor, module: nn.Module) -> Callable[[Tensor], Tensor]:
    """Energies of rows (tokens, n) about a mean along each row of a basis (k, n)."""
    device = next(module.parameters()).device
    narrow, centre = basis.to(device, torch.float32), mean.to(device, torch.float32)
    return lambda x: ((x - centre) @ narrow.mT).double().square()


def sample_energies(
    model: nn.Module,
    batches: Sequence[Any],
    modules: Mapping[str, nn.Module],
    measures: Mapping[tuple[str, str], Callable[[Tensor], Tensor]],
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[tuple[str, str], Tensor], dict[str, Tensor]]:
    """Sum over each sample's tokens of what a layer's inputs measure, and how many inputs a sample had.

    Args:
        model: it comes back untouched.
        batches: what it is called with.
        modules: layers by name.
        measures: by layer and what is meant: rows (tokens, n) of its input to numbers (tokens, k).
        progress: told the share done.

    Returns:
        By the same keys (samples, k), and by layer (samples,); zero where a layer's inputs belong to no sample.
    """
    total = sum(samples_in(batch) for batch in batches)
    energies: dict[tuple[str, str], Tensor] = {}
    counts = {name: torch.zeros(total, dtype=torch.float64) for name, _ in measures}
    place, now = 0, None

    def hook(name: str) -> Callable[..., None]:
        mine = [(key, measure) for key, measure in measures.items() if key[0] == name]

        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or x.dim() < 2:
                return
            keep = None if isinstance(module, CONVOLUTIONS) else token_mask(name, x.shape[:-1], now)
            parts = list(rows(module, x, keep))
            tokens = sum(len(part) for part in parts)
            samples = samples_in(now)
            if keep is not None:
                owner = keep.nonzero()[:, 0]
            elif tokens % samples == 0:
                owner = torch.arange(samples).repeat_interleave(tokens // samples)
            else:
                return
            start = 0
            for part in parts:
                whose = (owner[start : start + len(part)] + place).cpu()
                start += len(part)
                counts[name].index_add_(0, whose, torch.ones(len(part), dtype=torch.float64))
                for key, measure in mine:
                    found = measure(part.float()).cpu()
                    if key not in energies:
                        energies[key] = torch.zeros(total, found.shape[1], dtype=torch.float64)
                    energies[key].index_add_(0, whose, found)

        return add

    handles = [modules[name].register_forward_hook(hook(name)) for name in counts]
    try:
        with untouched(model), torch.no_grad():
            for done, batch in enumerate(batches):
                now = batch
                call(model, batch)
                place += samples_in(batch)
                progress((done + 1) / len(batches))
    finally:
        for handle in handles:
            handle.remove()
    return energies, counts


def resamples(samples: int, seed: int) -> Tensor:
    """(draws, samples): how often each sample is drawn."""
    generator = np.random.default_rng(seed)
    return torch.from_numpy(generator.multinomial(samples, np.full(samples, 1 / samples), size=DRAWS)).double()


def _use(variances: Tensor, energy: Tensor, counts: Tensor, weights: Tensor) -> Use:
    point = _ranks(variances[None])[0]
    if int((counts > 0).sum()) < 8:
        low = high = [None] * 3
    else:
        drawn = (weights @ energy) / (weights @ counts).clamp_min(1.0)[:, None] * (variances > 0)
        ranks = _ranks(drawn.sort(1, descending=True).values)
        low = np.quantile(ranks, 0.025, axis=0)
        high = np.quantile(ranks, 0.975, axis=0)
    return _made(variances, point, low, high)


def _plain(variances: Tensor) -> Use:
    point = _ranks(variances[None])[0]
    return _made(variances, point, [None] * 3, [None] * 3)


def _made(variances: Tensor, point: np.ndarray, low: Any, high: Any) -> Use:
    bounds = [
        (None, None) if low[i] is None else (min(float(low[i]), point[i]), max(float(high[i]), point[i]))
        for i in range(3)
    ]
    rank, k90, k99 = (Value(float(point[i]), low=bounds[i][0], high=bounds[i][1]) for i in range(3))
    shares = (variances / variances.sum().clamp_min(torch.finfo(variances.dtype).tiny)).cpu().numpy()
    places = np.unique(np.geomspace(1, len(shares), min(CURVE, len(shares))).round().astype(int)) - 1
    return Use(len(shares), rank, k90, k99, tuple(float(s) for s in shares[places]), tuple(int(p) for p in places))


def _ranks(variances: Tensor) -> np.ndarray:
    """(b, 3): effective rank, k90 and k99 of each row of descending variances."""
    v = variances.clamp_min(0).cpu().numpy()
    top = v.max(axis=1, keepdims=True)
    v = v / np.where(top > 0, top, 1.0)
    s = np.sqrt(v)
    p = s / np.maximum(s.sum(1, keepdims=True), 1e-300)
    entropy = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0), axis=1)
    cumulative = np.cumsum(v, axis=1)
    k = [(cumulative < share * cumulative[:, -1:] * (1 - 1e-12)).sum(1) + 1 for share in (0.9, 0.99)]
    return np.stack([np.exp(entropy), *k], axis=1).astype(float)
