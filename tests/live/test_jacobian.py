"""Products with Jacobians, against the matrices that torch forms itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netspectra.linalg.algebra import dense
from netspectra.linalg.lanczos import golub_kahan
from netspectra.live.conditions import plain_kernels
from netspectra.live.jacobian import Differences, Jacobian, NoForwardProducts, energies, pushed, sample_jacobians
from netspectra.live.untouched import untouched
from tests.live.networks import NETWORKS, network


def truth(model, x):
    with plain_kernels():
        return torch.autograd.functional.jacobian(lambda value: model(value.clone()), x)


@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_those_of_the_matrix(name):
    model, x = network(name)
    with untouched(model), plain_kernels():
        leaf = x.clone().requires_grad_()
        J = Jacobian(leaf, model(leaf.clone()))
        exact = truth(model, x).reshape(J.shape)
        scale = float(exact.abs().max())
        assert torch.allclose(dense(J), exact, atol=1e-5 * scale)
        assert torch.allclose(J.rmatmat(torch.eye(J.shape[0])).mT, exact, atol=1e-5 * scale)
        assert J.check() < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_jacobians_of_each_sample(name):
    model, x = network(name)
    with untouched(model), plain_kernels():
        leaf = x.clone().requires_grad_()
        out = model(leaf.clone())
        exact = truth(model, x)
        blocks = [exact[i, ..., i, :].flatten() if x.dim() == 2 else exact[i].movedim(-x.dim(), 0)[i] for i in range(3)]
        found = sample_jacobians(leaf, out, 3)
        for block, J in zip(blocks, found, strict=True):
            assert torch.allclose(J.flatten(), block.reshape(J.shape).flatten(), atol=1e-5 * float(exact.abs().max()))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_norms_by_probes_are_those_of_the_matrix(m, n, seed):
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(m, n, generator=generator, dtype=torch.float64)
    x = torch.randn(2, n, generator=generator, dtype=torch.float64).requires_grad_()
    y = x @ A.mT
    basis = [row.expand(2, -1) for row in torch.eye(m, dtype=torch.float64)]
    (sums,) = energies([x], y, basis)
    assert sums.shape == (m, 2)
    assert torch.allclose(sums.sum(0), A.square().sum().expand(2))
    (sums,) = pushed(x, [y], [row.expand(2, -1) for row in torch.eye(n, dtype=torch.float64)])
    assert torch.allclose(sums.sum(0), A.square().sum().expand(2))


def test_leading_value_of_a_jacobian():
    model, x = network("attention")
    with untouched(model), plain_kernels():
        leaf = x.clone().requires_grad_()
        J = Jacobian(leaf, model(leaf))
        found = golub_kahan(J, 1, max_steps=10)
        assert found.products <= 20
        exact = torch.linalg.svdvals(truth(model, x).reshape(J.shape))[0]
    assert float(found.S[0]) == pytest.approx(float(exact), rel=0.01)


class Stubborn(torch.autograd.Function):
    """A cube whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


def test_kernels_without_a_second_derivative_are_said_so():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    J = Jacobian(x, Stubborn.apply(x))
    assert torch.allclose(J.rmatmat(torch.eye(2)), torch.diag(torch.tensor([3.0, 12.0])))
    with pytest.raises(NoForwardProducts, match="not have been used"):
        J.matmat(torch.eye(2))
    with pytest.raises(NoForwardProducts):
        pushed(x, [Stubborn.apply(x)], [torch.ones(2)])
    by_differences = Differences(x, Stubborn.apply(x), lambda value: value**3)
    assert torch.allclose(by_differences.matmat(torch.eye(2)), torch.diag(torch.tensor([3.0, 12.0])), rtol=1e-3)
    assert by_differences.check() < 1e-3


def test_a_wrong_double_backward_is_caught():
    class Lying(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, g):
            return Twice.apply(g)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, g):
            return 2 * g

        @staticmethod
        def backward(ctx, g):
            return 5 * g

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(NoForwardProducts, match="disagree"):
        Jacobian(x, Lying.apply(x)).check()


def test_a_map_that_is_constant_has_a_zero_jacobian():
    x = torch.ones(2, requires_grad=True)
    J = Jacobian(x, nn.functional.relu(-x))
    assert not J.matmat(torch.eye(2)).any() and not J.rmatmat(torch.eye(2)).any()
