"""Query, key and value through one shared factor: B x is computed once for the three."""

from __future__ import annotations

import weakref
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.forms import Curve, Site, Spec, form, sizes_up_to
from netspectra.forms.factors import FactoredLinear, is_conv1d
from netspectra.forms.resized import bias_of, fill_
from netspectra.methods import METHODS, Decomposition

__all__ = ["Joint", "SharedFactor", "SharingLinear"]


class SharedFactor(nn.Linear):
    """x -> B x, remembered as long as the same x comes again: once for each layer that shares it.

    The memory holds x weakly and knows its version, so a changed or new x is computed anew; it is emptied by the last
    of the sharing layers. While a graph is traced nothing is remembered: compilers find equal products themselves.
    """

    users: int = 1
    _last: tuple[weakref.ref[Tensor], int, bool, Tensor, int] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """B x."""
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        if self.users < 2 or traced or torch.is_inference(input):  # inference tensors have no version
            return super().forward(input)
        last, graph = self._last, torch.is_grad_enabled()
        if last is not None and last[0]() is input and last[1] == input._version and last[2] == graph:
            self._last = (*last[:4], last[4] - 1) if last[4] > 1 else None
            return last[3]
        product = super().forward(input)
        self._last = (weakref.ref(input), input._version, graph, product, self.users - 1)
        return product

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles remember nothing."""
        return {**self.__dict__, "_last": None}


class SharingLinear(FactoredLinear):
    """x -> left (B x) + b, where B may be the `SharedFactor` of several layers."""

    def __init__(self, n: int, m: int, rank: int, *, bias: bool, device: Any = None, dtype: Any = None) -> None:
        """Uninitialised, with a factor of its own until `share_` gives it another's."""
        super().__init__(n, m, rank, bias=bias, device=device, dtype=dtype)
        self[0] = nn.utils.skip_init(SharedFactor, n, rank, bias=False, device=device or "cpu", dtype=dtype)


def share_(layers: list[nn.Module]) -> None:
    """Let layers that came with equal factors share the first one's."""
    first = cast(SharedFactor, cast(SharingLinear, layers[0])[0])
    if any(cast(SharingLinear, layer)[0].weight.shape != first.weight.shape for layer in layers):
        raise ValueError("layers with factors of different shapes cannot share one")
    first.users = len(layers)
    for layer in layers[1:]:
        cast(SharingLinear, layer)[0] = first


@form
class Joint:
    """[W_q; W_k; W_v] of rank r together: r (n + 3 m) parameters and one product with the input."""

    name = "joint"
    kinds = frozenset({"qkv"})
    portable = True
    named = False

    def refuses(self, site: Site) -> str:
        """Refuse members of different inputs."""
        widths = {member.W.shape[1] for member in site.members.values()}
        if len(widths) > 1 or len(site.members) < 2:
            return "its layers do not share an input"
        m, n = self._sides(site)
        return "" if m + n < m * n else f"{m} x {n} has no rank that saves parameters"

    def curve(self, site: Site) -> Curve:
        """Every rank below the break-even."""
        m, n = self._sides(site)
        found = np.array(sizes_up_to(min((m * n - 1) // (m + n), n, m), min(m, n)), dtype=int)
        biases = sum(len(b) for member in site.members.values() if (b := bias_of(member.module)) is not None)
        positions = next(iter(site.members.values())).positions
        losses = self._decomposition(site).losses[found]
        return Curve(found, found * (m + n) + biases, found * (m + n) * positions, losses * positions)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """``{"rank": r, "shared": name of the first member}``."""
        first = next(iter(site.members.values())).name
        return {member.name: {"rank": int(size), "shared": first} for member in site.members.values()}

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The method's factors of the stacked matrix, its left one cut into the members' rows."""
        left, right = self._decomposition(site).factors(size)
        new: dict[str, nn.Module] = {}
        parts = left.split([member.W.shape[0] for member in site.members.values()])
        for member, part in zip(site.members.values(), parts, strict=True):
            module = self.empty(member.module, {"rank": size})
            bias = bias_of(member.module)
            if bias is not None:
                bias = bias.detach().to(member.W)
                if member.mean is not None:
                    bias = bias + (member.W - part @ right) @ member.mean
            fill_(cast(SharingLinear, module)[0], right, None)
            fill_(cast(SharingLinear, module)[1], part, bias)
            new[member.name] = module
        share_(list(new.values()))
        return new

    def empty(self, original: nn.Module, spec: Spec) -> nn.Module:
        """A `SharingLinear`, not yet sharing: see `link_`."""
        weight = cast(Tensor, original.weight)
        m, n = weight.mT.shape if is_conv1d(original) else weight.shape
        like = {"device": weight.device, "dtype": weight.dtype}
        return SharingLinear(n, m, int(spec["rank"]), bias=bias_of(original) is not None, **like)

    def link_(self, model: nn.Module, specs: dict[str, Spec]) -> None:
        """After rebuilding: let the layers share again, by the ``shared`` of their specs."""
        together: dict[str, list[nn.Module]] = {}
        for name, spec in specs.items():
            together.setdefault(str(spec["shared"]), []).append(model.get_submodule(name))
        for layers in together.values():
            share_(layers)

    @staticmethod
    def _sides(site: Site) -> tuple[int, int]:
        return sum(member.W.shape[0] for member in site.members.values()), next(iter(site.members.values())).W.shape[1]

    @staticmethod
    def _decomposition(site: Site) -> Decomposition:
        """Of the stacked matrix; gradients of different members are taken as uncorrelated."""
        members = list(site.members.values())

        def stacked() -> Decomposition:
            W = torch.cat([member.W for member in members])
            outputs = [G for member in members if (G := member.G) is not None]
            G = torch.block_diag(*outputs) if len(outputs) == len(members) else None
            return METHODS[site.method].compute(W, members[0].A, G)

        return members[0].kept(f"joint {site.method}", stacked)
