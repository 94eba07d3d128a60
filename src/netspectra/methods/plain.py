"""Truncated singular value decomposition of the weight itself."""

from __future__ import annotations

from torch import Tensor

from netspectra.linalg.weighted import projected
from netspectra.methods import Decomposition, method


@method("plain", reference="Eckart & Young 1936, Psychometrika 1")
def plain(W: Tensor, A: Tensor | None, G: Tensor | None) -> Decomposition:
    """min ||W - W'||_F: what is left without data."""
    return Decomposition.of(*projected(W, None, None))
