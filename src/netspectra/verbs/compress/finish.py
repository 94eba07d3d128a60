"""From options to modules in a model: fitted, fitted anew, healed, measured."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from netspectra.plan import Plan
from netspectra.verbs.compress.heal import heal_
from netspectra.verbs.compress.quality import is_causal, perplexity
from netspectra.verbs.compress.refit import refit_
from netspectra.verbs.compress.replace import Replacement, replace_, tried
from netspectra.verbs.compress.speed import speed
from netspectra.verbs.compress.workshop import Progress, Workshop

__all__ = ["apply_"]


def apply_(shop: Workshop, plan: Plan, model: nn.Module, progress: Progress) -> nn.Module:
    """Put what was decided into a model; the first time it is finished and measured, which the plan then tells."""
    if shop.finished is None:
        shop.finished = _finished(shop, progress)
        plan.finish.update(shop.kept)
        if shop.held is not None:
            with tried(shop.model, shop.finished) as changed:
                plan.finish["final"] = shop.held.measure(changed)
        _measured_whole(shop, plan, shop.finished)
    modules = copy.deepcopy([one.module for one in shop.finished])  # together, so that what they share stays shared
    return replace_(model, [replace(one, module=m) for one, m in zip(shop.finished, modules, strict=True)])


def _measured_whole(shop: Workshop, plan: Plan, finished: Sequence[Replacement]) -> None:
    """Into the plan: speed of the whole model, the user's own metric, perplexity of causal language models."""
    tasks: list[Callable[[nn.Module], Mapping[str, float]]] = [shop.options.task] if shop.options.task else []
    if shop.held is not None and is_causal(shop.model, shop.held.batches):
        batches = shop.held.batches
        tasks.append(lambda model: {"perplexity": perplexity(model, batches)})
    for task in tasks:
        before = task(shop.model)
        with tried(shop.model, finished) as changed:
            after = task(changed)
        plan.finish.setdefault("task", {}).update({name: [before[name], after[name]] for name in before})
    if shop.options.timed and shop.batches:
        plan.finish["speed"] = speed(shop.model, finished, shop.batches[0])


def _finished(shop: Workshop, progress: Progress) -> list[Replacement]:
    """The fitted modules, refitted and healed where that was asked for and helps on held-out data."""
    replacements = shop.fit(shop.chosen)
    if shop.held is None or not replacements:
        return replacements
    held, options = shop.held, shop.options

    def judge() -> float:
        with tried(shop.model, replacements) as changed:
            return held.loss(changed)

    best = judge() if options.refit else 0.0
    for sweep in range(options.refit):
        progress("fitting anew behind compressed layers", sweep / options.refit)
        undo = refit_(shop.model, replacements, shop.batches)
        found = judge()
        shop.kept[f"refit {sweep + 1}"] = {"before": best, "after": found, "kept": found < best}
        if found >= best:
            with torch.no_grad():
                for parameter, value in undo:
                    parameter.copy_(value)
            break
        best = found
    if options.heal:
        first, last = heal_(
            shop.model,
            replacements,
            shop.batches,
            held.objective,
            steps=options.heal,
            rate=options.heal_rate,
            judge=judge,
            progress=lambda share: progress("healing", share),
        )
        shop.kept["heal"] = {"before": first, "after": last, "kept": last < first}
    return replacements
