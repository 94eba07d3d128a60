"""Ridge towards a prior: the same as dense least squares, and as strong as held-out samples want it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.pairs import LEVELS, Pairs, anchored


def drawn(seed, n, q, m, noise=0.0):
    draw = torch.Generator().manual_seed(seed)
    truth = torch.randn(m, q, generator=draw).double()
    z = torch.randn(n, q, generator=draw).double() + 1.0
    return z, z @ truth.mT + noise * torch.randn(n, m, generator=draw).double(), truth


def halved(z, y):
    middle = len(z) // 2
    return [
        Pairs.zeros(y.shape[1], z.shape[1]).add_(*part) for part in ((z[:middle], y[:middle]), (z[middle:], y[middle:]))
    ]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 30), st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_moments_are_those_of_the_rows(q, m, n, seed):
    z, y, _ = drawn(seed, n, q, m, 0.5)
    first, second = halved(z, y)
    whole = first + second
    assert whole.count == n
    zz, yz = whole.moments()
    assert torch.allclose(zz, z.mT @ z / n) and torch.allclose(yz, y.mT @ z / n)
    a, b = torch.randn(q).double(), torch.randn(m).double()
    zz, yz = whole.moments((a, b))
    assert torch.allclose(zz, (z - a).mT @ (z - a) / n) and torch.allclose(yz, (y - b).mT @ (z - a) / n)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99), st.booleans())
@settings(deadline=None, max_examples=40)
def test_the_answer_is_a_dense_ridge_of_one_of_the_levels(q, m, seed, centred):
    z, y, _ = drawn(seed, 24, q, m, 0.5)
    prior = torch.randn(m, q, generator=torch.Generator().manual_seed(seed + 1)).double()
    found = anchored(halved(z, y), prior, centred=centred)
    if centred:
        z, y = z - z.mean(0), y - y.mean(0)
    A, B = z.mT @ z / len(z), y.mT @ z / len(z)
    levels = [share * float(A.trace()) / q for share in LEVELS]
    eye = torch.eye(q, dtype=A.dtype)
    dense = [torch.linalg.solve(A + level * eye, (B + level * prior).mT).mT for level in levels]
    assert min(float((found - one).norm()) for one in dense) < 1e-9 * float(found.norm() + 1)


def test_much_data_wins_and_noise_loses():
    z, y, truth = drawn(0, 4000, 6, 3, 0.01)
    prior = torch.zeros(3, 6).double()
    assert float((anchored(halved(z, y), prior) - truth).norm()) < 1e-2 * float(truth.norm())
    z, y, truth = drawn(1, 8, 6, 3, 30.0)  # the prior is the truth: too few and too noisy rows must not undo it
    assert float((anchored(halved(z, y), truth) - truth).norm()) < 0.1 * float(truth.norm())


def test_a_bias_takes_the_means():
    z, y, truth = drawn(2, 400, 4, 2)
    halves = halved(z, y + 7.0)
    assert torch.allclose(anchored(halves, torch.zeros(2, 4).double(), centred=True), truth, atol=1e-3)


def test_one_half_alone_leaves_the_prior():
    z, y, _ = drawn(3, 9, 4, 2)
    halves = [Pairs.zeros(2, 4).add_(z, y), Pairs.zeros(2, 4)]
    prior = torch.ones(2, 4).double()
    assert torch.equal(anchored(halves, prior), prior)
    dead = [Pairs.zeros(2, 4).add_(torch.zeros(5, 4), torch.zeros(5, 2)) for _ in range(2)]
    assert torch.allclose(anchored(dead, prior), prior)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_kept_in_double(dtype):
    seen = Pairs.zeros(1, 2).add_(torch.ones(3, 2, dtype=dtype), torch.ones(3, 1, dtype=dtype))
    assert all(t.dtype is torch.float64 for t in (seen.zz, seen.yz, seen.z, seen.y))
