"""From a model and a few batches to a plan: calibrate, weigh, allocate, judge on held-out data."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Site
from netspectra.live.batches import selected
from netspectra.live.untouched import untouched
from netspectra.methods import METHODS
from netspectra.plan import Cost, Decision, Plan
from netspectra.verbs.compress.allocate import (
    Budget,
    Choice,
    Component,
    Measure,
    Option,
    allocate,
    components,
    filled,
    total,
    uniform,
)
from netspectra.verbs.compress.calibrate import (
    Calibration,
    calibrate,
    fitting,
    layers,
    mixed,
    samples_in,
    spread_out,
)
from netspectra.verbs.compress.heal import heal_
from netspectra.verbs.compress.latency import Clock
from netspectra.verbs.compress.objective import Objective, as_objective
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.quality import HeldOut, is_causal, perplexity
from netspectra.verbs.compress.refit import refit_
from netspectra.verbs.compress.replace import DENSE, Replacement, fitted, replace_, tried
from netspectra.verbs.compress.rounding import rounding
from netspectra.verbs.compress.sites import Shrinkage, Sites, find_sites
from netspectra.verbs.compress.speed import speed
from netspectra.weight import Selection

__all__ = ["Progress", "Workshop", "budget_of", "compress", "gathered", "split"]

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of it is, 0 ... 1."""
FEW_TOKENS = 3.0  # tokens a dimension under which a warning is due


@dataclass(eq=False)
class Workshop:
    """All that planning makes and applying needs: data, moments, choices, fits.

    Attributes:
        model: the original, untouched while planning.
        options: what is asked.
        batches: the calibration ones, those with tokens drawn anew last.
        held: held-out batches and the original's signals; None without data.
        calibration: moments; None without data.
        sites: what can be decided on.
        parts: their components.
        clock: measured times.
        fits: replacements made so far.
        kept: what refitting and healing did to the held-out loss.
        chosen: the options of the plan.
        finished: the modules to place, refitted and healed; made when the plan is first applied.
        weighed: whether predicted losses of different layers may be weighed against one another.
    """

    model: nn.Module
    options: CompressOptions
    batches: list[Any]
    held: HeldOut | None
    calibration: Calibration | None
    sites: Sites
    parts: list[Component]
    clock: Clock
    fits: dict[tuple[int, str, int], list[Replacement]] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: list[Replacement] | None = None
    chosen: Sequence[Option] = ()
    weighed: bool = False

    @property
    def choices(self) -> dict[int, tuple[Choice, ...]]:
        """Every site's choices."""
        return {key: found for part in self.parts[:1] for key, found in part.choices.items()}

    def fit(self, chosen: Sequence[Option]) -> list[Replacement]:
        """The modules that these options ask for."""
        return fitted([choice for option in chosen for choice in option.choices], self.fits)

    def judged(self, chosen: Sequence[Option]) -> dict[str, float]:
        """Held-out measures of the model with these options."""
        assert self.held is not None
        with tried(self.model, self.fit(chosen)) as changed:
            return self.held.measure(changed)


def gathered(model: nn.Module, data: Any) -> list[Any]:
    """Batches out of what a user gives: a list, a DataLoader, a callable that gives one, or one tensor or mapping."""
    if callable(data) and not isinstance(data, Iterable):
        data = data()
    if isinstance(data, Tensor | Mapping):
        data = [data]
    if not isinstance(data, Iterable):
        raise InputRefused(f"calibration data is {type(data).__name__}: give batches, or a function that returns them")
    batches = [fitting(model, batch) for batch in data]
    if not batches:
        raise InputRefused("the calibration holds no batch; give at least one")
    return batches


def split(batches: Sequence[Any], share: float) -> tuple[list[Any], list[Any]]:
    """Calibration and held-out samples: every so manieth of each batch, so that both see the same kinds.

    >>> kept, held = split([torch.arange(8)], 0.25)
    >>> kept[0].tolist(), held[0].tolist()
    ([0, 1, 2, 4, 5, 6], [3, 7])
    """
    if share <= 0:
        return list(batches), []
    kept, held, step = [], [], max(2, round(1 / share))
    for batch in batches:
        place = torch.arange(samples_in(batch))
        judging = place % step == step - 1
        if not judging.any():
            kept.append(batch)
            continue
        kept.append(selected(batch, place[~judging], len(place)))
        held.append(selected(batch, place[judging], len(place)))
    if not held and len(kept) > 1:
        held.append(kept.pop())
    return kept, held


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

    Raises:
        InputRefused: the budget cannot be met, nothing is selected, the plan is another model's.
    """
    shop, objective = _workshop(model, options, data, calibration, progress)
    notes = [*_notes(shop, objective), *prepare(shop)]
    if plan is not None:
        chosen = _replayed(shop, plan)
        held_out: dict[str, Any] = {"plan": shop.judged(chosen)} if shop.held else {}
        why = "as the given plan has it"
    else:
        chosen, held_out, why = _chosen(shop, progress)
    if shop.held:
        held_out |= {"rounding": rounding(shop.model, shop.sites, shop.held)}
    made = replace(_plan(shop, chosen, held_out, why, tuple(notes), objective), verb=verb)
    shop.chosen = chosen
    return made.bound(lambda target: _apply(shop, made, chosen, target, progress)), shop


def _workshop(
    model: nn.Module, options: CompressOptions, data: Any, known: Calibration | None, progress: Progress
) -> tuple[Workshop, Objective | None]:
    batches: list[Any] = []
    held_batches: list[Any] = []
    extra: list[Any] = []
    objective = None
    if data is not None:
        batches, held_batches = split(gathered(model, data), options.held_out)
        with untouched(model):
            objective = as_objective(options.objective, model, batches[0])
        extra = _extra(model, options, batches)
    if known is None and data is not None:
        selection = Selection(options.include, options.exclude)
        wanted = {name: m for name, m in layers(model).items() if selection.accepts(f"{name}.weight")}
        if not wanted:
            raise InputRefused("no layer is selected: see --include and --exclude, or netspectra inspect")
        known = _moments(model, options, batches, extra, wanted, objective, progress)
    held = HeldOut.of(model, held_batches, objective) if held_batches and objective else None
    method = options.method or ("plain" if known is None else "two_sided" if known.outputs else "whitened")
    sites = find_sites(
        model,
        known,
        Selection(options.include, options.exclude),
        method=method,
        shrinkage=Shrinkage(options.shrink_inputs, options.shrink_outputs),
        centre=options.centre,
        coding=options.coding,
    )
    if not sites.found:
        raise InputRefused("no layer is selected: see --include and --exclude, or netspectra inspect")
    clock = Clock()
    shop = Workshop(model, options, batches + extra, held, known, sites, [], clock)
    choices = {}
    for place, site in enumerate(sites.found):
        choices[id(site)] = tuple(_choices(shop, site))
        progress("decomposing", (place + 1) / len(sites.found))
    shop.parts = components(choices)
    shop.weighed = METHODS[method].comparable
    return shop, objective


def _moments(
    model: nn.Module,
    options: CompressOptions,
    batches: Sequence[Any],
    extra: Sequence[Any],
    wanted: Mapping[str, nn.Module],
    objective: Objective | None,
    progress: Progress,
) -> Calibration:
    """Moments of the batches, and a share of them from the same batches with other tokens."""
    objective = objective if options.backward else None
    count = sum(map(samples_in, [*batches, *extra]))

    def run(some: Sequence[Any], before: int, loss: Objective | None) -> Calibration:
        return calibrate(
            model,
            some,
            wanted,
            loss,
            probes=options.probes,
            seed=options.seed,
            progress=lambda samples: progress("calibrating", (before + samples) / count),
        )

    main = run(batches, 0, objective)
    return mixed(main, run(extra, main.samples, None), options.spread) if extra else main


def _extra(model: nn.Module, options: CompressOptions, batches: Sequence[Any]) -> list[Any]:
    """Half as many batches as there are, with a third or all of their tokens drawn anew, where that is asked for."""
    if not options.spread:
        return []
    generator = torch.Generator().manual_seed(options.seed)
    found = [
        spread_out(batch, vocabulary(model), 1.0 if place % 2 else 0.3, generator)
        for place, batch in enumerate(batches[::2])
        if isinstance(batch, Mapping) and "input_ids" in batch
    ]
    if not found:
        raise InputRefused("spread draws tokens anew, but these batches have no input_ids; leave it at 0")
    return found


def vocabulary(model: nn.Module) -> int:
    """How many tokens the model's largest embedding knows."""
    return max((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=1)


def _choices(shop: Workshop, site: Site) -> Iterable[Choice]:
    """What a site can become, the dense one first."""
    options = shop.options
    timed = options.timed if options.timed is not None else options.latency
    never_slower = options.never_slower if options.never_slower is not None else options.latency
    dense_ms = shop.clock.dense(site) if timed or never_slower else None
    itemsize = next(iter(site.members.values())).module.weight.element_size()  # type: ignore[operator, union-attr]
    flops = sum(m.W.numel() * m.positions for m in site.members.values() if site.kind != "embedding")
    dense_bytes = site.parameters * itemsize
    yield Choice(site, DENSE, 0, Cost(site.parameters, dense_bytes, flops, dense_ms), 0.0)
    for name, form in FORMS.items():
        if site.kind not in form.kinds or (options.forms and name not in options.forms):
            continue
        if (form.named and not options.forms) or (options.portable and not form.portable) or form.refuses(site):
            continue
        curve = form.curve(site)
        if not len(curve.sizes):
            continue
        ms = shop.clock.curve(site, name, curve.sizes) if dense_ms is not None else None
        size_bytes = curve.parameters * itemsize if curve.bytes is None else curve.bytes
        for i, size in enumerate(curve.sizes):
            larger = (size_bytes[i] >= dense_bytes) if form.named else (curve.parameters[i] >= site.parameters)
            if larger or (never_slower and ms is not None and ms[i] >= dense_ms):
                continue
            cost = Cost(
                int(curve.parameters[i]),
                int(size_bytes[i]),
                float(curve.flops[i]),
                None if ms is None else float(ms[i]),
            )
            yield Choice(site, name, int(size), cost, float(curve.losses[i]))


def budget_of(shop: Workshop) -> Budget:
    """What may not be exceeded, in the measure that was asked for."""
    options = shop.options
    if options.budget == "keep":
        before = sum(part.dense().of("parameters") for part in shop.parts)
        return Budget("parameters", (0.5 if options.keep is None else options.keep) * before)
    return Budget(cast(Measure, options.budget), float(getattr(options, options.budget)), _axis(options))


def _chosen(shop: Workshop, progress: Progress) -> tuple[list[Option], dict[str, Any], str]:
    """The best of the candidates on held-out data, what each of them measured, and why."""
    budget = budget_of(shop)
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
    measured: dict[str, dict[str, float]] = {}
    for place, (name, options) in enumerate(candidates.items()):
        progress("judging on held-out data", place / len(candidates))
        measured[name] = shop.judged(options)
    best = min(measured, key=lambda name: measured[name]["loss"])
    return candidates[best], {"candidates": measured, "kept": best}, f"{best} was best on held-out data"


def _replayed(shop: Workshop, plan: Plan) -> list[Option]:
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


def _plan(
    shop: Workshop,
    chosen: Sequence[Option],
    held_out: Mapping[str, Any],
    why: str,
    notes: tuple[str, ...],
    objective: Objective | None,
) -> Plan:
    order = {name: place for place, (name, _) in enumerate(shop.model.named_modules())}
    comparable = shop.weighed
    decisions = []
    for option in chosen:
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
    decided = total(choice.cost for option in chosen for choice in option.choices)
    dense = total(shop.choices[id(choice.site)][0].cost for option in chosen for choice in option.choices)
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
        frontier=tuple(_frontier(shop.parts, _axis(shop.options))) if comparable else (),
        notes=notes,
        fingerprint=_fingerprint(shop.model),
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


def _axis(options: CompressOptions) -> Measure:
    """What the frontier walks along: bytes where some forms trade in nothing else."""
    return "bytes" if any(FORMS[name].named for name in options.forms) else "parameters"


def _frontier(parts: Sequence[Component], measure: Measure, points: int = 40) -> Iterable[dict[str, Any]]:
    """Size against predicted loss, from the hulls alone."""
    hulls = [part.hull(measure) for part in parts]
    low = sum(points[0].of(measure) for points in hulls)
    high = sum(points[-1].of(measure) for points in hulls)
    for limit in np.linspace(low, high, points):
        steps = _walk(hulls, limit, measure)
        cost = total(option.cost for option in steps)
        yield {
            "keep": getattr(cost, measure) / high,
            "parameters": cost.parameters,
            "bytes": cost.bytes,
            "flops": cost.flops,
            "milliseconds": cost.milliseconds,
            "loss": sum(option.loss for option in steps),
        }


def _walk(hulls: Sequence[Sequence[Option]], limit: float, measure: Measure) -> list[Option]:
    """The Lagrangian optimum at a limit."""
    chosen = [points[0] for points in hulls]
    spent = sum(option.of(measure) for option in chosen)
    steps = sorted(
        (
            (points[i + 1].loss - points[i].loss) / max(points[i + 1].of(measure) - points[i].of(measure), 1e-300),
            place,
            i + 1,
        )
        for place, points in enumerate(hulls)
        for i in range(len(points) - 1)
    )
    for _, place, i in steps:
        more = hulls[place][i].of(measure) - chosen[place].of(measure)
        if spent + more > limit * (1 + 1e-12):
            break
        chosen[place] = hulls[place][i]
        spent += more
    return chosen


def _notes(shop: Workshop, objective: Objective | None) -> list[str]:
    notes = []
    if shop.calibration is None:
        notes.append("no calibration data: plain truncation, layer by layer; expect far more loss than with data")
        return notes
    if objective is not None:
        notes.append(f"what is kept: the model's {objective.name}; pass objective= for something else")
    few = [n for n, moments in shop.calibration.inputs.items()
           if moments.total.dim() > 1 and moments.effective_tokens < FEW_TOKENS]  # fmt: skip
    if few:
        least = min(shop.calibration.inputs[name].effective_tokens for name in few)
        notes.append(
            f"few tokens: {len(few)} of {len(shop.calibration.inputs)} inputs saw fewer than {FEW_TOKENS:g} tokens a "
            f"dimension (least: {least:.2g}); give more calibration samples"
        )
    return notes


def _fingerprint(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, parameter in model.named_parameters():
        content.update(f"{name} {tuple(parameter.shape)}\n".encode())
    return content.hexdigest()[:16]


def _apply(shop: Workshop, plan: Plan, chosen: Sequence[Option], model: nn.Module, progress: Progress) -> nn.Module:
    if _fingerprint(model) != plan.fingerprint:
        raise InputRefused("this model is not the one the plan was made for (other names or shapes of parameters)")
    if shop.finished is None:
        shop.finished = _finished(shop, chosen, progress)
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


def _finished(shop: Workshop, chosen: Sequence[Option], progress: Progress) -> list[Replacement]:
    """The fitted modules, refitted and healed where that was asked for and helps on held-out data."""
    replacements = shop.fit(chosen)
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
