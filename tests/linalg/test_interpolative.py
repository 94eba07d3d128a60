"""Pivoted storage: exact, bounded, and as many numbers as promised."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.interpolative import (
    BOUND,
    Interpolative,
    interpolative,
    interpolative_parameters,
    interpolative_rank,
)
from oracles import kahan, rng, zoo


def check(found: Interpolative, left: torch.Tensor, right: torch.Tensor, bound: float = BOUND) -> None:
    W = left.double() @ right.double()
    m, r = left.shape
    assert sorted(found.pivots.tolist() + found.rest.tolist()) == list(range(m))
    assert found.pivots.shape == (r,) and found.Z.shape == (m - r, r)
    assert found.Z.numel() + found.B.numel() == interpolative_parameters(m, right.shape[1], r)
    assert found.Z.numel() == 0 or float(found.Z.abs().max()) <= bound * (1 + 1e-9)
    scale = float(torch.linalg.vector_norm(left.double()) * torch.linalg.vector_norm(right.double()))
    assert float(torch.linalg.vector_norm(found.dense() - W)) <= 1e-12 * scale + 1e-300
    torch.testing.assert_close(found.B, W[found.pivots], rtol=1e-9, atol=1e-12 * scale + 1e-300)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 24), st.integers(0, 2**31), st.sampled_from([1.0, 2.0]))
def test_equals_the_product_with_tame_weights(m, n, r, seed, bound):
    g, r = rng(seed), min(m, r)
    left = g.standard_normal((m, r)) * 10.0 ** g.integers(-6, 7, r)  # badly scaled on purpose
    right = g.standard_normal((r, n))
    if r > 1 and seed % 3 == 0:
        left[:, -1] = left[:, 0]  # rank-deficient
    left, right = torch.from_numpy(left), torch.from_numpy(right)
    check(interpolative(left, right, bound=bound * (1 + 1e-6)), left, right, bound * (1 + 1e-6))


@pytest.mark.parametrize("name,A", list(zoo(40)), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("rank", [1, 7, 20])
def test_zoo(name, A, rank):
    U, S, Vh = torch.linalg.svd(A, full_matrices=False)
    left, right = U[:, :rank] * S[:rank], Vh[:rank]
    check(interpolative(left, right), left, right)


def test_volume_is_locally_largest_against_all_subsets():
    """No single exchange makes the volume more than twice as large: the oracle tries them all."""
    left = torch.from_numpy(rng(3).standard_normal((9, 3)))
    found = interpolative(left, torch.eye(3).double())
    volume = lambda rows: abs(float(torch.linalg.det(left[list(rows)])))  # noqa: E731
    mine = volume(found.pivots.tolist())
    one_away = [s for s in itertools.combinations(range(9), 3) if len(set(s) & set(found.pivots.tolist())) == 2]
    assert max(map(volume, one_away)) <= BOUND * mine * (1 + 1e-9)


def test_kahan_needs_swaps_and_gets_them():
    """The matrix that fools pivoted QR: with tiny perturbation so that ties fall the wrong way."""
    n = 60
    K = kahan(n) * (1 + 1e-12 * np.arange(n)[None])
    W = torch.from_numpy(K.T.copy())  # rows of W are the columns that QR would pivot
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    check(interpolative(U[:, : n - 1] * S[: n - 1], Vh[: n - 1]), U[:, : n - 1] * S[: n - 1], Vh[: n - 1])


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0, 1))
def test_rank_for_a_number_of_parameters(m, n, share):
    parameters = int(share * m * n)
    r = interpolative_rank(m, n, parameters)
    assert interpolative_parameters(m, n, r) <= parameters
    assert r == min(m, n) or interpolative_parameters(m, n, r + 1) > parameters


def test_keeps_the_whole_matrix_in_its_own_size():
    W = torch.from_numpy(rng(1).standard_normal((5, 5)))
    found = interpolative(torch.eye(5).double(), W)
    assert found.Z.numel() == 0 and torch.equal(found.dense(), W)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="r <= m"):
        interpolative(torch.ones(2, 3), torch.ones(3, 4))
    with pytest.raises(ValueError, match="at least 1"):
        interpolative(torch.ones(2, 1), torch.ones(1, 4), bound=0.5)
