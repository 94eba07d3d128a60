"""What predicts how much a layer alone loses at few bits: all that its weight's spectrum says, or data-aware errors."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from netspectra.forms import FORMS
from netspectra.forms.rounded import bits_of
from netspectra.linalg.values import svdvals
from netspectra.metrics import METRICS, evaluate
from netspectra.verbs.compress.allocate import Choice, Component, Option

PERMUTATIONS = 1999


def sensitivities(
    parts: Sequence[Component], judged: Callable[[Sequence[Option]], Mapping[str, float]], form: str = "int3"
) -> dict[str, Any]:
    """Rank correlation of each predictor with the loss measured when a layer alone is rounded."""
    measured: list[float] = []
    by_name: dict[str, list[float]] = {}
    spectral: dict[str, list[float]] = {}
    for part in parts:
        [choice] = [c for some in part.choices.values() for c in some if c.form == form and not c.size]
        measured.append(statistics.fmean(judged([Option((choice,), choice.cost, choice.loss)]).values()))
        for found, told in ((by_name, proxies(choice)), (spectral, features(choice.site.member.W))):
            for name, value in told.items():
                found.setdefault(name, []).append(value)
    known = {name: values for name, values in spectral.items() if len(values) == len(measured)}
    return {
        "form": form,
        "layers": len(measured),
        "features": {name: correlation(values, measured) for name, values in by_name.items()},
        "spectral": {name: correlation(values, measured) for name, values in known.items()},
        "chance": chance(list(known.values()), measured),
    }


def features(W: Tensor) -> dict[str, float]:
    """Every metric of this package that a spectrum alone has."""
    told = evaluate([m for m in METRICS.values() if m.needs != "matrix" and not m.thorough], svdvals(W), W)
    return {name: float(value) for name, value in told.items() if value.known and np.isfinite(float(value))}


def correlation(values: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    if len(set(values)) < 2:
        return {"rho": 0.0, "p": 1.0}
    rho = spearmanr(values, measured)
    found = {"rho": float(rho.statistic), "p": float(rho.pvalue)}
    ratios = [a / b for a, b in zip(measured, values, strict=True) if a > 0 and b > 0]
    if len(ratios) == len(measured) and len(ratios) > 1:  # how far off one of them usually is, but for a common factor
        found["factor"] = float(np.exp(np.std(np.log(ratios), ddof=1)))
    return found


def chance(features: Sequence[Sequence[float]], measured: Sequence[float]) -> dict[str, float]:
    """The largest |rho| among many features, and how often shuffled losses have one as large: p of the best of them."""
    ranks = np.array([rankdata(values) for values in features if len(set(values)) > 1])
    ranks -= ranks.mean(1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    wanted = rankdata(measured)
    wanted = (wanted - wanted.mean()) / np.linalg.norm(wanted - wanted.mean())
    best = float(np.abs(ranks @ wanted).max())
    draws = np.random.default_rng(0)
    shuffled = [float(np.abs(ranks @ draws.permutation(wanted)).max()) for _ in range(PERMUTATIONS)]
    over = sum(one >= best - 1e-12 for one in shuffled)
    return {
        "features": len(ranks), "largest": best, "p": (1 + over) / (1 + PERMUTATIONS),
        "by_chance": float(np.quantile(shuffled, 0.95)),
    }  # fmt: skip


def proxies(choice: Choice) -> dict[str, float]:
    """What the allocations go by, for one layer at one number of bits."""
    member = choice.site.member
    s = torch.linalg.svdvals(member.W)
    step = 4.0 ** -bits_of(choice.form)
    error = member.W - choice_weight(choice)
    A = member.A
    under = error if A is None else error @ A
    return {
        "sigma_1 squared": float(s[0]) ** 2 * step,
        "stable rank": float(s.square().sum() / s[0].square()) * step,
        "weight error": float(error.square().sum()),
        "activations only": float((error * under).sum()) * member.positions,
        "moments alone": moments(choice),
        "predicted": choice.loss,
    }


def moments(choice: Choice) -> float:
    """The prediction before it is checked along the errors themselves."""
    curve = FORMS[choice.form].curve(choice.site)
    return float(curve.losses[list(curve.sizes).index(choice.size)])


def choice_weight(choice: Choice) -> Tensor:
    module = FORMS[choice.form].fit(choice.site, choice.size)[choice.site.member.name]
    weight = module.weight.detach().double()
    return weight.mT if getattr(module, "turned", False) else weight.flatten(1)


__all__ = ["choice_weight", "proxies", "sensitivities"]
