"""A layer whose numbers are rounded to codes of a few bits, and perhaps a thin correction: Linear, conv, embedding.

One form a number of bits, its size the rank of the correction. They are chosen only where they are named (by
``quantize``, or ``forms=``), as a runtime must know them to gain anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.forms import FORMS, Curve, Form, Member, Site, Spec, form
from netspectra.forms.coded import CodedConvolution, CodedEmbedding, CodedLinear, CodedModule
from netspectra.forms.codes import BITS, Coding, Found, Stored, corrected, made
from netspectra.forms.factors import is_conv1d, shifted_bias
from netspectra.linalg.rounding import Coded, Grid

__all__ = ["Halves", "Rounded", "bits_of"]


def _coding(site: Site) -> Coding:
    return site.facts.get("coding", Coding())


def _ranks(site: Site) -> list[int]:
    """The ranks worth weighing: below half the smaller side; none for grouped convolutions."""
    m, n = site.member.W.shape
    grouped = site.member.A is not None and site.member.A.dim() == 3
    return [rank for rank in _coding(site).ranks if not rank or (2 * rank < min(m, n) and not grouped)]


def _of(site: Site, bits: int) -> Found:
    """What a number of bits makes of a site; worked out with all that are asked for, and kept with the member."""
    coding = _coding(site)
    together = coding.bits if bits in coding.bits else (bits,)

    def make() -> tuple[Found, ...]:
        grids = [_grid(site, one) for one in together]
        return tuple(made(Stored.of(site), coding, grids, _ranks(site), site.member.positions))

    return site.member.kept((coding, site.method, together), make)[together.index(bits)]


def _grid(site: Site, bits: int) -> Grid:
    """Its levels; scales have the dtype of a model that computes in bfloat16, unless another is asked for."""
    coding, weight = _coding(site), cast(Tensor, site.member.module.weight)
    usual = "bfloat16" if weight.dtype == torch.bfloat16 else "float16"
    return Grid(bits, coding.group, coding.symmetric, coding.scales or usual)


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
        rows, columns = Stored.of(site).W.shape
        found, sizes = _of(site, self.bits), _ranks(site)
        size = _grid(site, self.bits).bytes(rows, columns)
        return _curve(site, sizes, [found.losses[rank] for rank in sizes], size)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """Bits, group, rank, dtype of the scales, whether there are zero points."""
        return {site.member.name: self._spec(site, size, _of(site, self.bits).at(size))}

    def _spec(self, site: Site, size: int, found: Found) -> Spec:
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
        found = _of(site, self.bits).at(size)
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
        stored = Stored.of(site)
        found = self._found(site, stored)
        return _curve(site, [0], [found.losses[0]], 2 * stored.W.numel())

    def _found(self, site: Site, stored: Stored) -> Found:
        kinds = [stored.W.to(dtype) for dtype in (torch.float16, torch.bfloat16)]
        fitting = [kind for kind in kinds if bool(kind.isfinite().all())]
        best = min(fitting, key=lambda kind: float((kind.double() - stored.W).square().sum()))
        return corrected(stored, best, Coding(), 0, site.member.positions)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """The dtype."""
        return {site.member.name: self._spec(site, self._found(site, Stored.of(site)))}

    def _spec(self, site: Site, found: Found) -> Spec:
        dtype = str(cast(Tensor, found.coded).dtype).removeprefix("torch.")
        return {"bits": 16, "dtype": dtype, **_laid_out(site)}

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The rounded numbers."""
        found = self._found(site, Stored.of(site))
        return {site.member.name: _filled(site, self.empty(site.member.module, self._spec(site, found)), found)}

    def empty(self, original: nn.Module, spec: Spec) -> CodedModule:
        """A module of 16-bit numbers."""
        return _empty(original, spec)


def _laid_out(site: Site) -> Spec:
    """What the codes do not say of the weight: its dtype, for a model that is built anew; and what their shape leaves
    open, for those who read the folder without a model."""
    module = site.member.module
    weight = cast(Tensor, module.weight)
    kernel = {"kernel": list(weight.shape[1:])} if weight.dim() > 2 else {}
    dtype = {"weight": str(weight.dtype).removeprefix("torch.")}
    return dtype | kernel | ({"turned": True} if is_conv1d(module) else {})


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


def _filled(site: Site, new: CodedModule, found: Found) -> CodedModule:
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
