"""Attention heads with fewer dimensions in their projections; the attention between them stays as it is."""

from __future__ import annotations

from typing import Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.forms import Curve, Member, Site, Spec, form
from netspectra.forms.resized import bias_of, fill_, resized, sizes
from netspectra.linalg.heads import HeadBases, query_key_bases, value_output_bases

__all__ = ["HeadLinear", "QueryKey", "ValueOutput", "head_sizes"]


class HeadLinear(nn.Module):
    """A projection that makes (or reads) only the first ``kept`` of the ``head_dim`` numbers of every head.

    Outputs: the others are zero, so that any attention code works on them unchanged and its scaling stays right.
    Inputs: the others are not read.
    """

    def __init__(
        self, original: nn.Module, *, heads: int, kept: int, head_dim: int, side: Literal["outputs", "inputs"]
    ) -> None:
        """Uninitialised, otherwise as the original layer."""
        super().__init__()
        self.out_features, self.in_features = sizes(original)
        self.heads, self.kept, self.head_dim, self.side = heads, kept, head_dim, side
        m, n = (heads * kept, self.in_features) if side == "outputs" else (self.out_features, heads * kept)
        self.narrow = resized(original, m, n)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to (..., n)."""
        if self.side == "outputs":
            return self._padded(self.narrow(x))
        return self.narrow(x.unflatten(-1, (self.heads, self.head_dim))[..., : self.kept].flatten(-2))

    def _padded(self, y: Tensor) -> Tensor:
        return F.pad(y.unflatten(-1, (self.heads, self.kept)), (0, self.head_dim - self.kept)).flatten(-2)

    @property
    def weight(self) -> Tensor:
        """The matrix with its zeros, (m, n)."""
        W = cast(Tensor, self.narrow.weight)
        W = W if W.shape == sizes(self.narrow) else W.mT
        return self._padded(W.mT).mT if self.side == "outputs" else self._padded(W)

    @property
    def bias(self) -> Tensor | None:
        """The bias, zeros included, if there is one."""
        bias = bias_of(self.narrow)
        return bias if bias is None or self.side == "inputs" else self._padded(bias)

    def extra_repr(self) -> str:
        """Say what is left of the heads."""
        return f"{self.heads} heads, {self.kept} of {self.head_dim} dimensions of their {self.side}"


def head_sizes(head_dim: int) -> list[int]:
    """Dimensions a head may keep: eighths of it, below the whole.

    >>> head_sizes(64), head_sizes(4)
    ([8, 16, 24, 32, 40, 48, 56], [1, 2, 3])
    """
    step = max(1, head_dim // 8)
    return list(range(step, head_dim, step))


class _Heads:
    """What both forms share: the modules."""

    portable = False
    named = False

    def empty(self, original: nn.Module, spec: Spec) -> HeadLinear:
        """A `HeadLinear`."""
        return HeadLinear(
            original,
            heads=int(spec["heads"]),
            kept=int(spec["kept"]),
            head_dim=int(spec["head_dim"]),
            side="inputs" if spec["side"] == "inputs" else "outputs",
        )

    def _fitted(self, member: Member, spec: Spec, W: Tensor, bias: Tensor | None) -> HeadLinear:
        new = self.empty(member.module, spec)
        fill_(new.narrow, W, bias)
        return new


@form
class ValueOutput(_Heads):
    """Value and output projections through fewer dimensions a head; heads that share a value are taken together.

    Roles ``value`` and ``output``; facts ``heads``, ``kv_heads``. Attention only averages values, so what a head does
    is O_h V_h; ``output.A`` is the second moment of what enters the output projection.
    """

    name = "value_heads"
    kinds = frozenset({"value_output"})

    def refuses(self, site: Site) -> str:
        """Refuse heads of one dimension."""
        return "" if _head_dim(site, "value", "kv_heads") > 1 else "heads of one dimension cannot have fewer"

    def curve(self, site: Site) -> Curve:
        """Eighths of the head dimension; the loss is that of the refitted output matrix, all heads together."""
        value, output = site.members["value"], site.members["output"]
        found = np.array(head_sizes(_head_dim(site, "value", "kv_heads")), dtype=int)
        heads, kv_heads = int(site.facts["heads"]), int(site.facts["kv_heads"])
        weights = found * (kv_heads * value.W.shape[1] + heads * output.W.shape[0])
        biases = found * kv_heads * (bias_of(value.module) is not None)
        biases = biases + output.W.shape[0] * (bias_of(output.module) is not None)
        bases = self._bases(site)
        losses = np.array([bases.refit(int(size))[1] for size in found])
        return Curve(found, weights + biases, weights * output.positions, losses * output.positions)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """Heads, and how many of their dimensions are kept."""
        each = {"kept": int(size), "head_dim": _head_dim(site, "value", "kv_heads")}
        value, output = site.members["value"], site.members["output"]
        return {
            value.name: {"heads": int(site.facts["kv_heads"]), **each, "side": "outputs"},
            output.name: {"heads": int(site.facts["heads"]), **each, "side": "inputs"},
        }

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """Values in the best basis of each head, the output matrix refitted to them."""
        value, output, specs = site.members["value"], site.members["output"], self.specs(site, size)
        bases = self._bases(site)
        C = torch.block_diag(*bases.C[:, :size])
        value_bias, output_bias = bias_of(value.module), bias_of(output.module)
        new, _ = bases.refit(size)
        if output_bias is not None:
            output_bias = output_bias.detach().to(output.W)
            if output.mean is not None:
                output_bias = output_bias + output.W @ output.mean - new @ (bases.reduction(size) @ output.mean)
        return {
            value.name: self._fitted(
                value,
                specs[value.name],
                C @ value.W,
                None if value_bias is None else C @ value_bias.detach().to(C),
            ),
            output.name: self._fitted(output, specs[output.name], new, output_bias),
        }

    @staticmethod
    def _bases(site: Site) -> HeadBases:
        output = site.members["output"]
        counts = {"heads": int(site.facts["heads"]), "kv_heads": int(site.facts["kv_heads"])}

        def bases() -> HeadBases:
            W, H = output.W, output.A
            H = torch.eye(W.shape[1], dtype=W.dtype, device=W.device) if H is None else H
            return value_output_bases(W, H, output.G, **counts)

        return output.kept("heads", bases)


@form
class QueryKey(_Heads):
    """Query and key projections through fewer dimensions a head, where nothing stands between them and their product.

    Roles ``query`` and ``key``; facts ``heads``, ``kv_heads`` (equal), ``head_dim``. Scores are q^T k: what the query's
    approximation leaves as its left factor moves over to the key.
    """

    name = "query_heads"
    kinds = frozenset({"query_key"})

    def refuses(self, site: Site) -> str:
        """Refuse keys that several query heads share."""
        if site.facts["heads"] != site.facts["kv_heads"]:
            return "several query heads share a key: their reductions would have to agree"
        return "" if _head_dim(site, "query", "heads") > 1 else "heads of one dimension cannot have fewer"

    def curve(self, site: Site) -> Curve:
        """Eighths of the head dimension."""
        query, key = site.members["query"], site.members["key"]
        found = np.array(head_sizes(_head_dim(site, "query", "heads")), dtype=int)
        rows = found * int(site.facts["heads"])
        weights = rows * (query.W.shape[1] + key.W.shape[1])
        biases = rows * sum(bias_of(member.module) is not None for member in (query, key))
        losses = self._bases(site)[2].cpu().numpy()[found] * query.positions
        return Curve(found, weights + biases, weights * query.positions, losses)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """Heads, and how many of their dimensions are kept."""
        spec = {
            "heads": int(site.facts["heads"]),
            "kept": int(size),
            "head_dim": _head_dim(site, "query", "heads"),
            "side": "outputs",
        }
        return {site.members[role].name: dict(spec) for role in ("query", "key")}

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The factors of every head's query matrix, one on each side."""
        rights, keys, _ = self._bases(site)
        specs, new = self.specs(site, size), {}
        for role, rows in (("query", rights), ("key", keys)):
            member = site.members[role]
            stacked = rows[:, :size].flatten(0, 1)
            n = member.W.shape[1]
            bias = stacked[:, n] if bias_of(member.module) is not None else None
            new[member.name] = self._fitted(member, specs[member.name], stacked[:, :n], bias)
        return new

    @staticmethod
    def _bases(site: Site) -> tuple[Tensor, Tensor, Tensor]:
        query, key = site.members["query"], site.members["key"]
        heads = int(site.facts["heads"])
        return query.kept("heads", lambda: query_key_bases(
            _with_bias(query), _with_bias(key), _second_moment(query), query.G, heads=heads))  # fmt: skip


def _head_dim(site: Site, role: str, heads: str) -> int:
    return site.members[role].W.shape[0] // int(site.facts[heads])


def _with_bias(member: Member) -> Tensor:
    """The matrix with the bias as one column more."""
    bias = bias_of(member.module)
    return member.W if bias is None else torch.cat([member.W, bias.detach().to(member.W)[:, None]], 1)


def _second_moment(member: Member) -> Tensor:
    """E[x x^T] of the inputs, not about their mean, with a 1 as the last of them where there is a bias."""
    W, A = member.W, member.A
    n = W.shape[1]
    A = torch.eye(n, dtype=W.dtype, device=W.device) if A is None else A
    mean = torch.zeros(n, dtype=A.dtype, device=A.device) if member.mean is None else member.mean
    A = A + torch.outer(mean, mean)
    if bias_of(member.module) is None:
        return A
    return torch.cat([torch.cat([A, mean[:, None]], 1), torch.cat([mean, mean.new_ones(1)])[None]])
