"""Many small matrices of one shape at once: experts, heads, the blocks of a grouped convolution."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.linalg.gram import gram_spectrum
from netspectra.linalg.lapack import gram_update_
from netspectra.linalg.matrix import as_matrix, binary_exponent, dtype_name, widen
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.triangle import svd_bound
from netspectra.linalg.values import ELONGATED, WIDE, flagged, rescaled, svdvals, tall_spectrum

__all__ = ["svdvals_batch"]

LARGEST = {False: 127, True: 95}  # real, complex: short sides beyond gain nothing from a batch
LONGEST = 1024  # longer sums need the care of the chunked routes
SLAB_BYTES = 8 << 20  # what fits a cache, and memory that is used again rather than asked for anew
GRAM_FROM = 16  # short side from which the Gram matrix pays for squares
ONE_BY_ONE_FROM = 48  # short side from which half the work is worth a call a matrix


def svdvals_batch(
    A: Any, *, accuracy: float = 1e-6, device: str | torch.device | None = None, stored: str = ""
) -> list[Spectrum]:
    """The spectrum of each of g matrices in a tensor (g, m, n), small ones decomposed together.

    Short sides from 128 on (complex: 96) go one by one through `svdvals`. Those from 16 on, and elongated ones, by
    float64 Gram matrices; small squares, those stored in float64, and those whose bound misses ``accuracy``, by
    batched float64 SVD. No matrix sees the size of another: one of them may be 1e30 times the next.

    Args:
        A: (g, m, n), as `svdvals` takes them.
        accuracy: as `svdvals`.
        device: as `svdvals`.
        stored: dtype the numbers come from, where they were widened before they came here.

    Raises:
        NotDecomposable: as `svdvals`; a NaN in one of them refuses all, and the text says which is the first.

    >>> import torch
    >>> [s.values.tolist() for s in svdvals_batch(torch.stack([torch.eye(2), 3 * torch.eye(2)]))]
    [[1.0, 1.0], [3.0, 3.0]]
    """
    A = as_matrix(A, device, dims=3)
    g, m, n = A.shape
    if min(m, n) == 0 or min(m, n) > LARGEST[A.is_complex()] or max(m, n) > LONGEST or g == 0:
        return [_single(matrix, accuracy, stored) for matrix in A]
    per_slab = max(1, SLAB_BYTES // (8 * m * n))
    found: list[Spectrum] = []
    for start in range(0, g, per_slab):
        found += _slab(A[start : start + per_slab], accuracy, start, stored or dtype_name(A.dtype))
    return found


def _single(matrix: Tensor, accuracy: float, stored: str) -> Spectrum:
    """One matrix of the batch by itself."""
    exponent = binary_exponent(matrix)
    if exponent is None or not stored:
        return svdvals(matrix, accuracy=accuracy)
    m, n = matrix.shape
    return rescaled(tall_spectrum(matrix if m >= n else matrix.mT, exponent, accuracy, stored), exponent, (m, n), 0.0)


def _slab(A: Tensor, accuracy: float, first: int, name: str) -> list[Spectrum]:
    """Spectra of a few matrices."""
    started = time.perf_counter()
    wide = widen(A).contiguous()
    short, long = sorted(wide.shape[1:])
    if name not in WIDE and (short >= GRAM_FROM or long >= ELONGATED * short):
        return _by_gram(wide, name, accuracy, first)
    low, high = torch.aminmax((torch.view_as_real(wide) if wide.is_complex() else wide).flatten(1), dim=1)
    tops = torch.maximum(high, -low).cpu().numpy()
    _finite(tops, first)
    if name not in WIDE:  # numbers of 32 bits or fewer have squares that float64 holds as they are
        return _by_svd(wide, name)
    exponents = np.frexp(tops)[1]
    scaled = _by_svd(_times_power(wide, -exponents), name)
    seconds = (time.perf_counter() - started) / len(A)
    return [rescaled(s, int(e), s.shape, seconds) for s, e in zip(scaled, exponents, strict=True)]


def _finite(sizes: np.ndarray, first: int) -> None:
    """Refuse the first matrix whose size is no number: no LAPACK routine may see it."""
    for i in np.flatnonzero(~np.isfinite(sizes)):
        raise NotDecomposable(f"matrix {first + int(i)} of the batch contains NaN or Inf")


def _times_power(wide: Tensor, exponents: np.ndarray) -> Tensor:
    """Each matrix times its own power of two, in two factors that cannot overflow."""
    for part in (exponents // 2, exponents - exponents // 2):
        factor = torch.from_numpy(np.ldexp(1.0, part)).to(wide.device)
        wide = wide * factor[:, None, None]
    return wide


def _by_gram(wide: Tensor, name: str, accuracy: float, first: int) -> list[Spectrum]:
    """By batched Gram matrices, and by SVD where the bound misses the accuracy."""
    started = time.perf_counter()
    m, n = wide.shape[1:]
    G = _grams(wide)
    totals = G.diagonal(dim1=1, dim2=2).real.sum(1).cpu().numpy()
    _finite(totals, first)
    if G.is_complex() and G.device.type == "cpu":
        lam = np.linalg.eigvalsh(G.numpy())[:, ::-1]
    else:
        lam = torch.linalg.eigvalsh(G).flip(1).cpu().numpy()
    values, error, _ = gram_spectrum(max(m, n), min(m, n), lam, totals)
    seconds = (time.perf_counter() - started) / len(wide)
    found = [
        Spectrum(v, (m, n), total, e, dtype=name, route="float64 Gram, batched", seconds=seconds)
        for v, e, total in zip(values, error, totals.tolist(), strict=True)
    ]
    missed = [int(i) for i in np.flatnonzero((error > accuracy * values).any(1)) if flagged(found[i], accuracy)]
    if missed:
        for i, spectrum in zip(missed, _by_svd(wide[missed], name), strict=True):
            found[i] = spectrum
    return found


def _grams(wide: Tensor) -> Tensor:
    """Gram matrices of the short side, at least their lower triangles."""
    g, m, n = wide.shape
    short = min(m, n)
    if wide.device.type != "cpu" or short < ONE_BY_ONE_FROM:
        return wide.mH @ wide if m >= n else wide @ wide.mH
    G = torch.empty((g, short, short), dtype=wide.dtype)
    for C, X in zip(G.numpy(), wide.numpy(), strict=True):
        gram_update_(C, X, of_rows=m < n)
    return G


def _by_svd(wide: Tensor, name: str) -> list[Spectrum]:
    """By batched float64 SVD."""
    started = time.perf_counter()
    m, n = wide.shape[1:]
    values = torch.linalg.svdvals(wide if m >= n else wide.mT.contiguous()).cpu().numpy()
    error = np.repeat(svd_bound(min(m, n), 1.0) * values[:, :1], min(m, n), axis=1)
    totals = np.square(values).sum(1).tolist()
    seconds = (time.perf_counter() - started) / len(wide)
    return [
        Spectrum(v, (m, n), total, e, dtype=name, route="float64 SVD, batched", seconds=seconds)
        for v, e, total in zip(values, error, totals, strict=True)
    ]
