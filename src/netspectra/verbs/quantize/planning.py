"""From a model and a few batches to bits for every weight: the planner of compression, with a budget in bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from netspectra.errors import InputRefused
from netspectra.forms.rounded import bits_of
from netspectra.plan import Plan
from netspectra.verbs.compress.allocate import Choice, Component, Option
from netspectra.verbs.compress.calibrate import Calibration, samples_in
from netspectra.verbs.compress.objective import Objective
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.replace import tried
from netspectra.verbs.compress.workshop import Progress, Workshop
from netspectra.verbs.quantize.along import losses_along
from netspectra.verbs.quantize.options import QuantizeOptions

__all__ = ["quantize", "shrunk"]

USUAL = 4.25  # bits a weight: int4 with groups of 64, without zero points
CHECKED = 256  # samples along whose errors predictions are checked, at most
JUDGING = 64  # samples that measure a layer, at most
MEASURED = (4, 3, 2)  # bits at which a layer is measured; others take the ratio of the nearest
NO_DATA = (
    "no calibration data: every weight gets the same bits and is rounded to the nearest. A weight's own spectrum does "
    "not say how many bits it needs (largest rank correlation with measured sensitivity of any of its features: 0.36 "
    "over 18 matrices, not significant)"
)
WEAK = (
    "weak: bits are chosen by the error of the weights alone. That did not predict the loss where it was measured, and "
    "was worse than the same bits everywhere; give calibration data and --weigh predicted"
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
        if options.weigh == "predicted" and shop.weighed and shop.batches and shop.held is not None:
            shop.parts, note = _checked(shop, shop.held.objective, options.seed, progress)
            notes += note
        return notes

    return compress(
        model,
        options.compression(),
        data,
        calibration=calibration,
        plan=plan,
        progress=progress,
        verb="quantize",
        prepare=prepare,
    )


def _limit(shop: Workshop, options: QuantizeOptions) -> tuple[float, float]:
    """Bytes that may be spent on the selected weights and their biases, and the bits a weight which that makes."""
    modules = {m.name: m.module for site in shop.sites.found for m in site.members.values()}
    weights = sum(module.weight.numel() for module in modules.values())  # type: ignore[operator, union-attr]
    whole = sum(p.numel() * p.element_size() for module in modules.values() for p in module.parameters())
    plain = sum(module.weight.numel() * module.weight.element_size() for module in modules.values())  # type: ignore[operator, union-attr]
    biases = whole - plain
    if options.bytes is not None:
        return options.bytes, 8 * (options.bytes - biases) / weights
    bits = USUAL if options.bits is None else options.bits
    return bits / 8 * weights + biases, bits


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


def _checked(shop: Workshop, objective: Objective, seed: int, progress: Progress) -> tuple[list[Component], list[str]]:
    """The same components, each layer's losses scaled to what its own error costs when tokens are not independent."""
    references = {key: one for key, some in shop.choices.items() if (one := _reference(some)) is not None}
    changed = {}
    for choice in references.values():
        [replacement] = shop.fit([Option((choice,), choice.cost, choice.loss)])
        changed[replacement.name] = replacement.module
    told = losses_along(
        shop.model, shop.batches, objective, changed, samples=CHECKED, seed=seed,
        progress=lambda share: progress("checking the predictions along the errors", share),
    )  # fmt: skip
    found = {key: told[one.site.member.name] for key, one in references.items() if one.site.member.name in told}
    ratios = shrunk(
        {key: (one.loss / references[key].loss, one.error / one.loss) for key, one in found.items() if one.loss > 0}
    )
    if not ratios:
        return shop.parts, []
    choices = {key: _times(some, {3: ratios[key]} if key in ratios else {}) for key, some in shop.choices.items()}
    low, high = min(ratios.values()), max(ratios.values())
    note = f"predictions were checked along each layer's own error, tokens together: times {low:.2g} to {high:.2g}"
    return [replace(part, choices=choices, _hulls={}) for part in shop.parts], [note]


def _reference(choices: Sequence[Choice]) -> Choice | None:
    """The choice at which a site is checked: of the bits that allocations turn on, the first that there is."""
    plain = {bits_of(choice.form): choice for choice in choices if not choice.size and choice.loss > 0}
    return next((plain[bits] for bits in (3, 4, 2, 5, 6, 8) if bits in plain), None)


def shrunk(ratios: Mapping[int, tuple[float, float]]) -> dict[int, float]:
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
