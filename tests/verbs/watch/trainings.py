"""Small trainings to watch, the same every time, and what can go wrong in them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Net = tuple[nn.Module, torch.optim.Optimizer]


def plain(seed: int = 0, depth: int = 4, width: int = 48, lr: float = 1e-3) -> Net:
    """A ReLU network of plain layers with Adam."""
    torch.manual_seed(seed)
    inner = [layer for _ in range(depth - 2) for layer in (nn.Linear(width, width), nn.ReLU())]
    model = nn.Sequential(nn.Linear(32, width), nn.ReLU(), *inner, nn.Linear(width, 8))
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def convolutional(seed: int = 0) -> Net:
    """Convolutions, one of them grouped, batch normalization, and dropout that draws from the global generator."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *(nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, groups=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Flatten(), nn.Linear(512, 8)),
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


def batch(step: int, size: int = 64) -> tuple[Tensor, Tensor]:
    """Inputs and labels, learnable, the same for a step."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size, 32, generator=generator)
    return x, (x[:, :8] + 0.5 * x[:, 8:16] * x[:, 16:24]).argmax(1)


def train(
    net: Net,
    steps: int,
    *,
    before: Callable[[int, nn.Module, torch.optim.Optimizer], None] = lambda step, model, optimizer: None,
    after: Callable[[float], None] = lambda loss: None,
    first: int = 0,
) -> list[float]:
    """Train; gives the losses."""
    model, optimizer = net
    losses = []
    for step in range(first, first + steps):
        before(step, model, optimizer)
        x, y = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        after(losses[-1])
    return losses
