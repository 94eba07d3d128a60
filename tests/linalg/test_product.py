"""Factors that are never multiplied out: values against dense and high-precision references, bounds that hold."""

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.errors import NotDecomposable
from netspectra.linalg.product import Factored, product_svd, product_svdvals


def exact(B, A, scale=1.0):
    """Singular values of the product in 60 digits."""
    with mpmath.workdps(60):
        product = mpmath.matrix(B.double().tolist()) * mpmath.matrix(A.double().tolist()) * mpmath.mpf(scale)
        small = product if product.rows >= product.cols else product.T
        values = mpmath.svd_r(small, compute_uv=False)
        return [values[i] for i in range(len(values))]


def within(spectrum, truth):
    for value, error, want in zip(spectrum.values, spectrum.error, truth, strict=False):
        assert abs(mpmath.mpf(float(value)) - want) <= mpmath.mpf(float(error)), (value, want, error)


def factors(m, r, n, seed, decades=0.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    B, A = torch.randn(m, r, generator=g).double(), torch.randn(r, n, generator=g).double()
    size = 10.0 ** (decades * (2 * torch.rand(r, generator=g).double() - 1))
    return (B * size).to(dtype), (A / size[:, None]).to(dtype)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 5), st.integers(1, 9), st.integers(0, 99), st.sampled_from([0.0, 4.0, 15.0]),
    st.sampled_from([1.0, -0.25, 3e-5]),
)  # fmt: skip
def test_values_are_within_their_bounds_however_scaled(m, r, n, seed, decades, scale):
    B, A = factors(m, r, n, seed, decades)
    found = product_svdvals(B, A, scale)
    truth = exact(B, A, scale)
    assert len(found) == min(m, n, r) and found.how == "exact" and found.shape == (m, n)
    within(found, truth)
    assert all(abs(rest) <= float(truth[0]) * 1e-40 for rest in truth[len(found) :])


@pytest.mark.parametrize("m,r,n", [(300, 8, 200), (200, 64, 700), (64, 100, 32), (1, 1, 5), (600, 300, 500)])
def test_agrees_with_the_dense_product(m, r, n):
    B, A = factors(m, r, n, 1)
    found = product_svdvals(B, A, 0.5)
    dense = np.linalg.svd(0.5 * (B.double() @ A.double()).numpy(), compute_uv=False)
    assert np.allclose(found.values, dense[: len(found)], rtol=0, atol=1e-12 * dense[0])
    assert found.frobenius2 == pytest.approx(float((dense**2).sum()), rel=1e-12)
    assert (found.error <= 1e-9 * dense[0]).all()


def test_sharing_of_size_between_factors_changes_nothing():
    B, A = factors(40, 6, 30, 2, dtype=torch.float64)
    D = 2.0 ** torch.tensor([300.0, -300.0, 50.0, 0.0, -7.0, 400.0], dtype=torch.float64)
    plain, shared = product_svdvals(B, A), product_svdvals(B * D, A / D[:, None])
    assert np.allclose(plain.values, shared.values, rtol=1e-13) and np.allclose(plain.error, shared.error, rtol=1e-6)


def test_extreme_sizes_neither_overflow_nor_vanish():
    B, A = factors(5, 2, 4, 3, dtype=torch.float64)
    plain = product_svdvals(B, A).values
    assert np.allclose(product_svdvals(B * 1e300, A * 1e-300).values, plain, rtol=1e-12)
    assert np.allclose(product_svdvals(B * 1e-200, A * 1e200).values, plain, rtol=1e-12)


def test_cancelling_factors_say_how_little_is_known():
    g = torch.Generator().manual_seed(4)
    b, a = torch.randn(6, 2, generator=g).double(), torch.randn(2, 6, generator=g).double()
    B, A = torch.cat([b, -b * (1 + 1e-9)], 1), torch.cat([a, a], 0)
    found = product_svdvals(B, A)
    within(found, exact(B, A))
    assert found.error[0] > 1e-16


def test_zero_and_empty():
    assert product_svdvals(torch.zeros(3, 2), torch.randn(2, 4)).values.tolist() == [0.0, 0.0]
    assert product_svdvals(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])).values.tolist() == [0.0]
    assert len(product_svdvals(torch.zeros(3, 0), torch.zeros(0, 4))) == 0
    assert product_svd(torch.zeros(3, 2), torch.zeros(2, 4)).S.tolist() == [0.0, 0.0]


def test_refuses_what_has_no_values():
    B, A = torch.ones(3, 2), torch.ones(2, 3)
    for bad in ((B * float("nan"), A, 1.0), (B, A * float("inf"), 1.0), (B, A, float("nan")), (B, A.T, 1.0)):
        with pytest.raises(NotDecomposable):
            product_svdvals(*bad)
    with pytest.raises(ValueError, match="fitting"):
        Factored(B, A.T)


def test_triplets_and_operator():
    B, A = factors(30, 5, 20, 6)
    found, operator = product_svd(B, A, -0.5, k=3), Factored(B, A, -0.5)
    assert found.rank == 3 and found.residual < 1e-13 and found.orthogonality < 1e-13
    assert np.allclose(found.S.numpy(), product_svdvals(B, A, -0.5).values[:3], rtol=1e-13)
    whole = product_svd(B, A, -0.5)
    assert torch.allclose((whole.U * whole.S) @ whole.Vh, -0.5 * B.double() @ A.double())
    X, Y = torch.randn(20, 2), torch.randn(30, 2)
    assert torch.allclose(operator.matmat(X), operator.dense() @ X, atol=1e-4)
    assert torch.allclose(operator.rmatmat(Y), operator.dense().T @ Y, atol=1e-4)
