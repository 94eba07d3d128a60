"""One subject: allocations at equal bytes, roundings at equal bytes, corrections, more bits against a correction."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.quantize.sensitivity import choice_weight, proxies, sensitivities
from benchmarks.quantize.subjects import GROUP, Subject
from netspectra.forms import Member
from netspectra.forms.rounded import bits_of
from netspectra.linalg.rounding import Grid, compensated, group_of, nearest
from netspectra.linalg.weighted import leading
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.allocate import Budget, Choice, Component, Option, allocate, uniform
from netspectra.verbs.compress.decide import chosen
from netspectra.verbs.compress.replace import tried
from netspectra.verbs.compress.workshop import Workshop
from netspectra.verbs.quantize.drawn import drawn
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import quantize

LEVELS = (8, 6, 5, 4, 3, 2)
SEEDS = 5


def opened(subject: Subject, calibration: Any = None, **options: Any) -> Workshop:
    """What each weight can become, at a budget that does not matter yet."""
    asked = QuantizeOptions(bits=8, levels=LEVELS, group=GROUP, include=subject.include, **options)
    return quantize(subject.model, asked, list(subject.calibration), calibration=calibration)[1]


def singles(shop: Workshop) -> list[Component]:
    """One component a layer, with the choices of few bits only."""
    return [
        Component(
            ((site,),), {id(site): tuple(c for c in shop.choices[id(site)] if c.form == "dense" or bits_of(c.form))}
        )
        for site in shop.sites.found
        if len(site.members) == 1
    ]


def weighed(
    parts: Sequence[Component], loss: Callable[[Choice], float], ranks: Sequence[int] = (0,)
) -> list[Component]:
    """The same layers with other losses, and corrections of these ranks only."""
    found = []
    for part in parts:
        choices = {
            key: tuple(replace(c, loss=0.0 if c.form == "dense" else loss(c)) for c in some
                       if c.form == "dense" or c.size in ranks)
            for key, some in part.choices.items()
        }  # fmt: skip
        found.append(Component(part.alternatives, choices))
    return found


def bytes_of(options: Sequence[Option]) -> int:
    return sum(option.cost.bytes for option in options)


def even(parts: Sequence[Component], form: str, rank: int = 0) -> list[Option]:
    """The same bits and rank everywhere; where a layer is too small for the rank, none."""

    def fits(choice: Choice) -> bool:
        sizes = [c.size for c in by_site[id(choice.site)] if c.form == form and c.size <= rank]
        return choice.form == form and choice.size == max(sizes)

    by_site = {key: some for part in parts for key, some in part.choices.items()}
    return uniform(parts, 1.0, "bytes", fits)


class Bench:
    """A subject with its choices worked out once."""

    def __init__(self, subject: Subject, calibration: Any = None, **options: Any) -> None:
        started = time.process_time()
        self.subject = subject
        self.shop = opened(subject, calibration, **options)
        self.parts = singles(self.shop)
        self.seconds = time.process_time() - started
        self.members = {part.alternatives[0][0].name: part.alternatives[0][0].member for part in self.parts}

    def judged(self, options: Sequence[Option]) -> dict[str, float]:
        with untouched(self.subject.model), tried(self.subject.model, self.shop.fit(options)) as changed:
            return self.subject.distance(changed)

    def with_weights(self, made: Mapping[str, Tensor]) -> dict[str, float]:
        """The distance with other weights (as rows of outputs), the error's mean folded into the bias."""
        before = {}
        try:
            with torch.no_grad():
                for name, W in made.items():
                    member = self.members[name]
                    module = member.module
                    bias = getattr(module, "bias", None)
                    before[name] = (module.weight.detach().clone(), None if bias is None else bias.detach().clone())
                    module.weight.copy_(W.reshape(module.weight.shape))
                    if bias is not None and member.mean is not None:
                        bias += ((member.W - W) @ member.mean).to(bias)
                return self.subject.distance(self.subject.model)
        finally:
            with torch.no_grad():
                for name, (weight, bias) in before.items():
                    self.members[name].module.weight.copy_(weight)
                    if bias is not None:
                        self.members[name].module.bias.copy_(bias)


# ---- allocations -------------------------------------------------------------------------------------------------


def allocations(bench: Bench, forms: Sequence[str] = ("int3", "int4")) -> list[dict[str, Any]]:
    """Distances at the bytes of the same bits everywhere, with no corrections: only where the bits go differs."""
    known: dict[tuple[int, str], dict[str, float]] = {}

    def proxy(name: str) -> Callable[[Choice], float]:
        def loss(choice: Choice) -> float:
            key = (id(choice.site), choice.form)
            if key not in known:
                known[key] = proxies(choice)
            return known[key][name]

        return loss

    measured = measured_losses(bench)
    rows = []
    for form in forms:
        same = even(bench.parts, form)
        limit = Budget("bytes", bytes_of(same))
        made = {"the same bits everywhere": same}
        for name in (
            "sigma_1 squared",
            "stable rank",
            "weight error",
            "activations only",
            "moments alone",
            "predicted",
        ):
            made[name] = allocate(weighed(bench.parts, proxy(name)), limit)
        made["measured"] = allocate(weighed(bench.parts, lambda c: measured[id(c.site), c.form]), limit)
        made["predicted, with corrections"] = allocate(bench.parts, limit)
        made["as the command chooses"] = commanded(bench.shop, bench.parts, limit)
        for name, options in made.items():
            rows.append({"budget": form, "allocation": name, "bytes": bytes_of(options), **judged_row(bench, options)})
        layers = [some for part in bench.parts for some in part.choices.values()]
        lost = [judged_row(bench, drawn(layers, limit.limit, seed))["distance"] for seed in range(SEEDS)]
        by_set = {name: [one[name] for one in lost] for name in lost[0]}
        rows.append(
            {
                "budget": form,
                "allocation": f"random (mean of {SEEDS})",
                "bytes": bytes_of(same),
                "distance": {name: statistics.fmean(some) for name, some in by_set.items()},
                "spread": {name: [min(some), max(some)] for name, some in by_set.items()},
            }
        )
    return rows


def commanded(shop: Workshop, parts: Sequence[Component], limit: Budget) -> list[Option]:
    """Of its candidates the command keeps the one that loses least on held-out calibration samples."""
    fewer = replace(shop, options=replace(shop.options, bytes=limit.limit), parts=list(parts))
    return list(chosen(fewer, lambda what, share: None)[0])


def judged_row(bench: Bench, options: Sequence[Option]) -> dict[str, Any]:
    return {"distance": bench.judged(options)}


def measured_losses(bench: Bench) -> dict[tuple[int, str], float]:
    """The planner's own measured mode, on its held-out samples."""
    assert bench.shop.held is not None
    found: dict[tuple[int, str], float] = {}
    for part in bench.parts:
        for some in part.choices.values():
            for choice in some:
                if bits_of(choice.form) and not choice.size:
                    key = (id(choice.site), choice.form)
                    if choice.form == "int8":
                        found[key] = choice.loss
                        continue
                    with tried(bench.subject.model, bench.shop.fit([Option((choice,), choice.cost, 0.0)])) as changed:
                        found[key] = bench.shop.held.loss(changed)
    return found


# ---- rounding and corrections ------------------------------------------------------------------------------------


def groups(W: Tensor) -> Tensor:
    return W.reshape(len(W), -1, group_of(W.shape[1], GROUP))


def minmax(W: Tensor, bits: int) -> Tensor:
    """Rounding to the nearest between each group's ends, with a zero point: what torchao's weight-only configs do."""
    return nearest(W, Grid(bits, GROUP), search=False).numbers()


def half_quadratic(W: Tensor, bits: int, steps: int = 20, p: float = 0.7) -> Tensor:
    """Zero points by half-quadratic splitting (Badri & Shaji 2023, HQQ): sparse errors are let be."""
    cut, top = groups(W), 2**bits - 1
    low, high = cut.amin(-1, keepdim=True), cut.amax(-1, keepdim=True)
    scale = ((high - low) / top).clamp_min(1e-12)
    zero = -low / scale
    beta, best, kept = 10.0, None, None
    for _ in range(steps):
        codes = (cut / scale + zero).round().clamp(0, top)
        numbers = (codes - zero) * scale
        error = cut - numbers
        cost = float(error.abs().pow(p).mean())
        if best is not None and cost >= best:
            break
        best, kept = cost, numbers
        size = error.abs()
        shrunk = error.sign() * (size - size.clamp_min(1e-12).pow(p - 1) / beta).clamp_min(0)
        zero = (codes - (cut - shrunk) / scale).mean(-1, keepdim=True)
        beta *= 1.01
    assert kept is not None
    return kept.reshape(W.shape)


def searched(W: Tensor, bits: int, A: Tensor | None) -> Tensor:
    return nearest(W, Grid(bits, GROUP), A).numbers()


def compensating(W: Tensor, bits: int, A: Tensor | None) -> Tensor:
    return searched(W, bits, A) if A is None else compensated(W, [Grid(bits, GROUP)], A)[0].numbers()


def roundings(bench: Bench, bits: Sequence[int] = (4, 3, 2)) -> list[dict[str, Any]]:
    """Ways to round, all with the same groups, zero points and bytes."""
    ways: dict[str, Callable[[Any, int], Tensor]] = {
        "nearest, no clipping (torchao)": lambda m, b: minmax(m.W, b),
        "half-quadratic zero points (HQQ)": lambda m, b: half_quadratic(m.W, b),
        "nearest, scales by weighted error": lambda m, b: searched(m.W, b, m.A),
        "compensated": lambda m, b: compensating(m.W, b, m.A),
    }
    return [
        {"bits": b, "rounding": name, "distance": bench.with_weights({n: way(m, b) for n, m in bench.members.items()})}
        for b in bits for name, way in ways.items()
    ]  # fmt: skip


def about_zero(member: Member) -> Tensor | None:
    """The second moment of the inputs that corrections are fitted with."""
    return member.A if member.A is None or member.mean is None else torch.addr(member.A, member.mean, member.mean)


def corrections(bench: Bench, rank: int = 16, bits: int = 3) -> list[dict[str, Any]]:
    """What a correction of one rank recovers, by what its error is measured in."""
    rows = []
    for how, way in (("nearest, no clipping", lambda m: minmax(m.W, bits)),
                     ("compensated", lambda m: compensating(m.W, bits, m.A))):  # fmt: skip
        base = {name: way(member) for name, member in bench.members.items()}
        for kind in ("none", "plain", "activations", "both"):
            made = {}
            for name, Q in base.items():
                member = bench.members[name]
                A = about_zero(member) if kind in ("activations", "both") else None
                G = member.G if kind == "both" else None
                small = 2 * rank >= min(Q.shape)
                left, right, _, _ = leading(member.W - Q, A, G, 0 if kind == "none" or small else rank)
                made[name] = Q + left @ right
            rows.append({"rounding": how, "correction": kind, "distance": bench.with_weights(made)})
    return rows


def bounds(bench: Bench, form: str = "int3", rank: int = 16) -> dict[str, float]:
    """What a correction can recover of the predicted loss, summed over layers, as shares.

    ``room``: of layers wide enough for it; ``codes``: of the errors' first directions in those, the most that any
    correction of these codes recovers (Eckart & Young 1936); ``joint``: where codes are made for the correction.
    """
    whole, room, held, joint = 0.0, 0.0, 0.0, 0.0
    for part in bench.parts:
        sizes = {c.size: c for some in part.choices.values() for c in some if c.form == form}
        whole += sizes[0].loss
        if rank in sizes:
            member = sizes[0].site.member
            error = member.W - choice_weight(sizes[0])
            _, _, s, energy = leading(error, member.A, member.G, rank)
            room += sizes[0].loss
            held += sizes[0].loss * float(s.sum()) / energy
            joint += sizes[0].loss - sizes[rank].loss
    return {"room": room / whole, "codes": held / whole, "joint": joint / whole}


def trade(bench: Bench, form: str = "int3", rank: int = 16) -> list[dict[str, Any]]:
    """The bytes of a few bits with a correction everywhere, spent in other ways."""
    both = even(bench.parts, form, rank)
    limit = Budget("bytes", bytes_of(both))
    made = {
        f"{form} and rank {rank} everywhere": both,
        "bits only, allocated": allocate(weighed(bench.parts, lambda c: c.loss), limit),
        "bits and corrections, allocated": allocate(bench.parts, limit),
    }
    return [
        {"way": name, "bytes": bytes_of(options), "distance": bench.judged(options)} for name, options in made.items()
    ]


# ---- what may be asked for besides -------------------------------------------------------------------------------

SHRINKING = ("factors", "pivoted", "neurons", "joint", "query_heads", "value_heads")


def beside(bench: Bench, plain: Bench, forms: Sequence[str] = ("int3", "int4")) -> list[dict[str, Any]]:
    """Without tokens drawn anew, and with them: the same bits everywhere, and allocated."""
    rows = []
    for form in forms:
        limit = Budget("bytes", bytes_of(even(bench.parts, form)))
        for found, moments in ((plain, "the samples"), (bench, "the samples, and tokens drawn anew")):
            made = {
                "the same bits everywhere": even(found.parts, form),
                "predicted": allocate(weighed(found.parts, lambda c: c.loss), limit),
                "as the command chooses": commanded(found.shop, found.parts, limit),
            }
            for name, options in made.items():
                row = {"budget": form, "moments": moments, "way": name, "bytes": bytes_of(options)}
                rows.append(row | judged_row(found, options))
    return rows


def jointly(bench: Bench, forms: Sequence[str] = ("int3", "int4")) -> list[dict[str, Any]]:
    """Bits and corrections alone, and layers that may be factored or shrunk instead, at equal bytes."""
    shop = opened(bench.subject, bench.shop.calibration, forms=SHRINKING)
    rows = []
    for form in forms:
        limit = Budget("bytes", bytes_of(even(bench.parts, form)))
        for name, found, parts in (("bits and corrections", bench.shop, bench.parts),
                                   ("joint: layers may be factored or shrunk too", shop, shop.parts)):  # fmt: skip
            options = allocate(parts, limit)
            with untouched(bench.subject.model), tried(bench.subject.model, found.fit(options)) as changed:
                distance = bench.subject.distance(changed)
            shrunk = [c.form for o in options for c in o.choices if c.form != "dense" and not bits_of(c.form)]
            rows.append(
                {"budget": form, "way": name, "bytes": bytes_of(options), "distance": distance, "shrunk": shrunk}
            )
    return rows


def measured(subject: Subject) -> dict[str, Any]:
    """Everything on one subject."""
    bench = Bench(subject)
    plain = Bench(subject, spread=0.0) if bench.shop.options.spread else None
    weights = sum(member.W.numel() for member in bench.members.values())
    return {
        "name": subject.name,
        "measure": subject.measure,
        "note": subject.note,
        "weights": weights,
        "layers": len(bench.members),
        "cpu_seconds_to_plan": bench.seconds,
        "sensitivity": sensitivities(bench.parts, bench.judged),
        "allocations": allocations(bench),
        "roundings": roundings(bench),
        "corrections": corrections(bench),
        "bounds": bounds(bench),
        "trade": trade(bench),
        "spread": bench.shop.options.spread,
        **({} if plain is None else {"plain": beside(bench, plain), "plain_corrections": corrections(plain)}),
        **({"joint": jointly(bench)} if subject.wide else {}),
    }


__all__ = ["Bench", "measured"]
