"""svdvals takes every matrix there is, refuses what is none, and obeys the theorems."""

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import oracles
from netspectra.errors import NotDecomposable
from netspectra.linalg.batch import svdvals_batch
from netspectra.linalg.matrix import as_matrix
from netspectra.linalg.svd import svdvals, union
from netspectra.linalg.threads import threads

NARROW = [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
FNUZ = [torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]
COMPLEX = [torch.complex64, torch.complex128, torch.complex32]
sizes = st.integers(1, 24)
seeds = st.integers(0, 2**20)


def random(m: int, n: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(oracles.rng(seed).standard_normal((m, n)))


def reference(A: torch.Tensor) -> np.ndarray:
    return torch.linalg.svdvals(A.to(torch.complex128 if A.is_complex() else torch.float64)).numpy()


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("dtype", [torch.float64, *NARROW, *FNUZ, *COMPLEX], ids=str)
@pytest.mark.parametrize("shape", [(40, 30), (160, 200), (400, 150), (1, 7), (7, 1), (1, 1)], ids=str)
def test_every_dtype_and_aspect(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    A = random(*shape)
    A = (A + 1j * random(*shape, seed=1)).to(dtype) if dtype.is_complex else A.to(dtype)
    s = svdvals(A)
    truth = reference(A)
    assert s.dtype == str(dtype).removeprefix("torch.")
    assert s.shape == shape and len(s) == min(shape) and s.how == "exact"
    assert (np.abs(s.values - truth) <= s.error + 1e-14 * truth[0]).all()
    assert (np.diff(s.values) <= 0).all()
    assert s.frobenius2 == pytest.approx(float(np.sum(truth**2)), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-38, 1e38])
def test_float32_scales(scale: float) -> None:
    A = (random(150, 140) * scale / 10).float()
    assert svdvals(A).values == pytest.approx(reference(A.double() / scale) * scale, rel=1e-6)


@pytest.mark.parametrize("exponent", [-1000, -1060, 1000])
def test_float64_scales(exponent: int) -> None:
    A = random(40, 30) / 4
    scaled = torch.from_numpy(np.ldexp(A.numpy(), exponent))
    s = svdvals(scaled)
    truth = reference(torch.from_numpy(np.ldexp(scaled.numpy(), -exponent)))
    assert (np.abs(np.ldexp(s.values, -exponent) - truth) <= np.ldexp(s.error, -exponent) + 1e-13).all()


def test_subnormals() -> None:
    assert svdvals(torch.full((2, 2), 1e-45)).values[0] == pytest.approx(2 * 2.0**-149)
    tiny = svdvals(torch.full((3, 3), 5e-324, dtype=torch.float64))
    assert abs(tiny.values[0] - 3 * 5e-324) <= tiny.error[0]


def test_powers_of_two_change_nothing() -> None:
    A = random(150, 140).float()
    assert np.array_equal(svdvals(A * 2.0**40).values, svdvals(A).values * 2.0**40)


def test_layouts() -> None:
    A = random(200, 300).float()
    expected = svdvals(A.contiguous())
    for view in (A.T.contiguous().T, torch.stack([A, A], 2)[:, :, 0], torch.cat([A, A], 1)[:, :300], A.to_sparse()):
        found = svdvals(view)
        assert np.allclose(found.values, expected.values, rtol=1e-10)
    assert np.allclose(svdvals(A.T).values, expected.values, rtol=1e-10)
    assert svdvals(torch.ones(1, 1).expand(200, 300)).values[0] == pytest.approx(np.sqrt(60_000))
    assert np.allclose(svdvals(A.numpy()).values, expected.values)
    assert np.allclose(svdvals((1j * A).mH.to(torch.complex64)).values, expected.values, rtol=1e-6)


def test_empty_zero_and_rank_one() -> None:
    assert len(svdvals(torch.zeros(0, 5))) == 0 and svdvals(torch.zeros(0, 5)).shape == (0, 5)
    zero = svdvals(torch.zeros(200, 300))
    assert not zero.values.any() and not zero.error.any() and zero.frobenius2 == 0
    one = svdvals(torch.outer(torch.ones(300), torch.ones(200)))
    assert one.values[0] == pytest.approx(np.sqrt(60_000)) and (one.values[1:] <= one.error[1:]).all()


def test_parameters_gradients_and_modes_are_left_alone() -> None:
    W = torch.nn.Parameter(random(150, 140).float())
    (W**2).sum().backward()
    before, version, state = W.data_ptr(), W._version, torch.get_rng_state()
    kept = W.detach().clone()
    assert W.grad is not None
    assert np.allclose(svdvals(W.grad).values, 2 * svdvals(W).values, rtol=1e-6)
    assert W.data_ptr() == before and W._version == version and torch.equal(W.detach(), kept)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([[1.0, float("inf")]]),
        torch.tensor([[1.0, float("nan")]]),
        torch.tensor([[1.0, float("-inf")]]).bfloat16(),
        torch.tensor([[1.0, float("nan")]]).to(torch.float8_e5m2),
        torch.tensor([[1.0, complex("nan+1j")]]),
        torch.ones(2, 2, dtype=torch.int64),
        torch.ones(2, 2, dtype=torch.bool),
        torch.ones(3),
        torch.ones(2, 2, 2),
        torch.ones(2, 2, device="meta"),
        np.array([["a"]]),
    ],
    ids=lambda b: f"{b.dtype}{tuple(b.shape)}",
)
def test_refused(bad: object) -> None:
    with pytest.raises(NotDecomposable):
        svdvals(bad)


def test_one_inf_far_down_a_chunked_matrix() -> None:
    A = torch.zeros(5000, 2000, dtype=torch.float16)
    A[4999, 1999] = float("inf")
    with pytest.raises(NotDecomposable):
        svdvals(A)


@given(sizes, sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_transposition(m: int, n: int, seed: int) -> None:
    A = random(m, n, seed)
    s, t = svdvals(A), svdvals(A.T)
    assert (np.abs(s.values - t.values) <= s.error + t.error).all()


@given(sizes, sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_orthogonal_invariance_and_permutation(m: int, n: int, seed: int) -> None:
    A, g = random(m, n, seed), oracles.rng(seed)
    Q = torch.linalg.qr(random(m, m, seed + 1)).Q
    s = svdvals(A)
    assert np.allclose(svdvals(Q @ A).values, s.values, atol=1e-13 * s.sigma_max)
    shuffled = A[torch.from_numpy(g.permutation(m))][:, torch.from_numpy(g.permutation(n))]
    assert np.allclose(svdvals(shuffled).values, s.values, atol=1e-13 * s.sigma_max)


@given(sizes, sizes, seeds, st.floats(-1e3, 1e3))
@settings(max_examples=40, deadline=None)
def test_scaling(m: int, n: int, seed: int, c: float) -> None:
    A = random(m, n, seed)
    s = svdvals(A)
    assert np.allclose(
        svdvals(c * A).values, s.scaled(c).values, rtol=1e-12, atol=1e-13 * abs(c) * s.sigma_max + 1e-322
    )


@given(sizes, sizes, seeds)
@settings(max_examples=40, deadline=None)
def test_weyl(m: int, n: int, seed: int) -> None:
    A, E = random(m, n, seed), random(m, n, seed + 1) * 0.1
    shift = np.abs(svdvals(A + E).values - svdvals(A).values)
    assert shift.max() <= svdvals(E).sigma_max * (1 + 1e-12)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), seeds)
@settings(max_examples=30, deadline=None)
def test_union_is_the_block_diagonal_matrix(heights: list[int], seed: int) -> None:
    blocks = [random(h, 4, seed + i) for i, h in enumerate(heights)]
    whole = torch.block_diag(*blocks)
    u = union([svdvals(b) for b in blocks], tuple(whole.shape))
    assert np.allclose(u.values, reference(whole), atol=1e-13)
    assert len(u.error) == min(whole.shape)


@pytest.mark.parametrize("shape", [(5, 3, 40), (7, 64, 64), (3, 130, 140), (4, 1, 9), (0, 2, 3), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_batches(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    A = torch.from_numpy(oracles.rng(1).standard_normal(shape)).to(dtype)
    if shape[0] > 2 and A.numel():
        A[1] = 0
        A[2] *= 2.0**60
    found = svdvals_batch(A)
    assert len(found) == shape[0]
    for s, matrix in zip(found, A, strict=True):
        truth = reference(matrix)
        assert s.shape == shape[1:]
        assert (np.abs(s.values - truth) <= s.error + 1e-14 * truth.max(initial=0)).all()


def test_batches_refuse_by_index() -> None:
    A = torch.ones(3, 4, 4)
    A[1, 2, 2] = float("nan")
    with pytest.raises(NotDecomposable, match="matrix 1"):
        svdvals_batch(A)
    with pytest.raises(NotDecomposable):
        svdvals_batch(torch.ones(2, 2))
    assert svdvals_batch(torch.full((1, 2, 2), 1e300, dtype=torch.float64))[0].values[0] == pytest.approx(2e300)


def test_threads_are_restored_and_do_not_change_the_answer() -> None:
    before = torch.get_num_threads()
    A = random(400, 350).float()
    with threads(1):
        assert torch.get_num_threads() == 1
        first = svdvals(A)
    assert torch.get_num_threads() == before
    assert np.array_equal(first.values, svdvals(A, max_threads=1).values)


def test_every_library_is_told_its_threads() -> None:
    import subprocess
    import sys

    code = """
from netspectra.linalg.threads import threads
from threadpoolctl import threadpool_info
with threads(1):
    import netspectra.linalg.values
    found = [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
print(len(found), set(found))
"""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean).stdout
    assert int(told.split()[0]) >= 2 and told.split()[1] == "{1}"


def test_as_matrix_copies_nothing() -> None:
    A = random(3, 4)
    assert as_matrix(A).data_ptr() == A.data_ptr()


@pytest.mark.slow
def test_memory_stays_within_the_promise() -> None:
    import subprocess
    import sys

    code = """
import resource, torch
from netspectra.linalg.svd import svdvals
svdvals(torch.randn(1500, 1400)); svdvals(torch.randn(600, 600).double())
A = torch.empty(60000, 2000, dtype=torch.bfloat16)
for c in A.split(1000): c.copy_(torch.randn(len(c), 2000))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
svdvals(A)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    grown = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert grown <= 24 * 2000**2 + 200e6
