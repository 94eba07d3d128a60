"""Which form and size for every site, under a budget: hulls, a Lagrangian, what is left over, then the exact best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import numpy as np

from netspectra.errors import InputRefused
from netspectra.forms import Site
from netspectra.plan import Cost
from netspectra.verbs.compress.knapsack import least

__all__ = ["Budget", "Choice", "Component", "Option", "allocate", "components", "filled",
           "grouped", "hull", "total", "uniform", "walked"]  # fmt: skip

Measure = Literal["parameters", "bytes", "flops", "milliseconds", "loss"]


@dataclass(frozen=True)
class Budget:
    """What may not be exceeded.

    Attributes:
        measure: parameters, bytes, flops, milliseconds; or loss: then as little of ``least`` as it allows.
        limit: in those units, over all sites that are decided.
        least: what is made small where the loss is limited.
    """

    measure: Measure
    limit: float
    least: Measure = "parameters"

    @property
    def axis(self) -> Measure:
        """What is spent: the measure itself, or what a loss budget makes small."""
        return self.least if self.measure == "loss" else self.measure


@dataclass(frozen=True, eq=False)
class Choice:
    """One site in one form and size; ``form`` is ``dense`` for the site as it is."""

    site: Site
    form: str
    size: int
    cost: Cost
    loss: float


@dataclass(frozen=True, eq=False)
class Option:
    """One way to treat a component: a choice for every site of one of its alternatives."""

    choices: tuple[Choice, ...]
    cost: Cost
    loss: float

    def of(self, measure: Measure) -> float:
        """Its cost by a measure."""
        return _measured(self.cost, measure)


def _measured(cost: Cost, measure: Measure) -> float:
    found = getattr(cost, measure)
    if found is None:
        raise InputRefused("a latency budget needs measured times; calibrate with data, so that layers can be timed")
    return float(found)


@dataclass(eq=False)
class Component:
    """Sites that exclude one another, by alternatives; every alternative covers the same layers.

    Attributes:
        alternatives: each a list of sites.
        choices: by site, what it can become, the dense one first.
    """

    alternatives: tuple[tuple[Site, ...], ...]
    choices: Mapping[int, tuple[Choice, ...]]
    _hulls: dict[str, list[Option]] = field(default_factory=dict)

    def dense(self) -> Option:
        """The component as it is."""
        return _together([self.choices[id(site)][0] for site in self.alternatives[0]])

    def hull(self, measure: Measure) -> list[Option]:
        """Options on the lower hull of loss over cost, from the cheapest to the one with no loss."""
        if measure not in self._hulls:
            options = [o for sites in self.alternatives for o in self._merged(sites, measure)]
            self._hulls[measure] = hull(options, measure)
        return self._hulls[measure]

    def _merged(self, sites: Sequence[Site], measure: Measure) -> list[Option]:
        """The hull of a sum is the sum of hulls, its segments sorted by slope."""
        hulls = [hull([_together([choice]) for choice in self.choices[id(site)]], measure) for site in sites]
        current = [points[0] for points in hulls]
        found = [_joined(current)]
        steps = sorted(
            (_slope(points[i], points[i + 1], measure), place, i + 1)
            for place, points in enumerate(hulls)
            for i in range(len(points) - 1)
        )
        for _, place, i in steps:
            current[place] = hulls[place][i]
            found.append(_joined(current))
        return found

    def menu(self, measure: Measure) -> list[Option]:
        """Every choice of a site that stands alone, and the hull."""
        alone = [_together([choice]) for sites in self.alternatives if len(sites) == 1
                 for choice in self.choices[id(sites[0])]]  # fmt: skip
        return [*alone, *self.hull(measure)]

    def near(self, option: Option, measure: Measure, slack: float) -> Iterator[Option]:
        """Options that differ from this one in one site, cost at most ``slack`` more, and lose less."""
        for place, chosen in enumerate(option.choices):
            for other in self.choices[id(chosen.site)]:
                more = _measured(other.cost, measure) - _measured(chosen.cost, measure)
                if more <= slack and other.loss < chosen.loss:
                    yield _together([*option.choices[:place], other, *option.choices[place + 1 :]])


def _together(choices: Sequence[Choice]) -> Option:
    return Option(tuple(choices), total(choice.cost for choice in choices), sum(choice.loss for choice in choices))


def _joined(options: Sequence[Option]) -> Option:
    return _together([choice for option in options for choice in option.choices])


def total(costs: Iterable[Cost]) -> Cost:
    """Their sum."""
    summed = Cost(milliseconds=0.0)
    for cost in costs:
        summed = summed + cost
    return summed


def _slope(cheap: Option, dear: Option, measure: Measure) -> float:
    return (dear.loss - cheap.loss) / max(dear.of(measure) - cheap.of(measure), 1e-300)


def hull(options: Iterable[Option], measure: Measure) -> list[Option]:
    """The lower convex hull of loss over cost, ascending in cost, descending in loss."""
    ordered = sorted(options, key=lambda o: (o.of(measure), o.loss))
    kept: list[Option] = []
    for option in ordered:
        if kept and option.loss >= kept[-1].loss:
            continue
        while len(kept) > 1 and _slope(kept[-2], kept[-1], measure) >= _slope(kept[-1], option, measure):
            kept.pop()
        if len(kept) == 1 and option.of(measure) == kept[0].of(measure):
            kept.pop()
        kept.append(option)
    return kept


def components(choices: Mapping[int, tuple[Choice, ...]]) -> list[Component]:
    """Of sites that share layers, every set that covers these layers once; groups that cannot change bind nothing."""
    able = [some[0].site for some in choices.values() if len(some[0].site.members) == 1 or some[1:]]
    return [Component(tuple(_covers(found)), choices) for found in grouped(able)]


def grouped(sites: Iterable[Site]) -> list[list[Site]]:
    """Sites that share layers, together."""
    groups: list[list[Site]] = []
    for site in sites:
        names = {member.name for member in site.members.values()}
        touched = [g for g in groups if any(m.name in names for s in g for m in s.members.values())]
        if not touched:
            groups.append([site])
            continue
        touched[0].append(site)
        for other in touched[1:]:
            touched[0].extend(other)
            groups.remove(other)
    return groups


def _covers(sites: Sequence[Site]) -> Iterator[tuple[Site, ...]]:
    names = {member.name for site in sites for member in site.members.values()}
    single = {site.member.name: site for site in sites if len(site.members) == 1}
    several = [site for site in sites if len(site.members) > 1]
    for chosen in _disjoint(several):
        covered = {member.name for site in chosen for member in site.members.values()}
        yield (*(single[name] for name in single if name in names - covered), *chosen)


MOST = 8  # groups in one component of which every combination is tried


def _disjoint(several: Sequence[Site]) -> Iterator[tuple[Site, ...]]:
    """Sets of groups that share no layer: all of them; in long chains none, and those met first from either start."""
    if len(several) <= MOST:
        subsets: Iterable[Sequence[Site]] = (
            some for count in range(len(several) + 1) for some in combinations(several, count)
        )
    else:
        subsets = ((), _greedy(several), _greedy(several[1:]))
    for some in subsets:
        names = [member.name for site in some for member in site.members.values()]
        if len(set(names)) == len(names):
            yield tuple(some)


def _greedy(several: Sequence[Site]) -> list[Site]:
    taken: set[str] = set()
    chosen = []
    for site in several:
        names = {member.name for member in site.members.values()}
        if not names & taken:
            taken |= names
            chosen.append(site)
    return chosen


def allocate(parts: Sequence[Component], budget: Budget) -> list[Option]:
    """The option of every component, of least predicted loss within the budget.

    The hulls' segments are taken by steepness until the next would exceed the budget (the Lagrangian optimum), then
    what is left over is filled with the best single moves, hull or not. What that leaves to be gained is sought among
    all options of single sites and those on the hulls of others by `netspectra.verbs.compress.knapsack.least`.

    Raises:
        InputRefused: even the smallest options exceed the budget.
    """
    if budget.measure == "loss":
        return _best(parts, _least(parts, budget.limit, budget.least), budget.least, budget)
    measure, limit = budget.measure, budget.limit
    hulls = [part.hull(measure) for part in parts]
    smallest = sum(points[0].of(measure) for points in hulls)
    if smallest > limit:
        raise InputRefused(
            f"the budget of {limit:.4g} {measure} cannot be met: the smallest forms need {smallest:.4g}; raise it"
        )
    chosen = _filled(parts, walked(hulls, measure, limit), measure, limit)
    return _filled(parts, _best(parts, chosen, measure, budget), measure, limit)


def walked(hulls: Sequence[Sequence[Option]], measure: Measure, limit: float) -> list[Option]:
    """From the smallest options upwards, the steepest segments first, until none fits: the Lagrangian optimum."""
    chosen = [points[0] for points in hulls]
    spent = sum(option.of(measure) for option in chosen)
    steps = sorted(
        (_slope(points[i], points[i + 1], measure), place, i + 1)
        for place, points in enumerate(hulls)
        for i in range(len(points) - 1)
    )
    stopped: set[int] = set()
    for _, place, i in steps:
        more = hulls[place][i].of(measure) - chosen[place].of(measure)
        if place in stopped or spent + more > limit:
            stopped.add(place)
            continue
        chosen[place] = hulls[place][i]
        spent += more
    return chosen


def _filled(parts: Sequence[Component], chosen: list[Option], measure: Measure, limit: float) -> list[Option]:
    """Spend what is left: the move that saves most loss, until none fits."""
    chosen = list(chosen)
    slack = limit - sum(option.of(measure) for option in chosen)
    candidates: dict[int, Option | None] = {}

    def best(place: int) -> Option | None:
        around = list(parts[place].near(chosen[place], measure, slack))
        around += [o for o in parts[place].hull(measure)
                   if o.loss < chosen[place].loss and o.of(measure) - chosen[place].of(measure) <= slack]  # fmt: skip
        return min(around, key=lambda o: o.loss, default=None)

    for _ in range(50 * len(parts)):
        for place in range(len(parts)):
            known = candidates.get(place)
            if place not in candidates or (known and known.of(measure) - chosen[place].of(measure) > slack):
                candidates[place] = best(place)
        gains = [(chosen[p].loss - o.loss, p) for p, o in candidates.items() if o is not None]
        if not gains:
            break
        _, place = max(gains)
        option = candidates.pop(place)
        assert option is not None
        slack -= option.of(measure) - chosen[place].of(measure)
        chosen[place] = option
    return chosen


def _best(parts: Sequence[Component], chosen: Sequence[Option], measure: Measure, budget: Budget) -> list[Option]:
    """The best of all combinations, or these options where none is better."""
    menus = [[option, *part.menu(measure)] for option, part in zip(chosen, parts, strict=True)]
    losses = [np.array([option.loss for option in menu]) for menu in menus]
    costs = [np.array([option.of(measure) for option in menu]) for menu in menus]
    lose, spend = (costs, losses) if budget.measure == "loss" else (losses, costs)
    return [menu[i] for menu, i in zip(menus, least(lose, spend, budget.limit, [0] * len(menus)), strict=True)]


def _least(parts: Sequence[Component], limit: float, measure: Measure) -> list[Option]:
    """As little of a measure as a largest loss allows: the same segments, from the other end."""
    hulls = [part.hull(measure) for part in parts]
    chosen = [points[-1] for points in hulls]
    spent = sum(option.loss for option in chosen)
    steps = sorted(
        ((_slope(points[i], points[i + 1], measure), place, i) for place, points in enumerate(hulls)
         for i in range(len(points) - 1)), reverse=True,
    )  # fmt: skip
    stopped: set[int] = set()
    for _, place, i in steps:
        more = hulls[place][i].loss - chosen[place].loss
        if place in stopped or spent + more > limit:
            stopped.add(place)
            continue
        chosen[place] = hulls[place][i]
        spent += more
    return chosen


def filled(parts: Sequence[Component], chosen: Sequence[Option], budget: Budget) -> list[Option]:
    """The same options, with what they leave of the budget spent where it saves most loss."""
    return _filled(parts, list(chosen), budget.measure, budget.limit)


def uniform(
    parts: Sequence[Component], share: float, measure: Measure, accept: Callable[[Choice], bool] = lambda choice: True
) -> list[Option]:
    """Every site at the same share of its own cost, each in the best of the accepted forms that fits.

    A site that has no form so small takes the smallest it has; so the sum may exceed the budget, which the caller
    has to look at.
    """
    return [min((_even(part, sites, share, measure, accept) for sites in part.alternatives), key=lambda o: (
        o.of(measure) > share * part.dense().of(measure) * (1 + 1e-12), o.loss)) for part in parts]  # fmt: skip


def _even(
    part: Component, sites: Sequence[Site], share: float, measure: Measure, accept: Callable[[Choice], bool]
) -> Option:
    picked = []
    for site in sites:
        dense, *others = part.choices[id(site)]
        some = [choice for choice in others if accept(choice)]
        limit = share * _measured(dense.cost, measure)
        fitting = [choice for choice in some if _measured(choice.cost, measure) <= limit]
        if fitting:
            picked.append(min(fitting, key=lambda choice: choice.loss))
        else:
            picked.append(min(some, key=lambda choice: _measured(choice.cost, measure), default=dense))
    return _together(picked)
