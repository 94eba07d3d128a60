"""Which layers belong together, found by what they compute on a batch, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.forms.factors import is_conv1d
from netspectra.live.batches import selected, tensors
from netspectra.verbs.compress.flow import Experiment, Flow, proven, watched

__all__ = ["Attention", "Block", "Structure", "observe"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu2": lambda x: F.relu(x).square(),
    "tanh": torch.tanh,
    "identity": lambda x: x,
}
AGREE = 1e-3  # relative difference under which two results are the same computation


@dataclass(frozen=True)
class Block:
    """An MLP: down(act(up x)), or down(act(gate x) * up x).

    Attributes:
        up: name of the layer whose outputs are the hidden neurons.
        down: name of the layer that reads them.
        gate: name of the gating layer, or empty.
        activation: name of the nonlinearity; empty when it is none of the common ones.
        fused: ``up`` makes the gate in its first half, the neurons in its second.
    """

    up: str
    down: str
    gate: str
    activation: str
    fused: bool = False


@dataclass(frozen=True)
class Attention:
    """Query, key, value, and the output layer after them.

    Attributes:
        query: name; so key, value, output.
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: width of one query head.
        rotary: something (positions that rotate, a normalization) stands between queries and keys and their
            product, so that these cannot be mixed freely.
    """

    query: str
    key: str
    value: str
    output: str
    heads: int
    kv_heads: int
    head_dim: int
    rotary: bool


@dataclass(frozen=True)
class Structure:
    """The groups of layers in a model.

    Attributes:
        blocks: MLPs.
        attentions: attentions.
        norms: by convolution, the batch normalization that reads its output.
    """

    blocks: tuple[Block, ...] = ()
    attentions: tuple[Attention, ...] = ()
    norms: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "blocks": [vars(b) for b in self.blocks],
            "attentions": [vars(a) for a in self.attentions],
            "norms": dict(self.norms),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Structure:
        """Undo `to_dict`."""
        attentions = tuple(Attention(**a) for a in data["attentions"])
        return cls(tuple(Block(**b) for b in data["blocks"]), attentions, data["norms"])


def observe(model: nn.Module, batch: Any, modules: Mapping[str, nn.Module]) -> Structure:
    """Find MLP blocks and attentions by what flows where, and prove by experiment that they are what they seem.

    No name decides. An MLP block: outputs of one layer (or two, gated; or one twice as wide) alone reach another, and
    changing half of the neurons changes those inputs of the reader and no other. Attention: three layers reach one;
    multiplying the values of each head by a matrix multiplies what the reader gets by the same matrix (so values and
    outputs can be mixed); multiplying queries by a matrix and keys by its inverse transposed changes nothing (so no
    rotary embedding, normalization or the like stands between). A block whose parts feed anything else fails.

    Cost: one forward pass that is watched, and a few with hooks, on two samples.
    """
    count = next((t.shape[0] for t in tensors(batch) if t.dim()), 1)
    few = selected(batch, torch.arange(min(2, count)), count)
    flow = watched(model, few, modules)
    readers = {
        name: sorted(found & set(modules), key=list(flow.leaving).index)
        for name, found in flow.origins.items()
        if name in flow.leaving and _matrix(modules[name]) and all(n in flow.leaving for n in found)
    }
    generator = torch.Generator().manual_seed(0)
    blocks = [e for name, found in readers.items() for e in _suspected_block(flow, name, found, modules, generator)]
    held = proven(model, few, modules, flow, [experiment for _, experiment in blocks])
    attentions = _attentions(model, few, modules, flow, readers, generator)
    return Structure(tuple(block for (block, _), good in zip(blocks, held, strict=True) if good), tuple(attentions))


def _matrix(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)


def _close(a: Tensor, b: Tensor) -> bool:
    tolerance = max(AGREE, 8 * torch.finfo(a.dtype).eps)
    return a.shape == b.shape and float((a - b).double().norm()) <= tolerance * float(b.double().norm())


def _suspected_block(
    flow: Flow, down: str, sources: Sequence[str], modules: Mapping[str, nn.Module], generator: torch.Generator
) -> Iterator[tuple[Block, Experiment]]:
    """A block that layer ``down`` may end, and the experiment that shows it."""
    hidden = flow.entering[down][0]
    width = hidden.shape[-1]
    widths = [flow.leaving[name].shape[-1] for name in sources]
    if not all(_matrix(modules[name]) for name in sources) or not (
        widths in ([width], [width, width]) or (widths == [2 * width] and width > 1)
    ):
        return
    half = torch.randperm(width, generator=generator)[: max(1, width // 2)]
    mine = torch.zeros(width, dtype=torch.bool).index_fill_(0, half, True)

    def changed(y: Tensor) -> Tensor:
        where = mine.repeat(y.shape[-1] // width).to(y.device)
        noise = torch.randn(y.shape, generator=generator).to(y) * y.std() + y.mean()
        return torch.where(where, noise, y)

    def holds(now: Tensor, before: Tensor) -> bool:
        where = mine.to(now.device)
        return _close(now[..., ~where], before[..., ~where]) and not _close(now[..., where], before[..., where])

    fused = widths == [2 * width]
    up = sources[-1]
    gate = sources[0] if len(sources) == 2 else ""
    activation = _activation(flow, up, gate, hidden)
    if gate and not activation and (other := _activation(flow, gate, up, hidden)):
        up, gate, activation = gate, up, other
    yield Block(up, down, gate, activation, fused), Experiment(dict.fromkeys(sources, changed), down, holds)


def _activation(flow: Flow, up: str, gate: str, hidden: Tensor) -> str:
    """The name of the nonlinearity, for people; empty where it is none of the known ones."""
    y = flow.leaving[up].float()
    if y.shape != hidden.shape:
        return ""
    for name, act in ACTIVATIONS.items():
        found = act(flow.leaving[gate].float()) * y if gate else act(y)
        if _close(found, hidden.float()):
            return name
    return ""


def _attentions(
    model: nn.Module,
    batch: Any,
    modules: Mapping[str, nn.Module],
    flow: Flow,
    readers: Mapping[str, Sequence[str]],
    generator: torch.Generator,
) -> list[Attention]:
    mixed: list[tuple[str, str, int]] = []  # output, value, head_dim
    makers = {output: [name for name in found if _matrix(modules[name])] for output, found in readers.items()}
    for output, sources in makers.items():  # beside them a table of relative positions may reach the reader
        if len(sources) != 3:
            continue
        for value in reversed(sources):
            for d in sorted(flow.lengths.get(value, ())):
                made, read = flow.leaving[value].shape[-1], flow.entering[output][0].shape[-1]
                if d > 1 and made % d == read % d == 0 and read % made == 0:
                    mixed.append((output, value, d))
    held = proven(model, batch, modules, flow, [_mixing(flow, *one, generator) for one in mixed])
    found: dict[str, Attention] = {}
    for (output, value, d), good in zip(mixed, held, strict=True):
        if good and output not in found:
            heads, kv = flow.entering[output][0].shape[-1] // d, flow.leaving[value].shape[-1] // d
            first, second = (name for name in makers[output] if name != value)
            if flow.leaving[first].shape[-1] < flow.leaving[second].shape[-1]:
                first, second = second, first  # queries have at least as many heads as keys
            found[output] = Attention(first, second, value, output, heads, kv, d, True)
    free = [a for a in found.values() if _same_heads(flow, a)]
    for attention, good in zip(
        free, proven(model, batch, modules, flow, [_turning(a, generator) for a in free]), strict=True
    ):
        if good:
            found[attention.output] = replace(attention, rotary=False)
    return list(found.values())


def _same_heads(flow: Flow, a: Attention) -> bool:
    width = flow.leaving[a.query].shape[-1]
    return width == flow.leaving[a.key].shape[-1] and width % a.heads == 0 and a.heads == a.kv_heads


def _mixing(flow: Flow, output: str, value: str, d: int, generator: torch.Generator) -> Experiment:
    """Values of each head times a matrix of its own: the reader's input must be the old one times the same."""
    kv, heads = flow.leaving[value].shape[-1] // d, flow.entering[output][0].shape[-1] // d
    M = _matrices(kv, d, generator)
    wide = M.repeat_interleave(heads // kv, 0)
    return Experiment(
        {value: lambda y: _by_head(y, M)}, output, lambda now, before: _close(now, _by_head(before, wide))
    )


def _turning(a: Attention, generator: torch.Generator) -> Experiment:
    """Queries times matrices, keys times their inverses transposed: the reader's input must not change."""
    d = 0  # each side has its own width a head; they are equal where a product of them exists
    matrices: dict[int, Tensor] = {}

    def of(y: Tensor) -> Tensor:
        nonlocal d
        d = y.shape[-1] // a.heads
        return matrices.setdefault(d, _matrices(a.heads, d, generator))

    change = {
        a.query: lambda y: _by_head(y, of(y)),
        a.key: lambda y: _by_head(y, torch.linalg.inv(of(y)).mT),
    }
    return Experiment(change, a.output, _close)


def _matrices(count: int, d: int, generator: torch.Generator) -> Tensor:
    """Well-conditioned matrices that are not orthogonal: those would pass through a normalization unseen."""
    U, V = (torch.linalg.qr(torch.randn(count, d, d, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    return U * torch.linspace(0.6, 1.6, d, dtype=torch.float64) @ V


def _by_head(y: Tensor, M: Tensor) -> Tensor:
    """Each head's part of y (..., heads d) times its matrix."""
    parts = y.double().unflatten(-1, M.shape[:2])
    return torch.einsum("...hi,hji->...hj", parts, M.to(parts.device)).flatten(-2).to(y)
