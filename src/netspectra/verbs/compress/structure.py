"""Which layers belong together, found by what they compute on a batch, not by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
ROWS = 32


@dataclass(frozen=True)
class Block:
    """An MLP: down(act(up x)), or down(act(gate x) * up x).

    Attributes:
        up: name of the layer whose outputs are the hidden neurons.
        down: name of the layer that reads them.
        gate: name of the gating layer, or empty.
        activation: name of the nonlinearity.
    """

    up: str
    down: str
    gate: str
    activation: str


@dataclass(frozen=True)
class Attention:
    """Query, key, value on one input, and the output layer after them.

    Attributes:
        query: name; so key, value, output (empty where it was not found).
        heads: of the queries.
        kv_heads: of keys and values.
        head_dim: width of one query head.
        rotary: positions rotate queries and keys, so that these cannot be mixed freely.
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
    """The groups of layers in a model."""

    blocks: tuple[Block, ...] = ()
    attentions: tuple[Attention, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"blocks": [vars(b) for b in self.blocks], "attentions": [vars(a) for a in self.attentions]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Structure:
        """Undo `to_dict`."""
        return cls(tuple(Block(**b) for b in data["blocks"]), tuple(Attention(**a) for a in data["attentions"]))


@dataclass
class Traffic:
    """A few rows of what entered and left each layer in one batch, in the order of running."""

    entering: dict[str, Tensor] = field(default_factory=dict)
    leaving: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, x: Tensor, y: Tensor) -> None:
        """Keep the first rows of the layer's first call."""
        if name not in self.entering:
            self.entering[name] = x.detach().reshape(-1, x.shape[-1])[:ROWS].float().clone()
            self.leaving[name] = y.detach().reshape(-1, y.shape[-1])[:ROWS].float().clone()


def observe(model: nn.Module, traffic: Traffic, owner: Mapping[str, str]) -> Structure:
    """Find MLP blocks and attentions.

    A block is taken for one only where the numbers agree: the layer's input equals the activation of the other's
    output. Attention is taken from names (query, key, value on one input) and from the head counts beside them.
    """
    return Structure(tuple(_blocks(traffic)), tuple(_attentions(model, traffic, owner)))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).norm()) <= AGREE * float(b.norm()) and bool(b.any())


def _blocks(traffic: Traffic) -> list[Block]:
    found, order = [], list(traffic.entering)
    for place, down in enumerate(order):
        hidden = traffic.entering[down]
        before = [n for n in order[max(0, place - 4) : place] if traffic.leaving[n].shape == hidden.shape]
        block = _block(down, hidden, before, traffic)
        if block:
            found.append(block)
    return found


def _block(down: str, hidden: Tensor, before: Sequence[str], traffic: Traffic) -> Block | None:
    for up in before:
        for name, act in ACTIVATIONS.items():
            if name == "identity" and up.rpartition(".")[0] != down.rpartition(".")[0]:
                continue
            if _same(act(traffic.leaving[up]), hidden):
                return Block(up, down, "", name)
    for gate in before:
        for up in before:
            if gate == up:
                continue
            for name, act in ACTIVATIONS.items():
                if _same(act(traffic.leaving[gate]) * traffic.leaving[up], hidden):
                    return Block(up, down, gate, name)
    return None


ROLES = {
    "query": ("query", "q_proj", "q_lin", "q", "to_q", "wq"),
    "key": ("key", "k_proj", "k_lin", "k", "to_k", "wk"),
    "value": ("value", "v_proj", "v_lin", "v", "to_v", "wv"),
}
HEADS = ("num_attention_heads", "num_heads", "n_heads", "n_head")


def _attentions(model: nn.Module, traffic: Traffic, owner: Mapping[str, str]) -> list[Attention]:
    order = list(traffic.entering)
    by_parent: dict[str, dict[str, str]] = {}
    for name in order:
        parent, _, last = name.rpartition(".")
        role = next((role for role, names in ROLES.items() if last in names), None)
        if role:
            by_parent.setdefault(parent, {})[role] = name
    found = []
    for parent, roles in by_parent.items():
        if set(roles) != set(ROLES) or owner[roles["key"]] != owner[roles["value"]]:
            continue
        heads = _heads(model, parent)
        widths = {role: traffic.leaving[name].shape[1] for role, name in roles.items()}
        if heads is None or widths["query"] % heads:
            continue
        head_dim = widths["query"] // heads
        if widths["key"] % head_dim or widths["key"] != widths["value"]:
            continue
        last = max(order.index(name) for name in roles.values())
        after = [n for n in order[last + 1 : last + 3] if traffic.entering[n].shape[1] == widths["query"]]
        rotary = any("rotary" in type(m).__name__.lower() for m in model.modules())
        found.append(
            Attention(
                roles["query"], roles["key"], roles["value"], after[0] if after else "",
                heads, widths["key"] // head_dim, head_dim, rotary,
            )
        )  # fmt: skip
    return found


def _heads(model: nn.Module, parent: str) -> int | None:
    """The head count beside the layers, or in the config beside them."""
    module = model.get_submodule(parent)
    for place in (module, getattr(module, "config", None)):
        for name in HEADS:
            count = getattr(place, name, None)
            if isinstance(count, int) and count > 0:
                return count
    return None
