"""Factors: every route gives orthonormal triplets of measured residual, and the rank that was asked for."""

import numpy as np
import pytest
import torch

import oracles
from netspectra.linalg.lanczos import golub_kahan
from netspectra.linalg.operator import Dense
from netspectra.linalg.svd import rank_for, svd, svdvals
from netspectra.linalg.tracking import Tracker


def decaying(m: int, n: int, seed: int = 0) -> torch.Tensor:
    A, _ = oracles.with_spectrum(0.9 ** np.arange(min(m, n)), max(m, n), seed)
    return torch.from_numpy(A if m >= n else A.T.copy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(200, 150), (150, 200), (20, 30)], ids=str)
@pytest.mark.parametrize("options", [{"k": 3}, {"k": 30}, {}, {"k": 0}, {"energy": 0.9}, {"error": 0.3}], ids=str)
def test_residual_orthogonality_and_values(dtype: torch.dtype, shape: tuple[int, int], options: dict) -> None:
    A = torch.from_numpy(oracles.rng(2).standard_normal(shape)).to(dtype)
    truth = svdvals(A)
    f = svd(A, **options)
    assert f.shape == shape and f.residual <= 1e-5 and f.orthogonality <= 1e-5
    assert (np.abs(f.S.double().numpy() - truth.values[: f.rank]) <= f.error + truth.error[: f.rank]).all()
    assert f.frobenius2 == pytest.approx(truth.frobenius2, rel=1e-6)
    if "energy" in options or "error" in options:
        assert f.rank == rank_for(truth, **options)
        wide = A.to(torch.complex128 if A.is_complex() else torch.float64)
        left = torch.linalg.matrix_norm(wide - f.dense().to(wide.dtype)) / torch.linalg.matrix_norm(wide)
        assert float(left) == pytest.approx(f.relative_error, abs=1e-5)
        assert float(left) <= options.get("error", np.sqrt(0.1)) + 1e-6


@pytest.mark.parametrize("method", ["lanczos", "chebyshev", "gram", "full", "randomized", "krylov"])
def test_every_method_on_a_decaying_spectrum(method: str) -> None:
    A = decaying(300, 200).float()
    f = svd(A, k=12, method=method)  # type: ignore[arg-type]
    assert "missed" not in f.route
    assert f.S.numpy() == pytest.approx(0.9 ** np.arange(12), abs=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("decay", [0.0, 1.0, 6.0])
def test_filtering_skips_no_value(dtype: torch.dtype, decay: float) -> None:
    g = oracles.rng(int(decay))
    A = torch.from_numpy(g.standard_normal((500, 400)) * 10.0 ** (-decay * np.arange(400) / 400)).to(dtype)
    f = svd(A, k=20, method="chebyshev")
    truth = svdvals(A)
    assert np.abs(f.S.double().numpy() - truth.values[:20]).max() <= 1e-5 * truth.sigma_max
    assert f.residual <= 1e-5 and f.orthogonality <= 1e-5


def test_a_missed_certificate_is_told() -> None:
    A = torch.from_numpy(oracles.rng(3).standard_normal((300, 300))).float()
    f = svd(A, k=10, method="randomized", tolerance=1e-6)
    assert "randomized missed" in f.route and f.residual < 1e-5


def test_scales_and_views() -> None:
    A = decaying(200, 150).float()
    for scale in (1e-30, 1e30):
        f = svd((A * scale).T, k=5)
        assert f.S.double().numpy() == pytest.approx(0.9 ** np.arange(5) * scale, rel=1e-5)
    zero = svd(torch.zeros(200, 150), k=4)
    assert not zero.S.any() and zero.residual == 0
    assert svd(torch.zeros(0, 3)).rank == 0
    with pytest.raises(ValueError, match="one of"):
        svd(A, k=1, energy=0.5)


def test_rank_for_ends() -> None:
    s = svdvals(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
    assert [rank_for(s, energy=e) for e in (0.0, 0.5, 0.9, 1.0)] == [0, 1, 3, 3]
    assert rank_for(svdvals(torch.zeros(3, 3)), energy=0.5) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 5), (5, 1), (6, 6)], ids=str)
def test_golub_kahan(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    g = torch.Generator().manual_seed(1)
    A = torch.randn(shape, dtype=dtype, generator=g)
    f = golub_kahan(Dense(A), 4, tolerance=1e-9)
    truth = torch.linalg.svdvals(A)[:4]
    assert f.converged and torch.allclose(f.S, truth, rtol=1e-9)
    assert torch.allclose(A @ f.Vh.mH, f.U * f.S, atol=1e-7)
    assert torch.allclose(A.mH @ f.U, f.Vh.mH * f.S, atol=1e-7)


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_golub_kahan_where_the_space_ends(rank: int) -> None:
    A = torch.diag(torch.tensor([3.0, 2.0, 1.0] + [0.0] * 7, dtype=torch.float64))
    A[rank:, rank:] = 0
    f = golub_kahan(Dense(A), 5)
    assert torch.allclose(
        f.S, torch.tensor([3.0, 2.0, 1.0][:rank] + [0.0] * (5 - rank), dtype=torch.float64), atol=1e-12
    )


def test_the_global_generator_is_not_touched() -> None:
    state = torch.get_rng_state()
    svd(decaying(200, 150), k=3)
    svd(decaying(200, 150), k=3, method="randomized")
    Tracker(2).look(decaying(20, 10))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_tracking(k: int, dtype: torch.dtype) -> None:
    A = decaying(80, 60).to(dtype)
    tracker = Tracker(k)
    for step in range(60):
        found = tracker.look(A * (1 + 0.001 * step))
    wide = A.to(torch.complex128 if dtype.is_complex else torch.float64) * 1.059
    truth = torch.linalg.svdvals(wide)[:k]
    assert found.S.double().numpy() == pytest.approx(truth.numpy(), rel=5e-3)
    one = torch.eye(k, dtype=found.U.dtype)
    assert torch.allclose(found.U.mH @ found.U, one, atol=1e-5)
    assert torch.allclose(found.Vh @ found.Vh.mH, one, atol=1e-5)
    approx = (found.U * found.S) @ found.Vh
    left = torch.linalg.matrix_norm(wide - approx.to(wide.dtype)) ** 2
    assert float(left) == pytest.approx(float((torch.linalg.svdvals(wide)[k:] ** 2).sum()), rel=2e-2)


def test_tracking_survives_a_change_of_shape_and_zero() -> None:
    tracker = Tracker(2)
    tracker.look(torch.eye(3))
    assert tracker.look(torch.zeros(4, 5)).residual == 0
    assert tracker.look(torch.eye(5)).S.tolist() == pytest.approx([1, 1])
