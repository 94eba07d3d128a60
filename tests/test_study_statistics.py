"""The statistics of the generalization study: known answers, planted relations, the trap they are there to avoid."""

import itertools

import numpy as np
import pytest
from benchmarks.generalization.association import beyond, correlation, estimate, granulated, holm, pairs
from benchmarks.generalization.findings import outcome
from benchmarks.generalization.numbers import Table
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr


def study(predictor, target, widths=(1, 2), repeats=12):
    """A grid of two axes and a seed; both columns are functions of (width, rate, seed, noise)."""
    rng = np.random.default_rng(0)
    points = list(itertools.product(widths, (0, 1, 2), range(repeats)))
    noise = rng.standard_normal((len(points), 2))
    columns = {
        name: np.array([f(*point, *e) for point, e in zip(points, noise, strict=True)], dtype=float)
        for name, f in (("x", predictor), ("y", target))
    }
    axes = {
        name: np.array(values)
        for name, values in zip(("width", "rate", "seed"), zip(*points, strict=True), strict=True)
    }
    return Table(axes, columns, [{}] * len(points), {"x": "shape"})


def psi(data):
    return granulated(data, "x", "y", np.random.default_rng(1))


def test_pairs_differ_in_one_thing_alone():
    data = study(lambda *p: 0, lambda *p: 0)
    found = pairs(data)
    assert {axis: len(first) for axis, (first, _) in found.items()} == {"width": 36, "rate": 72, "seed": 6 * 66}
    for axis, (i, j) in found.items():
        for other, values in data.axes.items():
            assert (values[i] != values[j]).all() if other == axis else (values[i] == values[j]).all()


def test_a_monotone_relation_is_one():
    found, taus = psi(study(lambda w, r, s, a, b: w + r + a, lambda w, r, s, a, b: np.exp(w + r + a)))
    assert found.value == 1 and set(taus.values()) == {1.0} and (found.low, found.high) == pytest.approx((1, 1))


def test_telling_large_from_small_networks_wins_nothing():
    """Simpson's trap: x and y both grow with the width, and have nothing else in common."""
    data = study(lambda w, r, s, a, b: 10 * w + a, lambda w, r, s, a, b: 10 * w + b, widths=range(1, 9))
    found, taus = psi(data)
    assert correlation(data.columns["x"], data.columns["y"], np.random.default_rng(0)).value > 0.95
    assert taus["width"] == 1 and abs(taus["rate"]) < 0.2 and abs(taus["seed"]) < 0.2
    assert found.value < 0.5
    partial = beyond(data, "x", "y", (), np.random.default_rng(0))
    assert partial.value < 0.5


def test_noise_is_rarely_sure():
    sure = 0
    data = study(lambda *p: 0, lambda *p: 0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        data.columns["x"], data.columns["y"] = rng.standard_normal((2, len(data)))
        found = granulated(data, "x", "y", rng)[0]
        sure += not found.low < 0 < found.high
    assert sure <= 8  # 5 % of 60, and three standard errors


def test_what_does_not_vary_has_no_answer():
    found, taus = psi(study(lambda *p: 3.0, lambda w, r, s, a, b: a))
    assert found.value is None and taus == {}
    assert psi(study(lambda *p: np.nan, lambda w, r, s, a, b: a))[0].value is None
    assert estimate(0.5, np.full(1000, np.nan), 100).value is None


def test_a_function_of_what_is_known_adds_nothing():
    data = study(lambda w, r, s, a, b: 5 * w + r, lambda w, r, s, a, b: w + a)
    assert beyond(data, "x", "y", (), np.random.default_rng(0)).value is None
    added = study(lambda w, r, s, a, b: 5 * w + a, lambda w, r, s, a, b: w + a)
    found = beyond(added, "x", "y", (), np.random.default_rng(0))
    assert found.value > 0.5 and found.low > 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=25, max_size=40, unique_by=lambda p: p[0]))
def test_correlation_is_spearmans(points):
    x, y = np.array(points).T
    if len(set(y)) > 5:
        found = correlation(x, y, np.random.default_rng(0))
        assert found.value == pytest.approx(spearmanr(x, y).statistic)
        assert found.low <= found.high


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.6, 0.5]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "p", "expected"),
    [
        ((0.5, 0.4), (0.001, 0.01), "supported"),
        ((-0.5, -0.4), (0.001, 0.01), "contradicted"),
        ((0.5, -0.4), (0.001, 0.01), "mixed"),
        ((0.5, 0.4), (0.001, 0.2), "mixed"),
        ((0.5, 0.4), (0.2, 0.2), "no relation of note"),
        ((0.15, 0.1), (0.001, 0.001), "no relation of note"),
        ((None, 0.5), (None, 0.001), "cannot be told"),
    ],
)
def test_outcomes(values, p, expected):
    assert outcome(1, [{"value": v, "holm": h} for v, h in zip(values, p, strict=True)]) == expected
