"""Single rows and columns: outputs and inputs that a layer has lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import metric
from netspectra.record import Value

if TYPE_CHECKING:
    from torch import Tensor

DEAD = 1e-3  # of the root mean square norm
CHUNK = 1 << 24  # entries


@metric(
    "Dead rows and columns",
    formula=f"#{{rows: ‖w‖ ≤ {DEAD:g} rms}} + the same of columns",
    range="0 ... m + n",
    reference="Lu et al. 2020, Commun. Comput. Phys. 28(5), arXiv 1903.06733 (dying units)",
    degree=0,
    needs="matrix",
)
def dead_units(s: Spectrum, matrix: Tensor) -> Value:
    """Outputs that no input reaches, inputs that nothing uses: rows and columns a thousand times below the usual norm.

    Compared with the root mean square of the norms; the detail counts rows and columns apart. Not told of a unit:
    whether its bias or what stands before it silences it.

    Cost: one pass over the entries.

    >>> import torch
    >>> from netspectra.linalg.svd import svdvals
    >>> w = torch.eye(4)[:, :3]
    >>> float(dead_units(svdvals(w), w)), dead_units(svdvals(w), w).detail
    (1.0, {'rows': 1, 'columns': 0})
    """
    if s.sigma_max == 0:
        return Value.unknown("the matrix is zero")
    rows, columns = _norms2(matrix, s.sigma_max)
    limit = DEAD**2
    dead = {
        "rows": int((rows <= limit * float(rows.mean())).sum()),
        "columns": int((columns <= limit * float(columns.mean())).sum()),
    }
    return Value(float(dead["rows"] + dead["columns"]), detail=dead)


def _norms2(matrix: Tensor, unit: float) -> tuple[Tensor, Tensor]:
    """Squared norms of rows and columns in units of ``unit``, a chunk of rows at a time."""
    import torch

    wide = torch.float64 if matrix.dtype in (torch.float64, torch.complex128) else torch.float32
    m, n = matrix.shape
    rows = torch.empty(m, dtype=wide)
    columns = torch.zeros(n, dtype=torch.float64)
    step = max(1, CHUNK // n)
    for start in range(0, m, step):
        part = matrix.detach()[start : start + step]
        part = (part.abs() if part.is_complex() else part).to(torch.float64 if unit < 1e-30 or unit > 1e30 else wide)
        squares = (part / unit).square_()
        rows[start : start + step] = squares.sum(1).cpu()
        columns += squares.sum(0).double().cpu()
    return rows, columns
