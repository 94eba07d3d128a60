"""Two thin layers in the place of one: Linear, Conv1D, Embedding."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.forms import Curve, Member, Site, Spec, form, sizes_up_to

__all__ = ["FactoredEmbedding", "FactoredLinear", "Factors"]


class FactoredLinear(nn.Sequential):
    """x -> left (right x) + b: an ``nn.Sequential(Linear, Linear)`` that answers as a Linear does.

    Its state dict is that of the plain ``nn.Sequential``, so it loads into one without this package.
    """

    def __init__(self, n: int, m: int, rank: int, *, bias: bool, device: Any = None, dtype: Any = None) -> None:
        """Uninitialised."""
        super().__init__(
            nn.utils.skip_init(nn.Linear, n, rank, bias=False, device=device or "cpu", dtype=dtype),
            nn.utils.skip_init(nn.Linear, rank, m, bias=bias, device=device or "cpu", dtype=dtype),
        )
        self.in_features, self.out_features, self.rank = n, m, rank

    @property
    def weight(self) -> Tensor:
        """The product, (m, n); multiplied out at every call, for code that asks a layer for its weight."""
        return cast(Tensor, self[1].weight) @ cast(Tensor, self[0].weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias, if any."""
        return cast("Tensor | None", self[1].bias)

    def extra_repr(self) -> str:
        """Say what it stands for."""
        return f"{self.in_features} -> {self.rank} -> {self.out_features}"


class FactoredEmbedding(nn.Sequential):
    """indices -> left right[indices]: an ``nn.Sequential(Embedding, Linear)`` that answers as an Embedding does."""

    def __init__(
        self, vocabulary: int, d: int, rank: int, *, padding_idx: int | None, device: Any = None, dtype: Any = None
    ) -> None:
        """Uninitialised."""
        table = nn.utils.skip_init(
            nn.Embedding, vocabulary, rank, padding_idx=padding_idx, device=device or "cpu", dtype=dtype
        )
        super().__init__(table, nn.utils.skip_init(nn.Linear, rank, d, bias=False, device=device or "cpu", dtype=dtype))
        self.num_embeddings, self.embedding_dim, self.rank, self.padding_idx = vocabulary, d, rank, padding_idx

    @property
    def weight(self) -> Tensor:
        """The product, (vocabulary, d); multiplied out at every call."""
        return cast(Tensor, self[0].weight) @ cast(Tensor, self[1].weight).mT


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a Linear with its weight stored (n, m)."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


@form
class Factors:
    """W' = left right of rank r; r (m + n) parameters."""

    name = "factors"
    kinds = frozenset({"linear", "embedding"})
    portable = True
    named = False

    def refuses(self, site: Site) -> str:
        """Refuse layers for which no rank of at least one saves anything."""
        m, n = site.member.W.shape
        if m * n <= m + n:
            return f"{m} x {n} has no rank that saves parameters"
        return ""

    def curve(self, site: Site) -> Curve:
        """Every rank below the break-even m n / (m + n)."""
        member = site.member
        m, n = member.W.shape
        bias = _bias(member.module)
        losses = member.decomposition(site.method).losses
        sizes = np.array(sizes_up_to((m * n - 1) // (m + n), min(m, n)))
        parameters = sizes * (m + n) + (m if bias is not None else 0)
        per_output = sizes * (m + n) if site.kind == "linear" else sizes * m  # an embedding's rows are only looked up
        return Curve(sizes, parameters, per_output * member.positions, losses[sizes] * member.positions)

    def specs(self, site: Site, size: int) -> dict[str, Spec]:
        """``{"rank": r}``."""
        return {site.member.name: {"rank": int(size)}}

    def fit(self, site: Site, size: int) -> dict[str, nn.Module]:
        """The method's factors of rank ``size``, the error's mean folded into the bias."""
        member = site.member
        left, right = member.decomposition(site.method).factors(size)
        new = self.empty(member.module, {"rank": size})
        parameters = dict(new.named_parameters())
        with torch.no_grad():
            if isinstance(new, FactoredEmbedding):
                parameters["0.weight"].copy_(right.mT)
                parameters["1.weight"].copy_(left)
            else:
                parameters["0.weight"].copy_(right)
                parameters["1.weight"].copy_(left)
                bias = _bias(member.module)
                if bias is not None:
                    parameters["1.bias"].copy_(shifted_bias(member, bias, left @ right))
        return {member.name: new}

    def empty(self, original: nn.Module, spec: Spec) -> nn.Module:
        """A `FactoredLinear` or `FactoredEmbedding`."""
        weight = cast(Tensor, original.weight)
        rank, like = int(spec["rank"]), {"device": weight.device, "dtype": weight.dtype}
        if isinstance(original, nn.Embedding):
            vocabulary, d = weight.shape
            return FactoredEmbedding(vocabulary, d, rank, padding_idx=original.padding_idx, **like)
        m, n = weight.mT.shape if is_conv1d(original) else weight.shape
        return FactoredLinear(n, m, rank, bias=_bias(original) is not None, **like)


def shifted_bias(member: Member, bias: Tensor, approximation: Tensor) -> Tensor:
    """b + (W - W') mean, so that the error is zero in the mean; b itself where no mean is given."""
    bias = bias.detach().to(member.W)
    return bias if member.mean is None else bias + (member.W - approximation) @ member.mean


def _bias(module: nn.Module) -> Tensor | None:
    bias = getattr(module, "bias", None)
    return bias if isinstance(bias, Tensor) else None
