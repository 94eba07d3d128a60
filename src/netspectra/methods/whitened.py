"""Whitened SVD: the least error of the layer's outputs on the inputs it really sees."""

from __future__ import annotations

from torch import Tensor

from netspectra.linalg.moments import root
from netspectra.linalg.weighted import projected
from netspectra.methods import Decomposition, method, required


@method("whitened", needs=("inputs",), reference="Wang et al. 2024 (SVD-LLM), arXiv:2403.07378")
def whitened(W: Tensor, A: Tensor | None, G: Tensor | None) -> Decomposition:
    """min E|(W - W') x|^2 = ||(W - W') A^(1/2)||_F^2, by projection: no Cholesky factor that could fail."""
    return Decomposition.of(*projected(W, None, root(required(A, "whitened", "inputs"))))
