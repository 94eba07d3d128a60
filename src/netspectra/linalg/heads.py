"""Fewer dimensions in the heads of an attention: between value and output, and between query and key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from netspectra.linalg.features import on_features
from netspectra.linalg.moments import root
from netspectra.linalg.weighted import projected

__all__ = ["HeadBases", "query_key_bases", "value_output_bases"]


@dataclass(frozen=True, eq=False)
class HeadBases:
    """In each head a basis whose first r vectors are the r dimensions to keep.

    Attributes:
        C: (kv_heads, d_h, d_h), orthonormal rows: the reduced value of head g is ``C[g, :r] v``.
        O: (m, heads d_h) the output matrix.
        H: (heads d_h, heads d_h) second moment of what enters it.
        G: (m, m) second moment of the gradient at its output, or None.
        heads: query heads; head h reads from key-value head h // (heads / kv_heads).
    """

    C: Tensor
    O: Tensor  # noqa: E741 - the field's name
    H: Tensor
    G: Tensor | None
    heads: int

    def reduction(self, r: int) -> Tensor:
        """(heads r, heads d_h): from the old attention outputs to the new ones."""
        each = self.C[:, :r].repeat_interleave(self.heads // len(self.C), dim=0)
        return torch.block_diag(*each)

    def refit(self, r: int) -> tuple[Tensor, float]:
        """The output matrix (m, heads r) that is best on all heads together, and the loss that remains.

        O' = O H E^T (E H E^T)^-1,    loss = tr(G (O H O^T - O' E H O^T)),    E the reduction
        """
        return on_features(self.O, self.H, self.reduction(r), self.G)


def value_output_bases(O: Tensor, H: Tensor, G: Tensor | None, *, heads: int, kv_heads: int) -> HeadBases:  # noqa: E741
    """Bases of the values that lose least at the output, the heads that share a value taken together.

    Attention averages values over tokens, so the value and the output matrix of a head may both be multiplied by a
    matrix and its inverse: O_h V_h counts only. In each head min ||G^{1/2} O_h (1 - P) H_h^{1/2}|| over projections P
    of rank r; with grouped queries the O_h of a group are stacked and their H_h averaged. Then `HeadBases.refit`
    lets the output matrix make up for what the heads have in common.

    Args:
        O: (m, heads d_h), float64.
        H: (heads d_h, heads d_h) second moment of its input; identity is plain SVD.
        G: (m, m) second moment of the gradient at its output; None: identity.
        heads: number of query heads.
        kv_heads: number of key-value heads.

    Source: Lin et al. 2024 (MoDeGPT, arXiv:2408.09632) reduces values alike, by SVD without G or the refit.
    """
    width = O.shape[1]
    d, group = width // heads, heads // kv_heads
    LO = O if G is None else root(G).mT @ O
    C = torch.empty((kv_heads, d, d), dtype=O.dtype, device=O.device)
    for g in range(kv_heads):
        mine = [slice(h * d, (h + 1) * d) for h in range(g * group, (g + 1) * group)]
        stacked = torch.cat([LO[:, s] for s in mine])
        mean = sum((H[s, s] for s in mine), torch.zeros_like(H[mine[0], mine[0]])) / group
        right = projected(stacked, None, root(mean))[1]
        C[g] = _orthonormal(right, d)
    return HeadBases(C, O, H, G, heads)


def _orthonormal(rows: Tensor, d: int) -> Tensor:
    """(d, d) with orthonormal rows whose first r span the first r of ``rows``, completed where there are fewer."""
    missing = d - len(rows)
    if missing:
        rows = torch.cat([rows, torch.zeros((missing, d), dtype=rows.dtype, device=rows.device)])
    return torch.linalg.qr(rows.mT).Q.mT


def query_key_bases(Q: Tensor, K: Tensor, A: Tensor, G: Tensor | None, *, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each head the factors that replace queries and keys in r of their dimensions, for every r at once.

        (Q_h x)^T (K_h y) ~ (right_h[:r] x)^T (left_h[:, :r]^T K_h y)

    The query matrix of each head is approximated in the two-sided norm, its left factor moves over to the keys. Only
    where nothing (no rotary embedding, no normalization) stands between the projections and their product.

    Args:
        Q: (heads d_h, n) query matrix; with a bias as its last column (and 1 as the last input in ``A``).
        K: (heads d_h, n'), likewise.
        A: (n, n) second moment of the query's input.
        G: (heads d_h, heads d_h) second moment of the gradient at the query; only blocks of one head are used.
        heads: number of heads; keys are not shared between them.

    Returns:
        right (heads, d_h, n), keys (heads, d_h, n'), losses (d_h + 1,) of keeping 0 ... d_h dimensions in each head.
    """
    d = Q.shape[0] // heads
    R = root(A)
    rights, keys = [], []
    losses = torch.zeros(d + 1, dtype=Q.dtype, device=Q.device)
    for h in range(heads):
        mine = slice(h * d, (h + 1) * d)
        left, right, s = projected(Q[mine], None if G is None else root(G[mine, mine]), R)
        spare = d - len(s)  # fewer inputs than dimensions
        rights.append(torch.nn.functional.pad(right, (0, 0, 0, spare)))
        keys.append(torch.nn.functional.pad(left, (0, spare)).mT @ K[mine])
        losses[: len(s)] += s.square().flip(0).cumsum(0).flip(0)
    return torch.stack(rights), torch.stack(keys), losses
