"""What can stand in a network where a layer stood: one file a form.

A *site* is one module, or several that are decided together. A *form* says for a site what it would cost and lose at
each size (`Form.curve`), fits it (`Form.fit`), and can build the same structure without numbers (`Form.empty`), from a
small JSON ``spec``, so that a saved model can be loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from netspectra.forms.shelf import Shelf
from netspectra.methods import METHODS, Decomposition
from netspectra.registry import Registry

__all__ = ["FORMS", "Curve", "Form", "Member", "Site", "Spec", "form", "sizes_up_to"]

T = TypeVar("T")
Spec = dict[str, Any]
"""What rebuilds a replacement from the original module: small, plain JSON."""


@dataclass(frozen=True, eq=False)
class Member:
    """One module of a site, and what the calibration knows of it.

    Matrices are given, or as functions that make them: a model's in float64 together take many times its own memory.

    Attributes:
        name: dotted name in the model.
        module: Linear, Conv1D, ConvNd, Embedding, ...
        weight: makes W, (m, n) float64: its matrix as it acts on column vectors: Linear ``weight``; Conv1D
            ``weight.T``; a convolution (c_out, c_in / groups * taps), input channel first; an embedding
            (d, vocabulary).
        inputs: makes A = E[x x^T] of its inputs, shrunk; about the mean where ``mean`` is given: (n, n); (n,) for an
            embedding; (g, n, n) for a grouped convolution (x: an im2col patch as ``F.unfold`` lays it out). None
            without data.
        outputs: makes G = E[g g^T] (m, m) of d loss / d output, shrunk. None without a backward pass.
        mean: (n,) (for groups (g, n)) E[x] where the error's mean may be folded into a bias: the replacement's bias
            is then ``b + (W - W') mean``. None where it may not.
        positions: outputs per sample (tokens, pixels): the squared error per output times this is per sample.
        shape: of one calibration input, for timing; empty without calibration.
        tokens: how many rows x the moments saw.
        shelf: where what is derived from the member is kept for a while.
    """

    name: str
    module: nn.Module
    weight: Tensor | Callable[[], Tensor]
    inputs: Tensor | Callable[[], Tensor] | None = None
    outputs: Tensor | Callable[[], Tensor] | None = None
    mean: Tensor | None = None
    positions: float = 1.0
    shape: tuple[int, ...] = ()
    tokens: float = 0.0
    shelf: Shelf = field(default_factory=Shelf, repr=False)

    @property
    def W(self) -> Tensor:
        """Its matrix."""
        return self.weight() if callable(self.weight) else self.weight

    @property
    def A(self) -> Tensor | None:
        """Second moment of its inputs."""
        return self.inputs() if callable(self.inputs) else self.inputs

    @property
    def G(self) -> Tensor | None:
        """Second moment of the gradient at its outputs."""
        return self.outputs() if callable(self.outputs) else self.outputs

    def kept(self, key: Hashable, make: Callable[[], T]) -> T:
        """What is derived from it, made when it is not on the shelf."""
        return self.shelf.get((self.name, key), make)

    def decomposition(self, method: str) -> Decomposition:
        """The member's matrix decomposed by a method; shared by all forms."""
        return self.kept(method, lambda: METHODS[method].compute(self.W, self.A, self.G))

    def loss(self, approximation: Tensor) -> float:
        """Predicted loss of putting W' in the place of W: positions tr(G (W - W') A (W - W')^T); identity for None."""
        D, A, G = self.W - approximation, self.A, self.G
        DA = D if A is None else D * A if A.dim() == 1 else D @ A
        left = D if G is None else G @ D
        return float((left * DA).sum()) * self.positions


@dataclass(frozen=True, eq=False)
class Site:
    """One module, or several that are decided together.

    Attributes:
        name: of the module, or of the parent of its members.
        kind: ``linear``, ``convolution``, ``embedding``, ``qkv`` (query, key, value share an input), ``mlp`` (up,
            down, perhaps gate), ``attention`` (query, key, value, output).
        members: by role: ``weight`` for one module; ``query key value output``; ``up gate down``; ``embedding head``.
        facts: what else a form needs: for attention ``heads``, ``kv_heads``, ``head_dim``, ``rotary``; for an mlp
            ``activation`` (a name, or None when unknown).
        method: which method decomposes.
    """

    name: str
    kind: str
    members: Mapping[str, Member]
    facts: Mapping[str, Any] = field(default_factory=dict)
    method: str = "two_sided"

    @property
    def member(self) -> Member:
        """The only member."""
        (one,) = self.members.values()
        return one

    @property
    def parameters(self) -> int:
        """Numbers in the members' weights and biases as they are."""
        return sum(p.numel() for m in self.members.values() for p in m.module.parameters())


@dataclass(frozen=True, eq=False)
class Curve:
    """What a form costs and loses at each size it can have; ascending in size.

    Attributes:
        sizes: rank or width, what `Form.fit` takes; multiples of 8 where the layer is large enough.
        parameters: numbers in all members together, biases included.
        flops: multiplications a sample.
        losses: predicted increase of the loss, a sample.
        bytes: in the members' dtype; None: parameters times its item size.
    """

    sizes: np.ndarray
    parameters: np.ndarray
    flops: np.ndarray
    losses: np.ndarray
    bytes: np.ndarray | None = None


class Form(Protocol):
    """One way in which a site can be replaced; stateless, registered by `form`."""

    name: str
    kinds: frozenset[str]
    """Kinds of sites it is for."""
    portable: bool
    """The replacement is made of stock torch modules, or is a stock module of smaller width."""
    named: bool
    """Chosen only where it is named: it saves bytes, but no parameters."""

    def refuses(self, site: Site) -> str:
        """Why it cannot replace this site; empty when it can."""
        ...

    def curve(self, site: Site) -> Curve:
        """What it costs and loses at each size."""
        ...

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """By module name, the spec of what would stand there; costs nothing."""
        ...

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """By module name, the fitted replacements, in the original's dtype and device; the model is not touched."""
        ...

    def empty(self, original: nn.Module, spec: Spec) -> nn.Module:
        """The same structure with uninitialised numbers: what a saved state dict fills."""
        ...


FORMS: Registry[Form] = Registry("netspectra.forms", "form", first=("factors",))


def form(cls: type[Any]) -> type[Any]:
    """Register a form class (one instance of it) under its ``name``."""
    FORMS.add(cls.name, cls(), cls.__module__)
    return cls


def sizes_up_to(largest: int, side: int) -> list[int]:
    """The sizes worth having: multiples of 8 where the smaller side is at least 64 (odd ones cost time), else all.

    >>> sizes_up_to(30, 64), sizes_up_to(3, 10)
    ([8, 16, 24], [1, 2, 3])
    """
    step = 8 if side >= 64 else 1
    return list(range(step, largest + 1, step))
