"""The weights that are followed: their present matrices, gradients and changes, copied only where that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize

from netspectra.errors import InputRefused
from netspectra.weight import InMemory, Layout, Part, Selection, Weight

__all__ = ["Followed", "followed"]


@dataclass(eq=False)
class Followed:
    """One weight of a live model.

    Attributes:
        weight: as the source views it; its numbers are the model's own.
        parameters: the trained tensors it is made of: its own, or those of its parametrization.
    """

    weight: Weight
    parameters: tuple[nn.Parameter, ...]
    _view: Tensor | None = field(default=None, repr=False)
    _where: tuple[int, int] = (0, 0)
    _before: Tensor | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The weight's name."""
        return self.weight.name

    def matrix(self) -> Tensor:
        """(m, n), or (g, m, n) of a grouped convolution, as it is now: a view where the layout allows one."""
        own = self._own()
        if own is None:
            return self._laid_out(self.weight)
        where = own.data_ptr(), own.untyped_storage().nbytes()
        if self._view is None or where != self._where:  # another storage than at the last look
            found = self._laid_out(self.weight)
            if found.untyped_storage().data_ptr() != own.untyped_storage().data_ptr():
                return found
            self._view, self._where = found, where
        return self._view

    def gradients(self) -> list[Tensor]:
        """The gradients of the tensors it is made of, those there are; of a fused tensor, the whole one's."""
        return [p.grad.detach() for p in self.parameters if p.grad is not None and p.grad.layout == torch.strided]

    def gradient_weight(self) -> Weight | None:
        """The gradient as a weight of its own; None where there is none, or the weight is no parameter itself."""
        own = self._own()
        if own is None or own.grad is None or own.grad.layout != torch.strided:
            return None
        ref = replace(self.weight.part.ref, load=InMemory(own.grad), identity=None)
        part = replace(self.weight.part, ref=ref)
        return replace(self.weight, name=f"{self.name} (gradient)", part=part, kind="gradient", aliases=())

    def remember(self) -> None:
        """Keep a copy of the present matrix, for `update` after the next step."""
        self._before = self.matrix().clone()

    def update(self) -> Tensor | None:
        """The present matrix less the remembered one; None where none is."""
        return None if self._before is None else self.matrix() - self._before

    def forget(self) -> None:
        """Let the remembered matrix go."""
        self._before = None

    def update_weight(self, change: Tensor) -> Weight:
        """A change of the matrix as a weight of its own."""
        flat = change.reshape(-1, change.shape[-1])
        ref = replace(self.weight.part.ref, load=InMemory(flat), shape=tuple(flat.shape), identity=None)
        layout = Layout(groups=self.weight.layout.groups)
        return replace(
            self.weight, name=f"{self.name} (update)", kind="update", part=Part(ref), layout=layout, aliases=(),
            factors=None,
        )  # fmt: skip

    def _own(self) -> Tensor | None:
        load = self.weight.part.ref.load
        return load.tensor if isinstance(load, InMemory) and self.weight.factors is None else None

    @staticmethod
    def _laid_out(weight: Weight) -> Tensor:
        if weight.factors:
            B, A = weight.factors.load()
            return weight.factors.scale * (B @ A)
        blocks = weight.layout.blocks(weight.part.load())
        return blocks if weight.layout.groups > 1 else blocks[0]


def followed(model: nn.Module, weights: Sequence[Weight], selection: Selection) -> list[Followed]:
    """Those of a live model's weights that are selected.

    Raises:
        InputRefused: none is; or parameters are sharded over processes, so that looking at one would need all of them.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            raise InputRefused(
                f"{name!r} is sharded over processes (FSDP, tensor parallel): not watched. Watch a model under DDP"
            )
    found = [Followed(weight, _parameters(model, weight)) for weight in weights if selection.accepts(weight.name)]
    if not found:
        raise InputRefused("no weight to watch: the patterns match none, or the model has no matrices")
    return found


def _parameters(model: nn.Module, weight: Weight) -> tuple[nn.Parameter, ...]:
    if weight.factors:
        refs = [weight.factors.B.ref, weight.factors.A.ref]
        held = [ref.load.tensor for ref in refs if isinstance(ref.load, InMemory)]
        return tuple(tensor for tensor in held if isinstance(tensor, nn.Parameter))
    load = weight.part.ref.load
    if isinstance(load, InMemory):
        return (load.tensor,) if isinstance(load.tensor, nn.Parameter) else ()
    path, _, attribute = weight.part.ref.name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return ()
    if parametrize.is_parametrized(module, attribute):
        return tuple(module.parametrizations[attribute].parameters())  # type: ignore[union-attr,index]
    own = dict(module.named_parameters(recurse=False))
    return tuple(p for name, p in own.items() if name.startswith(f"{attribute}_"))  # the older weight_norm's g and v
