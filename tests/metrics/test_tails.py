"""Tail exponents: the pruned scan against all candidates, the powerlaw package, and planted tails."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.svd import svdvals
from netspectra.metrics import METRICS, evaluate
from netspectra.metrics.alternatives import compare_laws
from netspectra.metrics.farms import square_windows
from netspectra.metrics.pareto import Tail, fit_tail


def brute(x):
    """Every distinct value but the largest as xmin: no pruning, no incremental sums."""
    best = None
    for xmin in np.unique(x)[::-1][1:]:
        tail = np.sort(x[x >= xmin])
        alpha = 1 + len(tail) / np.log(tail / xmin).sum()
        distance = 0.0
        for value in np.unique(tail):
            distance = max(distance, abs((tail >= value).mean() - (value / xmin) ** (1 - alpha)))
        if best is None or distance < best.distance - 1e-12:
            best = Tail(alpha, xmin, len(tail), distance)
    return best


def same(one, two):
    if one is None or two is None:
        return one is two
    # rounding may decide between two candidates of the same distance
    close = one.distance == pytest.approx(two.distance, rel=1e-9, abs=1e-12)
    return close and (one.size != two.size or one.alpha == pytest.approx(two.alpha, rel=1e-9))


values = st.floats(1e-6, 1e6)
samples = st.one_of(
    st.lists(values, min_size=1, max_size=40),
    st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0, 10.0, 1e4]), min_size=1, max_size=40),  # ties
    st.integers(0, 10**6).map(lambda seed: list((1 - np.random.default_rng(seed).random(120)) ** -0.7)),
)


@given(samples)
@example([1.0])
@example([1.0, 2.0])
@example([3.0] * 7)
@settings(max_examples=200, deadline=None)
def test_pruning_finds_what_all_candidates_give(x):
    x = np.array(x)
    assert same(fit_tail(x), brute(x))


@given(samples, st.integers(-30, 30))
@settings(max_examples=60, deadline=None)
def test_the_unit_and_the_order_do_not_matter(x, power):
    x = np.array(x)
    one, two = fit_tail(x), fit_tail(x[::-1] * 2.0**power)
    if one is None:
        assert two is None
    else:
        assert two == Tail(one.alpha, one.xmin * 2.0**power, one.size, one.distance)


@pytest.mark.parametrize("seed", range(4))
def test_pruning_on_spectra_of_some_size(seed):
    rng = np.random.default_rng(seed)
    noise = np.linalg.svd(rng.standard_normal((150, 150 * (seed + 1))), compute_uv=False) ** 2
    for x in (noise, np.exp(rng.standard_normal(300)), np.geomspace(1, 1e-6, 300), 1 - rng.random(300)):
        assert same(fit_tail(x), brute(x))


def test_agrees_with_the_powerlaw_package():
    powerlaw = pytest.importorskip("powerlaw")
    rng = np.random.default_rng(0)
    for x in ((1 - rng.random(300)) ** -0.5, np.linalg.svd(rng.standard_normal((120, 240)), compute_uv=False) ** 2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without the range the package caps alpha at 3
            theirs = powerlaw.Fit(x, parameter_ranges={"alpha": [0, None]}, verbose=False)
        ours = fit_tail(x)
        assert ours is not None and ours.xmin == pytest.approx(theirs.xmin, rel=1e-12)
        assert (ours.alpha, ours.distance) == pytest.approx((theirs.alpha, theirs.D), rel=1e-6)


# ---- planted tails -------------------------------------------------------------------------------------------------


def diagonal(lam):
    sigma = np.sort(np.sqrt(lam))[::-1]
    return Spectrum(sigma, (len(sigma), len(sigma)), float(np.sum(lam)), np.zeros(len(sigma)))


def sample(alpha, rng, body):
    tail = (1 - rng.random(500)) ** (-1 / (alpha - 1))
    return np.concatenate([rng.random(500), tail]) if body else tail


def covered(alpha, draws, body, seed=None):
    rng = np.random.default_rng(11)
    found = [evaluate([METRICS["alpha"]], diagonal(sample(alpha, rng, body)), seed=seed)["alpha"] for _ in range(draws)]
    return np.mean([a.known and a.low <= alpha <= a.high for a in found])


@pytest.mark.parametrize("alpha", [2, 3, 4])
def test_planted_tails_lie_in_their_interval(alpha):
    assert covered(alpha, 60, body=True) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize("alpha", [2, 3, 4])
def test_planted_tails_lie_in_their_interval_in_93_percent(alpha, body):
    assert covered(alpha, 200, body) >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [2, 3, 4])
def test_bootstrap_intervals_cover_too(alpha):
    assert covered(alpha, 40, body=True, seed=(0,)) >= 0.93


def thorough(lam):
    return evaluate([METRICS["alpha"]], diagonal(lam), seed=(0,))["alpha"]


def test_goodness_of_fit_tells_a_power_from_another_law():
    rng = np.random.default_rng(0)
    power = thorough(sample(3, rng, body=True))
    capped = thorough(np.minimum(sample(3, rng, body=False), 3 + rng.random(500)))  # a power that ends
    assert power.detail["p"] > 0.1 > 0.05 > capped.detail["p"]
    assert power.detail["against"]["exponential"]["ratio"] > 2


def test_likelihood_ratios_have_the_right_sign():
    rng = np.random.default_rng(0)
    n = 3000
    power = (1 - rng.random(n)) ** -0.5
    exponential = 1 + rng.exponential(1.0, n)
    cut = power[rng.random(n) < np.exp(-0.3 * (power - 1))]
    laws = compare_laws(power, 1.0, fitted(power))
    assert laws["exponential"]["ratio"] > 3 and laws["truncated power law"]["p"] > 0.05
    assert abs(laws["lognormal"]["ratio"]) < 3
    laws = compare_laws(exponential, 1.0, fitted(exponential))
    assert laws["exponential"]["ratio"] < -3 and laws["exponential"]["p"] < 0.01
    laws = compare_laws(cut, 1.0, fitted(cut))
    assert laws["truncated power law"]["ratio"] < -10 and laws["truncated power law"]["p"] < 1e-4


def fitted(y):
    return 1 + len(y) / float(np.log(y).sum())


# ---- what the metrics say ------------------------------------------------------------------------------------------


def number(name, s):
    return evaluate([METRICS[name]], s)[name]


def test_alpha_is_pinned_as_an_object():
    rng = np.random.default_rng(0)
    alpha = number("alpha", diagonal(sample(3, rng, body=True)))
    assert alpha.low < 3 < alpha.high and alpha.detail["p"] is None and alpha.detail["tail"] >= 20
    assert {"tail", "p", "xmin", "distance", "standard_error", "interval"} == set(alpha.detail)
    assert alpha.detail["standard_error"] == pytest.approx((alpha - 1) / math.sqrt(alpha.detail["tail"]))


@pytest.mark.parametrize(
    ("lam", "why"),
    [
        (np.arange(1.0, 20.0), "only 19 values"),
        (np.ones(50), "equal"),
        (np.zeros(50), "zero"),
        (np.concatenate([np.geomspace(1e9, 1e3, 12), np.linspace(1, 2, 200)]), "in the best tail"),
    ],
)
def test_no_number_without_a_tail(lam, why):
    s = diagonal(lam)
    assert not number("alpha", s).known and why in number("alpha", s).note
    for name in ("alpha_hat", "log_alpha_norm", "erg_gap"):
        assert number(name, s).note.startswith("alpha is unknown")


def test_values_at_the_rounding_floor_are_no_tail():
    torch.manual_seed(0)
    low = (torch.randn(300, 30) @ torch.randn(30, 200)).bfloat16()
    assert "only 30 values" in number("alpha", svdvals(low)).note or number("alpha", svdvals(low)).detail["tail"] <= 30
    assert "rounding floor" in number("hill_alpha", svdvals(low)).note


def test_alpha_norms_from_their_definitions():
    lam = np.arange(1, 401) ** -0.5 * 7
    s = diagonal(lam)
    alpha = number("alpha", s)
    assert number("alpha_hat", s) == pytest.approx(alpha * math.log10(7))
    assert number("log_alpha_norm", s) == pytest.approx(math.log10(np.sum(lam**alpha)))


def test_erg_tail_has_volume_one():
    s = diagonal(np.arange(1, 401) ** -0.8)
    gap = number("erg_gap", s)
    scaled = s.energies / s.energies.mean()
    k = gap.detail["erg_tail"]
    assert np.log(scaled[:k]).sum() >= 0 > np.log(scaled[: k + 1]).sum()
    assert gap == k - gap.detail["tail"]


@pytest.mark.parametrize("q", [1, 2, 4, 8, 16])
def test_farms_does_not_see_the_aspect(q):
    w = torch.randn(300, 300 * q, generator=torch.Generator().manual_seed(q), dtype=torch.float64)
    found = evaluate([METRICS["farms_alpha"]], svdvals(w), w)["farms_alpha"]
    assert found == pytest.approx(2.1217, abs=0.05)


@given(st.integers(1, 9), st.integers(1, 50))
def test_windows_cover_the_matrix(short, long):
    long = max(short, long)
    rows = torch.arange(long)[:, None].expand(long, short)
    windows = list(square_windows(rows))
    assert all(tuple(window.shape) == (short, short) for window in windows)
    assert len(windows) == math.ceil(long / short)
    assert set(torch.cat([window[:, 0] for window in windows]).tolist()) == set(range(long))
