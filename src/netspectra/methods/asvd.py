"""Activation-aware SVD: columns scaled by how large their inputs are."""

from __future__ import annotations

from torch import Tensor

from netspectra.linalg.weighted import projected
from netspectra.methods import Decomposition, method, required


@method("asvd", needs=("inputs",), reference="Yuan et al. 2023, arXiv:2312.05821")
def asvd(W: Tensor, A: Tensor | None, G: Tensor | None) -> Decomposition:
    """min ||(W - W') S||_F with S = diag(|x_i|^(1/2)), |x_i| the root mean square of input i."""
    A = required(A, "asvd", "inputs")
    return Decomposition.of(*projected(W, None, (A if A.dim() == 1 else A.diagonal()).clamp_min(0).pow(0.25)))
