"""Many small matrices of one shape at once: experts, heads, the blocks of a grouped convolution."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.linalg.gram import gram_spectrum
from netspectra.linalg.matrix import as_matrix, binary_exponent, dtype_name, widen
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.triangle import svd_bound
from netspectra.linalg.values import WIDE, flagged, rescaled, svdvals, tall_spectrum

__all__ = ["svdvals_batch"]

LARGEST = 128  # short sides beyond this gain nothing from a batch
LONGEST = 1024  # longer sums need the care of the chunked routes
SLAB_BYTES = 64 << 20
SQUARE = 1.5  # aspect from which the Gram matrix pays, whatever the size
GRAM_FROM = {False: 64, True: 80}  # short side from which it pays for squares, real and complex


def svdvals_batch(
    A: Any, *, accuracy: float = 1e-6, device: str | torch.device | None = None, stored: str = ""
) -> list[Spectrum]:
    """The spectrum of each of g matrices in a tensor (g, m, n), small ones decomposed together.

    Short sides above 128 go one by one through `svdvals`. Below, elongated and larger matrices by batched float64 Gram
    matrices; those whose bound misses ``accuracy``, and all the others, by batched float64 SVD. Every matrix is scaled
    by its own power of two, so one of them may be 1e30 times another.

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
    if min(m, n) == 0 or min(m, n) > LARGEST or max(m, n) > LONGEST or g == 0:
        return [_single(matrix, accuracy, stored) for matrix in A]
    per_slab = max(1, SLAB_BYTES // (8 * m * n))
    tall = A if m >= n else A.mT
    found: list[Spectrum] = []
    for start in range(0, g, per_slab):
        found += _slab(tall[start : start + per_slab], (m, n), accuracy, start, stored or dtype_name(A.dtype))
    return found


def _single(matrix: Tensor, accuracy: float, stored: str) -> Spectrum:
    """One matrix of the batch by itself."""
    exponent = binary_exponent(matrix)
    if exponent is None or not stored:
        return svdvals(matrix, accuracy=accuracy)
    m, n = matrix.shape
    return rescaled(tall_spectrum(matrix if m >= n else matrix.mT, exponent, accuracy, stored), exponent, (m, n), 0.0)


def _slab(A: Tensor, shape: tuple[int, int], accuracy: float, first: int, name: str) -> list[Spectrum]:
    """Spectra of a few tall matrices."""
    started = time.perf_counter()
    m, n = A.shape[1:]
    wide = widen(A)
    parts = torch.view_as_real(wide) if wide.is_complex() else wide
    tops = parts.abs().flatten(1).amax(1).cpu().numpy()
    for i in np.flatnonzero(~np.isfinite(tops)):
        raise NotDecomposable(f"matrix {first + int(i)} of the batch contains NaN or Inf")
    exponents = np.frexp(tops)[1]
    wide = _times_power(wide, -exponents)
    spectra: list[Spectrum | None] = [None] * len(A)
    if (m >= SQUARE * n or n >= GRAM_FROM[A.is_complex()]) and name not in WIDE:
        spectra = list(_by_gram(wide, name, accuracy))
    rest = [i for i, s in enumerate(spectra) if s is None]
    if rest:
        for i, spectrum in zip(rest, _by_svd(wide[rest] if len(rest) < len(A) else wide, name), strict=True):
            spectra[i] = spectrum
    seconds = (time.perf_counter() - started) / len(A)
    return [rescaled(s, int(e), shape, seconds) for s, e in zip(spectra, exponents, strict=True) if s is not None]


def _times_power(wide: Tensor, exponents: np.ndarray) -> Tensor:
    """Each matrix times its own power of two, in two factors that cannot overflow."""
    for part in (exponents // 2, exponents - exponents // 2):
        factor = torch.from_numpy(np.ldexp(1.0, part)).to(wide.device)
        wide = wide * factor[:, None, None]
    return wide


def _by_gram(wide: Tensor, name: str, accuracy: float) -> list[Spectrum | None]:
    """By batched Gram matrices; None where the bound misses the accuracy."""
    m, n = wide.shape[1:]
    G = wide.mH @ wide
    totals = G.diagonal(dim1=1, dim2=2).real.sum(1).tolist()
    lams = torch.linalg.eigvalsh(G).flip(1).cpu().numpy()
    found: list[Spectrum | None] = []
    for lam, total in zip(lams, totals, strict=True):
        values, error, _ = gram_spectrum(m, n, lam, total)
        spectrum = Spectrum(values, (m, n), total, error, dtype=name, route="float64 Gram, batched")
        found.append(None if flagged(spectrum, accuracy) else spectrum)
    return found


def _by_svd(wide: Tensor, name: str) -> list[Spectrum]:
    """By batched float64 SVD."""
    m, n = wide.shape[1:]
    found = []
    for values in torch.linalg.svdvals(wide).cpu().numpy():
        error = np.full(n, svd_bound(n, float(values[0])))
        total = float(np.sum(values**2))
        found.append(Spectrum(values.copy(), (m, n), total, error, dtype=name, route="float64 SVD, batched"))
    return found
