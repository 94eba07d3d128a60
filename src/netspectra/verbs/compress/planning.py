"""From a model and a few batches to a plan: calibrate, weigh, allocate, judge on held-out data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from netspectra.forms import FORMS
from netspectra.plan import Cost, Decision, Plan, fingerprint
from netspectra.verbs.compress.allocate import Choice, Component, Measure, total, walked
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.checked import check
from netspectra.verbs.compress.decide import chosen, replayed
from netspectra.verbs.compress.finish import apply_
from netspectra.verbs.compress.objective import Objective
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.replace import DENSE
from netspectra.verbs.compress.rounding import rounding
from netspectra.verbs.compress.workshop import Progress, Workshop, opened

__all__ = ["compress", "frontier"]

NO_DATA = "no calibration data: plain truncation, layer by layer; expect far more loss than with data"
FEW_TOKENS = 3.0  # tokens a dimension under which a warning is due


def compress(
    model: nn.Module,
    options: CompressOptions,
    data: Any = None,
    *,
    calibration: Calibration | None = None,
    plan: Plan | None = None,
    progress: Progress = lambda what, share: None,
    verb: str = "compress",
    prepare: Callable[[Workshop], list[str]] = lambda shop: [],
    compare: Callable[[Workshop], dict[str, Any]] = lambda shop: {},
) -> tuple[Plan, Workshop]:
    """Plan what to make of every layer; the model is not changed until the plan is applied.

    Args:
        model: any module.
        options: budget and the rest.
        data: batches the model is called with; None: plain truncation by Eckart-Young, layer by layer.
        calibration: moments taken before, instead of new ones.
        plan: decisions to replay (edited, perhaps) instead of allocating.
        progress: is told what is being done.
        verb: for the plan.
        prepare: may change the workshop before anything is decided; gives notes for the plan.
        compare: what else is measured on held-out data, for the plan to show.

    Raises:
        InputRefused: the budget cannot be met, nothing is selected, the plan is another model's.
    """
    if plan is not None:
        plan.must_fit(fingerprint(model.named_parameters()))
    shop, objective = opened(model, options, data, calibration, progress)
    notes = [*_notes(shop, objective, verb), *prepare(shop)]
    if objective is not None and shop.weighed and options.checked:
        notes += check(shop, objective, progress)
    if plan is not None:
        decided = replayed(shop, plan)
        held_out: dict[str, Any] = {"plan": shop.judged(decided)} if shop.held else {}
        why = "as the given plan has it"
    else:
        decided, held_out, why = chosen(shop, progress)
        held_out = held_out | compare(shop) if shop.held else held_out
    shop.settle(decided)
    if shop.held:
        held_out |= {"rounding": rounding(shop.model, shop.sites, shop.held)}
    made = replace(_plan(shop, held_out, why, tuple(notes), objective), verb=verb)

    def put(target: nn.Module) -> nn.Module:
        made.must_fit(fingerprint(target.named_parameters()))
        return apply_(shop, made, target, progress)

    return made.bound(put), shop


def _plan(
    shop: Workshop,
    held_out: Mapping[str, Any],
    why: str,
    notes: tuple[str, ...],
    objective: Objective | None,
) -> Plan:
    order = {name: place for place, (name, _) in enumerate(shop.model.named_modules())}
    comparable = shop.weighed
    decisions = []
    for option in shop.chosen:
        for choice in option.choices:
            site = choice.site
            names = tuple(sorted((m.name for m in site.members.values()), key=lambda name: order[name]))
            before = shop.choices[id(site)][0].cost
            reason = _reason(shop, choice, why)
            loss = choice.loss if comparable or choice.form == DENSE else None
            decisions.append(
                Decision(site.name, site.kind, names, choice.form, choice.size, before, choice.cost, loss, reason)
            )
    decisions.sort(key=lambda decision: order[decision.modules[0]])
    for name, reason in shop.sites.left.items():
        parameters = _parameters(shop.model, name)
        cost = Cost(parameters, _bytes(shop.model, name))
        decisions.append(Decision(name, "left", (name,), DENSE, 0, cost, cost, 0.0, reason))
    decided = total(choice.cost for option in shop.chosen for choice in option.choices)
    dense = total(shop.choices[id(choice.site)][0].cost for option in shop.chosen for choice in option.choices)
    unique = {id(p): p for p in shop.model.parameters()}.values()
    whole = Cost(sum(p.numel() for p in unique), sum(p.numel() * p.element_size() for p in unique))
    after = Cost(
        whole.parameters - dense.parameters + decided.parameters, whole.bytes - dense.bytes + decided.bytes
    )  # fmt: skip
    return Plan(
        tuple(decisions),
        options={
            **shop.options.to_dict(),
            "budget": shop.options.budget,
            "objective": objective.name if objective else "weights",
            "method": shop.sites.found[0].method,
        },
        totals={"selected_before": dense, "selected_after": decided, "model_before": whole, "model_after": after},
        held_out=held_out,
        frontier=tuple(frontier(shop.parts, shop.options.axis)) if comparable else (),
        notes=notes,
        fingerprint=fingerprint(shop.model.named_parameters()),
    )  # fmt: skip


def _reason(shop: Workshop, choice: Choice, why: str) -> str:
    if choice.form != DENSE:
        return why
    offered = len(shop.choices[id(choice.site)]) - 1
    if offered:
        return "left alone: the budget is spent better elsewhere"
    refusals = [FORMS[name].refuses(choice.site) for name in FORMS if choice.site.kind in FORMS[name].kinds]
    return f"left alone: {next((r for r in refusals if r), 'no form is smaller, or measured faster')}"


def _parameters(model: nn.Module, name: str) -> int:
    return sum(p.numel() for n, p in model.named_parameters() if n == name or n.rpartition(".")[0] == name)


def _bytes(model: nn.Module, name: str) -> int:
    own = (p for n, p in model.named_parameters() if n == name or n.rpartition(".")[0] == name)
    return sum(p.numel() * p.element_size() for p in own)


def frontier(parts: Sequence[Component], measure: Measure, points: int = 40) -> Iterable[dict[str, Any]]:
    """Size against predicted loss, from the hulls alone."""
    hulls = [part.hull(measure) for part in parts]
    low = sum(points[0].of(measure) for points in hulls)
    high = sum(points[-1].of(measure) for points in hulls)
    for limit in np.linspace(low, high, points):
        steps = walked(hulls, measure, limit)
        cost = total(option.cost for option in steps)
        yield {
            "keep": getattr(cost, measure) / high,
            "parameters": cost.parameters,
            "bytes": cost.bytes,
            "flops": cost.flops,
            "milliseconds": cost.milliseconds,
            "loss": sum(option.loss for option in steps),
        }


def _notes(shop: Workshop, objective: Objective | None, verb: str) -> list[str]:
    notes = []
    if shop.calibration is None:  # quantization, which truncates nothing, has its own words for it
        return [NO_DATA] if verb == "compress" else []
    if objective is not None:
        notes.append(f"what is kept: the model's {objective.name}; pass objective= for something else")
    few = [n for n, moments in shop.calibration.inputs.items()
           if not moments.diagonal and moments.effective_tokens < FEW_TOKENS]  # fmt: skip
    if few:
        least = min(shop.calibration.inputs[name].effective_tokens for name in few)
        notes.append(
            f"few tokens: {len(few)} of {len(shop.calibration.inputs)} inputs saw fewer than {FEW_TOKENS:g} tokens a "
            f"dimension (least: {least:.2g}); give more calibration samples"
        )
    return notes
