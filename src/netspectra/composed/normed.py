"""Reparametrized weights: a direction with its length, a matrix over its norm, a matrix under a mask.

Layouts as `torch.nn.utils` writes them (documentation of ``weight_norm``, ``spectral_norm``, ``prune`` and
``parametrizations``): the older hooks put ``NAME_g``, ``NAME_v``, ``NAME_orig``, ``NAME_u``, ``NAME_mask`` beside each
other; parametrizations keep ``parametrizations.NAME.original...`` and the buffers of the steps that follow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netspectra.composed.group import Answer, CompositionRule, Group, floating
from netspectra.weight import Index, Loader

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NORMED", "Masked", "SpectralNorm", "WeightNorm"]


@dataclass(frozen=True)
class WeightNorm:
    """w = g v / ||v||, the norm over every axis along which ``g`` has one entry (Salimans & Kingma 2016).

    Reference: arXiv:1602.07868.
    """

    g: Loader
    v: Loader

    def __call__(self, index: Index = ()) -> Tensor:
        """Compose the tensor, then select."""
        import torch

        v, g = _wide(self.v()), _wide(self.g())
        g = g.reshape(g.shape if g.dim() else (1,) * v.dim())
        axes = [axis for axis in range(v.dim()) if g.shape[axis] == 1]
        length = torch.linalg.vector_norm(v, dim=axes, keepdim=True, dtype=torch.float64) if axes else v.abs()
        factor = torch.where(length > 0, g.double() / length, torch.nan)
        found = v * factor.to(v.dtype)
        return found[index] if index else found


@dataclass(frozen=True)
class SpectralNorm:
    """W / sigma with sigma = u^T W v, W flattened with ``axis`` as rows; without ``v`` it is W^T u, normalized.

    Reference: Miyato, Kataoka, Koyama & Yoshida (2018), arXiv:1802.05957. ``u`` and ``v`` are the buffers as stored:
    what the module computes in eval mode.
    """

    weight: Loader
    u: Loader
    v: Loader | None
    axis: int = 0

    def __call__(self, index: Index = ()) -> Tensor:
        """Compose the tensor, then select."""
        import torch

        weight, u = _wide(self.weight()), self.u().double().reshape(-1)
        rows = weight.movedim(self.axis, 0).flatten(1)
        back = rows.mT @ u.to(rows.dtype)
        v = self.v().double().reshape(-1) if self.v else torch.nn.functional.normalize(back.double(), dim=0)
        sigma = float(back.double() @ v)
        found = weight / (sigma or math.nan)
        return found[index] if index else found


@dataclass(frozen=True)
class Masked:
    """What pruning leaves: the original times the mask."""

    weight: Loader
    mask: Loader

    def __call__(self, index: Index = ()) -> Tensor:
        """Compose what is selected."""
        weight = _wide(self.weight(index))
        return weight * self.mask(index).to(weight.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.element_size() == 8 else tensor.float()


# ---- rules -------------------------------------------------------------------------------------------------------


def _weight_norm(group: Group, g: str = "g", v: str = "v") -> Answer:
    if g not in group.members or v not in group.members:
        return None
    lengths, whole = group.shape(g), group.shape(v)
    numbers = floating(group.members[g]) and floating(group.members[v])
    fits = not lengths or (
        len(lengths) == len(whole)
        and all(a in (1, b) for a, b in zip(lengths, whole, strict=True))
        and sum(a > 1 for a in lengths) <= 1
    )
    if not numbers or not fits or len(whole) < 2:
        return None if g == "g" else f"lengths of shape {list(lengths)} do not fit directions of {list(whole)}"
    return group.made(v, WeightNorm(group.members[g].load, group.members[v].load),
                      f"{group.members[v].dtype} with weight norm")  # fmt: skip


def _divided(group: Group, orig: str, u: str, v: str) -> Answer:
    whole, left = group.shape(orig), math.prod(group.shape(u))
    if not floating(group.members[orig]) or len(whole) < 2:
        return f"{group.members[orig].dtype} {list(whole)} is no matrix"
    axes = [axis for axis in (0, 1) if whole[axis] == left]
    if v in group.members:
        right = math.prod(group.shape(v))
        axes = [axis for axis in axes if whole[axis] * right == math.prod(whole)]
    if not axes:
        return f"vectors of {left} and more numbers do not fit a weight of shape {list(whole)}"
    transposed = group.members[orig].facts.get("transposed") and 1 in axes
    load = SpectralNorm(group.members[orig].load, group.members[u].load, group.load(v), 1 if transposed else axes[0])
    return group.made(orig, load, f"{group.members[orig].dtype} with spectral norm")


def _hooked(group: Group) -> Answer:
    if "orig" not in group.members:
        return None
    if "mask" in group.members:
        whole, mask = group.members["orig"], group.members["mask"]
        if "u" in group.members or whole.shape != mask.shape or not floating(whole):
            return f"a mask of shape {list(mask.shape)} does not go with {whole.dtype} {list(whole.shape)}"
        return group.made("orig", Masked(whole.load, mask.load), f"{whole.dtype} with mask")
    return _divided(group, "orig", "u", "v") if "u" in group.members else None


def _parametrization(group: Group) -> Answer:
    head, _, tail = group.base.rpartition("parametrizations.")
    named = Group(head + tail, group.members, group.config)
    roles = set(group.members)
    if roles == {"original0", "original1"}:
        return _weight_norm(named, "original0", "original1")
    if roles == {"original", "0._u", "0._v"}:
        return _divided(named, "original", "0._u", "0._v")
    pieces = ", ".join(sorted(roles)[:6])
    return f"of {pieces} the file does not tell how they make {tail}; open the live module for its effective value"


# A stand-alone name such as attention.v beside attention.g is no weight norm: the name must speak of a weight.
NORMED = (
    CompositionRule(
        "weight norm", re.compile(r"(?P<base>(.*\.)?(?=[^.]*(?:weight|kernel))[^.]*)_(?P<role>[gv])"), ("g",),
        _weight_norm, ("v",), ("_g",),
    ),
    CompositionRule(
        "spectral norm or mask", re.compile(r"(?P<base>.*)_(?P<role>orig|u|v|mask)"), ("orig",), _hooked, ("orig",),
        ("_orig",),
    ),
    CompositionRule(
        "parametrization",
        re.compile(r"(?P<base>(.*\.)?parametrizations\.[^.]+)\.(?P<role>original[0-9]*|[0-9]+\..+)"),
        ("original", "original0"), _parametrization, ("original", "original1", "original0"),
        ("parametrizations.",),
    ),
)  # fmt: skip
