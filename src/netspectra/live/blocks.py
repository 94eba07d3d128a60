"""The blocks of a network that follow one another along its depth, from what was heard of a forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from netspectra.live.bottlenecks import Node, bypassed, first_sum

__all__ = ["Block", "Call", "Cut", "segments"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


@dataclass(eq=False)
class Call:
    """One call of one submodule: its name, the shape it received and the interval of events it spanned."""

    name: str
    module: nn.Module
    began: int
    received: tuple[int, ...] = ()
    ended: int = 0
    node: Node = None

    @property
    def mixes(self) -> bool:
        """Whether it holds a weight matrix of its own: what can stretch and mix the signal."""
        if isinstance(self.module, (*_NORMS, nn.Embedding, nn.EmbeddingBag)):
            return False
        own = [*self.module.parameters(recurse=False)]
        if isinstance(hidden := getattr(self.module, "parametrizations", None), nn.Module):
            own += hidden.parameters()
        return any(parameter.dim() > 1 for parameter in own)

    @property
    def kind(self) -> str:
        """The class of the module, without the prefix that parametrization adds."""
        return type(self.module).__name__.removeprefix("Parametrized")


@dataclass(frozen=True, eq=False)
class Cut:
    """A tensor that everything passes through, its node in the graph, and the event at which it was heard."""

    tensor: Tensor
    node: Node
    place: int


@dataclass(frozen=True, eq=False)
class Block:
    """What happens between two tensors that everything must pass through.

    Attributes:
        name: of the module that holds its weights, or of several, joined by ``+``.
        kind: classes of its outermost modules.
        source: the tensor that enters.
        target: the tensor that leaves.
        calls: every module call inside, in order; those with weights say so by ``mixes``.
        residual: whether the signal has a way around the weights.
        sum: where that way and the branch meet, as a place in the graph; None where they do not simply add.
        skipped: names of the modules on that way (a normalization after the sum).
    """

    name: str
    kind: str
    source: Tensor
    target: Tensor
    calls: tuple[Call, ...]
    residual: bool
    sum: GradientEdge | None = None
    skipped: frozenset[str] = frozenset()


def segments(cuts: Sequence[Cut], calls: Sequence[Call]) -> tuple[Block, ...]:
    """What lies between the cuts, joined so that each block begins with a weight matrix."""
    blocks: list[Block] = []
    for below, above in itertools.pairwise(cuts):
        inside = [c for c in calls if below.place <= c.began and c.ended <= above.place]
        inside.sort(key=lambda c: c.began)
        mixes = any(c.mixes for c in inside)
        path = bypassed(above.node, below.node) if mixes else []
        skipped = frozenset(c.name for c in inside if c.node in path)
        block = _block(below, above, inside, path, skipped)
        size = above.tensor.numel() == below.tensor.numel()  # pooling stands by itself: it shrinks every Jacobian
        joins = blocks and not mixes and size and not (blocks[-1].residual and _has_parameters(inside))
        waits = blocks and _idle(blocks[-1])
        if joins or waits:
            last = blocks.pop()
            whole = [*last.calls, *inside]
            low = Cut(last.source, None, 0)
            block = _block(low, above, whole, path, last.skipped | skipped)
            if last.residual:
                block = replace(block, residual=True, sum=last.sum)
        blocks.append(block)
    return tuple(blocks)


def _has_parameters(calls: Sequence[Call]) -> bool:
    """Whether there is a norm with weights, say; tables that are added to the signal do not count."""
    modules = [c.module for c in calls if not isinstance(c.module, nn.Embedding | nn.EmbeddingBag)]
    return any(True for module in modules for _ in module.parameters(recurse=False))


def _idle(block: Block) -> bool:
    """Whether a block neither weighs, normalises nor pools: it belongs to the next."""
    weights = any(c.mixes for c in block.calls) or _has_parameters(block.calls)
    return not weights and block.source.numel() == block.target.numel()


def _block(below: Cut, above: Cut, calls: Sequence[Call], path: Sequence[Node], skipped: frozenset[str]) -> Block:
    outer: list[Call] = []
    for c in calls:
        if not outer or c.began > outer[-1].ended:
            outer.append(c)
    told = [c for c in outer if any(i.mixes for i in calls if c.began <= i.began and i.ended <= c.ended)] or outer
    name = " + ".join(c.name for c in told) or "functional"
    kinds = " + ".join(c.kind for c in outer) or "functional"
    meeting = first_sum(path[1:])  # the first is the start, which may be the sum of the block before
    edge = GradientEdge(meeting, 0) if meeting is not None else None
    return Block(name, kinds, below.tensor, above.tensor, tuple(calls), bool(path), edge, skipped)
