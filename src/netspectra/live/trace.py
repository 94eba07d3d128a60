"""One forward pass of any module, cut into the blocks that follow one another along its depth."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import call, main_output, tensors
from netspectra.live.blocks import Block, Call, Cut, segments
from netspectra.live.bottlenecks import Node, bottlenecks

__all__ = ["Trace", "traced"]


@dataclass(frozen=True, eq=False)
class Trace:
    """A forward pass whose graph is kept.

    Attributes:
        start: the tensor from which Jacobians are taken: a leaf.
        output: the tensor that the model's output is about.
        origin: what the start is, in words.
        given: whether it is an input, not something inside the model.
        unit: what the leaf is multiplied by before it goes on: 1 for inputs.
        blocks: along the depth; the first begins at the start, the last ends at the output.
        samples: how many independent samples there are: the first size of start and output, or 1.
        rerun: runs the model again from another value of the start and gives the output.
    """

    start: Tensor
    output: Tensor
    origin: str
    given: bool
    unit: float
    blocks: tuple[Block, ...]
    samples: int
    rerun: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def cuts(self) -> list[Tensor]:
        """The tensors between the blocks, start and output included."""
        return [self.start, *(block.target for block in self.blocks)]


def traced(model: nn.Module, batch: Any, start: str = "") -> Trace:
    """Run the model once and find its blocks.

    The signal starts at the first floating tensor of the batch; where all inputs are integers, at the output of the
    embedding that reads them; with ``start`` at the output of the submodule of that name. There its scale is arbitrary
    (tables are drawn with 0.02 or 1, and a norm follows), so the leaf is that output over its rms. Blocks end at
    tensors through which every path of autograd's graph leads, found among what modules receive and return: in a
    plain network the output of each layer, in a residual one the stream between branches. A block begins with a
    module that holds a weight matrix and takes along the activations and norms that follow.

    Call it inside `untouched` and `plain_kernels`: the graph lives as long as the trace.

    Args:
        model: in the mode it is to be measured in.
        batch: what `call` takes.
        start: name of a submodule.

    Raises:
        InputRefused: no floating input and no embedding, an unknown name, an output that does not depend on the
            start, or numbers that are not finite.

    >>> from netspectra.live.conditions import plain_kernels
    >>> from netspectra.live.untouched import untouched
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> with untouched(model), plain_kernels():
    ...     print([(block.name, block.kind) for block in traced(model, torch.randn(2, 4)).blocks])
    [('0', 'Linear + ReLU'), ('2', 'Linear')]
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    names = {name for name, _ in model.named_modules()}
    if start and start not in names:
        raise InputRefused(f"the model has no submodule {start!r} to start from; named_modules() lists them")
    given = None if start else _float_input(batch)
    recorder = _Recorder(model, given, start, batch)
    output = recorder.run()
    if recorder.start is None and not start:
        recorder = _Recorder(model, None, recorder.first_embedding, batch)
        output = recorder.run()
    begin = recorder.start
    if begin is None:
        found = f"the submodule {start!r} was not called" if start else "there is no embedding"
        raise InputRefused(f"no floating tensor in the batch, and {found}: name where the signal starts, start='...'")
    if not output.requires_grad:
        raise InputRefused(f"the output does not depend on the {recorder.origin}: is it detached on the way?")

    def rerun(value: Tensor) -> Tensor:
        again = _Recorder(model, given, recorder.embedding or recorder.first_embedding, batch)
        return again.run(value)

    blocks, samples = segments(recorder.cuts(begin, output), recorder.calls), _samples(begin, output)
    return Trace(begin, output, recorder.origin, given is not None, recorder.unit, blocks, samples, rerun)


def _float_input(batch: Any) -> tuple[str, Tensor] | None:
    """The first floating tensor of the batch that is no mask, and its name."""
    for name, tensor in _named(batch):
        if (tensor.is_floating_point() or tensor.is_complex()) and "mask" not in name:
            return f"input {name}".strip(), tensor
    return None


def _named(batch: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _named(value, f"{name}.{key}".strip("."))
    elif isinstance(batch, Sequence) and not isinstance(batch, str | bytes):
        for place, value in enumerate(batch):
            yield from _named(value, f"{name}[{place}]" if len(batch) > 1 else name)


def _replaced(batch: Any, old: Tensor, new: Tensor) -> Any:
    if batch is old:
        return new
    if isinstance(batch, Mapping):
        return {key: _replaced(value, old, new) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_replaced(value, old, new) for value in batch)
    return batch


def _samples(start: Tensor, output: Tensor) -> int:
    """The first size of both, if no sample of the output listens to another one of the start."""
    if output.dim() == 0 or start.dim() == 0 or start.shape[0] != output.shape[0] or start.shape[0] < 2:
        return 1
    count = start.shape[0]
    for sample in (0, count - 1):
        w = torch.zeros_like(output)
        w[sample] = 1 + torch.arange(w[sample].numel(), device=w.device).reshape(w[sample].shape).remainder(7)
        (g,) = torch.autograd.grad(output, start, w, retain_graph=True, allow_unused=True, materialize_grads=True)
        if bool(torch.cat([g[:sample], g[sample + 1 :]]).any()):
            return 1
    return count


class _Recorder:
    """Listens to every module and keeps what it receives and returns, with its place in the graph."""

    def __init__(self, model: nn.Module, given: tuple[str, Tensor] | None, embedding: str, batch: Any) -> None:
        self.model, self.given, self.embedding, self.batch = model, given, embedding, batch
        self.start: Tensor | None = None
        self._value: Tensor | None = None
        self.origin, self.first_embedding, self.unit = "", "", 1.0
        self._integers = {t.data_ptr() for t in tensors(batch) if not t.is_floating_point() and t.numel()}
        self._clock = self._begun = 0
        self._open: list[Call] = []
        self.calls: list[Call] = []
        self._heard: list[tuple[bool, Tensor, Node, int]] = []  # returned or received, tensor, its node, when

    def run(self, value: Tensor | None = None) -> Tensor:
        """Call the model with the start as a leaf of its own, or at another value; its output, complex as pairs."""
        self._value = value
        batch = self.batch
        if self.given is not None:
            self.origin, tensor = self.given
            self.start = self._leaf(torch.view_as_real(tensor) if tensor.is_complex() else tensor)
            carried = self.start.clone()
            batch = _replaced(batch, tensor, torch.view_as_complex(carried) if tensor.is_complex() else carried)
        with self._listening():
            output = main_output(call(self.model, batch))
        return torch.view_as_real(output) if output.is_complex() else output

    def _leaf(self, value: Tensor) -> Tensor:
        if self._value is not None:
            return self._value.detach().reshape(value.shape)
        return value.detach().clone().requires_grad_()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        seen: dict[str, int] = {}
        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(self._before(name, seen), with_kwargs=True))
            handles.append(module.register_forward_hook(self._after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, seen: dict[str, int]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self._clock += 1
            seen[name] = seen.get(name, 0) + 1
            label = name or type(module).__name__
            label = label if seen[name] == 1 else f"{label}#{seen[name]}"
            shape = next((tuple(t.shape) for t in tensors([*args, *kwargs.values()])), ())
            self._open.append(Call(label, module, self._clock, shape))
            self._hear(False, [*args, *kwargs.values()])

        return hook

    def _after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        self._clock += 1
        done = self._open.pop()
        done.ended = self._clock
        self.calls.append(done)
        if self.start is None and self._starts(done, args, kwargs):
            return self._begin(done, output)
        heard = self._hear(True, [output])
        done.node = heard.grad_fn if heard is not None else None
        return None

    def _hear(self, returned: bool, data: Any) -> Tensor | None:
        for tensor in tensors(data):
            if tensor.is_floating_point() and tensor.grad_fn is not None:
                self._heard.append((returned, tensor, tensor.grad_fn, self._clock))
                return tensor
        return None

    def _starts(self, done: Call, args: Any, kwargs: Any) -> bool:
        """Whether this call is where integers become numbers."""
        if self.embedding:
            return done.name == self.embedding
        if not isinstance(done.module, nn.Embedding | nn.EmbeddingBag):
            return False
        self.first_embedding = self.first_embedding or done.name
        return any(t.data_ptr() in self._integers for t in tensors([*args, *kwargs.values()]) if t.numel())

    def _begin(self, done: Call, output: Any) -> Any:
        value = main_output(output)
        if value.is_complex():
            raise InputRefused(f"{done.name} returns complex numbers; start after them")
        size = float(value.detach().double().square().mean().sqrt())
        self.unit = size if math.isfinite(size) and size > 0 else 1.0
        self.start = self._leaf(value.detach() / self.unit)
        self._begun = self._clock
        self.origin = f"output of {done.name}"
        carried = self.start * self.unit
        if isinstance(output, Tensor):
            return carried
        return _replaced(output, value, carried)

    def cuts(self, start: Tensor, output: Tensor) -> list[Cut]:
        """Start, bottlenecks among what was heard, output."""
        first = start.view_as(start).grad_fn.next_functions[0][0]  # type: ignore[union-attr]  # the leaf's own node
        assert output.grad_fn is not None
        places: dict[Node, Cut] = {}
        for returned, tensor, node, when in self._heard:
            if tensor.grad_fn is not node:
                continue  # changed in place since: no longer what was heard
            known = places.get(node)
            if known is None or (returned and when == known.place + 1):
                places[node] = Cut(tensor, node, when)
        inner = bottlenecks(output.grad_fn, first, list(places))
        found = [Cut(start, first, self._begun)]
        found += [places[node] for node in inner if node is not output.grad_fn and node is not first]
        heard = places.get(output.grad_fn)  # modules that are called later have no part in the output
        return [*found, Cut(output, output.grad_fn, heard.place if heard else self._clock)]
