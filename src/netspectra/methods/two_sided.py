"""Two-sided SVD: the least error of the network's output, as far as second moments know it."""

from __future__ import annotations

from torch import Tensor

from netspectra.linalg.moments import root
from netspectra.linalg.weighted import projected
from netspectra.methods import Decomposition, method, required


@method("two_sided", needs=("inputs", "outputs"), comparable=True, reference="Martens & Grosse 2015, arXiv:1503.05671")
def two_sided(W: Tensor, A: Tensor | None, G: Tensor | None) -> Decomposition:
    """min E[(g^T (W - W') x)^2] = tr(G (W - W') A (W - W')^T), with g and x taken as independent (K-FAC)."""
    A, G = required(A, "two_sided", "inputs"), required(G, "two_sided", "outputs")
    return Decomposition.of(*projected(W, root(G), root(A)))
