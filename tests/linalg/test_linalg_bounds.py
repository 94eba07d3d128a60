"""No singular value is further from the truth than its own bound says: every route, matrices with known spectra."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
import torch

import oracles
from netspectra.linalg import gram as gram_module
from netspectra.linalg import triangle as triangle_module
from netspectra.linalg import values as values_module
from netspectra.linalg.matrix import binary_exponent
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.triangle import stable_svdvals
from netspectra.linalg.values import svdvals, tall_spectrum

ROUTES = {"gram": "float32", "svd": "float64"}


@pytest.fixture(autouse=True, params=["reduced by us", "by torch and Cholesky"])
def small_matrices_take_every_route(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(values_module, "DIRECT", 8)
    monkeypatch.setattr(values_module, "POLISH_FROM", {False: 8, True: 8})
    ours = request.param == "reduced by us"
    monkeypatch.setattr(gram_module, "REDUCED_FROM", 8 if ours else 10**9)
    monkeypatch.setattr(triangle_module, "LARGE", 8 if ours else 10**9)


def worst(A: torch.Tensor, truth: np.ndarray, accuracy: float, stored: str) -> tuple[float, Spectrum]:
    """Largest ratio of true error to bound."""
    exponent = binary_exponent(A)
    assert exponent is not None
    spectrum = tall_spectrum(A if A.shape[0] >= A.shape[1] else A.mT, exponent, accuracy, stored)
    off = np.abs(np.ldexp(spectrum.values, exponent).astype(np.longdouble) - truth)
    bound = np.ldexp(spectrum.error, exponent)
    exact = off == 0
    return float((off[~exact] / bound[~exact]).max(initial=0.0)), spectrum


@cache
def cases(n: int, seed: int) -> list[tuple[str, torch.Tensor, np.ndarray]]:
    return list(prescribed(n, seed))


@cache
def zoo_with_truth(n: int) -> list[tuple[str, torch.Tensor, np.ndarray]]:
    whole = [(name, M) for name, A in oracles.zoo(n, seed=n) for M in (A, A.float().double())]
    return [(name, M, oracles.jacobi_svdvals(M.numpy())) for name, M in whole]


def prescribed(n: int, seed: int) -> Iterator[tuple[str, torch.Tensor, np.ndarray]]:
    for name, sigma in oracles.spectra(n, seed):
        for rows in (n, 3 * n) if n < 200 else (n,):
            A, truth = oracles.with_spectrum(sigma, rows, seed)
            yield f"{name}, {rows} x {n}", torch.from_numpy(A), truth


def test_the_oracle_itself() -> None:
    for n in (33, 64):
        A, truth = oracles.with_spectrum(np.linspace(1, 1e-5, n), n)
        assert np.abs(oracles.jacobi_svdvals(A) - truth).max() < 1e-17


def test_the_oracle_against_mpmath() -> None:
    mp = pytest.importorskip("mpmath")
    with mp.workdps(40):
        A = 1.0 / (1.0 + np.arange(12)[:, None] + np.arange(12)[None])
        truth = np.array([np.longdouble(mp.nstr(s, 25)) for s in mp.svd_r(mp.matrix(A.tolist()), compute_uv=False)])
    assert np.abs(oracles.jacobi_svdvals(A) - truth).max() < 1e-17


@pytest.mark.parametrize("stored", ROUTES.values(), ids=ROUTES.keys())
@pytest.mark.parametrize("n", [33, 64, 100, 192])
def test_prescribed_spectra(n: int, stored: str) -> None:
    routes = set()
    for name, A, truth in cases(n, seed=n):
        for accuracy in (1e-6, 1e-2):
            ratio, spectrum = worst(A, truth, accuracy, stored)
            routes.add("polished" in spectrum.route)
            assert ratio <= 1, (name, accuracy, spectrum.route, ratio)
    assert (True in routes) == (stored == "float32")


@pytest.mark.parametrize("n", [33, 100])
def test_prescribed_spectra_of_complex_matrices(n: int) -> None:
    """Rows and columns times powers of i: exact, and the singular values stay."""
    turns = torch.tensor([1, 1j, -1, -1j], dtype=torch.complex128)
    g = oracles.rng(n)
    routes = set()
    for name, A, truth in cases(n, seed=n):
        left, right = (turns[torch.from_numpy(g.integers(0, 4, size))] for size in A.shape)
        ratio, spectrum = worst(left[:, None] * A * right, truth, 1e-6, "complex64")
        routes.add("polished" in spectrum.route)
        assert ratio <= 1, (name, spectrum.route, ratio)
    assert routes == {True, False}


@pytest.mark.slow
@pytest.mark.parametrize("n", [333, 512, 768, 1024])
def test_prescribed_spectra_large(n: int) -> None:
    for name, A, truth in cases(n, seed=n):
        ratio, spectrum = worst(A, truth, 1e-6, "float32")
        assert ratio <= 1, (name, spectrum.route, ratio)


@pytest.mark.parametrize("n", [33, 64])
def test_zoo_against_extended_precision(n: int) -> None:
    for name, matrix, truth in zoo_with_truth(n):
        for stored in ROUTES.values():
            ratio, spectrum = worst(matrix, truth, 1e-6, stored)
            assert ratio <= 1, (name, spectrum.route, ratio)


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 160])
def test_zoo_against_extended_precision_large(n: int) -> None:
    test_zoo_against_extended_precision(n)


@pytest.mark.parametrize("n", [320])
def test_zoo_against_float64(n: int) -> None:
    """Where the bound of the Gram route is far above the reference's own error, LAPACK in float64 will do."""
    for name, A in oracles.zoo(n, seed=n):
        truth = np.linalg.svd(A.numpy(), compute_uv=False)
        exponent = binary_exponent(A) or 0
        spectrum = tall_spectrum(A, exponent, 1e-6, "float32")
        own = 60 * np.sqrt(n) * 2.0**-53 * truth[0]
        off = np.abs(np.ldexp(spectrum.values, exponent) - truth)
        assert (off <= np.ldexp(spectrum.error, exponent) + own).all(), (name, spectrum.route)


@pytest.mark.parametrize("fill", [0.1, 1 / 3, 1e-3])
def test_systematic_rounding_in_long_sums(fill: float) -> None:
    A = torch.full((60_000, 40), fill, dtype=torch.float32)
    truth = float(A[0, 0].double()) * np.sqrt(60_000 * 40)
    for matrix in (A, A.mT):
        spectrum = svdvals(matrix)
        assert abs(spectrum.values[0] - truth) <= spectrum.error[0] + 1e-15 * truth
        assert (spectrum.values[1:] <= spectrum.error[1:]).all()


def test_the_promise_on_float64() -> None:
    """10 sqrt(max(m, n)) eps sigma_1, eps of the stored dtype."""
    for n in (64, 150):
        for _, sigma in oracles.spectra(n, 3):
            A, truth = oracles.with_spectrum(sigma, n, 3)
            spectrum = svdvals(torch.from_numpy(A))
            assert np.abs(spectrum.values - truth).max() <= 10 * np.sqrt(n) * 2.0**-52 * truth[0]
            assert spectrum.error.max() <= 10 * np.sqrt(n) * 2.0**-52 * truth[0]


NARROW = ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


@pytest.mark.parametrize("name", NARROW)
def test_the_promise_on_narrower_dtypes(name: str) -> None:
    """10 sqrt(max(m, n)) eps sigma_1 with float32's eps, of the numbers as stored; and each value within its bound."""
    for case, A in oracles.zoo(20, seed=1):
        stored = (A * (240 / A.abs().max())).to(getattr(torch, name))
        truth = oracles.jacobi_svdvals(stored.double().numpy())
        for matrix in (stored, stored.mT):
            s = svdvals(matrix)
            off = np.abs(s.values - truth)
            assert off.max() <= 10 * np.sqrt(max(s.shape)) * 2.0**-23 * truth[0], (case, s.route)
            assert (off <= s.error).all() and s.dtype == name, (case, s.route)


def test_accuracy_is_met_or_the_value_is_below_the_floor() -> None:
    for name, sigma in oracles.spectra(150, 5):
        A, _ = oracles.with_spectrum(sigma, 150, 5)
        s = svdvals(torch.from_numpy(A).float())
        met = (s.error <= 1e-6 * s.values) | (s.values + s.error <= s.floor)
        # what a float64 SVD itself cannot give may remain
        assert (met | (s.error <= 300 * 2.0**-53 * s.sigma_max)).all(), (name, s.route)


def test_the_tail_is_polished_in_the_matrix() -> None:
    sigma = np.r_[np.linspace(1, 0.1, 396), 1e-5, 1e-6, 3e-7, 1e-7]
    A, truth = oracles.with_spectrum(sigma, 500, 7, layers=1)
    ratio, s = worst(torch.from_numpy(A), truth, 1e-6, "float32")
    assert ratio <= 1 and "polished" in s.route
    assert (s.error <= 1e-6 * s.values).all()


@pytest.mark.parametrize("n", [200, 500])
def test_constant_matrices_need_wider_bounds_than_random_ones(n: int) -> None:
    for fill in (0.1, 1 / 3, 0.7):
        A = torch.full((n, n), fill, dtype=torch.float64)
        truth = np.r_[np.longdouble(fill) * n, np.zeros(n - 1, np.longdouble)]
        for stored in ROUTES.values():
            ratio, s = worst(A, truth, 1e-6, stored)
            assert ratio <= 1, (fill, s.route, ratio)


def test_svd_of_a_tall_matrix_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netspectra.linalg.matrix.CHUNK_BYTES", 1)
    A, truth = oracles.with_spectrum(np.geomspace(1, 1e-12, 64), 2000, 1)
    values, error = stable_svdvals(torch.from_numpy(A))
    assert (np.abs(values - truth) <= error).all()
