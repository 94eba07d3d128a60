"""What every route does first: take a tensor as it comes, refuse what has no singular values, walk it in chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable

__all__ = ["CHUNK_BYTES", "U64", "as_matrix", "binary_exponent", "dtype_name", "row_chunks", "wide_chunks", "widen"]

U64 = 2.0**-53
CHUNK_BYTES = 32 << 20
_COMPARABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def as_matrix(A: Any, device: str | torch.device | None = None, *, dims: int = 2) -> Tensor:
    """The tensor behind a weight, a parameter, a gradient or an array: detached, strided, on the wanted device.

    Nothing is copied unless the layout is sparse or the device changes.

    Raises:
        NotDecomposable: another number of dimensions, integers, booleans, quantized codes, or a meta tensor.
    """
    if not isinstance(A, Tensor):
        array = np.asarray(A)
        if array.dtype not in (np.float16, np.float32, np.float64, np.complex64, np.complex128):
            raise NotDecomposable(f"{array.dtype} numbers are not weights that can be decomposed; convert to float32")
        A = torch.as_tensor(array)
    A = A.detach()
    if A.is_quantized or not (A.is_floating_point() or A.is_complex()):
        raise NotDecomposable(f"{dtype_name(A.dtype)} numbers are codes or indices, not weights; dequantize first")
    if A.is_meta:
        raise NotDecomposable("a meta tensor holds no numbers; load the weights first")
    if A.dim() != dims:
        raise NotDecomposable(f"expected {dims} dimensions, this has shape {tuple(A.shape)}")
    if A.layout != torch.strided:
        A = A.to_dense()
    if device is not None:
        A = A.to(device)
    if A.device.type == "mps":  # no float64 there
        A = A.cpu()
    return A.resolve_neg().resolve_conj()


def binary_exponent(A: Tensor) -> int | None:
    """Smallest e with every entry at most 2^e in modulus of its parts; None for a zero matrix.

    Dividing by 2^e is exact and keeps squares away from overflow and underflow.

    Raises:
        NotDecomposable: NaN or Inf inside: no LAPACK routine may see them (one hangs, another answers NaN).

    >>> import torch
    >>> binary_exponent(torch.tensor([[0.0, -5.0]])), binary_exponent(torch.zeros(2, 2))
    (3, None)
    """
    largest = 0.0
    for chunk in row_chunks(A):
        if chunk.numel() == 0:
            continue
        if chunk.is_complex():
            chunk = torch.view_as_real(chunk if chunk.dtype != torch.complex32 else widen(chunk))
        elif chunk.dtype not in _COMPARABLE:
            chunk = chunk.to(torch.float32)  # exact for every 8-bit float
        low, high = torch.aminmax(chunk)
        top = max(-float(low), float(high))
        if not math.isfinite(top) or math.isnan(float(low)):
            raise NotDecomposable("contains NaN or Inf")
        largest = max(largest, top)
    return math.frexp(largest)[1] if largest else None


def widen(A: Tensor, exponent: int = 0) -> Tensor:
    """2^-exponent A in float64 (complex128), exact but for subnormal results; never the input's own memory."""
    wide = A.to(torch.complex128 if A.is_complex() else torch.float64, copy=True)
    half = exponent // 2
    if abs(exponent) < 1000:
        return wide.mul_(2.0**-exponent) if exponent else wide
    return wide.mul_(2.0**-half).mul_(2.0 ** -(exponent - half))


def row_chunks(A: Tensor, at_least: int = 256) -> Iterator[Tensor]:
    """Views of consecutive rows: about `CHUNK_BYTES` of float64 each, and no fewer rows than ``at_least``."""
    rows = max(at_least, CHUNK_BYTES // (8 * max(1, A[:1].numel())))
    for start in range(0, A.shape[0], rows):
        yield A[start : start + rows]


def wide_chunks(A: Tensor, exponent: int = 0, size: int = 0, at_least: int = 256) -> Iterator[Tensor]:
    """Consecutive rows of 2^-exponent A in float64 (complex128), all in the same memory: use one, then the next.

    Fresh memory costs more than the conversion: the system has to clear every page of it.

    Args:
        A: (m, n), any float or complex dtype.
        exponent: the power of two to divide by.
        size: bytes of a chunk, by default `CHUNK_BYTES`.
        at_least: rows that a chunk has whatever its size.
    """
    m, n = A.shape
    rows = min(m, max(at_least, (size or CHUNK_BYTES) // (8 * max(1, n))))
    buffer = torch.empty((rows, n), dtype=torch.complex128 if A.is_complex() else torch.float64, device=A.device)
    half = exponent // 2
    for start in range(0, m, max(1, rows)):
        chunk = A[start : start + rows]
        wide = buffer[: len(chunk)].copy_(chunk)
        for part in (exponent,) if abs(exponent) < 1000 else (half, exponent - half):
            if part:
                wide.mul_(2.0**-part)
        yield wide
