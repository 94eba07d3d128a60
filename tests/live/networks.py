"""Small networks of every sort, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.linear(x))


class Loop(nn.Module):
    """A cell that is called once a step."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(n, n)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for step in range(x.shape[1]):
            h = self.cell(x[:, step], h)
        return h


class Norm(nn.Module):
    """Parameter-free and functional."""

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.square().mean(-1, keepdim=True)).sqrt()


def plain(depth: int, width: int, activation: type[nn.Module], n: int | None = None, classes: int = 5) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in range(depth - 1):
        layers += [nn.Linear(n or width if place == 0 else width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def encoder(first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 4), (7,)),
    "tanh": (lambda: plain(4, 9, nn.Tanh, 7), (7,)),
    "in-place ReLU": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3)), (6,)),
    "starts in place": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)), (6,)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 3, 1)
        ),
        (2, 8, 8),
    ),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 4, 2), nn.GELU()), (2, 5)),
    "attention": (lambda: encoder(True), (4, 8)),
    "attention, norm last": (lambda: encoder(False), (4, 8)),
    "LSTM": (lambda: First(nn.LSTM(3, 5, 2, batch_first=True)), (6, 3)),
    "GRU": (lambda: First(nn.GRU(3, 5, batch_first=True, bidirectional=True)), (6, 3)),
    "loop": (lambda: Loop(4), (5, 4)),
    "residual": (lambda: nn.Sequential(*(Residual(6) for _ in range(3)), nn.Linear(6, 2)), (6,)),
    "no parameters": (lambda: Norm(), (5,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 2)), (5,)),
}


def network(name: str, samples: int = 3, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network and a batch, both of the seed; the global generator stays where it was."""
    make, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(), torch.randn(samples, *shape)


def tiny_gpt(**changes: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 16, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
