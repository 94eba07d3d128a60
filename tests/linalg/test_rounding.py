"""Codes of few bits: packed without loss, rounded as well as brute force, compensated no worse than to the nearest."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from netspectra.linalg.moments import root
from netspectra.linalg.packing import pack, unpack
from netspectra.linalg.rounding import Grid, compensated, group_of, nearest
from netspectra.linalg.weighted import leading, projected


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matrix(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, n, generator=generator(seed), dtype=torch.float64)


def moment(n: int, tokens: int, seed: int = 0) -> torch.Tensor:
    X = matrix(tokens, n, seed) @ matrix(n, n, seed + 1)
    return X.mT @ X / tokens


def loss(W, coded, A, G=None):
    E = W - coded.numbers()
    return float(((E if G is None else G @ E) * (E @ A)).sum())


@given(st.integers(1, 8), st.integers(0, 5), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_packing_is_lossless_and_dense(bits, m, n, seed):
    codes = torch.randint(0, 2**bits, (m, n), generator=generator(seed), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (m, -(-n * bits // 8))
    assert torch.equal(unpack(packed, bits, n), codes)


def test_many_rows_are_packed_as_few_are():
    codes = torch.randint(0, 8, (1100, 19), generator=generator(0), dtype=torch.uint8)
    whole = pack(codes, 3)
    assert torch.equal(whole, torch.cat([pack(row[None], 3) for row in codes]))
    assert torch.equal(unpack(whole, 3, 19), codes)


@given(st.integers(2, 8), st.booleans(), st.sampled_from([0, 8, 16]), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_nearest_is_within_half_a_step_and_a_whole_one_at_the_ends(bits, symmetric, group, seed):
    W = matrix(3, 32, seed)
    coded = nearest(W, Grid(max(bits, 6), group, symmetric))
    size = group_of(32, group)
    half = coded.scale.double().repeat_interleave(size, 1) / 2
    off = (W - coded.numbers()).abs()
    ends = (coded.codes == 0) | (coded.codes == 2**coded.bits - 1)  # a whole zero point moves them by half a step
    assert bool((off <= torch.where(ends, 2 * half, half) * (1 + 2e-2) + 1e-12).all())
    assert int(coded.codes.max()) < 2 ** max(bits, 6)


def test_searched_scales_beat_those_that_clip_nothing():
    W = matrix(64, 64)
    plain = (W.amax(1) - W.amin(1)) / 7
    zero = (-W.amin(1) / plain).round()
    rounded = (((W / plain[:, None] + zero[:, None]).round().clamp(0, 7)) - zero[:, None]) * plain[:, None]
    assert float((W - nearest(W, Grid(3, 0)).numbers()).square().sum()) < 0.9 * float((W - rounded).square().sum())


@given(st.integers(2, 5), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_searched_scales_never_lose_to_clipping_nothing_within_groups(bits, symmetric, seed):
    """Inputs all positive and correlated, as after ReLU: what clipping takes away adds up."""
    X = (matrix(300, 3, seed) @ matrix(3, 16, seed + 1) + 1).clamp_min(0)
    A = X.mT @ X / len(X)
    W, grid = matrix(12, 16, seed + 2), Grid(bits, 0, symmetric)
    plain = loss(W, nearest(W, grid, search=False), A)
    assert loss(W, nearest(W, grid, A), A) <= plain * (1 + 1e-9)
    whole = torch.block_diag(A, 2 * A)
    wide = torch.cat([W, W.flip(0)], 1)
    parted = Grid(bits, 16, symmetric)
    assert loss(wide, nearest(wide, parted, whole), whole) <= loss(wide, nearest(wide, parted, search=False), whole)


def test_scales_by_the_groups_moments_are_better_than_by_the_diagonal_alone():
    alone, whole = [], []
    for seed in range(6):
        X = (matrix(1000, 8, seed) @ matrix(8, 144, 2) + 0.3 * matrix(1000, 144, 3) + 1).clamp_min(0)
        A, W, grid = X.mT @ X / len(X), matrix(32, 144, seed), Grid(4, 64)
        plain = loss(W, nearest(W, grid, search=False), A)
        alone.append(loss(W, nearest(W, grid, A.diagonal()), A) / plain)
        whole.append(loss(W, nearest(W, grid, A), A) / plain)
    assert max(whole) < 1 and sum(whole) < 0.8 * sum(alone)


@given(st.integers(2, 3), st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_the_search_is_the_best_of_its_scales(bits, seed):
    """Against each scale tried one by one in float64."""
    W, A = matrix(2, 12, seed), moment(12, 100, seed + 1)
    low, high = W.amin(1).clamp_max(0), W.amax(1).clamp_min(0)
    best = torch.full((2,), torch.inf, dtype=torch.float64)
    for share in torch.linspace(1.0, 0.35, 24).tolist():
        scale = ((high - low) * share / (2**bits - 1)).half().double()
        zero = (-low * share / scale).round().clamp(0, 2**bits - 1)
        E = W - ((W / scale[:, None] + zero[:, None]).round().clamp(0, 2**bits - 1) - zero[:, None]) * scale[:, None]
        best = torch.minimum(best, ((E @ A) * E).sum(1))
    E = W - nearest(W, Grid(bits, 0), A).numbers()
    torch.testing.assert_close(((E @ A) * E).sum(1), best, rtol=1e-9, atol=0)


def test_zero_rows_and_zero_matrices_stay_zero():
    W = matrix(4, 16)
    W[1] = 0
    for coded in (nearest(W, Grid(3, 8)), *compensated(W, [Grid(3, 8)], moment(16, 50))):
        assert torch.equal(coded.numbers()[1], torch.zeros(16, dtype=torch.float64))
    assert not nearest(torch.zeros(2, 8, dtype=torch.float64), Grid(4, 0, True)).numbers().any()


def test_tiny_numbers_take_bfloat16_scales():
    coded = nearest(matrix(4, 16) * 1e-7, Grid(4, 8))
    assert coded.scale.dtype == torch.bfloat16
    assert float((coded.numbers() - matrix(4, 16) * 1e-7).norm() / (matrix(4, 16) * 1e-7).norm()) < 0.15


@given(st.integers(2, 4), st.booleans(), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_compensation_helps_under_correlated_inputs(bits, symmetric, seed):
    W, A = matrix(24, 32, seed), moment(32, 400, seed + 7)
    grid = Grid(bits, 16, symmetric)
    [ours] = compensated(W, [grid], A)
    assert loss(W, ours, A) < loss(W, nearest(W, grid, A.diagonal()), A)


def test_without_correlation_compensation_is_rounding_to_the_nearest():
    W, A = matrix(8, 32), torch.diag(torch.linspace(1, 3, 32, dtype=torch.float64))
    grid = Grid(4, 16)
    [ours] = compensated(W, [grid], A)
    assert torch.equal(ours.numbers(), nearest(W, grid, A.diagonal()).numbers())


def test_several_grids_at_once_are_those_one_by_one():
    W, A = matrix(8, 96), moment(96, 300)
    grids = [Grid(8, 32), Grid(3, 32), Grid(2, 32, True)]
    for one, grid in zip(compensated(W, grids, A), grids, strict=True):
        [alone] = compensated(W, [grid], A)
        assert torch.equal(one.numbers(), alone.numbers()) and one.bits == grid.bits


def test_compensation_is_near_the_best_of_all_roundings():
    W, A = matrix(1, 6, 3), moment(6, 40, 4)
    [ours] = compensated(W, [Grid(2, 0)], A, damp=0.0)
    s, z = float(ours.scale), float(ours.zero)
    best = min(
        float(((W - (torch.tensor([codes]) - z) * s) @ A * (W - (torch.tensor([codes]) - z) * s)).sum())
        for codes in itertools.product(range(4), repeat=6)
    )
    found = loss(W, ours, A)
    assert best <= found * (1 + 1e-12) and found <= 2.5 * best
    assert found <= loss(W, nearest(W, Grid(2, 0), A.diagonal()), A)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_singular_and_dead_inputs_are_no_problem(tokens):
    A = moment(40, tokens)
    A[3] = A[:, 3] = 0
    W = matrix(6, 40)
    for damp in (0.0, 0.01):
        [coded] = compensated(W, [Grid(3, 8)], A, damp)
        assert bool(coded.numbers().isfinite().all())
    [coded] = compensated(W, [Grid(3, 8)], torch.zeros(40, 40, dtype=torch.float64))
    assert torch.equal(coded.codes, nearest(W, Grid(3, 8)).codes)


@pytest.mark.parametrize(("m", "n"), [(12, 30), (30, 12), (16, 16)])
@pytest.mark.parametrize("sides", ["both", "inputs", "outputs", "none", "diagonal"])
def test_leading_is_the_optimum_of_the_whole_decomposition(m, n, sides):
    E = matrix(m, n)
    A = moment(n, 60, 2) if sides in ("both", "inputs") else None
    G = moment(m, 60, 5) if sides in ("both", "outputs") else None
    if sides == "diagonal":
        A = torch.rand(n, generator=generator(1), dtype=torch.float64)
    left, right, s, whole = leading(E, A, G, 5)
    _, _, full = projected(E, None if G is None else root(G), None if A is None else root(A))
    torch.testing.assert_close(s, full[:5].square(), rtol=1e-9, atol=1e-9 * float(full[0]) ** 2)
    assert whole == pytest.approx(float(full.square().sum()), rel=1e-10)
    for rank in (1, 5):
        rest = E - left[:, :rank] @ right[:rank]
        RA = rest if A is None else rest * A if A.dim() == 1 else rest @ A
        found = float(((rest if G is None else G @ rest) * RA).sum())
        assert found == pytest.approx(float(full[rank:].square().sum()), rel=1e-8)


def test_leading_with_singular_moments():
    E, A, G = matrix(10, 20), moment(20, 3), moment(10, 2, 4)
    left, right, _, whole = leading(E, A, G, 4)
    rest = E - left @ right
    assert float(((G @ rest) * (rest @ A)).sum()) <= 1e-9 * whole


def test_bytes_are_those_of_what_is_stored():
    for grid, m, n in ((Grid(3, 64), 10, 128), (Grid(4, 64, True), 3, 100), (Grid(2, 0), 5, 27)):
        coded = nearest(matrix(m, n), grid)
        stored = pack(coded.codes, grid.bits).numel() + 2 * coded.scale.numel()
        stored += 0 if grid.symmetric else pack(coded.zero, grid.bits).numel()
        assert grid.bytes(m, n) == stored
