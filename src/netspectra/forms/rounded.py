"""A layer whose numbers are rounded to codes of a few bits, and perhaps a thin correction: Linear, conv, embedding.

One form a number of bits, its size the rank of the correction. They are chosen only where they are named (by
``quantize``, or ``forms=``), as a runtime must know them to gain anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.forms import FORMS, Curve, Form, Member, Site, Spec, form
from netspectra.forms.coded import CodedConvolution, CodedEmbedding, CodedLinear, CodedModule
from netspectra.forms.factors import is_conv1d, shifted_bias
from netspectra.linalg.rounding import Coded, Grid, compensated, nearest
from netspectra.linalg.weighted import leading
from netspectra.methods import METHODS

__all__ = ["BITS", "Coding", "Halves", "Rounded", "bits_of"]

BITS = (8, 6, 5, 4, 3, 2)


@dataclass(frozen=True)
class Coding:
    """How weights become codes.

    Attributes:
        group: inputs that share a scale, at most; 0: all of a row. See `netspectra.linalg.rounding.group_of`.
        symmetric: no zero points.
        compensate: later inputs make up for the errors of earlier ones (GPTQ) where calibration data is known.
        ranks: of the corrections that are weighed; 0: none.
        weighed: the correction takes moments into account; else it is that of the bare error.
        rounds: times that codes and correction are made anew, each for what the other leaves; 1: once each.
        bits: numbers of bits that are worked out together, as they share most of the work.
    """

    group: int = 64
    symmetric: bool = False
    compensate: bool = True
    ranks: tuple[int, ...] = (0, 8, 16, 32)
    weighed: bool = True
    rounds: int = 1
    bits: tuple[int, ...] = BITS


@dataclass(frozen=True, eq=False)
class _Found:
    """What one grid makes of a member, in the orientation in which its weight is stored.

    Attributes:
        coded: codes; for 16 bits the matrix itself.
        left: (rows, R) for the largest rank R.
        right: (R, columns).
        losses: predicted, by rank.
    """

    coded: Coded | Tensor
    left: Tensor
    right: Tensor
    losses: dict[int, float]


def _coding(site: Site) -> Coding:
    return site.facts.get("coding", Coding())


def _ranks(site: Site) -> list[int]:
    """The ranks worth weighing: below half the smaller side; none for grouped convolutions."""
    m, n = site.member.W.shape
    grouped = site.member.A is not None and site.member.A.dim() == 3
    return [rank for rank in _coding(site).ranks if not rank or (2 * rank < min(m, n) and not grouped)]


@dataclass(frozen=True, eq=False)
class _Stored:
    """A member as its weight is stored: rows that are coded one by one, and what an error in them is worth.

    Attributes:
        W: (rows, columns): an embedding's rows are its tokens.
        columns: E[x x^T] on the side of the columns: (columns, columns), (columns,) or None.
        rows: the same on the side of the rows.
    """

    W: Tensor
    columns: Tensor | None
    rows: Tensor | None

    @classmethod
    def of(cls, site: Site) -> _Stored:
        member, needs = site.member, METHODS[site.method].needs
        A = member.A if "inputs" in needs else None
        G = member.G if "outputs" in needs else None
        if site.kind == "embedding":
            return cls(member.W.mT, G, A)
        return cls(member.W, A, G)


def _of(site: Site, bits: int) -> _Found:
    """What a number of bits makes of a site; worked out with all that are asked for, and kept with the member."""
    coding = _coding(site)
    together = coding.bits if bits in coding.bits else (bits,)

    def make() -> tuple[_Found, ...]:
        grids = [_grid(site, one) for one in together]
        return tuple(_found(_Stored.of(site), coding, grids, max(_ranks(site)), site.member.positions))

    return site.member.kept((coding, site.method, together), make)[together.index(bits)]


def _grid(site: Site, bits: int) -> Grid:
    """Its levels; scales have the dtype of a model that computes in bfloat16."""
    coding, weight = _coding(site), cast(Tensor, site.member.module.weight)
    scale = "bfloat16" if weight.dtype == torch.bfloat16 else "float16"
    return Grid(bits, coding.group, coding.symmetric, scale)


def _found(stored: _Stored, coding: Coding, grids: Sequence[Grid], rank: int, positions: float) -> Iterator[_Found]:
    for grid, coded in zip(grids, _coded(stored, grids, coding), strict=True):
        one = _corrected(stored, coded, coding, rank, positions)
        for _ in range(coding.rounds - 1 if rank else 0):
            rest = _Stored(stored.W - one.left @ one.right, stored.columns, stored.rows)
            [coded] = _coded(rest, [grid], coding)
            one = _corrected(stored, coded, coding, rank, positions)
        yield one


def _coded(stored: _Stored, grids: Sequence[Grid], coding: Coding) -> list[Coded]:
    W, A = stored.W, stored.columns
    if A is not None and A.dim() == 3:
        parts = [
            _coded(_Stored(w, a, None), grids, coding) for w, a in zip(W.chunk(len(A)), A, strict=True)
        ]  # fmt: skip
        return [_stacked(some) for some in zip(*parts, strict=True)]
    if A is not None and A.dim() == 2 and coding.compensate:
        return compensated(W, grids, A)
    return [nearest(W, grid, A if A is None or A.dim() == 1 else A.diagonal()) for grid in grids]


def _stacked(parts: tuple[Coded, ...]) -> Coded:
    kinds = {part.scale.dtype for part in parts}
    wide = torch.bfloat16 if torch.bfloat16 in kinds else torch.float16
    return Coded(
        torch.cat([part.codes for part in parts]),
        torch.cat([part.scale.to(wide) for part in parts]),
        torch.cat([part.zero for part in parts]),
        parts[0].bits,
    )


def _corrected(stored: _Stored, coded: Coded | Tensor, coding: Coding, rank: int, positions: float) -> _Found:
    """The correction of the largest rank, and what each rank is predicted to leave."""
    numbers = coded.to(stored.W.dtype) if isinstance(coded, Tensor) else coded.numbers()
    error = stored.W - numbers
    A, G = stored.columns, stored.rows
    if A is not None and A.dim() == 3:
        whole = sum(_weighed(e, a, None if G is None else g) for e, a, g in zip(
            error.chunk(len(A)), A, _blocks(G, len(A)), strict=True))  # fmt: skip
        empty = error.new_zeros
        return _Found(coded, empty((len(error), 0)), empty((0, error.shape[1])), {0: whole * positions})
    if not rank:
        empty = error.new_zeros
        return _Found(coded, empty((len(error), 0)), empty((0, error.shape[1])),
                      {0: _weighed(error, A, G) * positions})  # fmt: skip
    if coding.weighed:
        left, right, s, whole = leading(error, A, G, rank)
        losses = {r: (whole - float(s[:r].sum())) * positions for r in range(rank + 1)}
        return _Found(coded, left, right, {r: max(loss, 0.0) for r, loss in losses.items()})
    left, right, _, _ = leading(error, None, None, rank)
    losses = {
        r: _weighed(error - left[:, :r] @ right[:r], A, G) * positions for r in {0, *coding.ranks} if r <= rank
    }  # fmt: skip
    return _Found(coded, left, right, losses)


def _weighed(E: Tensor, A: Tensor | None, G: Tensor | None) -> float:
    """tr(G E A E^T)."""
    EA = E if A is None else E * A if A.dim() == 1 else E @ A
    GE = E if G is None else G[:, None] * E if G.dim() == 1 else G @ E
    return float((GE * EA).sum())


def _blocks(G: Tensor | None, count: int) -> list[Tensor]:
    """The diagonal blocks of the groups."""
    if G is None:
        return [torch.empty(0)] * count
    size = len(G) // count
    return [G[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(count)]


@dataclass(frozen=True)
class Rounded:
    """2^bits levels a group of inputs; size: rank of the correction."""

    name: str
    bits: int

    kinds = frozenset({"linear", "convolution", "embedding"})
    portable = False
    named = True

    def refuses(self, site: Site) -> str:
        """Refuse what cannot be coded, and where codes would be no smaller."""
        return _refuses(site)

    def curve(self, site: Site) -> Curve:
        """Bytes and predicted loss of each rank."""
        rows, columns = _Stored.of(site).W.shape
        found, sizes = _of(site, self.bits), _ranks(site)
        size = _grid(site, self.bits).bytes(rows, columns)
        return _curve(site, sizes, [found.losses[rank] for rank in sizes], size)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """Bits, group, rank, dtype of the scales, whether there are zero points."""
        return {site.member.name: self._spec(site, size, _of(site, self.bits))}

    def _spec(self, site: Site, size: int, found: _Found) -> Spec:
        coding, coded = _coding(site), cast(Coded, found.coded)
        return {
            "bits": self.bits,
            "group": coded.codes.shape[1] // coded.scale.shape[1],
            "symmetric": coding.symmetric,
            "scale": str(coded.scale.dtype).removeprefix("torch."),
            "rank": int(size),
            **_laid_out(site),
        }

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """Codes and correction; the mean of the error is folded into the bias."""
        found = _of(site, self.bits)
        return {site.member.name: _filled(site, self.empty(site.member.module, self._spec(site, size, found)), found)}

    def empty(self, original: nn.Module, spec: Spec) -> CodedModule:
        """A module of codes."""
        return _empty(original, spec)


@form
class Halves:
    """16 bits a number: float16 or bfloat16, whichever loses less."""

    name = "half"
    kinds = frozenset({"linear", "convolution", "embedding"})
    portable = False
    named = True

    def refuses(self, site: Site) -> str:
        """Refuse weights that have no more than 16 bits already."""
        if cast(Tensor, site.member.module.weight).element_size() <= 2:
            return "has 16 bits already"
        return _refuses(site)

    def curve(self, site: Site) -> Curve:
        """One size."""
        stored = _Stored.of(site)
        found = self._found(site, stored)
        return _curve(site, [0], [found.losses[0]], 2 * stored.W.numel())

    def _found(self, site: Site, stored: _Stored) -> _Found:
        kinds = [stored.W.to(dtype) for dtype in (torch.float16, torch.bfloat16)]
        fitting = [kind for kind in kinds if bool(kind.isfinite().all())]
        best = min(fitting, key=lambda kind: float((kind.double() - stored.W).square().sum()))
        return _corrected(stored, best, Coding(), 0, site.member.positions)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """The dtype."""
        return {site.member.name: self._spec(site, self._found(site, _Stored.of(site)))}

    def _spec(self, site: Site, found: _Found) -> Spec:
        dtype = str(cast(Tensor, found.coded).dtype).removeprefix("torch.")
        return {"bits": 16, "dtype": dtype, **_laid_out(site)}

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The rounded numbers."""
        found = self._found(site, _Stored.of(site))
        return {site.member.name: _filled(site, self.empty(site.member.module, self._spec(site, found)), found)}

    def empty(self, original: nn.Module, spec: Spec) -> CodedModule:
        """A module of 16-bit numbers."""
        return _empty(original, spec)


def _laid_out(site: Site) -> Spec:
    """What the shape of the codes does not say of that of the weight, for those who read the folder without a model."""
    module = site.member.module
    shape = cast(Tensor, module.weight).shape
    kernel = {"kernel": list(shape[1:])} if len(shape) > 2 else {}
    return kernel | ({"turned": True} if is_conv1d(module) else {})


def _refuses(site: Site) -> str:
    module = site.member.module
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.padding_mode != "zeros":
        return f"padding of mode {module.padding_mode}"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "renormalizes its rows"
    return ""


def _curve(site: Site, sizes: list[int], losses: list[float], size: int) -> Curve:
    member = site.member
    m, n = member.W.shape
    bias = getattr(member.module, "bias", None)
    outputs, itemsize = (bias.numel(), bias.element_size()) if isinstance(bias, Tensor) else (0, 0)
    ranks = np.array(sizes)
    thin = ranks * (m + n)
    per_output = 0 if site.kind == "embedding" else m * n
    return Curve(
        ranks,
        m * n + thin + outputs,
        (per_output + thin) * member.positions,
        np.array(losses),
        size + 2 * thin + outputs * itemsize,
    )


def _filled(site: Site, new: CodedModule, found: _Found) -> CodedModule:
    left, right = found.left[:, : new.rank], found.right[: new.rank]
    bias = getattr(site.member.module, "bias", None)
    new.fill_(found.coded, left, right, None)
    if isinstance(bias, Tensor):
        thin = new.left.double() @ new.right.double() if new.left is not None and new.right is not None else 0.0
        with torch.no_grad():
            cast(Tensor, new.bias).copy_(_bias(site.member, bias, new.rounded(torch.float64) + thin))
    return new


def _bias(member: Member, bias: Tensor, approximation: Tensor) -> Tensor:
    """b + (W - W') mean; a grouped convolution's means belong to its groups."""
    if member.mean is not None and member.mean.dim() == 2:
        error = (member.W - approximation).chunk(len(member.mean))
        return bias.double() + torch.cat([e @ mean for e, mean in zip(error, member.mean, strict=True)])
    return shifted_bias(member, bias, approximation)


def _empty(original: nn.Module, spec: Spec) -> CodedModule:
    weight = cast(Tensor, original.weight)
    if isinstance(original, nn.Embedding):
        return CodedEmbedding(original, spec)
    if isinstance(original, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return CodedConvolution(original, spec)
    turned = is_conv1d(original)
    m, n = weight.mT.shape if turned else weight.shape
    bias = isinstance(getattr(original, "bias", None), Tensor)
    return CodedLinear((m, n), spec, bias, weight.dtype, weight.device, turned)


def bits_of(name: str) -> int:
    """Bits of a form by its name; 0 for one that keeps numbers as they are.

    >>> bits_of("int4"), bits_of("half"), bits_of("factors")
    (4, 16, 0)
    """
    known = {f"int{bits}": bits for bits in BITS}
    return {"half": 16, **known}.get(name, 0)


for _bits in BITS:
    _name = f"int{_bits}"
    FORMS.add(_name, cast(Form, Rounded(_name, _bits)), __name__)
