"""Weights and where they come from: names and shapes first, bytes later."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from netspectra.errors import InputRefused
from netspectra.record import Skipped

if TYPE_CHECKING:
    from torch import Tensor

    from netspectra.linalg.operator import LinearOperator

__all__ = [
    "ITEMSIZE",
    "Factors",
    "InMemory",
    "Layout",
    "Loader",
    "Part",
    "Selection",
    "Source",
    "TensorRef",
    "Weight",
]

# Bytes per number, by dtype name.
ITEMSIZE: dict[str, int] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "complex64": 8,
    "complex128": 16,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
}

Index = tuple[slice | int, ...]


class Loader(Protocol):
    """Gives the bytes of one tensor, or of a slice of it, when asked; pickles, so that it can travel."""

    def __call__(self, index: Index = ()) -> Tensor:
        """Load ``tensor[index]``, reading no more of a file than the format allows."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """A tensor in memory, as a `Loader`."""

    tensor: Tensor

    def __call__(self, index: Index = ()) -> Tensor:
        """Give ``tensor[index]``, a view without a gradient."""
        found = self.tensor.detach()
        return found[index] if index else found


@dataclass(frozen=True, eq=False, repr=False)
class TensorRef:
    """A named tensor of a source, not loaded.

    Attributes:
        name: exactly as in the source.
        shape: of the tensor.
        dtype: its name in torch's words, without ``torch.``.
        load: gives the tensor or a slice of it.
        facts: what the source knows of its use: for a live module ``module``, ``groups``, ``stride``, ...
        identity: equal for two names of the same storage (tied weights); None where that cannot be known.
        problem: why it cannot be read, if so.
        stored: how the file keeps it where that is not ``dtype`` (``Q4_1``, ``int8 with scales``): ``load`` decodes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    load: Loader
    facts: Mapping[str, Any] = field(default_factory=dict)
    identity: Hashable = None
    problem: str = ""
    stored: str = ""

    def __repr__(self) -> str:
        """Name, shape and dtype; never the numbers."""
        return f"TensorRef({self.name!r}, {self.shape}, {self.stored or self.dtype})"

    @property
    def numel(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.numel * ITEMSIZE.get(self.dtype, 8)


@dataclass(frozen=True)
class Part:
    """A tensor, or what ``index`` selects of it after ``reshape``; most often the whole."""

    ref: TensorRef
    index: Index = ()
    reshape: tuple[int, ...] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is selected, before it is flattened into rows and columns."""
        shape = self.reshape or self.ref.shape
        cuts = zip(self.index, shape, strict=False)
        lengths = [len(range(*cut.indices(size))) for cut, size in cuts if isinstance(cut, slice)]
        return (*lengths, *shape[len(self.index) :])

    def load(self) -> Tensor:
        """Load the selected part, and no more where the format can."""
        if self.reshape is None:
            return self.ref.load(self.index)
        return self.ref.load().reshape(self.reshape)[self.index]


@dataclass(frozen=True)
class Layout:
    """How a tensor is laid out as the matrix that acts on column vectors (outputs by inputs).

    Attributes:
        rows: axes of the tensor that make the rows, in order; all others make the columns.
        groups: number of diagonal blocks (grouped convolutions); the first axis is cut into them, whether it counts
            outputs or, in transposed convolutions, inputs.
    """

    rows: tuple[int, ...] = (0,)
    groups: int = 1

    def shape(self, tensor: tuple[int, ...]) -> tuple[int, int]:
        """(m, n) of the matrix, all groups together."""
        m = math.prod(tensor[axis] for axis in self.rows)
        n = math.prod(size for axis, size in enumerate(tensor) if axis not in self.rows)
        return (m, n * self.groups) if 0 in self.rows else (m * self.groups, n)

    def blocks(self, tensor: Tensor) -> Tensor:
        """Lay the tensor out as (groups, m / groups, n / groups)."""
        cut = tensor.reshape(self.groups, tensor.shape[0] // self.groups, *tensor.shape[1:])
        rows = [axis + 1 for axis in self.rows]
        columns = [axis for axis in range(1, cut.dim()) if axis not in rows]
        ordered = cut.permute(0, *rows, *columns)
        m = math.prod(cut.shape[axis] for axis in rows)
        return ordered.reshape(self.groups, m, ordered[0].numel() // m if m else 0)

    def tensor(self, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Undo `blocks`: the tensor of ``shape`` that is laid out as these blocks."""
        cut = (self.groups, shape[0] // self.groups, *shape[1:])
        rows = [axis + 1 for axis in self.rows]
        order = [0, *rows, *(axis for axis in range(1, len(cut)) if axis not in rows)]
        back = [order.index(axis) for axis in range(len(cut))]
        return blocks.reshape([cut[axis] for axis in order]).permute(back).reshape(shape)


@dataclass(frozen=True)
class Factors:
    """A matrix known as ``scale`` B A: what an adapter adds to a weight.

    Attributes:
        B: (m, r), or (r, m) when transposed.
        A: (r, n), or (n, r) when transposed.
        scale: times their product.
        transposed: the matrix is the transpose of B A, as an embedding's adapter keeps it.
    """

    B: Part
    A: Part
    scale: float = 1.0
    transposed: bool = False

    def load(self) -> tuple[Tensor, Tensor]:
        """Load the left (m, r) and the right (r, n) factor."""
        B, A = self.B.load(), self.A.load()
        return (A.mT, B.mT) if self.transposed else (B, A)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the product."""
        m, n = self.B.shape[0], self.A.shape[1]
        return (n, m) if self.transposed else (m, n)

    @property
    def rank(self) -> int:
        """What its rank cannot exceed: r."""
        return self.A.shape[0]

    @property
    def numel(self) -> int:
        """How many numbers the factors have."""
        return math.prod(self.B.shape) + math.prod(self.A.shape)


@dataclass(frozen=True, eq=False, repr=False)
class Weight:
    """One weight matrix of a network: what it is called and how it acts, with its bytes left where they are.

    Attributes:
        name: of the tensor; ``NAME[q]`` and the like for a part of a fused one.
        kind: linear, embedding, conv2d, attention, lstm, expert, ...
        part: which numbers.
        layout: how they make a matrix.
        aliases: other names of the same numbers.
        notes: what a reader of the results should know.
        factors: for a matrix that is kept as a product; ``part`` would multiply it out, no verb needs that.
    """

    name: str
    kind: str
    part: Part
    layout: Layout = Layout()
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    factors: Factors | None = None

    def __repr__(self) -> str:
        """Name, kind and shape; never the numbers."""
        return f"Weight({self.name!r}, {self.kind}, {self.shape[0]} x {self.shape[1]}, {self.dtype})"

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): outputs by inputs."""
        return self.layout.shape(self.part.shape)

    @property
    def dtype(self) -> str:
        """Name of the stored dtype, or of the packed form it is decoded from."""
        return self.part.ref.stored or self.part.ref.dtype

    @property
    def parameters(self) -> int:
        """How many numbers it has: those of its factors, where it is kept as a product."""
        return self.factors.numel if self.factors else math.prod(self.part.shape)

    @property
    def nbytes(self) -> int:
        """Size of the tensor that is read for it, in memory."""
        return self.parameters * ITEMSIZE.get(self.part.ref.dtype, 8)

    @property
    def beside(self) -> int:
        """Bytes that the work on it keeps besides: a partner's, where two are compared."""
        return 0

    def operator(self, device: str | None = None) -> LinearOperator:
        """Load it, now, as a linear operator."""
        from netspectra.linalg.operator import BlockDiagonal, Dense

        if self.factors:
            from netspectra.linalg.product import Factored

            B, A = (factor if device is None else factor.to(device) for factor in self.factors.load())
            return Factored(B, A, self.factors.scale)
        tensor = self.part.load()
        blocks = self.layout.blocks(tensor if device is None else tensor.to(device))
        return Dense(blocks[0]) if self.layout.groups == 1 else BlockDiagonal(blocks)


@dataclass(frozen=True, eq=False, repr=False)
class Source:
    """A network's weights, viewed: what every verb works on.

    Attributes:
        path: what the user named; the class name for a live module.
        format: which reader answered.
        tensors: everything the source holds.
        weights: what the rules claim, in the order of the source; tied weights once.
        skipped: what they do not, and why.
        identify: computes `fingerprint` and `guard`; only asked where findings are kept, so that listing stays cheap.
        config: what the checkpoint says of the model, in the words of a Hugging Face ``config.json``; empty if nothing.
        root: the file or folder on this machine, also where ``path`` is a hub id; None for what lives in memory.
    """

    path: str
    format: str
    tensors: tuple[TensorRef, ...]
    weights: tuple[Weight, ...]
    skipped: tuple[Skipped, ...]
    identify: Callable[[], tuple[str, str]] = field(repr=False)
    config: Mapping[str, Any] = field(default_factory=dict)
    root: Path | None = None

    def __repr__(self) -> str:
        """Say what it is in one line."""
        return f"Source({self.path!r}, {self.format}: {len(self.weights)} weights in {len(self.tensors)} tensors)"

    def __iter__(self) -> Iterator[Weight]:
        """Iterate over the weights."""
        return iter(self.weights)

    @cached_property
    def _identity(self) -> tuple[str, str]:
        return self.identify()

    @property
    def fingerprint(self) -> str:
        """Hash of names, shapes, dtypes and sampled contents: the same for equal inputs anywhere."""
        return self._identity[0]

    @property
    def guard(self) -> str:
        """Changes whenever the input may have changed (file times); for resuming only, never exported."""
        return self._identity[1]

    @property
    def parameters(self) -> int:
        """Numbers in all tensors, those of tied ones once; of packed ones, the numbers they are decoded to."""
        refs = {id(weight.part.ref): weight.factors or weight.part.ref for weight in self.weights}
        return sum(ref.numel for ref in refs.values()) + sum(math.prod(one.shape) for one in self.skipped)

    def describe(self) -> dict[str, Any]:
        """What the exports say of the source."""
        return {
            "path": self.path,
            "format": self.format,
            "fingerprint": self.fingerprint,
            "parameters": self.parameters,
            "tensors": len(self.tensors),
        }


@dataclass(frozen=True)
class Selection:
    """Which weights a verb works on: whole names, globs or, after ``re:``, regular expressions.

    A name is taken when it matches any ``include`` (all do when there are none) and no ``exclude``.

    >>> Selection(include=("*.query.*",), exclude=(r"re:layer\\.0\\.",)).accepts("layer.1.query.weight")
    True
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a pattern that is no regular expression before any work."""
        for pattern in (*self.include, *self.exclude):
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as wrong:
                    raise InputRefused(f"pattern {pattern!r} is not a regular expression: {wrong}") from None

    def accepts(self, name: str) -> bool:
        """Whether the weight of this name is taken."""
        taken = not self.include or any(_matches(name, pattern) for pattern in self.include)
        return taken and not any(_matches(name, pattern) for pattern in self.exclude)


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.search(pattern[3:], name) is not None
    return name == pattern or fnmatch.fnmatchcase(name, pattern)
