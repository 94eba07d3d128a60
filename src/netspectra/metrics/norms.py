"""How large: the extreme singular values, the norms, and the ratio of the extremes."""

from __future__ import annotations

import numpy as np

from netspectra.linalg.spectrum import Spectrum
from netspectra.metrics import metric
from netspectra.record import Value

TEXTBOOK = "Horn & Johnson 2013, Matrix Analysis, ch. 5 and 7"


@metric("Count", formula="M = min(m, n)", range="0, 1, 2, ...", reference=TEXTBOOK, degree=0)
def count(s: Spectrum) -> float:
    """Number of singular values: the most directions the layer can tell apart."""
    return len(s)


@metric("Largest singular value", formula="σ₁", range="≥ 0", reference=TEXTBOOK, degree=1, needs="leading")
def sigma_max(s: Spectrum) -> float:
    """The most the layer stretches any input direction."""
    return Value(s.sigma_max, error=float(s.error[0]))


@metric("Smallest singular value", formula="σ_M", range="≥ 0", reference=TEXTBOOK, degree=1)
def sigma_min(s: Spectrum) -> float:
    """The least the layer stretches any input direction; at zero, directions are lost for good.

    Below the rounding floor of the stored dtype the number is noise, and is said to be.
    """
    value, error = float(s.values[-1]), float(s.error[-1])
    note = "below the rounding floor of the stored dtype: zero for all that can be known" if value <= s.floor else ""
    return Value(value, error=error, note=note)


@metric("Spectral norm", formula="‖W‖₂ = σ₁", range="≥ 0", reference=TEXTBOOK, degree=1, needs="leading")
def spectral_norm(s: Spectrum) -> float:
    """The layer's Lipschitz constant in the Euclidean norm; of a convolution, the unfolded kernel's."""
    return Value(s.sigma_max, error=float(s.error[0]))


@metric("Frobenius norm", formula="‖W‖_F = √(Σ σ²)", range="≥ 0", reference=TEXTBOOK, degree=1, needs="leading")
def frobenius_norm(s: Spectrum) -> float:
    """Root of the total energy: what weight decay acts on. Not squared."""
    return s.sigma_max * float(np.sqrt(s.relative_energy)) if s.sigma_max > 0 else 0.0


@metric("Nuclear norm", formula="‖W‖_* = Σ σ", range="≥ 0", reference=TEXTBOOK, degree=1)
def nuclear_norm(s: Spectrum) -> float:
    """Sum of the singular values: the convex stand-in for rank."""
    return Value(float(s.values.sum()), error=float(s.error.sum()))


@metric("Condition number", formula="κ = σ₁ / σ_M", range="≥ 1", reference=TEXTBOOK, degree=0)
def condition_number(s: Spectrum) -> float:
    """How unequally the layer treats directions; its inverse amplifies errors by this much.

    Where the smallest value is below the rounding floor of the stored dtype, or not larger than its own error, only a
    lower bound can be known: sigma_1 / (the larger of floor and sigma_M + error), and the note says so. The error is
    the first-order one, kappa (error_1 / sigma_1 + error_M / sigma_M).
    """
    top, bottom = float(s.values[0]), float(s.values[-1])
    if top == 0:
        return Value.unknown("the matrix is zero")
    error = float(s.error[-1])
    if bottom <= s.floor or bottom <= error:
        limit = max(s.floor, bottom + error)
        if limit == 0:
            return Value.unknown("singular: the smallest value is exactly zero")
        return Value(top / limit, low=top / limit, note="at least: the smallest value is below what can be told from 0")
    value = top / bottom
    return Value(value, error=value * (float(s.error[0]) / top + error / bottom))
