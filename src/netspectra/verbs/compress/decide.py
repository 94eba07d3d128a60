"""Which options: the candidates that a budget allows, judged on held-out data; or those that a given plan names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from netspectra.errors import InputRefused
from netspectra.plan import Plan
from netspectra.verbs.compress.allocate import (
    Budget,
    Choice,
    Component,
    Measure,
    Option,
    allocate,
    filled,
    total,
    uniform,
)
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.replace import DENSE
from netspectra.verbs.compress.workshop import Progress, Workshop

__all__ = ["budget_of", "chosen", "replayed"]


def budget_of(options: CompressOptions, parts: Sequence[Component]) -> Budget:
    """What may not be exceeded, in the measure that was asked for."""
    if options.budget == "keep":
        before = sum(part.dense().of("parameters") for part in parts)
        return Budget("parameters", (0.5 if options.keep is None else options.keep) * before)
    return Budget(cast(Measure, options.budget), float(getattr(options, options.budget)), options.axis)


def chosen(shop: Workshop, progress: Progress) -> tuple[list[Option], dict[str, Any], str]:
    """The best of the candidates on held-out data, what each of them measured, and why."""
    budget = budget_of(shop.options, shop.parts)
    measure = budget.axis
    method = shop.sites.found[0].method
    candidates: dict[str, list[Option]] = {}
    weighed = shop.weighed
    if weighed or budget.measure == "loss":
        if not weighed:
            raise InputRefused(f"method {method} does not predict the model's loss: a loss budget needs two_sided")
        candidates["allocated"] = allocate(shop.parts, budget)
    before = sum(part.dense().of(measure) for part in shop.parts)
    if budget.measure == "loss":
        share = sum(option.of(measure) for option in candidates["allocated"]) / before
    else:
        share = budget.limit / before
    even = uniform(shop.parts, share, measure)
    if sum(option.of(measure) for option in even) <= share * before * (1 + 1e-9):
        candidates["uniform"] = even
        if weighed and budget.measure != "loss":
            candidates["uniform, filled"] = filled(shop.parts, even, budget)
    if not candidates:
        raise InputRefused(f"the budget of {budget.limit:.4g} {measure} cannot be met layer by layer; raise it")
    if shop.held is None:
        name = next(iter(candidates))
        return candidates[name], {}, f"{name}; nothing was held out to judge by"
    for options in zip(*candidates.values(), strict=True):  # layer by layer, while what they need is at hand
        shop.fit(options)
    measured: dict[str, dict[str, float]] = {}
    for place, (name, options) in enumerate(candidates.items()):
        progress("judging on held-out data", place / len(candidates))
        measured[name] = shop.judged(options)
    best = min(measured, key=lambda name: measured[name]["loss"])
    return candidates[best], {"candidates": measured, "kept": best}, f"{best} was best on held-out data"


def replayed(shop: Workshop, plan: Plan) -> list[Option]:
    """The options that a plan names."""
    by_names = {
        (frozenset(m.name for m in site.members.values()), site.kind): site for site in shop.sites.found
    }  # fmt: skip
    wanted: dict[int, Choice] = {}
    covered: set[str] = set()
    for decision in plan:
        site = by_names.get((frozenset(decision.modules), decision.kind))
        if decision.form == DENSE:
            continue
        if site is None:
            raise InputRefused(f"plan: {decision.site}: this model has no such {decision.kind} site, or it is excluded")
        found = [c for c in shop.choices[id(site)] if c.form == decision.form and c.size == decision.size]
        if not found:
            raise InputRefused(f"plan: {decision.site}: {decision.form} of size {decision.size} cannot stand here")
        if covered & set(decision.modules):
            raise InputRefused(f"plan: {decision.site}: one of its modules is decided on twice")
        covered |= set(decision.modules)
        wanted[id(site)] = found[0]
    chosen = []
    for part in shop.parts:
        for sites in part.alternatives:
            picked = [wanted.get(id(site), part.choices[id(site)][0]) for site in sites]
            named = {id(site) for group in part.alternatives for site in group} & set(wanted)
            if named <= {id(site) for site in sites}:
                chosen.append(Option(tuple(picked), total(c.cost for c in picked), sum(c.loss for c in picked)))
                break
    return chosen
