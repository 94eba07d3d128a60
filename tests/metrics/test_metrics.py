"""Every metric: invariances from its registration, and outside values."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.errors import InputRefused
from netspectra.linalg.spectrum import Spectrum, rounding_floor
from netspectra.linalg.values import svdvals
from netspectra.metrics import METRICS, Metric, chosen, evaluate
from netspectra.metrics.bulk import gavish_donoho_factor
from netspectra.metrics.ranks import relative_error
from netspectra.record import Value

ALL = list(METRICS.values())
ONES, ZEROS = np.ones((40, 60)), np.zeros((40, 60))
DEGENERATE = [np.zeros((4, 3)), np.zeros((0, 3)), np.ones((1, 5)), np.ones((4, 4)), np.eye(1), np.eye(40), ONES, ZEROS]


def gaussian(m: int, n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((m, n))


def heavy(m: int, n: int, seed: int = 0) -> np.ndarray:
    """A matrix whose lambda are a Pareto sample of exponent 3."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, min(m, n))))[0] for k in (m, n))
    return u * (1 - rng.random(min(m, n))) ** -0.25 @ v.T


def spectrum_of(*sigma: float, shape: tuple[int, int] | None = None, dtype: str = "float64") -> Spectrum:
    values = np.array(sigma, dtype=float)
    m, n = shape or (len(values), len(values))
    return Spectrum(values, (m, n), float(np.sum(values**2)), np.zeros(len(values)), dtype=dtype)


def measured(metric: Metric, a: np.ndarray) -> Value:
    """The metric of a matrix, with the matrix where it needs one; draws as in a thorough analysis with seed 0."""
    matrix = torch.from_numpy(np.ascontiguousarray(a)) if metric.needs == "matrix" else None
    return evaluate([metric], svdvals(a), matrix, seed=(0,) if metric.thorough else None)[metric.name]


def value(name: str, s: Spectrum) -> float:
    return float(evaluate([METRICS[name]], s)[name])


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_registration_is_complete(metric):
    assert metric.title and metric.formula and metric.range and metric.reference and metric.meaning.endswith(".")


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
@given(seed=st.integers(0, 2**20), m=st.integers(1, 32), n=st.integers(1, 32))
@settings(max_examples=15, deadline=None)
def test_transposition_changes_nothing(metric, seed, m, n):
    a = gaussian(m, n, seed)
    one, two = (measured(metric, x) for x in (a, a.T.copy()))
    assert one.known == two.known
    if one.known:
        assert two == pytest.approx(float(one), rel=1e-9)


@pytest.mark.parametrize("metric", [m for m in ALL if m.degree is not None], ids=lambda metric: metric.name)
@given(seed=st.integers(0, 2**20), power=st.integers(-60, 60))
@settings(max_examples=15, deadline=None)
def test_scaling_follows_the_declared_degree(metric, seed, power):
    for a in (gaussian(12, 7, seed), heavy(30, 40, seed)):
        one, two = (float(measured(metric, x)) for x in (a, a * 2.0**power))
        assert two == pytest.approx(one * 2.0 ** (power * metric.degree), rel=1e-9, nan_ok=True)


# A metric that needs the matrix needs it because rotations change it.
@pytest.mark.parametrize("metric", [m for m in ALL if m.needs != "matrix"], ids=lambda metric: metric.name)
@given(seed=st.integers(0, 2**20))
@settings(max_examples=10, deadline=None)
def test_rotations_change_nothing(metric, seed):
    for a in (gaussian(14, 9, seed), heavy(30, 24, seed)):
        u, v = (np.linalg.qr(gaussian(k, k, seed + k))[0] for k in a.shape)
        one, two = (float(measured(metric, x)) for x in (a, u @ a @ v))
        assert two == pytest.approx(one, rel=1e-7, nan_ok=True)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
@pytest.mark.parametrize("a", DEGENERATE, ids=lambda a: f"{a.shape}")
def test_degenerate_matrices_give_a_number_or_a_reason(metric, a):
    found = measured(metric, a)
    assert found.known or found.note


@pytest.mark.parametrize("metric", [m for m in ALL if m.needs == "values"], ids=lambda metric: metric.name)
def test_values_metrics_take_no_matrix(metric):
    found = evaluate([metric], svdvals(heavy(30, 30)), torch.zeros(1, 1))[metric.name]
    assert found.known or found.note


@pytest.mark.parametrize("metric", [m for m in ALL if m.needs == "values"], ids=lambda metric: metric.name)
def test_partial_spectra_are_not_guessed_from(metric):
    partial = Spectrum(np.array([2.0]), (3, 3), 5.0, np.zeros(1), how="partial")
    found = evaluate([metric], partial)[metric.name]
    assert not found.known and "partial" in found.note


def test_known_numbers():
    s = spectrum_of(4.0, 2.0, 1.0)
    assert value("stable_rank", s) == pytest.approx(21 / 16)
    assert value("participation_ratio", s) == pytest.approx(21**2 / (256 + 16 + 1))
    assert value("effective_rank", s) == pytest.approx(math.exp(-sum(p * math.log(p) for p in (4 / 7, 2 / 7, 1 / 7))))
    assert value("condition_number", s) == 4.0
    assert value("nuclear_norm", s) == 7.0
    assert value("frobenius_norm", s) == pytest.approx(math.sqrt(21))
    assert [value(k, s) for k in ("k50", "k90", "k99")] == [1, 2, 3]
    assert relative_error(s, 1) == pytest.approx(math.sqrt(5 / 21))
    assert relative_error(s, 3) == relative_error(s, 9) == 0


def test_equal_values_reach_an_energy_share_exactly():
    assert value("k50", spectrum_of(*[1.0] * 10)) == 5
    assert value("k90", spectrum_of(*[3.0] * 10)) == 9


# Quadrature of the Marchenko-Pastur law: aspect ratio Q -> mu_beta, omega, Hill exponent of the upper half, and
# stable, effective, participation rank over M.
LAW = {
    1: (0.652776, 2.858362, 2.1217, 0.2500, 0.8050, 0.5000),
    2: (0.830466, 2.171185, 2.7058, 0.3431, 0.9261, 0.6667),
    4: (0.916004, 1.836866, 3.4546, 0.4444, 0.9662, 0.8000),
    8: (0.958174, 1.650016, 4.4699, 0.5458, 0.9838, 0.8889),
    16: (0.979127, 1.542779, 5.8775, 0.6400, 0.9920, 0.9412),
}


@pytest.mark.parametrize("q", LAW)
def test_gaussian_matrices_agree_with_random_matrix_theory(q):
    m = 300
    s = svdvals(gaussian(m, q * m, seed=q))
    mu, omega, hill, *ranks = LAW[q]
    assert np.median(s.energies) / (q * m) == pytest.approx(mu, rel=0.02)
    assert gavish_donoho_factor(1 / q) == pytest.approx(omega, abs=2e-6)
    assert value("hill_alpha", s) == pytest.approx(hill, rel=0.02)
    assert value("mp_sigma", s) == pytest.approx(1, rel=0.01)
    assert value("mp_edge", s) == pytest.approx((1 + q**0.5) * m**0.5, rel=0.01)
    # sigma_1 lies a Tracy-Widom mean below its limit, which the stable rank squares
    top = (s.sigma_max / ((1 + q**0.5) * m**0.5)) ** 2
    assert value("stable_rank", s) / m * top == pytest.approx(ranks[0], rel=0.02)
    found = [value(name, s) / m for name in ("effective_rank", "participation_ratio")]
    assert found == pytest.approx(ranks[1:], rel=0.02)


def test_untrained_linear_layer_is_not_what_the_founding_text_prints():
    torch.manual_seed(0)
    s = svdvals(torch.nn.Linear(512, 512).weight)
    assert s.sigma_max == pytest.approx(1.15, abs=0.02)
    assert 1e-6 < s.values[-1] < 5e-3
    assert relative_error(s, 50) == pytest.approx(0.832, abs=0.005)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_rounding_floor_is_what_rounding_does(dtype):
    torch.manual_seed(0)
    w = torch.randn(300, 200, dtype=torch.float64)
    noise = svdvals(w.to(getattr(torch, dtype)).double() - w)
    assert noise.sigma_max == pytest.approx(rounding_floor(float((w**2).sum()), (300, 200), dtype), rel=0.15)


def test_low_rank_matrix_in_bfloat16_has_that_numerical_rank():
    torch.manual_seed(0)
    rows, columns = (torch.nn.functional.normalize(torch.randn(k, 8)) for k in (256, 128))
    w = (rows @ columns.T).bfloat16()
    s = svdvals(w)
    condition = evaluate([METRICS["condition_number"]], s)["condition_number"]
    assert value("numerical_rank", s) == 8
    assert condition.note.startswith("at least") and condition.low == float(condition)


def test_condition_number_carries_its_error():
    values = np.geomspace(1, 1e-5, 40)
    s = Spectrum(values, (40, 40), float(np.sum(values**2)), np.full(40, 1e-9))
    found = evaluate([METRICS["condition_number"]], s)["condition_number"]
    assert float(found) == pytest.approx(1e5)
    assert found.error == pytest.approx(1e5 * (1e-9 + 1e-4), rel=1e-6)


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(InputRefused, match="stable_rank"):
        chosen(["stabel_rank"])


def test_order_does_not_depend_on_imports():
    assert list(METRICS)[:3] == ["count", "sigma_max", "sigma_min"]
