"""A low-rank layer stored by its own rows or columns: more rank for the same parameters, and no break-even."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.forms import Curve, Site, Spec, form, sizes_up_to
from netspectra.forms.factors import FactoredLinear, is_conv1d, shifted_bias
from netspectra.linalg.interpolative import interpolative, interpolative_parameters, interpolative_rank

__all__ = ["Pivoted", "PivotedLinear"]


class PivotedLinear(nn.Module):
    """x -> W x + b for a W of rank r that is kept as r of its own rows (or columns) and what makes the others.

    Rows (m < n): h = B x, y = [h, Z h] in the order of the outputs. Columns: h = x[pivots] + Z x[rest], y = C h. Only
    the shorter side is gathered. Stock operations: compiles and exports as it is.
    """

    order: Tensor

    def __init__(
        self, n: int, m: int, rank: int, *, rows: bool, bias: bool, device: Any = None, dtype: Any = None
    ) -> None:
        """Uninitialised."""
        super().__init__()
        self.in_features, self.out_features, self.rank, self.rows = n, m, rank, rows

        def linear(inputs: int, outputs: int, bias: bool) -> nn.Linear:
            like = {"device": device or "cpu", "dtype": dtype or torch.get_default_dtype()}
            return cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, **like))

        self.kept = linear(n, rank, bias) if rows else linear(rank, m, bias)
        self.mixed = linear(rank, m - rank, bias) if rows else linear(n - rank, rank, False)
        self.register_buffer("order", torch.arange(m if rows else n, dtype=torch.int32, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to (..., n)."""
        if self.rows:
            h = self.kept(x)
            return torch.cat([h, self.mixed(h)], -1).index_select(-1, self.order)
        chosen = x.index_select(-1, self.order[: self.rank])
        return self.kept(chosen + self.mixed(x.index_select(-1, self.order[self.rank :])))

    @property
    def weight(self) -> Tensor:
        """The matrix, (m, n); multiplied out at every call, for code that asks a layer for its weight."""
        if self.rows:
            return torch.cat([self.kept.weight, self.mixed.weight @ self.kept.weight]).index_select(0, self.order)
        return torch.cat([self.kept.weight, self.kept.weight @ self.mixed.weight], 1)[:, torch.argsort(self.order)]

    @property
    def bias(self) -> Tensor | None:
        """The bias, if any."""
        if self.kept.bias is None or not self.rows:
            return cast("Tensor | None", self.kept.bias)
        return torch.cat([self.kept.bias, self.mixed(self.kept.bias)]).index_select(0, self.order)

    def unpivoted(self) -> FactoredLinear:
        """The same map as two stock layers, r (m + n) numbers: for places that cannot have this package."""
        like = {"device": self.kept.weight.device, "dtype": self.kept.weight.dtype}
        plain = FactoredLinear(self.in_features, self.out_features, self.rank, bias=self.kept.bias is not None, **like)
        one = torch.eye(self.rank, **like)
        sides = torch.cat([one, self.mixed.weight if self.rows else self.mixed.weight.mT])
        if self.rows:
            left, right = sides.index_select(0, self.order), self.kept.weight
        else:
            left, right = self.kept.weight, sides[torch.argsort(self.order)].mT
        with torch.no_grad():
            cast(Tensor, plain[0].weight).copy_(right)
            cast(Tensor, plain[1].weight).copy_(left)
            if self.bias is not None:
                cast(Tensor, plain[1].bias).copy_(self.bias)
        return plain

    def extra_repr(self) -> str:
        """Say what it stands for."""
        return (
            f"{self.in_features} -> {self.out_features}, rank {self.rank} by its {'rows' if self.rows else 'columns'}"
        )


@form
class Pivoted:
    """W' = P [I; Z] B of rank r; r (m + n - r) parameters, fewer than the dense m n at every rank."""

    name = "pivoted"
    kinds = frozenset({"linear"})
    portable = False
    named = False

    def refuses(self, site: Site) -> str:
        """Refuse only what has no smaller rank."""
        m, n = site.member.W.shape
        return f"{m} x {n} has no smaller rank" if min(m, n) < 2 else ""

    def curve(self, site: Site) -> Curve:
        """Every rank below the full one; bytes count the order of the gathered side."""
        member = site.member
        m, n = member.W.shape
        sizes = np.array(sizes_up_to(interpolative_rank(m, n, m * n - 1), min(m, n)), dtype=int)
        weights = np.array([interpolative_parameters(m, n, int(size)) for size in sizes])
        weight = cast(Tensor, member.module.weight)
        parameters = weights + (m if _has_bias(member.module) else 0)
        return Curve(
            sizes,
            parameters,
            weights * member.positions,
            member.decomposition(site.method).losses[sizes] * member.positions,
            parameters * weight.element_size() + 4 * min(m, n),
        )

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """``{"rank": r, "rows": whether rows are kept}``."""
        m, n = site.member.W.shape
        return {site.member.name: {"rank": int(size), "rows": m < n}}

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The method's optimum of this rank, stored by its pivots: nothing of it is lost."""
        member = site.member
        left, right = member.decomposition(site.method).factors(size)
        new = self.empty(member.module, self.specs(site, size)[member.name])
        bias = None
        if _has_bias(member.module):
            bias = shifted_bias(member, cast(Tensor, member.module.bias), left @ right)
        with torch.no_grad():
            _fill(new, left, right, bias)
        return {member.name: new}

    def empty(self, original: nn.Module, spec: Spec) -> PivotedLinear:
        """A `PivotedLinear`."""
        weight = cast(Tensor, original.weight)
        m, n = weight.mT.shape if is_conv1d(original) else weight.shape
        return PivotedLinear(
            n,
            m,
            int(spec["rank"]),
            rows=bool(spec["rows"]),
            bias=_has_bias(original),
            device=weight.device,
            dtype=weight.dtype,
        )


def _fill(new: PivotedLinear, left: Tensor, right: Tensor, bias: Tensor | None) -> None:
    found = interpolative(left, right) if new.rows else interpolative(right.mT, left.mT)
    new.order.copy_(found.order if new.rows else torch.cat([found.pivots, found.rest]))
    new.kept.weight.copy_(found.B if new.rows else found.B.mT)
    new.mixed.weight.copy_(found.Z if new.rows else found.Z.mT)
    if bias is not None:
        new.kept.bias.copy_(bias[found.pivots] if new.rows else bias)
        if new.rows:  # Z acts on h with its bias in it
            new.mixed.bias.copy_(bias[found.rest] - F.linear(bias[found.pivots], found.Z))


def _has_bias(module: nn.Module) -> bool:
    return isinstance(getattr(module, "bias", None), Tensor)
