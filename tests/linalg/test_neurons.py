"""Neurons by pivoted Cholesky: as pivoted QR of the activations; losses and refits as least squares has them."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.neurons import neuron_order
from oracles import rng


def block(seed: int, tokens: int, n: int, m: int):
    g = rng(seed)
    h = g.standard_normal((tokens, n)) * 10.0 ** g.uniform(-2, 2, n)
    W, R = g.standard_normal((m, n)), g.standard_normal((m, m))
    return h, W, R @ R.T / m


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 14), st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31))
def test_losses_and_refit_are_those_of_least_squares(n, m, tokens, seed):
    h, W, G = block(seed, tokens, n, m)
    H = h.T @ h / tokens
    found = neuron_order(*(torch.from_numpy(x) for x in (W, H, G)))
    root = np.linalg.cholesky(G + 1e-300 * np.eye(m)) if m else G
    y = h @ W.T
    whole = float(np.square(y @ root).sum()) / tokens
    assert sorted(found.order.tolist()) == list(range(n))
    assert (np.diff(found.losses) <= 1e-9 * whole).all() and found.losses[-1] == 0
    for k in range(n + 1):
        J, new = found.refit(k)
        best = np.linalg.lstsq(h[:, J.numpy()], y, rcond=1e-13)[0] if k else np.zeros((0, m))
        oracle = float(np.square((y - h[:, J.numpy()] @ best) @ root).sum()) / tokens
        mine = float(np.square((y - h[:, J.numpy()] @ new.numpy().T) @ root).sum()) / tokens
        assert abs(found.losses[k] - oracle) <= 1e-7 * whole
        assert mine <= oracle + 1e-7 * whole


def test_order_is_that_of_pivoted_qr_on_the_weighed_activations():
    h, W, G = block(5, 200, 12, 5)
    found = neuron_order(*(torch.from_numpy(x) for x in (W, h.T @ h, G)))
    worth = np.sqrt(np.einsum("ij,ik,kj->j", W, G, W))
    assert found.order.tolist() == scipy.linalg.qr(h * worth, mode="r", pivoting=True)[1].tolist()


def test_equal_and_dead_neurons_cost_nothing():
    h, W, _ = block(7, 100, 6, 3)
    h = np.c_[h, h[:, :3], np.zeros((100, 2))]
    W = np.c_[W, W[:, :3] + 1, np.ones((3, 2))]
    found = neuron_order(torch.from_numpy(W), torch.from_numpy(h.T @ h / 100))
    assert found.losses[6] <= 1e-12 * found.losses[0]
    J, new = found.refit(8)  # more than there are independent ones: still the least squares answer
    np.testing.assert_allclose(h[:, J.numpy()] @ new.numpy().T, h @ W.T, rtol=1e-6, atol=1e-6 * np.abs(h @ W.T).max())


@pytest.mark.parametrize("n", [0, 1])
def test_smallest(n):
    found = neuron_order(torch.ones(2, n).double(), torch.ones(n, n).double())
    assert len(found.losses) == n + 1
