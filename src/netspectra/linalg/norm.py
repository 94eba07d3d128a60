"""The spectral norm of a linear map known by its products."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from netspectra.linalg.algebra import Transposed
from netspectra.linalg.conv import ConvOperator
from netspectra.linalg.conv_spectrum import conv_norm_bound, conv_svdvals, is_circular
from netspectra.linalg.lanczos import golub_kahan
from netspectra.linalg.operator import LinearOperator
from netspectra.linalg.spectrum import How
from netspectra.linalg.values import svdvals

__all__ = ["NormEstimate", "conv_norm", "dense_norm", "golub_kahan_norm"]


@dataclass(frozen=True)
class NormEstimate:
    """A spectral norm and how it is known.

    Attributes:
        value: sigma_1, or the best lower estimate of it.
        how: ``exact`` (every singular value was computed), ``partial`` (converged by products), ``estimated``.
        upper: a number sigma_1 cannot exceed; infinity where none was computed.
        residual: ||A^H u - s v|| / s of the triplet found: a singular value lies that close, relatively.
        products: products with the map or its adjoint that were spent.
        route: the algorithm that answered.
    """

    value: float
    how: How
    upper: float
    residual: float
    products: int
    route: str = ""


def golub_kahan_norm(
    A: LinearOperator, *, tolerance: float = 1e-6, max_steps: int = 0, seed: int = 0, upper: float = math.inf
) -> NormEstimate:
    """sigma_1 of any linear map, by `lanczos.golub_kahan`; a lower bound of it but for rounding.

    >>> from netspectra.linalg.operator import Dense
    >>> estimate = golub_kahan_norm(Dense(torch.diag(torch.tensor([1.0, 5.0]))))
    >>> round(estimate.value, 5), estimate.how
    (5.0, 'partial')
    """
    if min(A.shape) == 0:
        return NormEstimate(0.0, "exact", 0.0, 0.0, 0, "empty")
    found = golub_kahan(A, 1, tolerance=tolerance, max_steps=max_steps, seed=seed)
    value = float(found.S[0])
    how: How = "partial" if found.converged else "estimated"
    residual = float(found.residual[0]) / value if value else 0.0
    return NormEstimate(value, how, max(upper, value), residual, found.products, "Golub-Kahan")


def dense_norm(A: torch.Tensor) -> NormEstimate:
    """sigma_1 of a matrix, with every other singular value computed on the way.

    >>> dense_norm(torch.eye(3)).value
    1.0
    """
    spectrum = svdvals(A)
    error = float(spectrum.error[0]) if len(spectrum) else 0.0
    return NormEstimate(spectrum.sigma_max, "exact", spectrum.sigma_max + error, 0.0, 0, spectrum.route)


def conv_norm(
    A: ConvOperator | Transposed, *, tolerance: float = 1e-6, bound: bool = True, seed: int = 0
) -> NormEstimate:
    """sigma_1 of a convolution: exact by Fourier where circular, else Golub-Kahan below a rigorous upper bound.

    Args:
        A: made by `conv.conv_operator`.
        tolerance: residual wanted.
        bound: also compute `conv_norm_bound`, which costs a Gram matrix a frequency.
        seed: of the start vector.

    >>> from netspectra.linalg.conv import conv_operator
    >>> e = conv_norm(conv_operator(torch.ones(1, 1, 3, dtype=torch.float64), (8,), padding=1))
    >>> round(e.value, 6), e.value <= e.upper
    (2.879385, True)
    """
    if is_circular(A) and bound:
        spectrum = conv_svdvals(A)
        upper = spectrum.sigma_max + float(spectrum.error[0])
        return NormEstimate(spectrum.sigma_max, "exact", upper, 0.0, 0, spectrum.route)
    return golub_kahan_norm(A, tolerance=tolerance, seed=seed, upper=conv_norm_bound(A) if bound else math.inf)
