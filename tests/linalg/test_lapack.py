"""The routines taken from scipy's library: right answers, in place, and without holding the interpreter lock."""

import threading
import time

import numpy as np
import pytest
import torch

import oracles
from netspectra.linalg.gram import gram
from netspectra.linalg.lapack import cholesky_, gram_update_, tridiagonal_
from netspectra.linalg.matrix import wide_chunks

SIZES = [1, 2, 3, 31, 64, 65, 130]


def random(shape: tuple[int, ...], dtype: type, seed: int = 0) -> np.ndarray:
    g = oracles.rng(seed)
    x = g.standard_normal(shape)
    return (x + 1j * g.standard_normal(shape)).astype(dtype) if np.issubdtype(dtype, np.complexfloating) else x


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("n", SIZES)
def test_gram_products_touch_the_lower_triangle_only(n: int, dtype: type) -> None:
    for k in (1, 7, 2 * n):
        X = random((k, n), dtype)
        for of_rows, given in ((False, X), (True, X.conj().T.copy())):
            C = np.full((n, n), 7.0, dtype)
            gram_update_(C, given, of_rows=of_rows)
            gram_update_(C, given, add=True, of_rows=of_rows)
            assert np.allclose(np.tril(C), np.tril(2 * X.conj().T @ X))
            assert (C[np.triu_indices(n, 1)] == 7.0).all()
    view = random((9, 2 * n), dtype)[:, :n]  # rows that are not contiguous with each other
    C = np.zeros((n, n), dtype)
    gram_update_(C, view)
    assert np.allclose(np.tril(C), np.tril(view.conj().T @ view))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("n", SIZES)
def test_reduction_vectors_and_solves(n: int, dtype: type) -> None:
    X = random((2 * n, n), dtype)
    G = X.conj().T @ X
    lower = np.tril(G) + np.triu(np.full((n, n), np.nan), 1)  # nothing above the diagonal is read
    T = tridiagonal_(lower)
    truth, top = np.linalg.eigvalsh(G), np.linalg.norm(G, 2)
    assert np.allclose(T.eigenvalues()[::-1], truth, atol=1e-13 * n * top)
    k = min(3, n)
    V = T.lowest(k)
    assert np.allclose(V.conj().T @ V, np.eye(k), atol=1e-12)
    assert np.allclose(G @ V, V * truth[:k], atol=1e-12 * n * top)
    assert np.allclose(T.back(T.back(X.T[:, :2], adjoint=True)), X.T[:, :2])
    solve, B = T.solver(0.5), random((n, 4), dtype, 1)
    assert solve is not None and np.allclose((G + 0.5 * np.eye(n)) @ solve(B), B)
    assert T.solver(-2 * top) is None


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("n", SIZES)
def test_cholesky(n: int, dtype: type) -> None:
    X = random((2 * n, n), dtype)
    G = X.conj().T @ X
    L = G.copy()
    assert cholesky_(L)
    L = np.tril(L)
    assert np.allclose(L @ L.conj().T, G)
    assert not cholesky_(-G)


def test_the_interpreter_goes_on_meanwhile() -> None:
    G = random((600, 600), np.float64)
    G = G.T @ G
    begun, ended, seen = threading.Event(), threading.Event(), []

    def reduce() -> None:
        begun.set()
        for _ in range(3):
            tridiagonal_(G.copy())
        ended.set()

    worker = threading.Thread(target=reduce)
    worker.start()
    begun.wait()
    while not ended.is_set():
        seen.append(None)
        time.sleep(0.0005)
    worker.join()
    assert len(seen) > 6  # with the lock held it would be one look a call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2, torch.complex64])
def test_chunks_are_the_matrix_and_share_their_memory(dtype: torch.dtype) -> None:
    A = torch.from_numpy(random((50, 20), np.float64)).to(dtype)
    places, parts = set(), []
    for chunk in wide_chunks(A, 3, size=1, at_least=8):
        places.add(chunk.data_ptr())
        parts.append(chunk.clone())
    assert len(places) == 1 and len(parts) == 7
    assert torch.equal(torch.cat(parts) * 8, A.to(parts[0].dtype))


def test_gram_in_chunks_is_the_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netspectra.linalg.matrix.CHUNK_BYTES", 1)
    A = torch.from_numpy(random((1000, 30), np.float64)).to(torch.bfloat16)
    assert torch.allclose(gram(A).tril(), (A.double().T @ A.double()).tril())
