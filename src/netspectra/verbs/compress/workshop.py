"""All that planning and applying share: data, moments, what every layer can become, what was fitted so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Site
from netspectra.live.batches import samples_in, selected
from netspectra.live.tokens import all_tokens_of
from netspectra.live.untouched import untouched
from netspectra.methods import METHODS
from netspectra.plan import Cost
from netspectra.verbs.compress.allocate import Choice, Component, Option, components, grouped
from netspectra.verbs.compress.calibrate import Calibration, calibrate, fitting, layers, mixed
from netspectra.verbs.compress.latency import Clock
from netspectra.verbs.compress.objective import Objective, as_objective
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.redrawn import SPREAD, agreed, redrawn
from netspectra.verbs.compress.replace import DENSE, Key, Replacement, fitted, key_of, tried
from netspectra.verbs.compress.sites import Shrinkage, Sites, find_sites
from netspectra.weight import Selection

__all__ = [
    "Data",
    "Progress",
    "Workshop",
    "gathered",
    "mixture",
    "moments",
    "opened",
    "possible",
    "prepared",
    "split",
    "taken",
]

Progress = Callable[[str, float], None]
"""Called with what is being done and how much of it is, 0 ... 1."""


@dataclass(eq=False)
class Workshop:
    """All that planning makes and applying needs: data, moments, choices, fits.

    Attributes:
        model: the original, untouched while planning.
        options: what is asked.
        batches: the calibration ones, after each the same with tokens drawn anew.
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
    fits: dict[Key, list[Replacement]] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    finished: list[Replacement] | None = None
    chosen: Sequence[Option] = ()
    weighed: bool = False

    @property
    def choices(self) -> dict[int, tuple[Choice, ...]]:
        """Every site's choices."""
        return {key: found for part in self.parts[:1] for key, found in part.choices.items()}

    @property
    def singles(self) -> list[tuple[Choice, ...]]:
        """The choices of every site of one layer."""
        return [self.choices[id(site)] for site in self.sites.found if len(site.members) == 1]

    def fit(self, chosen: Sequence[Option]) -> list[Replacement]:
        """The modules that these options ask for."""
        return fitted([choice for option in chosen for choice in option.choices], self.fits)

    def settle(self, chosen: Sequence[Option]) -> None:
        """Decide on these options; what was fitted for others is let go."""
        self.chosen = chosen
        wanted = {key_of(choice) for option in chosen for choice in option.choices}
        self.fits = {key: modules for key, modules in self.fits.items() if key in wanted}

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


@dataclass(frozen=True, eq=False)
class Data:
    """Samples, cut into those that calibrate and those that judge.

    Attributes:
        batches: to calibrate with.
        held: to judge with.
        extra: for each of those some of its samples, their tokens drawn anew; none where that is not asked for.
        objective: what is to be kept; None without data.
    """

    batches: list[Any] = field(default_factory=list)
    held: list[Any] = field(default_factory=list)
    extra: list[Any] = field(default_factory=list)
    objective: Objective | None = None

    @property
    def mingled(self) -> list[Any]:
        """The batches, after each the one with tokens drawn anew."""
        return list(chain(*zip(self.batches, self.extra, strict=True))) if self.extra else self.batches


def prepared(model: nn.Module, options: CompressOptions, data: Any) -> Data:
    """Cut the samples that a user gives.

    Raises:
        InputRefused: tokens are to be drawn anew, and the model reads none.
    """
    batches, held = split(gathered(model, data), options.held_out)
    with untouched(model):
        objective = as_objective(options.objective, model, batches[0])
    words = all_tokens_of(model, batches[0]) if options.spread != 0 else ()
    if options.spread and not words:
        raise InputRefused("spread draws tokens anew, but no embedding reads these batches: leave it out")
    return Data(batches, held, redrawn(batches, words, options.seed) if words else [], objective)


def opened(
    model: nn.Module, options: CompressOptions, data: Any, known: Calibration | None, progress: Progress
) -> tuple[Workshop, Objective | None]:
    """Calibrate, find the sites, and say what each can become; and the objective, where there is data."""
    if known is not None:
        options = agreed(options, known)
    given = Data() if data is None else prepared(model, options, data)
    objective = given.objective
    if known is None and data is not None:
        known = moments(model, options, given, progress)
    options = replace(options, spread=known.spread if known else 0.0)
    held = HeldOut.of(model, given.held, objective) if given.held and objective else None
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
    shop = Workshop(model, options, given.mingled, held, known, sites, [], clock)
    choices: dict[int, tuple[Choice, ...]] = {}
    for group in grouped(sites.found):  # what shares layers in a row: they are decomposed while at hand
        for site in group:
            choices[id(site)] = tuple(possible(site, options, clock))
            progress("decomposing", len(choices) / len(sites.found))
    shop.parts = components(choices)
    shop.weighed = METHODS[method].comparable
    return shop, objective


def moments(
    model: nn.Module, options: CompressOptions, data: Data, progress: Progress = lambda what, share: None
) -> Calibration:
    """Moments of the batches, and a share of them from those with tokens drawn anew."""
    return mixture(*taken(model, options, data, progress), options)


def mixture(main: Calibration, redrawn: Calibration | None, options: CompressOptions) -> Calibration:
    """One calibration of both."""
    return main if redrawn is None else mixed(main, redrawn, SPREAD if options.spread is None else options.spread)


def taken(
    model: nn.Module, options: CompressOptions, data: Data, progress: Progress = lambda what, share: None
) -> tuple[Calibration, Calibration | None]:
    """Moments of the batches, and, inputs only, of those with tokens drawn anew."""
    selection = Selection(options.include, options.exclude)
    wanted = {name: m for name, m in layers(model).items() if selection.accepts(f"{name}.weight")}
    if not wanted:
        raise InputRefused("no layer is selected: see --include and --exclude, or netspectra inspect")
    objective = data.objective if options.backward else None
    count = sum(map(samples_in, [*data.batches, *data.extra]))

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

    main = run(data.batches, 0, objective)
    return main, run(data.extra, main.samples, None) if data.extra else None


def possible(site: Site, options: CompressOptions, clock: Clock) -> Iterable[Choice]:
    """What a site can become, the dense one first."""
    timed = options.timed if options.timed is not None else options.latency
    never_slower = options.never_slower if options.never_slower is not None else options.latency
    dense_ms = clock.dense(site) if timed or never_slower else None
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
        ms = clock.curve(site, name, curve.sizes) if dense_ms is not None else None
        size_bytes = curve.parameters * itemsize if curve.bytes is None else curve.bytes
        for i, size in enumerate(curve.sizes):
            larger = size_bytes[i] >= dense_bytes if form.named else curve.parameters[i] >= site.parameters
            if larger or (never_slower and ms is not None and ms[i] >= dense_ms):
                continue
            cost = Cost(
                int(curve.parameters[i]),
                int(size_bytes[i]),
                float(curve.flops[i]),
                None if ms is None else float(ms[i]),
            )
            yield Choice(site, name, int(size), cost, float(curve.losses[i]))
