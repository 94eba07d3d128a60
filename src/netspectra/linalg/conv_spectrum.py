"""Singular values and norms of convolutions by Fourier transform: exact where it diagonalises, bounds elsewhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from netspectra.linalg.algebra import Transposed
from netspectra.linalg.batch import svdvals_batch
from netspectra.linalg.conv import ConvOperator, source_index
from netspectra.linalg.matrix import dtype_name
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.values import union

__all__ = ["conv_norm_bound", "conv_svdvals", "is_circular"]

SLAB_BYTES = 8 << 20  # what fits a cache, and memory that is used again rather than asked for anew


def is_circular(A: ConvOperator | Transposed) -> bool:
    """Whether the map wraps around its grid exactly, so that the Fourier transform block-diagonalises it."""
    C = A.A if isinstance(A, Transposed) else A
    if not isinstance(C, ConvOperator):
        return False
    spans = [d * (k - 1) for d, k in zip(C.dilation, C.kernel.shape[2:], strict=True)]
    wraps = C.mode == "circular" or not any(spans)
    return (
        wraps
        and all(sum(p) == w for p, w in zip(C.padding, spans, strict=True))
        and all(n % s == 0 and o == n // s for n, s, o in zip(C.grid, C.stride, C.out, strict=True))
    )


def conv_svdvals(A: ConvOperator | Transposed, *, accuracy: float = 1e-8) -> Spectrum:
    """Every singular value of a circular convolution, each with its bound.

    One matrix (c_out / groups, c_in / groups) a frequency and group, by a direct transform of the few taps; of a real
    kernel half the frequencies suffice (Sedghi, Gupta & Long 2019, arXiv:1805.10408). A stride s folds s frequencies
    of the input into one of the output: their matrices stand side by side, divided by sqrt(s).

    Raises:
        ValueError: the map is not circular (see `is_circular`): ask `conv_norm_bound` or `norm.golub_kahan_norm`.

    Cost: per frequency one `svdvals` of a complex matrix; a slab of frequencies in memory at a time.

    >>> import torch
    >>> from netspectra.linalg.conv import conv_operator
    >>> A = conv_operator(torch.tensor([[[1.0, -1.0]]]), (4,), padding="same", mode="circular")
    >>> conv_svdvals(A).values.round(6)
    array([2.      , 1.414214, 1.414214, 0.      ])
    """
    if not is_circular(A):
        raise ValueError("only a circular convolution whose stride divides the grid is diagonalised by the FFT")
    C = A.A if isinstance(A, Transposed) else A
    assert isinstance(C, ConvOperator)
    stored = dtype_name(C.dtype)
    spectra: list[Spectrum] = []
    for blocks, weights in _frequencies(C, C.grid):
        found = svdvals_batch(blocks, accuracy=accuracy, stored=stored)
        spectra += itertools.chain.from_iterable(
            itertools.repeat(s, int(w)) for s, w in zip(found, weights.tolist(), strict=True)
        )
    whole = union(spectra, A.shape)
    return Spectrum(
        whole.values,
        A.shape,
        whole.frobenius2,
        whole.error + 8 * 2.0**-53 * math.sqrt(C.kernel[0].numel()) * whole.sigma_max,
        dtype=stored,
        route=f"Fourier, {math.prod(C.out)} frequencies",
    )


def conv_norm_bound(A: ConvOperator | Transposed) -> float:
    """A number the spectral norm of a convolution cannot exceed, whatever padding, stride, dilation and groups.

    - circular: the norm itself;
    - zeros: the map is a sub-matrix of the circular one on a grid longer by the larger padding (rounded up to a
      multiple of the stride), where every index that wraps meets a zero;
    - reflect, replicate and other circular paddings: the norm of the padding (the root of how often its most used
      place is copied, a product over the dimensions) times that of the circular map on the padded grid.

    Rounding is covered by 1e-9 on top. Derived, not tested only.

    >>> import torch
    >>> from netspectra.linalg.conv import conv_operator
    >>> bound = conv_norm_bound(conv_operator(torch.ones(1, 1, 3), (50,), padding=1))
    >>> 2.99 < bound < 3.0001
    True
    """
    C = A.A if isinstance(A, Transposed) else A
    assert isinstance(C, ConvOperator)
    grow = 1.0
    if is_circular(C):
        grid = C.grid
    elif C.mode == "zeros":
        grid = tuple(_multiple(n + max(p), s) for n, p, s in zip(C.grid, C.padding, C.stride, strict=True))
    else:
        grid = tuple(_multiple(n + sum(p), s) for n, p, s in zip(C.grid, C.padding, C.stride, strict=True))
        for n, p in zip(C.grid, C.padding, strict=True):
            grow *= float(torch.bincount(source_index(n, *p, C.mode, torch.device("cpu"))).max())
    top = 0.0
    for blocks, _ in _frequencies(C, grid):
        top = max(top, _largest(blocks))
    return top * math.sqrt(grow) * (1 + 1e-9)


def _largest(blocks: Tensor) -> float:
    """Largest spectral norm of a batch."""
    tall = blocks if blocks.shape[1] >= blocks.shape[2] else blocks.mH
    lam = torch.linalg.eigvalsh(tall.mH @ tall)[:, -1]
    return math.sqrt(max(0.0, float(lam.max())))


def _multiple(n: int, s: int) -> int:
    """Smallest multiple of s from n on."""
    return -(-n // s) * s


def _frequencies(C: ConvOperator, grid: tuple[int, ...]) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Pairs of complex128 blocks (g, c_out / groups, c_in / groups * prod(stride)) and how often each counts.

    Frequencies of the output grid; in the last dimension only half of them, the inner ones counted twice.
    """
    return itertools.chain.from_iterable(_group(C, grid, g) for g in range(C.groups))


def _group(C: ConvOperator, grid: tuple[int, ...], g: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Those of one group."""
    c_out = C.kernel.shape[0] // C.groups
    kernel = C.kernel[g * c_out : (g + 1) * c_out].to(torch.complex128)
    c_in, folds = kernel.shape[1], math.prod(C.stride)
    taps = kernel.flatten(2).permute(2, 0, 1).reshape(-1, c_out * c_in)
    out = [n // s for n, s in zip(grid, C.stride, strict=True)]
    last = out[-1] // 2 + 1
    half = np.array(list(np.ndindex(*out[:-1], last)))
    weights = np.where((half[:, -1] == 0) | (2 * half[:, -1] == out[-1]), 1, 2)
    offsets = np.array(list(np.ndindex(*C.stride))) * np.array(out)
    positions = np.array(list(np.ndindex(*kernel.shape[2:]))) * np.array(C.dilation)
    per_slab = max(1, SLAB_BYTES // (16 * c_out * c_in * folds))
    for start in range(0, len(half), per_slab):
        nu = half[start : start + per_slab, None, :] + offsets[None]
        # the phase is reduced modulo the grid in integers: no digits are lost
        turns = ((nu[:, :, None, :] * positions) % np.array(grid) / np.array(grid)).sum(-1)
        waves = torch.from_numpy(np.exp(-2j * np.pi * turns)).to(taps.device)
        blocks = (waves.reshape(-1, len(positions)) @ taps).reshape(-1, folds, c_out, c_in)
        blocks = blocks.permute(0, 2, 1, 3).reshape(-1, c_out, folds * c_in)
        blocks = blocks / math.sqrt(folds) if folds > 1 else blocks
        yield blocks, weights[start : start + per_slab]
