"""FARMS: a tail exponent that does not depend on how oblong the matrix is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.svd import svdvals
from netspectra.metrics import metric
from netspectra.metrics.tails import ENOUGH, hill_exponent
from netspectra.record import Value

if TYPE_CHECKING:
    from torch import Tensor


@metric(
    "Tail exponent at fixed aspect (FARMS)",
    formula="Hill exponent of the upper half of the pooled λ of square windows along the long side",
    range="> 1",
    reference="Hu et al. 2025, arXiv 2506.06280",
    degree=0,
    needs="matrix",
    thorough=True,
)
def farms_alpha(s: Spectrum, matrix: Tensor) -> Value:
    """The fall of the upper half of λ, corrected for the shape: 2.12 for noise of any aspect.

    The matrix is covered by ceil(N / M) windows of M x M, evenly spaced along its long side; their lambda are pooled.
    So every layer is measured at the aspect Q = 1, and layers of different shapes can be compared. The windows keep the
    whole short side: the original also samples smaller ones.

    Cost: as many spectra of M x M as there are windows.

    >>> import torch
    >>> noise = torch.randn(100, 800, generator=torch.Generator().manual_seed(0))
    >>> round(farms_alpha(svdvals(noise), noise), 1)
    2.1
    """
    if min(matrix.shape) < ENOUGH:
        return Value.unknown(f"only {min(matrix.shape)} values, {ENOUGH} are needed")
    if s.sigma_max == 0:
        return Value.unknown("the matrix is zero")
    pooled = np.concatenate([svdvals(window).values for window in square_windows(matrix)])
    pooled = np.sort(pooled)[::-1] / s.sigma_max
    if pooled[len(pooled) // 2 - 1] * s.sigma_max <= s.floor:
        return Value.unknown("the middle value is below the rounding floor")
    return hill_exponent(pooled**2)


def square_windows(matrix: Tensor) -> Iterator[Tensor]:
    """The M x M windows that cover an m x n matrix along its long side, evenly spaced; neighbours overlap least.

    >>> import torch
    >>> [tuple(window[0].tolist()) for window in square_windows(torch.arange(10).reshape(2, 5))]
    [(0, 5), (2, 7), (3, 8)]
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
    long, short = tall.shape
    count = math.ceil(long / short)
    for i in range(count):
        start = round(i * (long - short) / (count - 1)) if count > 1 else 0
        yield tall[start : start + short]
