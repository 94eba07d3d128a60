"""Random matrices and kernels whose singular values are all equal."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["delta_orthogonal", "semi_orthogonal"]


def semi_orthogonal(m: int, n: int, generator: torch.Generator) -> Tensor:
    """An m x n matrix, uniformly random among those whose singular values are all 1; float64, on the CPU.

    The Q of a Gaussian matrix, its signs by the diagonal of R (Mezzadri 2007, arXiv math-ph/0609050).

    >>> Q = semi_orthogonal(2, 3, torch.Generator().manual_seed(0))
    >>> torch.allclose(Q @ Q.mT, torch.eye(2, dtype=torch.float64))
    True
    """
    Q, R = torch.linalg.qr(torch.randn(max(m, n), min(m, n), generator=generator, dtype=torch.float64))
    Q = Q * R.diagonal().sign()
    return Q if m >= n else Q.mT


def delta_orthogonal(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A convolution kernel (c_out, c_in, *size) that is a semi-orthogonal matrix at its centre and zero elsewhere.

    With stride 1 and padding that keeps the grid the convolution is then semi-orthogonal too, whatever the grid
    (Xiao et al. 2018, arXiv 1806.05393).

    >>> delta_orthogonal((4, 2, 3, 3), torch.Generator().manual_seed(0)).count_nonzero().item()
    8
    """
    c_out, c_in, *size = shape
    kernel = torch.zeros(c_out, c_in, math.prod(size), dtype=torch.float64)
    centre = sum(k // 2 * math.prod(size[d + 1 :]) for d, k in enumerate(size))
    kernel[:, :, centre] = semi_orthogonal(c_out, c_in, generator)
    return kernel.reshape(*shape)
