"""What removing a direction does to a model's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.objective import as_objective
from netspectra.verbs.interpret.anatomy import Anatomy, Layer, anatomy
from netspectra.verbs.interpret.circuits import Circuit
from netspectra.weight import Source, Weight

__all__ = ["effects", "measuring", "removed"]


Effect = Callable[[Anatomy, Sequence[tuple[Circuit, int]]], tuple[list[float], str]]


def measuring(
    model: nn.Module, source: Source, batches: Sequence[Any], progress: Callable[[str, float], None]
) -> Effect:
    """What `interpret` calls with the directions to remove.

    Args:
        model: live.
        source: of this model's own weights.
        batches: what it is called with.
        progress: told what is done and its share.
    """

    def measured(found: Anatomy, chosen: Sequence[tuple[Circuit, int]]) -> tuple[list[float], str]:
        live = anatomy(source, heads=found.heads or None, kv_heads=found.kv_heads or None)
        return effects(model, live, chosen, [layer.name for layer in found.layers], batches, progress)

    return measured


def effects(
    model: nn.Module,
    live: Anatomy,
    circuits: Sequence[tuple[Circuit, int]],
    order: Sequence[str],
    batches: Sequence[Any],
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> tuple[list[float], str]:
    """Run the model without each direction in turn, and measure how far its output moves.

    With logits the mean of KL(p || p without) over tokens, in nats; else the squared distance of the embedding or
    output, a sample. The model comes back with the same numbers.

    Args:
        model: live.
        live: its anatomy, from its own weights.
        circuits: of the same layers, and which of their directions.
        order: names of all layers of the anatomy that the circuits come from, in order.
        batches: what the model is called with.
        progress: told what is done and its share.

    Returns:
        One number a direction, and its unit.
    """
    batches = list(batches)
    if not batches:
        raise InputRefused("the effect of a removal shows on data: give at least one batch")
    with untouched(model), torch.no_grad():
        objective = as_objective(None, model, batches[0])
        before = [objective.of(model, batch) for batch in batches]
        divergence = objective.kind == "divergence"
        count = sum(s[..., 0].numel() if divergence else s.shape[0] for s in before)
        found = []
        for done, (circuit, i) in enumerate(circuits):
            with removed(live.layers[order.index(circuit.layer.name)], live, circuit, i):
                pairs = zip(batches, before, strict=True)
                distance = sum(objective.distance(objective.of(model, batch), old) for batch, old in pairs)
            found.append(distance / max(count, 1))
            progress("remove", (done + 1) / len(circuits))
    return found, "KL divergence a token, nats" if divergence else f"squared distance of the {objective.name}, a sample"


@contextmanager
def removed(layer: Layer, live: Anatomy, circuit: Circuit, i: int) -> Iterator[None]:
    """Within the block, the live layer's circuit lacks this triplet.

    O_h becomes (1 - u u^T) O_h, so that O_h V_h loses exactly s u v^T; the output matrix of an MLP likewise. What is
    read through a norm with gain g is removed before the gain: W becomes W - W diag(g) v v^T diag(g)^-1; of qk the
    queries no longer see u.
    """
    u, v = circuit.svd.U[:, i].double(), circuit.svd.Vh[i].double()
    gain = layer.gains.get("attention" if circuit.kind == "qk" else "mlp")
    if circuit.kind == "ov":
        W = _view(layer.weights["output"])
        d = W.shape[1] // live.heads
        assert circuit.head is not None
        part = W[:, circuit.head * d : (circuit.head + 1) * d]
        change = torch.outer(u, u @ part.double())
    elif circuit.kind == "mlp_out":
        part = _view(layer.weights["down"])
        change = torch.outer(u, u @ part.double())
    elif circuit.kind == "mlp_in":
        part = _view(layer.weights["gate" if "gate" in layer.weights else "up"])
        change = _unseen(part, v, gain)
    else:
        W = _view(layer.weights["query"])
        d = W.shape[0] // live.heads
        assert circuit.head is not None
        part = W[circuit.head * d : (circuit.head + 1) * d]
        change = _unseen(part, u, gain)
    kept = part.clone()
    try:
        part.copy_((part.double() - change).to(part))
        yield
    finally:
        part.copy_(kept)


def _unseen(W: Tensor, v: Tensor, gain: Tensor | None) -> Tensor:
    """What W loses so that it no longer reads v."""
    if gain is None:
        return torch.outer(W.double() @ v, v)
    floor = 1e-6 * gain.abs().max()
    inverse = torch.where(gain.abs() > floor, 1 / gain, torch.zeros_like(gain))
    return torch.outer(W.double() @ (gain * v), inverse * v)


def _view(weight: Weight) -> Tensor:
    """The live parameter's own memory as a matrix (m, n)."""
    stored = weight.part.load()
    found: Tensor = weight.operator().dense()  # pyright: ignore[reportAttributeAccessIssue]
    if found.untyped_storage().data_ptr() != stored.untyped_storage().data_ptr():
        raise InputRefused(f"{weight.name}: is put together anew at each use: its directions cannot be removed")
    return found
