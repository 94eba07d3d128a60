"""Weights that were rounded to few levels: the noise this left in the spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from netspectra.linalg.lattice import coded_form
from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import metric
from netspectra.record import Value

if TYPE_CHECKING:
    from torch import Tensor


@metric(
    "Edge of rounding noise",
    formula="max_i √(Σ_j d_ij² / 12) + max_j √(Σ_i d_ij² / 12); (d / √12)(√m + √n) for one step d everywhere",
    range="> 0, for weights on few levels",
    reference="Bennett 1948, Bell Syst. Tech. J. 27(3); Bandeira & van Handel 2016, arXiv 1408.6185",
    degree=1,
    needs="matrix",
)
def rounding_edge(s: Spectrum, matrix: Tensor) -> Value:
    """Singular values below it can come from rounding to few levels alone, as int8 or int4 weights are.

    Rounding to steps of d adds errors that are spread evenly over a step, of variance d^2 / 12, and nearly independent;
    the largest singular value of such noise is the edge. Known only where the numbers lie on a quantizer's grid, which
    is looked for in the numbers themselves (and in what the file says); the detail holds the grid's name, the median
    step, the number of values above the edge, and the noise's share of the norm. What lies above it is not untouched,
    only not hidden.

    Cost: a few passes over the entries; for a weight on no grid, over a sample of them.

    >>> import torch
    >>> from netspectra.linalg.svd import svdvals
    >>> w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)) + 4 * torch.ones(64, 64) / 8
    >>> rounding_edge(svdvals(w), w).known
    False
    >>> step = w.abs().amax() / 7
    >>> found = rounding_edge(svdvals((w / step).round() * step), (w / step).round() * step)
    >>> bool(abs(float(found) - float(step) / 12**0.5 * 16) < 1e-3), found.detail["grid"]
    (True, 'lattice')
    """
    if s.sigma_max == 0 or matrix.is_complex() or min(matrix.shape) < 2:
        return Value.unknown("no matrix of real numbers other than zero")
    numbers = matrix.detach()
    form = coded_form(
        numbers if numbers.dtype.itemsize >= 4 else numbers.float(), str(matrix.dtype)[6:], _packed(s.dtype)
    )
    if form is None:
        return Value.unknown("lies on no grid of few levels")
    m, n = matrix.shape
    variance = (2 * form.half.double()).square() / 12
    rows = variance.sum(1) * (n if variance.shape[1] == 1 else 1)
    columns = variance.sum(0) * (m if variance.shape[0] == 1 else 1)
    edge = math.sqrt(float(rows.max())) + math.sqrt(float(columns.max()))
    whole = float(rows.sum()) * (m if variance.shape[0] == 1 else 1)
    detail = {
        "grid": form.name,
        "step": float((2 * form.half).median()),
        "above": int((s.values > edge).sum()) if s.complete else None,
        "of": len(s) if s.complete else None,
        "noise": math.sqrt(whole / s.frobenius2) if s.frobenius2 > 0 else None,
    }
    return Value(edge, detail=detail)


def _packed(dtype: str) -> str:
    """What the file says of how it is packed; empty where that is a plain dtype."""
    import torch

    return "" if isinstance(getattr(torch, dtype, None), torch.dtype) and "float8" not in dtype else dtype
