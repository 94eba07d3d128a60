"""The exact best of one option a component, against trying all of them; and large problems in no time."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.verbs.compress import knapsack
from netspectra.verbs.compress.knapsack import least


def problem(seed: int, components: int, options: int) -> tuple[list, list, float, list]:
    rng = np.random.default_rng(seed)
    spend = [np.sort(rng.integers(0, 60, options)).astype(float) * rng.choice([1, 7]) for _ in range(components)]
    lose = [np.sort(rng.random(options))[::-1] ** 3 * rng.choice([0.1, 1, 10]) for _ in range(components)]
    limit = sum(c.min() + 0.4 * np.ptp(c) for c in spend)
    return lose, spend, limit, [0] * components


def sums(lose, spend, which) -> tuple[float, float]:
    return sum(v[o] for v, o in zip(lose, which, strict=True)), sum(c[o] for c, o in zip(spend, which, strict=True))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_it_is_the_best_of_all(seed, components, options):
    lose, spend, limit, known = problem(seed, components, options)
    lost, spent = sums(lose, spend, least(lose, spend, limit, known))
    every = [sums(lose, spend, which) for which in product(range(options), repeat=components)]
    assert spent <= limit
    assert np.isclose(lost, min(one for one, cost in every if cost <= limit), rtol=1e-12, atol=1e-15)


def test_thinned_out_it_keeps_the_limit_and_is_no_worse_than_what_is_known(monkeypatch):
    lose, spend, limit, known = problem(3, 12, 8)
    best = sums(lose, spend, least(lose, spend, limit, known))
    monkeypatch.setattr(knapsack, "STATES", 8)
    lost, spent = sums(lose, spend, least(lose, spend, limit, known))
    assert spent <= limit and best[0] <= lost <= sums(lose, spend, known)[0]
    assert lost < 1.5 * best[0]


def test_many_components_with_many_options():
    lose, spend, limit, known = problem(1, 60, 40)
    lost, spent = sums(lose, spend, least(lose, spend, limit, known))
    assert spent <= limit and lost < 0.2 * sums(lose, spend, known)[0]


def test_nothing_better_gives_back_what_is_known():
    some = [np.zeros(2)] * 3
    assert least(some, some, 0.0, [1, 0, 1]) == [1, 0, 1]
