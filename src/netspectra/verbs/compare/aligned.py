"""Two weights brought into one order: transposed, grouped, or with the rows of heads the other way."""

from __future__ import annotations

import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.verbs.compare.matching import Pair
from netspectra.weight import Layout

__all__ = ["RELATED", "change_of", "inner"]

RELATED = 0.3  # cosine of two weights below which they are strangers as they lie


def change_of(pair: Pair) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Both weights as (groups, m, n) in float64, the second as it fits the first, and how it was made to fit.

    Raises:
        NotDecomposable: NaN or Inf in one of them, or complex numbers.
    """
    A, B = _both(pair)
    B, notes = _aligned(A, B, float(A.norm() * B.norm()))
    return A, B, ("compared with its transpose",) if pair.transposed else notes


def inner(X: Tensor, Y: Tensor) -> float:
    """Sum of the products of entries, with nothing beside them in memory."""
    return float(torch.dot(X.reshape(-1), Y.reshape(-1)))


ALIKE = 0.5  # cosine from which a matrix in another order is the same one
HEADS = (64, 128, 32, 96, 80, 256)  # usual sizes of a head


def _aligned(A: Tensor, B: Tensor, norms: float) -> tuple[Tensor, tuple[str, ...]]:
    """The second as it fits the first: where they are strangers, another order of its numbers is tried.

    A square matrix may be stored the other way round; the rows of queries and keys are in one of two orders, since
    rotary embeddings pair neighbours in one convention and halves of a head in the other (llama.cpp converts).
    """
    if len(A) != 1 or abs(inner(A, B)) >= RELATED * norms or norms == 0:
        return B, ()
    m, n = B.shape[1:]
    tried = [(B.mT, "compared with its transpose")] if m == n else []
    for d in HEADS:
        if m % d == 0:
            for shape in ((m // d, 2, d // 2, n), (m // d, d // 2, 2, n)):
                rows = B.reshape(shape).transpose(1, 2).reshape(B.shape)
                tried.append((rows, f"rows of heads of {d} are in the other order of rotary embeddings"))
    for other, note in tried:
        if inner(A, other) > ALIKE * norms:
            return other.contiguous(), (note,)
    return B, ()


def _both(pair: Pair) -> tuple[Tensor, Tensor]:
    """Both as (groups, m, n) in float64, the second turned if it is stored the other way round."""
    layouts = [pair.before.layout, pair.after.layout]
    if pair.before.part.shape == pair.after.part.shape and len(pair.before.part.shape) > 2:
        layouts = [layouts[1] if layouts[0] == Layout() else layouts[0]] * 2  # a live module's, which knows the groups
    found = []
    for weight, layout in zip((pair.before, pair.after), layouts, strict=True):
        blocks = layout.blocks(weight.part.load().detach().cpu())
        if blocks.is_complex():
            raise NotDecomposable("complex numbers are not compared")
        found.append(blocks.to(torch.float64))
        if not bool(found[-1].isfinite().all()):
            raise NotDecomposable("contains NaN or Inf")
    A, B = found
    return A, (B.mT.contiguous() if pair.transposed else B)
