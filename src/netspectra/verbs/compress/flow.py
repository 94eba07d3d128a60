"""What flows from which layer into which, watched on a real batch; and experiments that prove what may be changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from netspectra.live.batches import call, tensors

__all__ = ["Experiment", "Flow", "proven", "watched"]

Origins = frozenset[str]
NOWHERE: Origins = frozenset()


@dataclass(eq=False)
class Flow:
    """What one forward pass showed.

    Attributes:
        entering: inputs of each layer, one a call.
        leaving: outputs of each layer's first call.
        origins: by layer, the layers whose outputs reach its input without passing through another layer.
        lengths: by layer, lengths that the last axis of its output took when it was reshaped: candidates for heads.
        output: what the model gave.
        ends: the layers whose outputs reach it without passing through another layer.
    """

    entering: dict[str, list[Tensor]] = field(default_factory=dict)
    leaving: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, Origins] = field(default_factory=dict)
    lengths: dict[str, set[int]] = field(default_factory=dict)
    output: list[Tensor] = field(default_factory=list)
    ends: Origins = NOWHERE

    def only(self, sources: Iterable[str], reader: str) -> bool:
        """Whether the layers' outputs reach this reader and nothing else."""
        sources = set(sources)
        others = [found for name, found in self.origins.items() if name != reader]
        return not sources & self.ends.union(*others)


class _Watch(TorchDispatchMode):
    """Follow every tensor operation: what is made of a layer's output comes from that layer."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.known: Any = WeakTensorKeyDictionary()

    def of(self, data: Any) -> Origins:
        found = [self.known[t] for t in tensors(data) if t in self.known]
        return frozenset().union(*found) if found else NOWHERE

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        origins = self.of(args) | self.of(kwargs)
        result = func(*args, **kwargs)
        if origins:
            for tensor in tensors(result):
                self._mark(tensor, origins)
            if func._schema.is_mutable:
                for place, argument in enumerate(func._schema.arguments):
                    if argument.alias_info is not None and argument.alias_info.is_write:
                        for tensor in tensors(args[place] if place < len(args) else kwargs.get(argument.name)):
                            self._mark(tensor, origins)
        return result

    def _mark(self, tensor: Tensor, origins: Origins) -> None:
        self.known[tensor] = self.known.get(tensor, NOWHERE) | origins
        base = tensor._base
        if base is not None:
            self.known[base] = self.known.get(base, NOWHERE) | origins
        if len(origins) == 1 and tensor.dim() > 2:
            (name,) = origins
            self.flow.lengths.setdefault(name, set()).add(tensor.shape[-1])


def watched(model: nn.Module, batch: Any, modules: Mapping[str, nn.Module]) -> Flow:
    """Run the batch once and follow what leaves each layer to the layers it reaches."""
    flow = Flow()
    watch = _Watch(flow)

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                flow.origins[name] = flow.origins.get(name, NOWHERE) | watch.of(args[0])
                flow.entering.setdefault(name, []).append(args[0].clone())

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                watch.known[output] = frozenset({name})
                flow.leaving.setdefault(name, output.clone())

        return hook

    handles = [module.register_forward_pre_hook(before(name)) for name, module in modules.items()]
    handles += [module.register_forward_hook(after(name)) for name, module in modules.items()]
    try:
        with torch.no_grad(), watch:
            output = call(model, batch)
        flow.ends = watch.of(output)
        flow.output = [t.clone() for t in tensors(output) if t.is_floating_point()]
    finally:
        for handle in handles:
            handle.remove()
    return flow


@dataclass(frozen=True, eq=False)
class Experiment:
    """A change of some layers' outputs that one reading layer must be able to tell apart or undo.

    Attributes:
        change: by layer, what is done to its output.
        at: the layer that reads what comes of it.
        holds: (its changed input, its input as it was) -> whether the supposition holds. The reader is then given
            its input as it was, so that nothing behind it may change: whatever else the layers feed shows up there.
    """

    change: Mapping[str, Callable[[Tensor], Tensor]]
    at: str
    holds: Callable[[Tensor, Tensor], bool]


def proven(
    model: nn.Module, batch: Any, modules: Mapping[str, nn.Module], flow: Flow, experiments: Sequence[Experiment]
) -> list[bool]:
    """Which suppositions hold; experiments that touch no layer in common run in one forward pass."""
    found = [False] * len(experiments)
    left = [place for place, one in enumerate(experiments) if flow.only(one.change, one.at)]
    while left:
        touched: set[str] = set()
        together: list[int] = []
        for place in left:
            needed = {*experiments[place].change, f"> {experiments[place].at}"}
            if not needed & touched:
                touched |= needed
                together.append(place)
        left = [place for place in left if place not in together]
        for place, answer in _answered(model, batch, modules, flow, experiments, together):
            found[place] = answer
    return found


def _answered(
    model: nn.Module,
    batch: Any,
    modules: Mapping[str, nn.Module],
    flow: Flow,
    experiments: Sequence[Experiment],
    together: Sequence[int],
) -> Iterator[tuple[int, bool]]:
    """The answers; where something leaked, halves are tried until it is known which experiment it was."""
    answers, same = _run(model, batch, modules, flow, [experiments[place] for place in together])
    if same or len(together) == 1:
        yield from zip(together, (answer and same for answer in answers), strict=True)
        return
    half = len(together) // 2
    for part in (together[:half], together[half:]):
        yield from _answered(model, batch, modules, flow, experiments, part)


def _run(
    model: nn.Module, batch: Any, modules: Mapping[str, nn.Module], flow: Flow, experiments: Iterable[Experiment]
) -> tuple[list[bool], bool]:
    """The answers, and whether the model's output stayed as it was."""
    experiments = list(experiments)
    answers: list[list[bool]] = [[] for _ in experiments]
    handles = []

    def changed(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda module, args, output: change(output)

    def judged(place: int, experiment: Experiment) -> Callable[..., tuple[Any, ...] | None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            inputs, number = flow.entering[experiment.at], len(answers[place])
            if number >= len(inputs) or args[0].shape != inputs[number].shape:
                answers[place].append(False)
                return None
            answers[place].append(experiment.holds(args[0], inputs[number]))
            return (inputs[number], *args[1:])

        return hook

    try:
        for place, experiment in enumerate(experiments):
            for name, change in experiment.change.items():
                handles.append(modules[name].register_forward_hook(changed(change)))
            handles.append(modules[experiment.at].register_forward_pre_hook(judged(place, experiment)))
        with torch.no_grad():
            output = call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    now = [t for t in tensors(output) if t.is_floating_point()]
    same = len(now) == len(flow.output) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
        for a, b in zip(now, flow.output, strict=True)
    )
    return [bool(answer) and all(answer) for answer in answers], same
