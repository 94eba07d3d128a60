"""Losses that pull the operators of a model towards a norm or towards orthogonality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from netspectra.live.maps import LinearMap
from netspectra.live.spectral import OperatorNorm

__all__ = ["OrthogonalityPenalty", "SpectralPenalty"]

Layers = Sequence[tuple[str, nn.Module, LinearMap]]


class SpectralPenalty(nn.Module):
    """sum over layers of max(0, sigma_1(W) - K)^2, of the operators that the layers apply.

    sigma_1 is followed as in `netspectra.live.spectral.OperatorNorm`: a step costs one product with each weight and its
    adjoint. Yoshida & Miyato 2017 (arXiv:1705.10941) penalise the sum of sigma_1^2, of reshaped kernels: K = 0.

    >>> layer = nn.Linear(3, 3)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0, 0.5])))
    >>> from netspectra.live.maps import linear_map
    >>> round(float(SpectralPenalty([("layer", layer, linear_map(layer))], target=2.0)()), 4)
    1.0
    """

    def __init__(self, layers: Layers, target: float = 1.0) -> None:
        """Take layers as `netspectra.verbs.train.normalize.layers` finds them."""
        super().__init__()
        self.target = target
        self._layers = [
            module for _, module, _ in layers
        ]  # a list: nothing is registered twice
        self.norms = nn.ModuleList(OperatorNorm(linear, cast(Tensor, module.weight)) for _, module, linear in layers)

    def forward(self) -> Tensor:
        """The penalty, a scalar."""
        over = [
            (norm(module.weight) - self.target).clamp_min(0).square()
            for module, norm in zip(self._layers, self.norms, strict=True)
        ]
        return torch.stack(over).sum()


class OrthogonalityPenalty(nn.Module):
    """sum over layers of ||G - c^2 I||_F^2 / n, with G the Gram matrix of the short side, n x n, and c the scale.

    Of convolutions the reshaped kernel is taken: a necessary condition, not a sufficient one, for an orthogonal map.
    Brock, Lim, Ritchie & Weston 2017 (arXiv:1609.07093).

    >>> layer = nn.Linear(4, 2)
    >>> _ = layer.weight.data.copy_(torch.eye(2, 4))
    >>> from netspectra.live.maps import linear_map
    >>> float(OrthogonalityPenalty([("layer", layer, linear_map(layer))])())
    0.0
    """

    def __init__(self, layers: Layers, scale: float = 1.0) -> None:
        """Take layers as `netspectra.verbs.train.normalize.layers` finds them."""
        super().__init__()
        self.scale = scale
        self._layers = [module for _, module, _ in layers]

    def forward(self) -> Tensor:
        """The penalty, a scalar."""
        total: list[Tensor] = []
        for module in self._layers:
            matrix = cast(Tensor, module.weight).flatten(1)
            short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
            gram = short @ short.mT
            target = self.scale**2 * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
            total.append((gram - target).square().sum() / len(gram))
        return torch.stack(total).sum()
