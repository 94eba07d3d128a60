"""Weights in mirrored pairs: a plain network whose activations are not odd functions then begins linear."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.live.batches import call, tensors
from netspectra.live.blocks import Block
from netspectra.live.bottlenecks import bottlenecks
from netspectra.live.trace import Trace
from netspectra.verbs.train.draws import TRANSPOSED, Values, is_norm

__all__ = ["Mirror", "mirrors"]

EVEN, ODD = 1e-2, 0.1  # an even part over the odd one from which mirroring pays; an odd part over the even one to keep
TOLERANCE = 1e-4
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
_KNOWN = (nn.Linear, *_CONVS)


@dataclass(frozen=True)
class Mirror:
    """Which sides of a weight meet a mirrored signal.

    Attributes:
        rows: its outputs are to be z and -z.
        columns: its inputs are phi(z) and phi(-z), this many columns of each; 0 if they are not.
        turned: inputs come first in its shape (transposed convolutions).
    """

    rows: bool = False
    columns: int = 0
    turned: bool = False

    def draw(self, value: Values, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """A weight [[A, -A], [-A, A]], or one half of it, from a smaller draw A.

        Of an odd number of units the last has no twin: a row of its own, and nobody listens to it yet.
        """
        out, into = (1, 0) if self.turned else (0, 1)
        size = _sized(shape, out, shape[out] // 2) if self.rows else list(shape)
        if self.columns:
            size = _sized(size, into, self.columns)
        A = value(size, generator)
        if self.rows:
            single = value(_sized(size, out, 1), generator) if shape[out] % 2 else A.narrow(out, 0, 0)
            A = torch.cat([A, -A, single], out)
        if self.columns:
            silent = A.new_zeros(_sized(A.shape, into, shape[into] - 2 * self.columns))
            A = torch.cat([A, -A, silent], into)
        return A


def _sized(shape: Sequence[int], axis: int, size: int) -> list[int]:
    return [size if place == axis else old for place, old in enumerate(shape)]


def mirrors(model: nn.Module, batch: Any, trace: Trace, free: Callable[[Tensor], bool]) -> dict[int, Mirror]:
    """What to mirror, by the identity of the weight. Call it where the trace was made.

    A weight whose outputs go through a function phi, unit by unit, into the next weight, and nowhere else. With rows
    [A; -A] and then columns [B, -B] the two compute B (phi(A x) - phi(-A x)), which of ReLU, GELU, SiLU and softplus is
    B A x exactly. Whether phi works unit by unit, alike on both halves, and is not odd is found by putting numbers of
    our own in place of each weight's outputs and looking at what the next one receives.

    Args:
        model: in eval mode.
        batch: what it is called with.
        trace: its blocks.
        free: whether a weight may be drawn anew.
    """
    pairs = [pair for pair in _neighbours(trace) if free(pair.before.weight) and free(pair.after.weight)]
    received = _received(model, batch, pairs)
    found: dict[int, Mirror] = {}
    for pair in pairs:
        if columns := pair.columns(received[pair.after]):
            for module, side in ((pair.before, {"rows": True}), (pair.after, {"columns": columns})):
                known = found.get(id(module.weight), Mirror(turned=isinstance(module, TRANSPOSED)))
                found[id(module.weight)] = replace(known, **side)
    return found


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two weights that follow each other."""

    before: Any  # Linear or convolution
    after: Any

    def columns(self, seen: Sequence[Tensor]) -> int:
        """How many columns of the second belong to one half of the first's outputs; 0 if mirroring is no use."""
        at_z, at_minus, at_swapped, at_half = seen
        units, axis = _units(self.before), _axis(self.after, at_z)
        width = at_z.shape[axis]
        if width % units or units < 2:
            return 0
        half = units // 2 * (width // units)
        scale = float(at_z.abs().max())
        swapped = torch.cat([at_z.narrow(axis, half, half), at_z.narrow(axis, 0, half)], axis)
        alike = _near(at_swapped.narrow(axis, 0, 2 * half), swapped, scale)
        apart = _near(at_half.narrow(axis, 0, half), at_z.narrow(axis, 0, half), scale)
        even, odd = (float((at_z + s * at_minus).square().mean().sqrt()) for s in (1, -1))
        return half if alike and apart and even > EVEN * odd and odd > ODD * even else 0


def _near(a: Tensor, b: Tensor, scale: float) -> bool:
    return bool(((a - b).abs() <= TOLERANCE * scale).all())


def _units(module: nn.Module) -> int:
    return int(module.out_channels if isinstance(module, _CONVS) else module.out_features)  # type: ignore[arg-type]


def _axis(module: nn.Module, x: Tensor) -> int:
    return x.dim() + 1 - module.weight.dim()  # type: ignore[operator]


def _neighbours(trace: Trace) -> Iterator[_Pair]:
    """Weights that follow each other, without a way around them, a norm between, or a second use."""
    calls = [c for block in trace.blocks for c in block.calls]
    uses = Counter(id(p) for c in calls for p in c.module.parameters(recurse=False))
    first = trace.start.view_as(trace.start).grad_fn.next_functions[0][0]  # type: ignore[union-attr]  # its own node
    alone = set(bottlenecks(trace.output.grad_fn, first, [c.node for c in calls if c.mixes]))

    def weight(block: Block) -> nn.Module | None:
        mixing = [c for c in block.calls if c.mixes]
        if block.residual or len(mixing) != 1 or mixing[0].node not in alone or _normal(block):
            return None
        module = mixing[0].module
        if not isinstance(module, _KNOWN) or getattr(module, "groups", 1) != 1:
            return None
        return module if uses[id(module._parameters.get("weight"))] == 1 else None

    weighty = [block for block in trace.blocks if any(c.mixes for c in block.calls) or _normal(block)]
    for before, after in itertools.pairwise(map(weight, weighty)):
        if before is not None and after is not None:
            yield _Pair(before, after)


def _normal(block: Block) -> bool:
    return any(is_norm(c.module) for c in block.calls)


def _received(model: nn.Module, batch: Any, pairs: Sequence[_Pair]) -> dict[nn.Module, list[Tensor]]:
    """What the second of each pair receives if the first gives z, -z, z with its halves swapped, and half of z."""
    found: dict[nn.Module, list[Tensor]] = {}
    for way in range(4) if pairs else ():
        handles = []
        for place, pair in enumerate(pairs):
            handles.append(pair.before.register_forward_hook(_giving(pair.before, way, place)))
            handles.append(pair.after.register_forward_pre_hook(_hearing(found), with_kwargs=True))
        try:
            with torch.no_grad():
                call(model, batch)
        finally:
            for handle in handles:
                handle.remove()
    return found


def _giving(module: nn.Module, way: int, seed: int) -> Callable[..., Tensor]:
    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        z = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(output)
        axis = _axis(module, z)
        half = _units(module) // 2
        first, second, rest = z.split([half, half, z.shape[axis] - 2 * half], axis)
        halves = ([first, second, rest], [-first, -second, -rest], [second, first, rest], [first, 0 * second, rest])
        return torch.cat(halves[way], axis)

    return hook


def _hearing(found: dict[nn.Module, list[Tensor]]) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.setdefault(module, []).append(next(tensors([*args, *kwargs.values()])).detach().clone())

    return hook
