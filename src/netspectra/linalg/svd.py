"""Singular values and factors of dense matrices: the route is chosen from the shape, the error is always told."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.linalg.operator import LowRank
from netspectra.linalg.spectrum import Spectrum

__all__ = ["svd", "svdvals", "union"]

U64 = 2.0**-53
CHUNK_BYTES = 64 << 20
DIRECT = 96  # short sides up to this go straight to a float64 SVD: measured never slower than 0.9x


def svdvals(A: Any, *, accuracy: float = 1e-6, device: str | torch.device | None = None) -> Spectrum:
    """Every singular value of a matrix, each with a bound on its error.

    The matrix is scaled by a power of two (exact), checked for NaN and Inf, and its float64 Gram matrix on the short
    side is accumulated in row chunks; the square roots of its eigenvalues are the singular values. An eigenvalue is
    off by at most delta = 8 sqrt(n) u lambda_1 (u = 2^-53; a bound that is tested on a zoo of matrices, not derived),
    so a value by at most min(delta / sigma, sqrt(delta)). Where that is more than ``accuracy`` allows, the matrix is
    reduced by QR to a triangle and its float64 SVD is taken instead.

    Args:
        A: two-dimensional tensor or array, any floating or complex dtype, any layout.
        accuracy: largest relative error wanted of each value above the rounding floor of the stored dtype.
        device: where to compute; by default where ``A`` is.

    Returns:
        A `Spectrum` with min(m, n) values; ``error`` is absolute, one number a value.

    Raises:
        NotDecomposable: NaN or Inf inside, not a matrix, or a dtype without numbers to speak of.

    Cost: about (m n^2 + 4/3 n^3) float64 operations and 24 n^2 bytes beside the input, n the short side.

    >>> import torch
    >>> s = svdvals(torch.diag(torch.tensor([3.0, 2.0, 0.5])))
    >>> [round(v, 12) for v in s.values.tolist()]
    [3.0, 2.0, 0.5]
    """
    started = time.perf_counter()
    A, name = _matrix(A, device)
    m, n = A.shape
    if min(m, n) == 0:
        return Spectrum(np.zeros(0), (m, n), 0.0, np.zeros(0), dtype=name, route="empty")
    exponent = _exponent(A)
    if exponent is None:
        zero = np.zeros(min(m, n))
        return Spectrum(zero, (m, n), 0.0, zero.copy(), dtype=name, route="zero")
    tall = A if m >= n else A.mT
    spectrum = _scaled_svdvals(tall, exponent, accuracy, name)
    values, error = np.ldexp(spectrum.values, exponent), np.ldexp(spectrum.error, exponent)
    frobenius2 = spectrum.frobenius2 * 4.0**exponent if abs(exponent) < 500 else float(np.sum(values**2))
    return Spectrum(
        values, (m, n), frobenius2, error, dtype=name, route=spectrum.route, seconds=time.perf_counter() - started
    )


def union(spectra: Sequence[Spectrum], shape: tuple[int, int]) -> Spectrum:
    """Spectrum of the block-diagonal matrix of ``shape`` whose blocks have these spectra."""
    values = np.concatenate([s.values for s in spectra])
    order = np.argsort(-values, kind="stable")
    missing = min(shape) - len(values)
    return Spectrum(
        np.concatenate([values[order], np.zeros(missing)]),
        shape,
        sum(s.frobenius2 for s in spectra),
        np.concatenate([np.concatenate([s.error for s in spectra])[order], np.zeros(missing)]),
        dtype=spectra[0].dtype,
        route=spectra[0].route,
        blocks=len(spectra),
        seconds=sum(s.seconds for s in spectra),
    )


def svd(A: Any, *, k: int | None = None, device: str | torch.device | None = None) -> LowRank:
    """The leading k singular triplets, with the residual measured.

    >>> import torch
    >>> f = svd(torch.outer(torch.ones(4), torch.ones(3)), k=1)
    >>> round(float(f.S[0]), 6), round(f.relative_error, 6)
    (3.464102, 0.0)
    """
    A, _ = _matrix(A, device)
    exponent = _exponent(A) or 0
    X = _widen(A, exponent)
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    frobenius2 = float(torch.sum(S**2))
    k = len(S) if k is None else min(k, len(S))
    U, S, Vh = U[:, :k], S[:k], Vh[:k]
    top = float(S[0]) if k else 1.0
    residual = max(
        (float((X @ Vh.mH - U * S).norm(dim=0).max()) if k else 0.0),
        (float((X.mH @ U - Vh.mH * S).norm(dim=0).max()) if k else 0.0),
    )
    bound = max(residual, 4 * math.sqrt(max(A.shape)) * U64 * top)
    factor = 2.0**exponent
    return LowRank(
        U, S * factor, Vh, frobenius2 * factor * factor, bound * factor, residual / (top or 1.0), "float64 svd"
    )


def _matrix(A: Any, device: str | torch.device | None) -> tuple[Tensor, str]:
    """Bring the input into the shape the routes expect: a strided matrix; say the name of its stored dtype."""
    if not isinstance(A, Tensor):
        A = torch.as_tensor(np.asarray(A))
    A = A.detach()
    if A.dim() != 2:
        raise NotDecomposable(f"a matrix has two dimensions, this has shape {tuple(A.shape)}")
    if not (A.is_floating_point() or A.is_complex()):
        raise NotDecomposable(f"{str(A.dtype).removeprefix('torch.')} numbers are codes or indices, not weights")
    if A.layout != torch.strided:
        A = A.to_dense()
    return (A if device is None else A.to(device)), str(A.dtype).removeprefix("torch.")


def _exponent(A: Tensor) -> int | None:
    """Power of two that brings the largest entry into [0.5, 1); None for a zero matrix; refuses NaN and Inf."""
    largest = 0.0
    for chunk in _chunks(A):
        top = float(torch.linalg.vector_norm(_wide(chunk), ord=math.inf))
        if not math.isfinite(top):
            raise NotDecomposable("contains NaN or Inf")
        largest = max(largest, top)
    return math.frexp(largest)[1] if largest else None


def _wide(chunk: Tensor) -> Tensor:
    """float64 (or complex128) copy of a chunk."""
    return chunk.to(torch.complex128 if chunk.is_complex() else torch.float64)


def _widen(A: Tensor, exponent: int) -> Tensor:
    """float64 copy of a chunk, times 2^-exponent (exact)."""
    half = exponent // 2
    return _wide(A) * 2.0**-half * 2.0 ** -(exponent - half)


def _chunks(A: Tensor) -> Iterator[Tensor]:
    """Row chunks of a few tens of megabytes of float64."""
    rows = max(1, CHUNK_BYTES // (8 * max(1, A.shape[1])))
    for start in range(0, A.shape[0], rows):
        yield A[start : start + rows]


def _scaled_svdvals(A: Tensor, exponent: int, accuracy: float, dtype: str) -> Spectrum:
    """Spectrum of 2^-exponent A for a tall A."""
    m, n = A.shape
    if n <= DIRECT:
        return _triangular(A, exponent, dtype)
    gram, frobenius2 = _gram(A, exponent)
    lam = _eigvalsh(gram)
    del gram
    lam1 = float(lam[0])
    delta = 8 * math.sqrt(n) * U64 * lam1
    values = np.sqrt(np.maximum(lam, 0.0))
    error = np.minimum(delta / np.maximum(values, delta), math.sqrt(delta))
    spectrum = Spectrum(values, (m, n), frobenius2, error, dtype=dtype, route="float64 Gram")
    if np.any((error > accuracy * values) & (values + error > spectrum.floor)):
        return _triangular(A, exponent, dtype)
    return spectrum


def _gram(A: Tensor, exponent: int) -> tuple[Tensor, float]:
    """A^H A in float64, and its trace."""
    n = A.shape[1]
    if A.device.type != "cpu" or A.is_complex():
        gram = torch.zeros((n, n), dtype=torch.complex128 if A.is_complex() else torch.float64, device=A.device)
        for chunk in _chunks(A):
            wide = _widen(chunk, exponent)
            gram += wide.mH @ wide
        return gram, float(gram.diagonal().real.sum())
    total = np.zeros((n, n))
    for chunk in _chunks(A):
        wide = _widen(chunk, exponent).numpy()
        total += wide.T @ wide  # numpy calls syrk here: half of a general product
    return torch.from_numpy(total), float(np.trace(total))


def _eigvalsh(gram: Tensor) -> np.ndarray:
    """Eigenvalues, descending; by OpenBLAS below 2048 and by MKL from there on, whichever measured faster."""
    if gram.device.type == "cpu" and gram.shape[0] < 2048:
        return np.linalg.eigvalsh(gram.numpy())[::-1].copy()
    return torch.linalg.eigvalsh(gram).cpu().numpy()[::-1].copy()


def _triangular(A: Tensor, exponent: int, dtype: str) -> Spectrum:
    """Reduce chunk after chunk to a triangle by QR, then a float64 SVD: backward stable in sigma_1."""
    m, n = A.shape
    R: Tensor | None = None
    for chunk in _chunks(A):
        wide = _widen(chunk, exponent)
        stacked = wide if R is None else torch.cat([R, wide])
        R = torch.linalg.qr(stacked, mode="r").R if stacked.shape[0] > n else stacked
    assert R is not None
    values = torch.linalg.svdvals(R).cpu().numpy()
    bound = 8 * math.sqrt(max(m, n)) * U64 * float(values[0])
    return Spectrum(
        values, (m, n), float(np.sum(values**2)), np.full(len(values), bound), dtype=dtype, route="float64 SVD"
    )
