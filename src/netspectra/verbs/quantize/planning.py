"""From a model and a few batches to bits for every weight: the planner of compression, with a budget in bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Site
from netspectra.forms.rounded import bits_of
from netspectra.live.batches import samples_in
from netspectra.plan import Plan
from netspectra.verbs.compress.allocate import Choice, Component, Option
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.replace import tried
from netspectra.verbs.compress.workshop import Progress, Workshop
from netspectra.verbs.quantize.drawn import drawn
from netspectra.verbs.quantize.frontier import frontier
from netspectra.verbs.quantize.options import QuantizeOptions

__all__ = ["NO_DATA", "WEAK", "quantize"]

JUDGING = 64  # samples that measure a layer, at most
MEASURED = (4, 3, 2)  # bits at which a layer is measured; others take the ratio of the nearest
NO_DATA = (
    "no calibration data: every weight gets the same bits and is rounded to the nearest. A weight's own spectrum does "
    "not say how many bits it needs: what fits the losses of one model does not fit those of another"
)
WEAK = (
    "weak: bits are chosen by the error of the weights alone, a poor guide to the loss: in MiniLM at 3 bits it was "
    "worse than the same bits everywhere; give calibration data and --weigh predicted"
)


def quantize(
    model: nn.Module,
    options: QuantizeOptions,
    data: Any = None,
    *,
    calibration: Calibration | None = None,
    plan: Plan | None = None,
    progress: Progress = lambda what, share: None,
) -> tuple[Plan, Workshop]:
    """Plan bits and correction of every weight; the model is not changed until the plan is applied.

    Args:
        model: any module.
        options: budget and the rest.
        data: batches the model is called with; None: the same bits everywhere, rounded to the nearest.
        calibration: moments taken before, instead of new ones.
        plan: decisions to replay (edited, perhaps) instead of allocating.
        progress: is told what is being done.

    Raises:
        InputRefused: the budget cannot be met, nothing is selected, the plan is another model's.
    """
    if options.weigh == "measured" and data is None:
        raise InputRefused("weigh measured needs data to measure with; give calibration")

    def prepare(shop: Workshop) -> list[str]:
        notes = []
        if shop.options.loss is None:
            limit, bits = _limit(shop, options)
            shop.options = replace(shop.options, bytes=limit)
            notes.append(f"budget: {bits:.4g} bits a weight with scales, zero points and corrections")
        if options.weigh == "weights":
            shop.weighed = True
            notes.append(WEAK)
        elif shop.calibration is None:
            notes.append(NO_DATA)
        if options.weigh == "measured":
            shop.parts = _measured(shop, progress)
            notes.append("predictions are scaled by the loss measured when a layer alone is quantized")
        return notes

    def compare(shop: Workshop) -> dict[str, Any]:
        if not shop.weighed:
            return {}
        progress("judging other ways to spend the bytes", 0.0)
        found: dict[str, Any] = {"frontier": frontier(shop, options.weigh, options.seed)}
        limit = shop.options.bytes
        if limit is not None:
            some = drawn(shop.singles, limit, options.seed)
            found["drawn"] = {**shop.judged(some), "bytes": sum(option.cost.bytes for option in some)}
        return found

    return compress(
        model,
        options.compression(),
        data,
        calibration=calibration,
        plan=plan,
        progress=progress,
        verb="quantize",
        prepare=prepare,
        compare=compare,
    )


def _limit(shop: Workshop, options: QuantizeOptions) -> tuple[float, float]:
    """Bytes that may be spent on the selected weights and their biases, and the bits a weight which that makes.

    What no form can round (padding that is no zeros, say) counts as it is.
    """
    modules = {m.name: m.module for site in shop.sites.found for m in site.members.values()}
    stuck = {site.member.name for site in shop.sites.found if len(site.members) == 1 and _refused(shop, site)}
    sizes = {name: module.weight.numel() for name, module in modules.items()}  # type: ignore[operator, union-attr]
    whole = sum(p.numel() * p.element_size() for module in modules.values() for p in module.parameters())
    plain = sum(modules[name].weight.element_size() * size for name, size in sizes.items() if name not in stuck)  # type: ignore[operator, union-attr]
    return options.limit(sum(size for name, size in sizes.items() if name not in stuck), whole - plain)


def _refused(shop: Workshop, site: Site) -> bool:
    forms = [FORMS[name] for name in shop.options.forms]
    return all(form.refuses(site) for form in forms if site.kind in form.kinds)


def _measured(shop: Workshop, progress: Progress) -> list[Component]:
    """The same components, their losses scaled, layer by layer, to what quantizing that layer alone costs."""
    if shop.held is None:
        raise InputRefused("weigh measured needs held-out samples; held_out is 0 or there is one sample only")
    judge = HeldOut.of(shop.model, _few(shop.batches), shop.held.objective)
    choices = {}
    for place, (key, found) in enumerate(shop.choices.items()):
        choices[key] = _scaled(shop, judge, found)
        progress("measuring layer by layer", (place + 1) / len(shop.choices))
    return [replace(part, choices=choices, _hulls={}) for part in shop.parts]


def _few(batches: Sequence[Any]) -> list[Any]:
    """Some of the batches, evenly."""
    size = max(1, max(map(samples_in, batches)))
    count = max(1, JUDGING // size)
    return [batches[i * len(batches) // count] for i in range(min(count, len(batches)))]


@torch.no_grad()
def _scaled(shop: Workshop, judge: HeldOut, choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Choices of one site with losses times measured / predicted, at the nearest number of bits that was measured."""
    ratios: dict[int, float] = {}
    for choice in choices:
        bits = bits_of(choice.form)
        if bits in MEASURED and not choice.size and choice.loss > 0:
            alone = Option((choice,), choice.cost, choice.loss)
            with tried(shop.model, shop.fit([alone])) as changed:
                ratios[bits] = judge.loss(changed) / choice.loss
    return _times(choices, ratios)


def _times(choices: Sequence[Choice], ratios: Mapping[int, float]) -> tuple[Choice, ...]:
    """Choices whose losses at few bits are multiplied by the ratio of the nearest number of bits that is known."""

    def scaled(choice: Choice) -> Choice:
        bits = bits_of(choice.form)
        if not bits or not ratios:
            return choice
        nearest = min(ratios, key=lambda known: abs(known - bits))
        return replace(choice, loss=choice.loss * ratios[nearest])

    return tuple(map(scaled, choices))
