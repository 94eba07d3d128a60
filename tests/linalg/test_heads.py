"""Heads with fewer dimensions: against the best projections by brute force, and exact where nothing is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.heads import query_key_bases, value_output_bases
from oracles import rng


def T(*shape, seed=0):
    return torch.from_numpy(rng(seed).standard_normal(shape))


def moment(n, seed):
    X = T(n, 2 * n, seed=seed)
    return X @ X.mT / (2 * n)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([(1, 1), (2, 2), (4, 2), (6, 1)]), st.integers(1, 5), st.integers(1, 9), st.integers(0, 2**31))
def test_losses_are_those_of_the_refit_and_fall_to_zero(counts, d, m, seed):
    heads, kv = counts
    O, H, G = T(m, heads * d, seed=seed), moment(heads * d, seed + 1), moment(m, seed + 2)  # noqa: E741
    bases = value_output_bases(O, H, G, heads=heads, kv_heads=kv)
    whole = float(((G @ O @ H) * O).sum())
    before = whole * (1 + 1e-9)
    for r in range(1, d + 1):
        new, loss = bases.refit(r)
        assert new.shape == (m, heads * r)
        D = O - new @ bases.reduction(r)
        assert abs(float(((G @ D @ H) * D).sum()) - loss) <= 1e-8 * whole
        assert loss <= before + 1e-9 * whole
        before = loss
    assert loss <= 1e-9 * whole


def test_one_head_is_the_two_sided_optimum():
    O, H, G = T(7, 5, seed=1), moment(5, 2), moment(7, 3)  # noqa: E741
    bases = value_output_bases(O, H, G, heads=1, kv_heads=1)
    s = np.linalg.svd(np.linalg.cholesky(G.numpy()).T @ O.numpy() @ np.linalg.cholesky(H.numpy()), compute_uv=False)
    for r in range(1, 6):
        assert bases.refit(r)[1] == pytest.approx(np.square(s[r:]).sum(), rel=1e-6, abs=1e-9)


def test_values_of_low_rank_are_found():
    """O_h V_h of rank 2 in heads of 4: two dimensions are enough, and attention's output is the same."""
    heads, d = 3, 4
    O, V = T(12, heads * d, seed=4), T(heads * d, 10, seed=5)  # noqa: E741
    for h in range(heads):
        V[h * d + 2 : (h + 1) * d] = T(2, 2, seed=h) @ V[h * d : h * d + 2]
    tokens = T(10, 50, seed=6)
    a = V @ tokens
    bases = value_output_bases(O, a @ a.mT, None, heads=heads, kv_heads=heads)
    new, loss = bases.refit(2)
    torch.testing.assert_close(new @ (bases.reduction(2) @ a), O @ a, rtol=1e-6, atol=1e-6)
    assert loss <= 1e-6 * float((O @ a).square().sum())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 8), st.integers(0, 2**31))
def test_scores_come_back_and_losses_are_those_of_the_queries(heads, d, n, seed):
    Q, K, A, G = T(heads * d, n, seed=seed), T(heads * d, n + 1, seed=seed + 1), moment(n, 3), moment(heads * d, 4)
    right, keys, losses = query_key_bases(Q, K, A, G, heads=heads)
    for h in range(heads):
        mine = slice(h * d, (h + 1) * d)
        torch.testing.assert_close(right[h].mT @ keys[h], Q[mine].mT @ K[mine], rtol=1e-8, atol=1e-8)
    blocks = [slice(h * d, (h + 1) * d) for h in range(heads)]
    whole = sum(float(((G[b, b] @ Q[b] @ A) * Q[b]).sum()) for b in blocks)
    assert float(losses[0]) == pytest.approx(whole, rel=1e-8)
    assert (losses.diff() <= 1e-12 * whole).all() and float(losses[d]) == 0
