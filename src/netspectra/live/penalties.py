"""Losses that pull the operators of a model towards a norm or towards orthogonality."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from netspectra.live.layers import linear_layers
from netspectra.live.spectral import OperatorNorm
from netspectra.weight import Selection

__all__ = ["OrthogonalityPenalty", "SpectralPenalty"]


class SpectralPenalty(nn.Module):
    """sum over layers of max(0, sigma_1(W) - K)^2, of the operators that the layers apply.

    sigma_1 is followed as in `netspectra.live.spectral.OperatorNorm`: a step costs one product with each weight and its
    adjoint. Yoshida & Miyato 2017 (arXiv:1705.10941) penalise the sum of sigma_1^2, of reshaped kernels: K = 0.

    >>> layer = nn.Linear(3, 3)
    >>> _ = layer.weight.data.copy_(torch.diag(torch.tensor([3.0, 1.0, 0.5])))
    >>> round(float(SpectralPenalty(layer, target=2.0)()), 4)
    1.0
    """

    def __init__(
        self, model: nn.Module, batch: Any = None, *, target: float = 1.0, selection: Selection = Selection()
    ) -> None:
        """Take a model and the batch that shows the grids of its convolutions (see `live.layers.linear_layers`)."""
        super().__init__()
        self.target = target
        layers, _ = linear_layers(model, batch, selection)
        self._layers = [module for _, module, _ in layers]  # a list: nothing is registered twice
        self.norms = nn.ModuleList(OperatorNorm(linear, cast(Tensor, module.weight)) for _, module, linear in layers)

    def forward(self) -> Tensor:
        """The penalty, a scalar."""
        over = [
            (norm(module.weight) - self.target).clamp_min(0).square()
            for module, norm in zip(self._layers, self.norms, strict=True)
        ]
        return torch.stack(over).sum() if over else torch.zeros(())


class OrthogonalityPenalty(nn.Module):
    """sum over layers of ||G - c^2 I||_F^2 / n, with G the Gram matrix of the short side, n x n, and c the scale.

    Of convolutions the reshaped kernel is taken: a necessary condition, not a sufficient one, for an orthogonal map.
    Brock, Lim, Ritchie & Weston 2017 (arXiv:1609.07093).

    >>> layer = nn.Linear(4, 2)
    >>> _ = layer.weight.data.copy_(torch.eye(2, 4))
    >>> float(OrthogonalityPenalty(layer)())
    0.0
    """

    def __init__(self, model: nn.Module, *, scale: float = 1.0, selection: Selection = Selection()) -> None:
        """Take a model: its Linear, Embedding and convolution weights."""
        super().__init__()
        self.scale = scale
        layers, _ = linear_layers(model, None, selection)
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
        return torch.stack(total).sum() if total else torch.zeros(())
