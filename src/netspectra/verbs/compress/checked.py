"""Predicted losses, scaled layer by layer to what a layer's own error costs where tokens depend on one another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from netspectra.forms import Site
from netspectra.forms.rounded import bits_of
from netspectra.verbs.compress.allocate import Choice, Option
from netspectra.verbs.compress.along import losses_along
from netspectra.verbs.compress.decide import budget_of
from netspectra.verbs.compress.objective import Objective
from netspectra.verbs.compress.replace import DENSE
from netspectra.verbs.compress.workshop import Progress, Workshop

__all__ = ["check", "shrunk"]

Way = Literal["rounded", "reduced"]
Ratios = Mapping[str, float]  # by the name of a module
K = TypeVar("K", bound=Hashable)

BITS = (3, 4, 2, 5, 6, 8)  # a rounding is checked at the first of these that there is
CARRIERS = {"mlp": ("down",), "value_output": ("output",)}  # roles in whose outputs the error shows; else all of them
USUAL = 0.5  # share at which a reduction is checked, where the budget names none


def check(shop: Workshop, objective: Objective, progress: Progress) -> list[str]:
    """Scale what every choice of the workshop is predicted to lose; gives notes for the plan.

    The moments predict tr(G E A E^T), as if tokens were independent. One layer's own error, in one form of about the
    budget's size, is followed through the network (`losses_along`), and all its choices take the ratio of the two.
    Rounded and reduced weights are checked apart: their errors differ in kind. A block of several layers takes the
    ratio of those in whose outputs its error shows.

    Cost: a forward and a backward pass over ``options.checked`` samples at most, and one fit a layer.
    """
    low, high = math.inf, 0.0
    found: dict[Way, tuple[Ratios, float]] = {}
    for way in ("rounded", "reduced"):
        ratios = _ratios(shop, objective, way, progress)
        if ratios:
            usual = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
            found[way] = ratios, usual
            low, high = min(low, *ratios.values()), max(high, *ratios.values())
    if not found:
        return []
    choices = {key: tuple(_scaled(some, found)) for key, some in shop.choices.items()}
    shop.parts = [replace(part, choices=choices, _hulls={}) for part in shop.parts]
    return [f"predictions were checked along each layer's own error, tokens together: times {low:.2g} to {high:.2g}"]


def _ratios(shop: Workshop, objective: Objective, way: Way, progress: Progress) -> Ratios:
    """By how much the loss of each layer's error is more than the moments predict."""
    references: dict[str, Choice] = {}
    changed = {}
    for some in shop.choices.values():
        site = some[0].site
        if len(site.members) > 1 or (choice := _reference(shop, some, way)) is None:
            continue
        for one in shop.fit([Option((choice,), choice.cost, choice.loss)]):
            if one.name == site.member.name:
                references[one.name], changed[one.name] = choice, one.module
    if not references:
        return {}
    told = losses_along(
        shop.model, shop.batches, objective, changed, samples=shop.options.checked, seed=shop.options.seed,
        progress=lambda share: progress("checking the predictions along the errors", share),
    )  # fmt: skip
    return shrunk(
        {name: (one.loss / references[name].loss, one.error / one.loss) for name, one in told.items() if one.loss > 0}
    )


def _reference(shop: Workshop, choices: Sequence[Choice], way: Way) -> Choice | None:
    """The choice at which a site is checked."""
    if way == "rounded":
        plain = {bits_of(choice.form): choice for choice in choices if not choice.size and choice.loss > 0}
        return next((plain[bits] for bits in BITS if bits in plain), None)
    reduced = [c for c in choices if c.form != DENSE and not bits_of(c.form) and c.size and c.loss > 0]
    wanted = _share(shop) * choices[0].cost.parameters
    return min(reduced, key=lambda c: (abs(c.cost.parameters - wanted), c.loss), default=None)


def _share(shop: Workshop) -> float:
    """Of the weights that are decided on, what the budget leaves."""
    budget = budget_of(shop.options, shop.parts)
    if budget.measure == "loss":
        return USUAL
    return min(1.0, budget.limit / sum(part.dense().of(budget.measure) for part in shop.parts))


def _scaled(choices: Sequence[Choice], found: Mapping[Way, tuple[Ratios, float]]) -> Iterator[Choice]:
    for choice in choices:
        way: Way = "rounded" if bits_of(choice.form) else "reduced"
        if choice.form == DENSE or way not in found:
            yield choice
        else:
            yield replace(choice, loss=choice.loss * _ratio(choice.site, *found[way]))


def _ratio(site: Site, ratios: Ratios, usual: float) -> float:
    """The geometric mean over the layers of a site; what is usual for those that were not reached."""
    roles = CARRIERS.get(site.kind, tuple(site.members))
    logs = [math.log(ratios.get(site.members[role].name, usual)) for role in roles if role in site.members]
    return math.exp(sum(logs) / len(logs)) if logs else usual


def shrunk(ratios: Mapping[K, tuple[float, float]]) -> dict[K, float]:
    """Ratios drawn towards their common mean, in logarithms, by as much as their errors say (empirical Bayes).

        log r' = mean + (log r - mean) v / (v + e^2),    v = max(var(log r) - mean(e^2), 0)

    Those with e of 1 or more say nothing of mean and variance.

    Args:
        ratios: by any key, each with its relative standard error e.

    >>> {key: round(r, 2) for key, r in shrunk({1: (4.0, 0.1), 2: (1.0, 0.1), 3: (1.0, 9.0)}).items()}
    {1: 3.97, 2: 1.01, 3: 1.98}
    """
    logs = {key: math.log(ratio) for key, (ratio, _) in ratios.items()}
    telling = [key for key, (_, error) in ratios.items() if error < 1]
    mean = sum(logs[key] for key in telling) / max(len(telling), 1)
    spread = sum((logs[key] - mean) ** 2 for key in telling) / max(len(telling) - 1, 1)
    noise = sum(ratios[key][1] ** 2 for key in telling) / max(len(telling), 1)
    true = max(spread - noise, 0.0)
    kept = {key: true / (true + error**2) if true else 0.0 for key, (_, error) in ratios.items()}
    return {key: math.exp(mean + (value - mean) * kept[key]) for key, value in logs.items()}
