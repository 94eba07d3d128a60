"""Every singular value of a matrix: the route is chosen from shape and dtype, each value carries its error bound."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.linalg.gram import eigenvalues, gram, gram_spectrum, reducible
from netspectra.linalg.lapack import tridiagonal_
from netspectra.linalg.matrix import U64, as_matrix, binary_exponent, dtype_name, row_chunks, widen
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.tail import Tail, polish, start_by_cholesky, start_in_tridiagonal, tail_size
from netspectra.linalg.threads import threads
from netspectra.linalg.triangle import stable_svdvals, svd_bound

__all__ = ["svdvals", "union"]

DIRECT = 32  # up to this short side a float64 SVD is about as fast as the Gram matrix
ELONGATED = 2.0  # aspect from which the Gram matrix pays whatever the size
SMALL = (128, 1024)  # sides up to which what surrounds the two library calls is worth sparing
WIDE = ("float64", "complex128")
POLISH_FROM = {False: 192, True: 96}  # real, complex: below it recomputing the matrix is cheaper than polishing
LARGEST_TAIL = 1 / 5  # share of the values beyond which the whole matrix is recomputed


def svdvals(
    A: Any,
    *,
    accuracy: float = 1e-6,
    device: str | torch.device | None = None,
    max_threads: int | None = None,
) -> Spectrum:
    """Every singular value of a matrix, each with a bound on its error.

    Routes, told in ``Spectrum.route``; the choice depends on shape, dtype and, for the last two, on the spectrum:

    - ``float64 SVD``: short sides up to 32, and matrices stored in float64 or complex128;
    - ``float64 Gram``: square roots of the eigenvalues of the float64 Gram matrix on the short side;
    - ``float64 Gram, k polished``: the k smallest values, too blurred by squaring, are found again in A itself;
    - ``float64 SVD`` also where more than a fifth of the values would need polishing.

    Each value is within its own ``error``: a *tested bound*, derived but for constants that stand for rounding
    (see `gram.eigenvalue_bound`, `tail.polish`, `triangle.svd_bound`).

    Args:
        A: two-dimensional tensor, parameter, gradient or array, any floating or complex dtype, any strides.
        accuracy: relative error wanted of each value above the rounding floor of the stored dtype.
        device: where to compute; by default where ``A`` is.
        max_threads: BLAS threads for this call; by default as they are set.

    Returns:
        A `Spectrum` with min(m, n) values; ``error`` is absolute, one number a value.

    Raises:
        NotDecomposable: NaN or Inf inside, not a matrix, or a dtype without numbers to speak of.

    Cost: m n^2 + 4/3 n^3 float64 operations (n the short side); at most 24 n^2 bytes + 200 MB beside the input.

    >>> import torch
    >>> s = svdvals(torch.diag(torch.tensor([3.0, 2.0, 0.5])))
    >>> [round(v, 12) for v in s.values.tolist()], s.route
    ([3.0, 2.0, 0.5], 'float64 SVD')
    """
    started = time.perf_counter()
    A = as_matrix(A, device)
    m, n = A.shape
    name = dtype_name(A.dtype)
    if A.device.type == "cpu" and 1 < min(m, n) <= SMALL[0] and max(m, n) <= SMALL[1] and name not in WIDE:
        return _small(A.to(torch.complex128 if A.is_complex() else torch.float64).numpy(), name, accuracy, started)
    with threads(max_threads) if max_threads else contextlib.nullcontext():
        exponent = binary_exponent(A)
        if exponent is None:
            zero = np.zeros(min(m, n))
            route = "zero" if zero.size else "empty"
            return Spectrum(zero, (m, n), 0.0, zero.copy(), dtype=name, route=route)
        scaled = tall_spectrum(A if m >= n else A.mT, exponent, accuracy, name)
    return rescaled(scaled, exponent, (m, n), time.perf_counter() - started)


def _small(x: np.ndarray, dtype: str, accuracy: float, started: float) -> Spectrum:
    """Few numbers of 32 bits or fewer: float64 holds their squares unscaled; numpy has the shortest calls."""
    m, n = max(x.shape), min(x.shape)
    frobenius2 = float(np.vdot(x, x).real)
    if not math.isfinite(frobenius2):
        raise NotDecomposable("contains NaN or Inf")
    if frobenius2 == 0.0:
        return Spectrum(np.zeros(n), x.shape, 0.0, np.zeros(n), dtype=dtype, route="zero")
    if n > DIRECT or m >= ELONGATED * n:
        adjoint = x.conj().T
        G = adjoint @ x if len(x) == m else x @ adjoint
        values, error, _ = gram_spectrum(m, n, np.linalg.eigvalsh(G)[::-1], frobenius2)
        spectrum = Spectrum(values, x.shape, frobenius2, error, dtype=dtype, route="float64 Gram",
                            seconds=time.perf_counter() - started)  # fmt: skip
        if error[-1] <= accuracy * values[-1] or not flagged(spectrum, accuracy):
            return spectrum
    values = np.linalg.svd(x, compute_uv=False)
    error = np.full(n, svd_bound(n, float(values[0])))
    return Spectrum(values, x.shape, frobenius2, error, dtype=dtype, route="float64 SVD",
                    seconds=time.perf_counter() - started)  # fmt: skip


def rescaled(spectrum: Spectrum, exponent: int, shape: tuple[int, int], seconds: float) -> Spectrum:
    """Spectrum of 2^exponent times the matrix; the squared norm saturates at infinity rather than raising."""
    with np.errstate(over="ignore", under="ignore"):
        values, error = np.ldexp(spectrum.values, exponent), np.ldexp(spectrum.error, exponent)
        frobenius2 = float(np.ldexp(np.float64(spectrum.frobenius2), 2 * exponent))
        if exponent < -900:
            error = error + 5e-324  # values this small are rounded to subnormal numbers
    return Spectrum(values, shape, frobenius2, error, dtype=spectrum.dtype, route=spectrum.route, seconds=seconds)


def union(spectra: Sequence[Spectrum], shape: tuple[int, int]) -> Spectrum:
    """Spectrum of the block-diagonal matrix of ``shape`` whose blocks have these spectra.

    Values the blocks do not reach (blocks of different aspect) are exact zeros.

    >>> import torch
    >>> union([svdvals(torch.eye(1)), svdvals(2 * torch.eye(2))], (3, 4)).values
    array([2., 2., 1.])
    """
    missing = min(shape) - sum(len(s) for s in spectra)
    values = np.concatenate([*(s.values for s in spectra), np.zeros(missing)])
    error = np.concatenate([*(s.error for s in spectra), np.zeros(missing)])
    order = np.argsort(-values, kind="stable")
    routes = list(dict.fromkeys(s.route for s in spectra))
    return Spectrum(
        values[order],
        shape,
        math.fsum(s.frobenius2 for s in spectra),
        error[order],
        dtype=spectra[0].dtype if spectra else "float64",
        route=f"{len(spectra)} blocks: " + ", ".join(routes[:3]),
        blocks=max(1, len(spectra)),
        seconds=sum(s.seconds for s in spectra),
    )


def tall_spectrum(A: Tensor, exponent: int, accuracy: float, dtype: str) -> Spectrum:
    """Spectrum of 2^-exponent A for a tall A that is not zero, stored in ``dtype`` (which may be narrower than A)."""
    m, n = A.shape
    if n == 1:
        return _vector(A, exponent, dtype)
    if n <= DIRECT or dtype in WIDE:
        return _stable(A, exponent, dtype)
    G = gram(A, exponent)
    frobenius2 = float(G.diagonal().real.sum())
    T = tridiagonal_(G.numpy()) if reducible(G) else None
    lam = T.eigenvalues() if T else eigenvalues(G)
    values, error, deltas = gram_spectrum(m, n, lam, frobenius2)
    delta = float(deltas)
    spectrum = Spectrum(values, (m, n), frobenius2, error, dtype=dtype, route="float64 Gram")
    count = flagged(spectrum, accuracy)
    if not count:
        return spectrum
    if n >= POLISH_FROM[A.is_complex()] and count <= LARGEST_TAIL * n and (size := tail_size(lam, count, delta)):

        def enough(tail: Tail) -> bool:
            return not flagged(_with_tail(spectrum, tail), accuracy)

        start = start_in_tridiagonal(T, size, delta) if T else start_by_cholesky(G, lam, size, delta)
        tail = polish(A, exponent, start, lam, size, delta, enough) if start else None
        if tail is not None and enough(tail):
            return _with_tail(spectrum, tail)
    del G, T
    return _stable(A, exponent, dtype)


def flagged(spectrum: Spectrum, accuracy: float) -> int:
    """How many values, counted from the smallest, end at the largest one above the floor whose error is too large."""
    blurred = (spectrum.error > accuracy * spectrum.values) & (spectrum.values + spectrum.error > spectrum.floor)
    return len(spectrum) - int(np.argmax(blurred)) if blurred.any() else 0


def _with_tail(spectrum: Spectrum, tail: Tail) -> Spectrum:
    """The spectrum with its smallest values replaced."""
    keep = len(spectrum) - len(tail.values)
    return Spectrum(
        np.concatenate([spectrum.values[:keep], tail.values]),
        spectrum.shape,
        spectrum.frobenius2,
        np.concatenate([spectrum.error[:keep], tail.error]),
        dtype=spectrum.dtype,
        route=f"float64 Gram, {len(tail.values)} polished",
    )


def _stable(A: Tensor, exponent: int, dtype: str) -> Spectrum:
    """By float64 SVD."""
    values, error = stable_svdvals(A, exponent)
    m, n = A.shape
    return Spectrum(values, (m, n), float(np.sum(values**2)), error, dtype=dtype, route="float64 SVD")


def _vector(A: Tensor, exponent: int, dtype: str) -> Spectrum:
    """One column: its norm, summed in chunks."""
    squares = [float(widen(chunk, exponent).abs().square().sum()) for chunk in row_chunks(A)]
    total = math.fsum(squares)
    value = math.sqrt(total)
    error = (8 + math.log2(len(A) + 1)) * U64 * value
    return Spectrum(np.array([value]), (len(A), 1), total, np.array([error]), dtype=dtype, route="norm")
