"""Allocation against brute force; budgets are met and nearly used up."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from netspectra.errors import InputRefused
from netspectra.forms import Member, Site
from netspectra.plan import Cost
from netspectra.verbs.compress.allocate import Budget, Choice, allocate, components, uniform
from netspectra.verbs.compress.replace import DENSE


def site(name: str, *members: Member) -> Site:
    return Site(name, "linear", {str(i): member for i, member in enumerate(members)})


def member(name: str) -> Member:
    return Member(name, nn.Linear(1, 1), torch.ones(1, 1, dtype=torch.float64))


def choices(one: Site, rng: np.random.Generator, count: int = 5) -> tuple[Choice, ...]:
    costs = np.sort(rng.choice(np.arange(1, 100), count, replace=False))[::-1]
    losses = np.sort(rng.random(count)) * rng.choice([0.1, 1, 10])
    losses[0] = 0.0
    forms = [DENSE, *["factors"] * (count - 1)]
    return tuple(
        Choice(one, form, i, Cost(int(c), int(c) * 4, float(c), float(c)), float(loss))
        for i, (form, c, loss) in enumerate(zip(forms, costs, losses, strict=True))
    )


def problem(seed: int, layers: int = 4):
    rng = np.random.default_rng(seed)
    sites = [site(f"l{i}", member(f"l{i}")) for i in range(layers)]
    found = {id(one): choices(one, rng) for one in sites}
    return components(found), [found[id(one)] for one in sites]


@pytest.mark.parametrize("seed", range(30))
def test_close_to_the_best_and_never_over(seed):
    parts, each = problem(seed)
    dense = sum(some[0].cost.parameters for some in each)
    smallest = sum(some[-1].cost.parameters for some in each)
    limit = (dense + smallest) / 2
    chosen = allocate(parts, Budget("parameters", limit))
    spent, lost = sum(o.cost.parameters for o in chosen), sum(o.loss for o in chosen)
    assert spent <= limit
    best = min(
        sum(c.loss for c in combination)
        for combination in product(*each)
        if sum(c.cost.parameters for c in combination) <= limit
    )
    floor = max(max(c.loss for c in some) for some in each)
    assert best - 1e-12 <= lost <= best + floor  # what one component can be off, as for every Lagrangian optimum


def test_groups_exclude_one_another():
    a, b, c = member("a"), member("b"), member("c")
    rng = np.random.default_rng(0)
    found = {id(s): choices(s, rng) for s in (site("a", a), site("b", b), site("c", c), site("ab", a, b))}
    parts = components(found)
    assert sorted(len(part.alternatives) for part in parts) == [1, 2]
    for option in allocate(parts, Budget("parameters", 60)):
        names = [m.name for choice in option.choices for m in choice.site.members.values()]
        assert len(names) == len(set(names))


def test_a_budget_that_cannot_be_met_is_refused():
    parts, _ = problem(0)
    with pytest.raises(InputRefused, match="cannot be met"):
        allocate(parts, Budget("parameters", 1))


def test_loss_budget_is_kept():
    parts, each = problem(1)
    limit = sum(some[2].loss for some in each)
    chosen = allocate(parts, Budget("loss", limit))
    assert 0 < sum(o.loss for o in chosen) <= limit


def test_uniform_keeps_every_share():
    parts, _ = problem(2)
    for part, option in zip(parts, uniform(parts, 0.7, "parameters", lambda choice: True), strict=True):
        assert option.of("parameters") <= 0.7 * part.dense().of("parameters")
