"""Predicted losses, scaled layer by layer to what a layer's own error costs where tokens depend on one another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import nn

from netspectra.forms import Site
from netspectra.forms.rounded import bits_of
from netspectra.verbs.compress.allocate import Choice, Option
from netspectra.verbs.compress.along import losses_along
from netspectra.verbs.compress.decide import budget_of
from netspectra.verbs.compress.objective import Objective
from netspectra.verbs.compress.replace import DENSE
from netspectra.verbs.compress.workshop import Progress, Workshop

__all__ = ["check", "shrunk"]

Ratios = Mapping[str, float]  # by the name of a module
K = TypeVar("K", bound=Hashable)

REDUCED = 0  # stands for forms that keep numbers as they are, where others go by their bits
FEWEST = 3  # numbers of bits at which a rounding is checked; errors of more bits differ from the next in size only
CARRIERS = {"mlp": ("down",), "value_output": ("output",)}  # roles in whose outputs the error shows; else all of them
USUAL = 0.5  # share at which a reduction is checked, where the budget names none


def check(shop: Workshop, objective: Objective, progress: Progress) -> list[str]:
    """Scale what every choice of the workshop is predicted to lose; gives notes for the plan.

    The moments predict tr(G E A E^T), as if tokens were independent. A layer's own errors, at the fewest bits it may
    get and in one reduced form of about the budget's size, are followed through the network (`losses_along`), and its
    choices of that kind take the ratio of the two; those of more bits that of the nearest. A block of several layers
    takes the ratio of those in whose outputs its error shows.

    Cost: a forward and a backward pass over ``options.checked`` samples, and up to four fits a layer.
    """
    found = _ratios(shop, objective, progress)
    if not found:
        return []
    every = [ratio for ratios, _ in found.values() for ratio in ratios.values()]
    choices = {key: tuple(_scaled(some, found)) for key, some in shop.choices.items()}
    shop.parts = [replace(part, choices=choices, _hulls={}) for part in shop.parts]
    return [
        "predictions were checked along each layer's own error, tokens together: "
        f"times {min(every):.2g} to {max(every):.2g}"
    ]


def _ratios(shop: Workshop, objective: Objective, progress: Progress) -> dict[int, tuple[Ratios, float]]:
    """For each way, by how much the loss of each layer's error is more than the moments predict; and what is usual."""
    references: dict[str, list[tuple[int, Choice]]] = {}
    changed: dict[str, list[nn.Module]] = {}
    for some in shop.choices.values():
        site = some[0].site
        if len(site.members) > 1:
            continue
        for way, choice in _references(shop, some):
            for one in shop.fit([Option((choice,), choice.cost, choice.loss)]):
                if one.name == site.member.name:
                    references.setdefault(one.name, []).append((way, choice))
                    changed.setdefault(one.name, []).append(one.module)
    if not references:
        return {}
    told = losses_along(
        shop.model, shop.batches, objective, changed, samples=shop.options.checked, seed=shop.options.seed,
        progress=lambda share: progress("checking the predictions along the errors", share),
    )  # fmt: skip
    ratios: dict[int, dict[str, tuple[float, float]]] = {}
    for name, some in told.items():
        for (way, choice), one in zip(references[name], some, strict=True):
            if one.loss > 0:
                ratios.setdefault(way, {})[name] = one.loss / choice.loss, one.error / one.loss
    found: dict[int, tuple[Ratios, float]] = {}
    for way, known in ratios.items():
        kept = shrunk(known)
        found[way] = kept, math.exp(sum(map(math.log, kept.values())) / len(kept))
    return found


def _references(shop: Workshop, choices: Sequence[Choice]) -> Iterator[tuple[int, Choice]]:
    """The choices at which a site is checked."""
    plain = {bits_of(choice.form): choice for choice in choices if not choice.size and choice.loss > 0}
    for bits in sorted(set(plain) - {REDUCED})[:FEWEST]:
        yield bits, plain[bits]
    reduced = [c for c in choices if c.form != DENSE and not bits_of(c.form) and c.size and c.loss > 0]
    if reduced:
        wanted = _share(shop) * choices[0].cost.parameters
        yield REDUCED, min(reduced, key=lambda c: (abs(c.cost.parameters - wanted), c.loss))


def _share(shop: Workshop) -> float:
    """Of the weights that are decided on, what the budget leaves."""
    budget = budget_of(shop.options, shop.parts)
    if budget.measure == "loss":
        return USUAL
    return min(1.0, budget.limit / sum(part.dense().of(budget.measure) for part in shop.parts))


def _scaled(choices: Sequence[Choice], found: Mapping[int, tuple[Ratios, float]]) -> Iterator[Choice]:
    known = sorted(set(found) - {REDUCED})
    for choice in choices:
        bits = bits_of(choice.form)
        way = min(known, key=lambda one: abs(one - bits), default=REDUCED) if bits else REDUCED
        if choice.form == DENSE or way not in found or bool(way) != bool(bits):
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
