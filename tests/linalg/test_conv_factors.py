"""Chains of small convolutions: the losses they claim, exact at full rank, the data-free classics as a special case."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.conv_factors import composed, spatial, spatial_bases, tucker, tucker_bases
from netspectra.linalg.features import on_features
from oracles import rng

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TAPS = [(3,), (3, 3), (2, 3), (1, 3), (2, 2, 2)]


def T(*shape, seed=0):
    return torch.from_numpy(rng(seed).standard_normal(shape))


def moment(n, seed):
    X = T(n, 2 * n, seed=seed)
    return X @ X.mT / (2 * n)


def loss_of(kernel, other, A, G):
    D = (kernel - other).reshape(len(kernel), -1)
    return float(((G @ D @ A) * D).sum())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TAPS), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_spatial(taps, o, i, seed, data):
    kernel = T(o, i, *taps, seed=seed)
    n = i * math.prod(taps)
    A, G = (moment(n, seed + 1), moment(o, seed + 2)) if data else (None, None)
    eyes = (torch.eye(n).double(), torch.eye(o).double())
    bases = spatial_bases(kernel, A, G)
    whole = loss_of(kernel, 0 * kernel, *(a if a is not None else e for a, e in zip((A, G), eyes, strict=True)))
    for rank in range(1, len(bases) + 1):
        first, second, loss = spatial(kernel, bases, rank, A, G)
        real = loss_of(
            kernel, composed(first, second), *(a if a is not None else e for a, e in zip((A, G), eyes, strict=True))
        )
        assert abs(real - loss) <= 1e-8 * whole
    assert loss <= 1e-8 * whole
    if not data and len(taps) == 2:
        matrix = kernel.permute(0, 3, 1, 2).reshape(o * taps[1], i * taps[0]).numpy()
        tail = np.square(np.linalg.svd(matrix, compute_uv=False))[1:].sum()
        assert spatial(kernel, bases, 1)[2] == pytest.approx(tail, rel=1e-6, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TAPS), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31), st.booleans())
def test_tucker(taps, o, i, seed, data):
    kernel = T(o, i, *taps, seed=seed)
    n = i * math.prod(taps)
    A, G = (moment(n, seed + 1), moment(o, seed + 2)) if data else (None, None)
    eyes = (torch.eye(n).double(), torch.eye(o).double())
    weights = tuple(a if a is not None else e for a, e in zip((A, G), eyes, strict=True))
    bases = tucker_bases(kernel, A, G)
    whole = loss_of(kernel, 0 * kernel, *weights)
    for rank_in in range(1, len(bases) + 1):
        first, core, last, losses = tucker(kernel, bases, rank_in, A, G)
        for rank in range(len(core) + 1):
            chain = composed(composed(first, core[:rank]), last[:, :rank]) if rank else 0 * kernel
            assert abs(loss_of(kernel, chain, *weights) - losses[rank]) <= 1e-7 * whole
    assert losses[-1] <= 1e-8 * whole


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_composed_is_the_chain(dims, groups):
    small = (1,) * dims
    first, second = T(4, 3, *(2,) * dims), T(6, 4 // groups, *small)
    x = T(2, 3 * groups, *(5,) * dims, seed=1)
    chain = CONV[dims](CONV[dims](x, first, groups=groups), second, groups=groups)
    torch.testing.assert_close(CONV[dims](x, composed(first, second, groups), groups=groups), chain)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 8), st.integers(1, 4), st.integers(0, 2**31), st.booleans())
def test_on_features_is_least_squares(n, q, m, seed, dependent):
    X, W, Z = T(n, 40, seed=seed), T(m, n, seed=seed + 1), T(q, n, seed=seed + 2)
    if dependent and q > 1:
        Z[-1] = Z[0]
    new, loss = on_features(W, X @ X.mT, Z)
    y, z = (W @ X).numpy().T, (Z @ X).numpy().T
    best = np.linalg.lstsq(z, y, rcond=1e-12)[0] if q else np.zeros((0, m))
    oracle = np.square(y - z @ best).sum()
    assert loss == pytest.approx(oracle, rel=1e-6, abs=1e-7 * np.square(y).sum())
    assert np.square(y - z @ new.numpy().T).sum() <= oracle + 1e-7 * np.square(y).sum()
