"""Fisher-weighted SVD: rows weighed by the squared gradients they receive."""

from __future__ import annotations

from torch import Tensor

from netspectra.linalg.weighted import projected
from netspectra.methods import Decomposition, method, required


@method("fisher", needs=("outputs",), reference="Hsu et al. 2022, arXiv:2207.00112")
def fisher(W: Tensor, A: Tensor | None, G: Tensor | None) -> Decomposition:
    """min ||F^(1/2) (W - W')||_F with F_ii = sum_j E[(dL / dW_ij)^2], taken as E[g_i^2] E|x|^2."""
    G = required(G, "fisher", "outputs")
    return Decomposition.of(*projected(W, G.diagonal().clamp_min(0).sqrt(), None))
