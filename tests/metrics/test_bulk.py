"""Bulk, edge and spikes: against quadrature, and against what noise does."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from netspectra.linalg.svd import svdvals
from netspectra.metrics import METRICS, evaluate
from netspectra.metrics.bulk import gavish_donoho_factor, mp_cdf, mp_median
from netspectra.metrics.pareto import fit_tail

Q = (1, 2, 4, 8, 16)


def density(x: float, beta: float) -> float:
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    return math.sqrt(max((high - x) * (x - low), 0.0)) / (2 * math.pi * beta * x) if x > 0 else 0.0


def share_below(x, beta):
    """The density integrated up to x, in t with x = 1 + beta - 2 sqrt(beta) cos t: no roots at the ends."""
    root = math.sqrt(beta)
    end = math.acos(max(-1.0, min(1.0, (1 + beta - x) / (2 * root))))

    def integrand(t):
        return density(1 + beta - 2 * root * math.cos(t), beta) * 2 * root * math.sin(t)

    return quad(integrand, 0, end, epsabs=1e-12, epsrel=1e-12, limit=400)[0]


def number(name, a):
    return evaluate([METRICS[name]], svdvals(a))[name]


@pytest.mark.parametrize("q", [*Q, 1.3, 100])
def test_the_law_is_its_density_integrated(q):
    beta = 1 / q
    low, high = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
    for x in np.linspace(low, high, 7)[1:]:
        assert mp_cdf(np.array(x), beta) == pytest.approx(share_below(x, beta), abs=1e-9)
    assert mp_cdf(np.array(mp_median(beta)), beta) == pytest.approx(0.5, abs=1e-10)


def test_gavish_donoho_by_quadrature():
    """Omega is the threshold for known noise over the root of the median; both from their definitions."""
    for q, omega in zip(Q, (2.858362, 2.171185, 1.836866, 1.650016, 1.542779), strict=True):
        beta = 1 / q
        left, right = (1 - math.sqrt(beta)) ** 2, (1 + math.sqrt(beta)) ** 2
        for _ in range(50):
            middle = (left + right) / 2
            area = share_below(middle, beta)
            left, right = (middle, right) if area < 0.5 else (left, middle)
        star = 2 * (beta + 1) + 8 * beta / (beta + 1 + math.sqrt(beta**2 + 14 * beta + 1))
        assert math.sqrt(star / left) == pytest.approx(omega, abs=1e-6)
        assert gavish_donoho_factor(beta) == pytest.approx(omega, abs=1e-6)


SHAPES = ((20, 20), (40, 20), (20, 160), (64, 64), (20, 320), (100, 50), (60, 240), (100, 100))


def false_alarms(shapes, each, seed):
    rng = np.random.default_rng(seed)
    return np.mean([number("spikes", rng.standard_normal(shape)) > 0 for shape in shapes for _ in range(each)])


def test_noise_has_no_spikes():
    assert false_alarms(SHAPES, 50, seed=1) <= 0.02  # four hundred matrices; the slow test says how many in thousands


@pytest.mark.slow
def test_false_alarms_keep_the_nominal_rate():
    shapes = (*SHAPES, (400, 200), (200, 200))
    assert false_alarms(shapes, 200, seed=7) <= 0.012
    assert false_alarms(shapes, 200, seed=8) <= 0.012


def planted(m, n, seen, rng):
    """Noise with one direction whose lambda is expected at ``seen`` times the edge."""
    beta = min(m, n) / max(m, n)
    y = seen * (1 + math.sqrt(beta)) ** 2
    t = (y - 1 - beta + math.sqrt((y - 1 - beta) ** 2 - 4 * beta)) / 2
    u, v = rng.standard_normal(m), rng.standard_normal(n)
    strength = math.sqrt(t * max(m, n))
    return rng.standard_normal((m, n)) + strength * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v)), strength


def test_outliers_are_found_and_their_strength_told():
    rng = np.random.default_rng(3)
    hits, strengths = 0, []
    for _ in range(60):
        a, strength = planted(400, 200, 1.08, rng)  # 1.08 in lambda: 1.04 in sigma
        spikes = number("spikes", a)
        hits += spikes == 1
        strengths += [spikes.detail["strengths"][0] / strength] if spikes else []
    assert hits >= 48
    assert np.median(strengths) == pytest.approx(1, abs=0.05)


def test_directions_below_the_threshold_cannot_be_seen():
    rng = np.random.default_rng(0)
    hidden = [
        rng.standard_normal((200, 400)) + 0.5 * (200 * 400) ** 0.25 * np.eye(200, 400) * (np.arange(200)[:, None] == 0)
        for _ in range(20)
    ]
    assert sum(number("spikes", a) > 0 for a in hidden) <= 1


def test_distance_from_noise_tells_noise_from_structure():
    rng = np.random.default_rng(0)
    assert number("mp_distance", rng.uniform(-1, 1, (200, 400))) < 0.03
    assert number("mp_distance", rng.standard_normal((200, 400)) * np.arange(1, 201)[:, None] ** -0.5) > 0.1
    assert number("mp_softrank", rng.standard_normal((200, 400))) == pytest.approx(1, abs=0.06)


def test_what_has_no_bulk_says_so():
    rng = np.random.default_rng(0)
    low = rng.standard_normal((60, 10)) @ rng.standard_normal((10, 60))
    for name in ("mp_edge", "mp_sigma", "mp_softrank", "mp_distance", "spikes", "gavish_donoho_rank"):
        assert "rounding" in number(name, low).note
        assert "10" in number(name, rng.standard_normal((5, 50))).note


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_rank_to_keep_is_never_more_than_the_spikes_seen_in_low_rank_plus_noise(seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((50, 80)) + 4 * rng.standard_normal((50, 2)) @ rng.standard_normal((2, 80))
    assert number("gavish_donoho_rank", a) == 2 <= number("spikes", a)
    assert fit_tail(svdvals(a).energies) is not None
