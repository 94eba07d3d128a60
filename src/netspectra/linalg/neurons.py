"""Which hidden neurons of a two-layer block to keep, and the output matrix that makes the best of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from netspectra.linalg.features import least_squares

__all__ = ["NeuronOrder", "neuron_order"]


@dataclass(frozen=True, eq=False)
class NeuronOrder:
    """Neurons from the most to the least telling, and what keeping the first k of them loses.

    Attributes:
        order: (n,) neurons, best first: every prefix is a choice.
        losses: (n + 1,) tr(G (W h - W' h_J)(...)^T) with the best W' for the first 0 ... n neurons; descending.
        W: (m, n) the output matrix.
        H: (n, n) second moment of the hidden activations (or their covariance).
    """

    order: Tensor
    losses: np.ndarray
    W: Tensor
    H: Tensor

    def kept(self, k: int) -> Tensor:
        """The first k neurons, ascending."""
        return self.order[:k].sort().values

    def refit(self, k: int) -> tuple[Tensor, Tensor]:
        """The k neurons kept, ascending, and the least-squares output matrix on them: W H[:, J] H[J, J]^-1, (m, k)."""
        J = self.kept(k)
        return J, least_squares(self.H[J][:, J], self.H[J] @ self.W.mT).mT


def neuron_order(W: Tensor, H: Tensor, G: Tensor | None = None) -> NeuronOrder:
    """Order hidden neurons by column-pivoted QR of their activations, each weighed by what its output is worth.

        y = W h,    pivots of Cholesky of D H D,    D_j^2 = w_j^T G w_j

    Cholesky with pivoting of a second moment picks what QR with column pivoting picks on the activations themselves,
    which are not needed. One factorization P^T H P = L L^T also gives the loss of every width, by the columns it has
    not come to: sum_{j > k} ||G^{1/2} W L_j||^2.

    Args:
        W: (m, n) output matrix, float64.
        H: (n, n) second moment of h; its covariance where the mean goes into a bias.
        G: (m, m) second moment of the gradient at y; identity when None.

    Returns:
        the order, losses and `NeuronOrder.refit`.

    Cost: n^3 / 3 + 2 m n^2. Choosing by the target itself, forwards or backwards, costs ten times as much and was no
    better on MiniLM (`benchmarks/compress`).

    Source: Businger & Golub 1965 for the pivoting; for its use on neurons Chee et al. 2022, arXiv:2206.11962.

    >>> H = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.5]]).double()
    >>> found = neuron_order(torch.ones(1, 3).double(), H)
    >>> found.losses.round(6).tolist(), found.kept(2).tolist(), found.refit(2)[1].round(decimals=6).tolist()
    ([4.5, 0.5, 0.0, 0.0], [0, 2], [[2.0, 1.0]])
    """
    GW = W if G is None else G @ W
    worth = (W * GW).sum(0).clamp_min(0).sqrt()
    weighed = worth[:, None] * H * worth
    order, L = _pivoted_cholesky(weighed.cpu().numpy())
    order = torch.from_numpy(order).to(W.device)
    triangle = torch.from_numpy(L).to(W.device)
    # back from D H D to H: row i of the factor belongs to neuron order[i] and carries its D
    seen = worth[order]
    rows = torch.where(seen > 0, 1 / seen, torch.zeros_like(seen))[:, None] * triangle
    effect = W[:, order] @ rows
    shares = (effect * (effect if G is None else G @ effect)).sum(0).clamp_min(0)
    losses = shares.flip(0).cumsum(0).flip(0)
    return NeuronOrder(order, np.append(losses.cpu().numpy(), 0.0), W, H)


def _pivoted_cholesky(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pivots and L (n, n) with A[p][:, p] = L L^T; columns beyond the numerical rank are zero."""
    n = len(A)
    if n == 0:
        return np.zeros(0, int), np.zeros((0, 0))
    (pstrf,) = scipy.linalg.get_lapack_funcs(("pstrf",), (A,))
    factor, pivots, rank, _ = pstrf(A, lower=1)
    L = np.tril(factor)
    L[:, rank:] = 0.0
    return pivots.astype(int) - 1, L
