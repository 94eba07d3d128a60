"""What an attention head or an MLP does to the residual stream, as thin factors and their singular triplets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from netspectra.linalg.lattice import form_of
from netspectra.linalg.operator import LowRank
from netspectra.linalg.product import product_svd
from netspectra.linalg.svd import svd
from netspectra.linalg.turning import expected_turns
from netspectra.verbs.interpret.anatomy import Anatomy, Layer
from netspectra.weight import Weight

__all__ = ["KINDS", "Circuit", "Kind", "circuits"]

Kind = Literal["ov", "qk", "mlp_in", "mlp_out"]
KINDS: dict[Kind, str] = {
    "ov": "value to output: what the head reads (right) and what it then writes (left)",
    "qk": "query with key: which tokens attend (left) to which (right)",
    "mlp_in": "what the neurons read",
    "mlp_out": "what the neurons write",
}


@dataclass(frozen=True, eq=False)
class Circuit:
    """One head's or MLP's map, decomposed.

    Attributes:
        layer: its block.
        head: number of the (query) head; None for MLPs.
        kind: ov, qk, mlp_in or mlp_out.
        svd: leading triplets of the map on the normalized stream; left and right vectors of unit length.
        values: all its singular values.
        turns: (2, k) expected sines by which rounding has turned the left and right vectors.
        stored: how finely its weights are stored.
    """

    layer: Layer
    head: int | None
    kind: Kind
    svd: LowRank
    values: Tensor
    turns: Tensor
    stored: str


def circuits(found: Anatomy, layer: Layer, *, top: int) -> Iterator[Circuit]:
    """All circuits of one layer; no d x d matrix is formed for a head.

        OV_h = O_h V_h diag(g)         B = O_h (d, d_h),              A = V_h diag(g) (d_h, d)
        QK_h = diag(g) Q_h^T K_h diag(g)    B = diag(g) Q_h^T (d, d_h),    A = K_h diag(g) (d_h, d)

    with g the gain of the norm before the attention. With rotary positions QK_h is the score at distance zero.

    Args:
        found: the model.
        layer: one of its layers.
        top: triplets kept of each.
    """
    loaded = {role: _Numbers(weight) for role, weight in layer.weights.items()}
    gains = layer.gains.get("attention")
    if found.heads and {"value", "output"} <= set(loaded):
        yield from _by_head(found, layer, "ov", loaded["output"], loaded["value"], gains, top)
    if found.heads and {"query", "key"} <= set(loaded):
        yield from _by_head(found, layer, "qk", loaded["query"], loaded["key"], gains, top)
    gains = layer.gains.get("mlp")
    sides: tuple[tuple[Kind, str], ...] = (("mlp_in", "gate"), ("mlp_in", "up"), ("mlp_out", "down"))
    for kind, role in sides:
        if role in loaded and not (role == "up" and "gate" in loaded):
            yield _mlp(layer, kind, loaded[role], gains if kind == "mlp_in" else None, top)


class _Numbers:
    """A weight, loaded once, and the standard deviation of its rounding."""

    def __init__(self, weight: Weight) -> None:
        X = weight.operator().dense().double()  # pyright: ignore[reportAttributeAccessIssue]
        ref = weight.part.ref
        form = form_of(X, ref.dtype, ref.stored)
        self.X, self.name = X, form.name
        self.error = float(form.half.expand(X.shape).square().mean().sqrt()) / 3**0.5  # uniform between -half and half


def _by_head(
    found: Anatomy, layer: Layer, kind: Kind, first: _Numbers, second: _Numbers, gains: Tensor | None, top: int
) -> Iterator[Circuit]:
    rows = first.X if kind == "qk" else first.X.mT  # (heads d_h, d)
    d = rows.shape[0] // found.heads
    if d * found.heads != rows.shape[0] or d * found.kv_heads != second.X.shape[0]:
        return
    group = found.heads // found.kv_heads
    scale = 1.0 if gains is None else float(gains.square().mean().sqrt())
    for head in range(found.heads):
        shared = head // group
        B = rows[head * d : (head + 1) * d].mT
        A = second.X[shared * d : (shared + 1) * d]
        if gains is not None:
            A = A * gains
            B = B * gains[:, None] if kind == "qk" else B
        whole = product_svd(B, A)
        eB = first.error * (scale if kind == "qk" else 1.0)
        turns = torch.stack(expected_turns(whole, B, A, eB, second.error * scale))
        yield Circuit(layer, head, kind, _cut(whole, top), whole.S, turns[:, :top], f"{first.name}, {second.name}")


def _mlp(layer: Layer, kind: Kind, numbers: _Numbers, gains: Tensor | None, top: int) -> Circuit:
    X = numbers.X if gains is None else numbers.X * gains
    scale = 1.0 if gains is None else float(gains.square().mean().sqrt())
    whole = svd(X)
    m, n = X.shape
    S, V = whole.S.double(), torch.full((), (numbers.error * scale) ** 2, dtype=torch.float64)
    squares = S.square()
    off = ~torch.eye(len(S), dtype=torch.bool)
    gaps = (squares[None, :] - squares[:, None]).square().masked_fill(~off, torch.inf).clamp_min(1e-300)
    mixing = V * ((squares[None, :] + squares[:, None]) / gaps).sum(0)
    turns = torch.stack([(mixing + V * (size - len(S)) / squares.clamp_min(1e-300)).sqrt() for size in (m, n)])
    return Circuit(layer, None, kind, _cut(whole, top), S, turns.clamp_max(1.0)[:, :top], numbers.name)


def _cut(whole: LowRank, top: int) -> LowRank:
    return LowRank(whole.U[:, :top], whole.S[:top], whole.Vh[:top], whole.frobenius2, whole.error, whole.residual)
