"""The convolution of a weight as the linear map it applies to an input, beside the unfolded matrix."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from netspectra.linalg.conv import DEFAULT_GRID, ConvOperator, conv_operator
from netspectra.linalg.conv_spectrum import conv_norm_bound, conv_svdvals, is_circular
from netspectra.linalg.norm import golub_kahan_norm
from netspectra.linalg.operator import LinearOperator
from netspectra.linalg.spectrum import Spectrum
from netspectra.record import OperatorSpectrum
from netspectra.weight import Weight

__all__ = ["operator_spectrum"]

LARGE = 1_000_000  # kernels with more numbers see half of that, as the deep layers of a network do
AFFORDABLE = 2e9  # float64 operations up to which every value of a circular convolution is found, not the largest alone
BOUNDED = 2e10  # up to which the tighter upper bound, a Gram matrix a frequency, is found too
FLOPS_A_PRODUCT = 5e8  # beyond which products with the map are not spent, and the bracket around its norm has to do
TOLERANCE = 5e-3


def operator_spectrum(
    weight: Weight, tensor: Tensor, unfolded: Spectrum, grid: int | None = None
) -> OperatorSpectrum | None:
    """What is known of the true operator of a convolution; None where the tensor is no convolution.

    Every singular value where the Fourier transform gives them (circular padding) and that is affordable; else the
    largest: that of the unfolded matrix where its patches do not overlap, or by Golub-Kahan, with the residual as
    error. ``upper`` is a number the spectral norm cannot exceed: by Fourier where affordable, else

        ||C|| <= ||unfolded|| sqrt(prod ceil(k / stride)),

    because every input enters at most so many patches. A single patch alone shows that ||C|| >= ||unfolded||: where
    products are too dear, that bracket is the answer, and ``how`` is ``estimated``.

    Args:
        weight: a convolution's weight; a live module's knows stride, padding and groups, a file's does not.
        tensor: its kernel, as torch lays it out.
        unfolded: the spectrum of the unfolded matrix.
        grid: input size along every dimension; by default 64, 16 x 16 or 8 x 8 x 8, half of
            that for kernels of more than a million numbers, and never less than twice the kernel's reach.
    """
    facts = weight.part.ref.facts
    dims = tensor.dim() - 2
    if not weight.kind.startswith("conv") or dims not in DEFAULT_GRID or not tensor.is_floating_point():
        return None
    settings, note = _settings(facts)
    holes = _each(settings["dilation"], dims)
    reach = [d * (k - 1) + 1 for d, k in zip(holes, tensor.shape[2:], strict=True)]
    usual = DEFAULT_GRID[dims] // (2 if tensor.numel() > LARGE else 1)
    # along a dimension in which the kernel is a point the map repeats itself: one place is enough
    sizes = tuple(max(grid or (usual if r > 1 else 1), 2 * r if r > 1 else 1) for r in reach)
    kernel = tensor if tensor.element_size() >= 4 else tensor.float()
    A = conv_operator(kernel, sizes, **settings)
    C = A if isinstance(A, ConvOperator) else A.A
    assert isinstance(C, ConvOperator)
    m, n = (size // C.groups for size in C.kernel.shape[:2])
    work = math.prod(C.grid) * C.groups * max(m, n) * min(m, n) ** 2 * 8
    if is_circular(A) and work <= AFFORDABLE:
        return OperatorSpectrum(conv_svdvals(A), sizes, conv_norm_bound(A), note)
    upper = math.inf
    if A is C and C.mode in ("zeros", "circular"):
        top, error = unfolded.sigma_max, float(unfolded.error[0])
        overlap = math.prod(-(-k // s) for k, s in zip(tensor.shape[2:], C.stride, strict=True))
        upper = (top + error) * math.sqrt(overlap)
        if overlap == 1 and not any(map(any, C.padding)) and max(C.dilation) == 1:
            return OperatorSpectrum(_largest(A, C, weight, top, error, "unfolded"), sizes, upper, note)
    if work <= BOUNDED:
        upper = min(upper, conv_norm_bound(A))
    if 2 * C.kernel.numel() * math.prod(C.out) > FLOPS_A_PRODUCT and math.isfinite(upper):
        top = unfolded.sigma_max
        bracket = _largest(A, C, weight, top, upper - top, "at least the unfolded matrix's, at most the bound")
        return OperatorSpectrum(replace(bracket, how="estimated"), sizes, upper, note)
    found = golub_kahan_norm(A, tolerance=TOLERANCE, upper=upper)
    return OperatorSpectrum(
        _largest(A, C, weight, found.value, found.residual * found.value, found.route), sizes, found.upper, note
    )


def _largest(A: LinearOperator, C: ConvOperator, weight: Weight, value: float, error: float, route: str) -> Spectrum:
    """The largest value alone."""
    energy = C.frobenius2 if C.mode == "zeros" else math.nan
    return Spectrum(np.array([value]), A.shape, energy, np.array([error]), "partial", weight.dtype, route)


def _settings(facts: Any) -> tuple[dict[str, Any], str]:
    """What `conv_operator` needs, and what is assumed."""
    if not facts.get("conv"):
        assumed = {"stride": 1, "padding": "same", "dilation": 1, "groups": 1}
        return assumed, "stride 1 and zero padding 'same' assumed: the file does not tell"
    known = {name: facts[name] for name in ("stride", "padding", "dilation", "groups", "transposed", "output_padding")}
    return {**known, "mode": facts["padding_mode"]}, ""


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)
