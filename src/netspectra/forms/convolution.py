"""A convolution as two or three smaller ones in a row: channel, spatial and Tucker-2; groups, 1-D to 3-D."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.forms import Curve, Member, Site, Spec, form, sizes_up_to
from netspectra.forms.resized import bias_of
from netspectra.linalg.conv_factors import composed, spatial, spatial_bases, tucker, tucker_bases
from netspectra.methods import METHODS

__all__ = ["Channel", "FactoredConv", "Spatial", "Tucker", "folded"]

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


class FactoredConv(nn.Sequential):
    """Stock convolutions in a row, the bias in the last; its state dict is that of the plain ``nn.Sequential``.

    It tells the geometry of the one convolution it stands for: models ask for strides and sizes to pad by.
    """

    def __init__(self, original: nn.Module, *stages: nn.Module) -> None:
        """In the order they run."""
        super().__init__(*stages)
        conv = cast(Conv, original)
        self.in_channels, self.out_channels, self.groups = conv.in_channels, conv.out_channels, conv.groups
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode = conv.padding, conv.padding_mode

    @property
    def weight(self) -> Tensor:
        """The kernel of all of them as one, multiplied out at every call."""
        kernel = cast(Tensor, self[0].weight)
        for stage in list(self)[1:]:
            kernel = composed(kernel, cast(Tensor, stage.weight), self.groups)
        return kernel

    @property
    def bias(self) -> Tensor | None:
        """The bias, if any."""
        return bias_of(self[-1])


def folded(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch normalization with running statistics does to each channel: (scale, shift), float64."""
    bn = cast(nn.BatchNorm2d, norm)
    assert isinstance(bn.running_mean, Tensor) and isinstance(bn.running_var, Tensor)
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.affine:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() * scale
    return scale, shift + bn.bias.detach().double() if bn.affine else shift


class _Chain:
    """What the three forms share. A site has one member; fact ``batch_norm``: (name, module) that follows it."""

    portable = True
    named = False
    kinds = frozenset({"convolution"})

    def refuses(self, site: Site) -> str:
        """Refuse depthwise convolutions, kernels too small, and batch statistics that do not stand still."""
        conv = cast(Conv, site.member.module)
        if conv.groups > 1 and conv.groups == conv.in_channels:
            return "depthwise: every channel has a filter of its own, so there is nothing to share"
        norm = site.facts.get("batch_norm")
        if norm is not None and not isinstance(norm[1].running_mean, Tensor):
            return f"{norm[0]} keeps no running statistics, so it cannot be folded"
        return ""

    def curve(self, site: Site) -> Curve:
        """Every size that has fewer parameters than the convolution as it is."""
        conv, member = cast(Conv, site.member.module), site.member
        rows = []
        biases = conv.out_channels if bias_of(conv) is not None or "batch_norm" in site.facts else 0
        for size in self._sizes(site):
            stages = self._shapes(conv, size)
            numbers = sum(math.prod(shape) for shape, _ in stages)
            if numbers < conv.weight.numel():
                flops = sum(math.prod(shape) * more for shape, more in stages) * member.positions
                rows.append((size, numbers + biases, flops, self._loss(site, size) * member.positions))
        found = np.array(rows, dtype=float).reshape(-1, 4)
        return Curve(found[:, 0].astype(int), found[:, 1].astype(int), found[:, 2], found[:, 3])

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """``{"rank": r, "bias": ...}``; of a folded batch normalization ``{"folded": into}``."""
        norm = site.facts.get("batch_norm")
        bias = bias_of(site.member.module) is not None or norm is not None
        specs: dict[str, Spec] = {site.member.name: {**self._spec(site, size), "bias": bias}}
        if norm is not None:
            specs[norm[0]] = {"folded": site.member.name}
        return specs

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The stages' kernels; the error's mean and a batch normalization that follows go into the bias."""
        member, specs = site.member, self.specs(site, size)
        conv, groups = cast(Conv, member.module), cast(Conv, member.module).groups
        kernels = [torch.cat(parts) for parts in zip(*self._kernels(site, size), strict=True)]
        bias = bias_of(conv)
        bias = torch.zeros_like(member.W[:, 0]) if bias is None else bias.detach().to(member.W)
        if member.mean is not None and specs[member.name]["bias"]:
            chain = kernels[0]
            for kernel in kernels[1:]:
                chain = composed(chain, kernel, groups)
            bias = bias + _means(member.W - chain.flatten(1), member.mean)
        new = {member.name: self.empty(conv, specs[member.name])}
        norm = site.facts.get("batch_norm")
        if norm is not None:
            scale, shift = folded(norm[1])
            kernels[-1] = kernels[-1] * scale.reshape(-1, *(1 for _ in kernels[-1].shape[1:]))
            bias = bias * scale + shift
            new[norm[0]] = nn.Identity()
        with torch.no_grad():
            for stage, kernel in zip(cast(FactoredConv, new[member.name]), kernels, strict=True):
                cast(Tensor, stage.weight).copy_(kernel)
            last = bias_of(cast(FactoredConv, new[member.name])[-1])
            if last is not None:
                last.copy_(bias)
        return new

    def empty(self, original: nn.Module, spec: Spec) -> nn.Module:
        """A `FactoredConv`; ``nn.Identity`` where a batch normalization was."""
        if "folded" in spec:
            return nn.Identity()
        conv = cast(Conv, original)
        bias = bool(spec.get("bias", conv.bias is not None))
        stages = self._stages(conv, spec)
        like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        made = [
            nn.utils.skip_init(
                type(conv), bias=bias and place == len(stages) - 1, groups=conv.groups, **{**stage, **like}
            )
            for place, stage in enumerate(stages)
        ]
        return FactoredConv(original, *made)

    # what each form says for itself

    def _sizes(self, site: Site) -> Sequence[int]:
        raise NotImplementedError

    def _spec(self, site: Site, size: int) -> Spec:
        return {"rank": int(size)}

    def _shapes(self, conv: Conv, size: int) -> list[tuple[tuple[int, ...], float]]:
        """Of each stage the kernel's shape, and how many more places than the output it is computed at."""
        raise NotImplementedError

    def _loss(self, site: Site, size: int) -> float:
        raise NotImplementedError

    def _kernels(self, site: Site, size: int) -> list[tuple[Tensor, ...]]:
        """Of each group the stages' kernels."""
        raise NotImplementedError

    def _stages(self, conv: Conv, spec: Spec) -> list[Mapping[str, Any]]:
        raise NotImplementedError


@form
class Channel(_Chain):
    """k x k to r channels, then 1 x 1: the convolution's matrix on im2col patches, factored as a Linear is."""

    name = "channel"

    def _sizes(self, site: Site) -> Sequence[int]:
        rank = min(part.decomposition(site.method).rank for part in _groups(site.member))
        return sizes_up_to(rank, cast(Conv, site.member.module).out_channels)

    def _shapes(self, conv: Conv, size: int) -> list[tuple[tuple[int, ...], float]]:
        inputs = conv.in_channels // conv.groups
        return [
            ((size * conv.groups, inputs, *conv.kernel_size), 1.0),
            ((conv.out_channels, size), 1.0),
        ]

    def _loss(self, site: Site, size: int) -> float:
        return sum(float(part.decomposition(site.method).losses[size]) for part in _groups(site.member))

    def _kernels(self, site: Site, size: int) -> list[tuple[Tensor, ...]]:
        conv, found = cast(Conv, site.member.module), []
        for part in _groups(site.member):
            left, right = part.decomposition(site.method).factors(size)
            ones = (1,) * len(conv.kernel_size)
            found.append((right.reshape(size, -1, *conv.kernel_size), left.reshape(len(left), size, *ones)))
        return found

    def _stages(self, conv: Conv, spec: Spec) -> list[Mapping[str, Any]]:
        rank = int(spec["rank"]) * conv.groups
        return [_like(conv, conv.in_channels, rank), _pointwise(rank, conv.out_channels)]


@form
class Spatial(_Chain):
    """k x 1 to r channels, then 1 x k (in three dimensions k x 1 x 1, then 1 x k x k)."""

    name = "spatial"

    def refuses(self, site: Site) -> str:
        """Refuse kernels that extend along fewer than two axes, beside what every chain refuses."""
        taps = cast(Conv, site.member.module).kernel_size
        if taps[0] < 2 or math.prod(taps[1:]) < 2:
            return "its kernel extends along one axis only: the channel form is the same"
        return super().refuses(site)

    def _sizes(self, site: Site) -> Sequence[int]:
        conv = cast(Conv, site.member.module)
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        largest = min(inputs * conv.kernel_size[0], outputs * math.prod(conv.kernel_size[1:]))
        return _few(sizes_up_to(largest, conv.out_channels))

    def _shapes(self, conv: Conv, size: int) -> list[tuple[tuple[int, ...], float]]:
        inputs = conv.in_channels // conv.groups
        return [
            ((size * conv.groups, inputs, conv.kernel_size[0]), float(math.prod(conv.stride[1:]))),
            ((conv.out_channels, size, *conv.kernel_size[1:]), 1.0),
        ]

    def _loss(self, site: Site, size: int) -> float:
        return sum(spatial(*args[:2], size, *args[2:])[2] for args in self._bases(site))

    def _kernels(self, site: Site, size: int) -> list[tuple[Tensor, ...]]:
        return [spatial(*args[:2], size, *args[2:])[:2] for args in self._bases(site)]

    def _stages(self, conv: Conv, spec: Spec) -> list[Mapping[str, Any]]:
        rank = int(spec["rank"]) * conv.groups
        first, others = (0,), tuple(range(1, len(conv.kernel_size)))
        return [_like(conv, conv.in_channels, rank, first), _like(conv, rank, conv.out_channels, others)]

    @staticmethod
    def _bases(site: Site) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        return _weighed(site, "spatial", spatial_bases)


@form
class Tucker(_Chain):
    """1 x 1 to fewer inputs, k x k to r channels, 1 x 1: sizes are r; inputs shrink in the same proportion."""

    name = "tucker"

    def refuses(self, site: Site) -> str:
        """Refuse 1 x 1 kernels, beside what every chain refuses."""
        if math.prod(cast(Conv, site.member.module).kernel_size) < 2:
            return "its kernel is 1 x 1: the channel form is the same"
        return super().refuses(site)

    def _sizes(self, site: Site) -> Sequence[int]:
        conv = cast(Conv, site.member.module)
        return _few(sizes_up_to(conv.out_channels // conv.groups, conv.out_channels))

    def _inputs(self, conv: Conv, size: int) -> int:
        inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        return min(inputs, max(1, -(-size * inputs // outputs), -(-size // math.prod(conv.kernel_size))))

    def _spec(self, site: Site, size: int) -> Spec:
        return {"rank": int(size), "inputs": self._inputs(cast(Conv, site.member.module), size)}

    def _shapes(self, conv: Conv, size: int) -> list[tuple[tuple[int, ...], float]]:
        inner = self._inputs(conv, size)
        return [
            ((inner * conv.groups, conv.in_channels // conv.groups), float(math.prod(conv.stride))),
            ((size * conv.groups, inner, *conv.kernel_size), 1.0),
            ((conv.out_channels, size), 1.0),
        ]

    def _loss(self, site: Site, size: int) -> float:
        inner = self._inputs(cast(Conv, site.member.module), size)
        return sum(float(tucker(*args[:2], inner, *args[2:])[3][size]) for args in self._bases(site))

    def _kernels(self, site: Site, size: int) -> list[tuple[Tensor, ...]]:
        inner, found = self._inputs(cast(Conv, site.member.module), size), []
        for args in self._bases(site):
            first, core, last, _ = tucker(*args[:2], inner, *args[2:])
            found.append((first, core[:size], last[:, :size]))
        return found

    def _stages(self, conv: Conv, spec: Spec) -> list[Mapping[str, Any]]:
        inner, rank = int(spec["inputs"]) * conv.groups, int(spec["rank"]) * conv.groups
        return [_pointwise(conv.in_channels, inner), _like(conv, inner, rank), _pointwise(rank, conv.out_channels)]

    @staticmethod
    def _bases(site: Site) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        return _weighed(site, "tucker", tucker_bases)


def _groups(member: Member) -> list[Member]:
    """A grouped convolution as one member a group; the others' gradients are taken as uncorrelated."""
    groups = cast(Conv, member.module).groups
    if groups == 1:
        return [member]

    def parts() -> list[Member]:
        W, A, G = member.W, member.A, member.G
        m = len(W) // groups
        rows = [slice(g * m, (g + 1) * m) for g in range(groups)]
        return [
            Member(
                f"{member.name}[{g}]",
                member.module,
                W[mine],
                None if A is None else A[g],
                None if G is None else G[mine, mine],
                shelf=member.shelf,
            )
            for g, mine in enumerate(rows)
        ]

    return member.kept("groups", parts)


def _weighed(site: Site, key: str, bases: Any) -> list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Of each group: kernel, bases, and the moments that the site's method looks at."""
    needs, conv = METHODS[site.method].needs, cast(Conv, site.member.module)

    def weighed() -> list[tuple[Tensor, Tensor, Tensor | None, Tensor | None]]:
        found = []
        for part in _groups(site.member):
            A, G = part.A if "inputs" in needs else None, part.G if "outputs" in needs else None
            kernel = part.W.reshape(len(part.W), -1, *conv.kernel_size)
            found.append((kernel, bases(kernel, A, G), A, G))
        return found

    return site.member.kept(f"{key} {sorted(needs)}", weighed)


def _few(sizes: Sequence[int], most: int = 24) -> Sequence[int]:
    """At most so many of them, evenly: each costs a least-squares problem."""
    return sizes if len(sizes) <= most else [sizes[round(i * (len(sizes) - 1) / (most - 1))] for i in range(most)]


def _means(D: Tensor, mean: Tensor) -> Tensor:
    """D times the mean patch, group by group."""
    if mean.dim() == 1:
        return D @ mean
    return torch.cat([part @ own for part, own in zip(D.reshape(len(mean), -1, D.shape[1]), mean, strict=True)])


def _like(conv: Conv, inputs: int, outputs: int, axes: Sequence[int] | None = None) -> dict[str, Any]:
    """Arguments of a convolution that does what this one does, along some of its axes only."""
    dims = range(len(conv.kernel_size))
    axes = list(dims) if axes is None else list(axes)

    def along(values: Sequence[int], else_: int) -> tuple[int, ...]:
        return tuple(values[d] if d in axes else else_ for d in dims)

    return {
        "in_channels": inputs,
        "out_channels": outputs,
        "kernel_size": along(conv.kernel_size, 1),
        "stride": along(conv.stride, 1),
        "padding": conv.padding if isinstance(conv.padding, str) else along(conv.padding, 0),
        "dilation": along(conv.dilation, 1),
        "padding_mode": conv.padding_mode,
    }


def _pointwise(inputs: int, outputs: int) -> dict[str, Any]:
    return {"in_channels": inputs, "out_channels": outputs, "kernel_size": 1}
