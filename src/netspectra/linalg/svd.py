"""Factors of a dense matrix: the best route for the wanted rank, with the residual measured on every answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.chebyshev import by_chebyshev
from netspectra.linalg.matrix import U64, as_matrix, binary_exponent, row_chunks, widen
from netspectra.linalg.operator import LowRank
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.subspace import Factors, by_full, by_gram, by_krylov, by_lanczos, by_randomized, quality
from netspectra.linalg.values import svdvals, union

__all__ = ["Method", "rank_for", "svd", "svdvals", "union"]

Method = Literal["auto", "lanczos", "chebyshev", "gram", "full", "randomized", "krylov"]
LANCZOS_UP_TO = 16  # triplets; beyond, one Gram matrix is cheaper than many products
FILTER_FROM = 1536  # short side from which filtering beats the eigenvectors of a Gram matrix, for k up to a 16th of it
SMALL = 128  # short sides up to this are decomposed in full


def svd(
    A: Any,
    *,
    k: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    method: Method = "auto",
    tolerance: float | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> LowRank:
    """Leading singular triplets: k of them, or as many as a share of the energy or a relative error asks for.

    Routes, told in ``LowRank.route``: Golub-Kahan-Lanczos for k <= 16; beyond, up to a quarter of the short side, a
    Gram matrix and its leading eigenvectors (by Chebyshev filtering where it is large and k small) with Rayleigh-Ritz
    in A; else a full SVD. The residual

        max_i max(||A v_i - s_i u_i||, ||A^H u_i - s_i v_i||) / s_1

    is measured on every answer. Where it exceeds ``tolerance`` more effort follows (float64 in the Gram matrix, more
    power iterations) and at last the full SVD, and the route says so. A small residual proves that the triplets are
    singular triplets, not that none was skipped; with ``randomized`` and ``krylov`` skipping is possible in principle.

    Args:
        A: a matrix as `svdvals` takes it; stored in 32 bits or fewer it is factored in float32.
        k: number of triplets; all of them if nothing is asked.
        energy: smallest k whose squared values are this share of all.
        error: smallest k with ||A - U S Vh||_F <= error ||A||_F.
        method: force a route; ``randomized`` (Halko, Martinsson & Tropp 2011, arXiv:0909.4061) and ``krylov``
            (Musco & Musco 2015, arXiv:1504.05477) start from random blocks.
        tolerance: residual wanted; 1e-5, or 1e-10 for float64.
        seed: of the random start.
        device: where to compute; by default where ``A`` is.

    Returns:
        `LowRank` with measured ``residual`` and ``orthogonality``; ``error`` bounds how far each value is from *a*
        singular value.

    Raises:
        NotDecomposable: as `svdvals`.
        ValueError: more than one of k, energy, error, or a share outside (0, 1].

    >>> import torch
    >>> f = svd(torch.outer(torch.ones(4), torch.ones(3)), k=1)
    >>> round(float(f.S[0]), 6), round(f.relative_error, 6)
    (3.464102, 0.0)
    """
    if sum(x is not None for x in (k, energy, error)) > 1:
        raise ValueError("give one of k, energy, error")
    A = as_matrix(A, device)
    m, n = A.shape
    exponent = binary_exponent(A) or 0
    if energy is not None or error is not None:
        k = rank_for(svdvals(A), energy=energy, error=error)
    rank = min(m, n) if k is None else max(0, min(k, m, n))
    narrow = A.dtype not in (torch.float64, torch.complex128) and abs(exponent) < 100
    wanted = tolerance if tolerance is not None else (1e-5 if narrow else 1e-10)
    X = _working(A, exponent, narrow)
    tall = X if m >= n else X.mH
    found, route = _factors(tall, rank, method, wanted, seed)
    residual, orthogonality = quality(tall, found)
    U, S, Vh = found if m >= n else (found[2].mH, found[1], found[0].mH)
    factor = 2.0**exponent
    frobenius2 = math.fsum(float(torch.linalg.vector_norm(widen(c, exponent))) ** 2 for c in row_chunks(A))
    top = float(S[0]) if rank else 0.0
    unit = float(torch.finfo(X.dtype).eps) / 2
    bound = (residual + (4 * math.sqrt(max(m, n, 1)) + 8) * max(unit, U64)) * top
    return LowRank(U, S * factor, Vh, frobenius2 * factor * factor, bound * factor, residual, route, orthogonality)


def rank_for(spectrum: Spectrum, *, energy: float | None = None, error: float | None = None) -> int:
    """Smallest rank that keeps this share of the energy, or leaves at most this relative Frobenius error.

    >>> import torch
    >>> rank_for(svdvals(torch.diag(torch.tensor([3.0, 1.0, 0.1]))), energy=0.9)
    2
    """
    if energy is None:
        assert error is not None
        energy = 1.0 - error * error
    if not 0.0 <= energy <= 1.0:
        raise ValueError(f"a share lies between 0 and 1, got {energy}")
    left = np.append(np.cumsum(spectrum.energies[::-1])[::-1], 0.0)  # summed from the small end: no cancellation
    return int(np.argmax(left <= (1.0 - energy) * left[0]))


def _working(A: Tensor, exponent: int, narrow: bool) -> Tensor:
    """2^-exponent A in the precision of the factors."""
    if not narrow:
        return widen(A, exponent)
    return A.to(torch.complex64 if A.is_complex() else torch.float32) * 2.0**-exponent


def _factors(X: Tensor, k: int, method: Method, tolerance: float, seed: int) -> tuple[Factors, str]:
    """Try the route, then what is slower and surer, until the residual holds."""
    n = X.shape[1]
    name = str(X.dtype).removeprefix("torch.")
    attempts: list[tuple[str, Callable[[], Factors | None]]] = []
    chosen = _choose(n, k, method)
    if chosen == "lanczos":
        attempts = [("Golub-Kahan", lambda: by_lanczos(X, k, tolerance, seed))]
    elif chosen in ("gram", "chebyshev"):
        if chosen == "chebyshev":
            attempts.append(("Chebyshev filter", lambda: by_chebyshev(X, k, tolerance, seed)))
        attempts.append((f"{name} Gram + Rayleigh-Ritz", lambda: by_gram(X, k, tolerance)))
        if X.dtype in (torch.float32, torch.complex64):
            attempts.append(("float64 Gram + Rayleigh-Ritz", lambda: by_gram(X, k, tolerance, wide=True)))
    elif chosen == "randomized":
        attempts = [("randomized", lambda: by_randomized(X, k, tolerance, seed))]
    elif chosen == "krylov":
        attempts = [("block Krylov", lambda: by_krylov(X, k, tolerance, seed))]
    missed = ""
    for route, attempt in attempts:
        found = attempt()
        if found is not None:
            return found, route + missed
        missed += f" ({route} missed {tolerance:.0e})"
    return by_full(X, k), f"{name} SVD{missed}"


def _choose(n: int, k: int, method: Method) -> Method:
    """The route for k of n triplets."""
    if k == 0 or n == 0:
        return "full"
    if method != "auto":
        return method
    if n <= SMALL or k > n // 4:
        return "full"
    if k <= LANCZOS_UP_TO:
        return "lanczos"
    return "chebyshev" if n >= FILTER_FROM and k <= n // 16 else "gram"
