"""Trainings on the 8 x 8 digits, of several kinds, and what is done to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

BATCH = 256


@cache
def digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.data / 16 - 0.3, dtype=torch.float32), torch.tensor(data.target)


@dataclass
class Training:
    """A model, its optimizer and its batches; a step at a time."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    schedule: Callable[[int], float] = lambda step: 1.0
    done: int = 0

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.factor = 1.0

    def step(self) -> float:
        x, y = digits()
        rows = torch.randint(len(x), (BATCH,), generator=self.generator)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.schedule(self.done) * self.factor
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x[rows]), y[rows])
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return float(loss.detach())


def mlp(activation: type[nn.Module], width: int = 320, depth: int = 5) -> nn.Sequential:
    inner = [layer for _ in range(depth - 2) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(nn.Linear(64, width), activation(), *inner, nn.Linear(width, 10))


class Rows(nn.Module):
    """A small transformer that reads an image row by row."""

    def __init__(self, width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.places = nn.Parameter(0.02 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x.reshape(-1, 8, 8)) + self.places).mean(1))


class Adapter(nn.Module):
    """A frozen layer with a trained low-rank addition that begins at zero, as LoRA does."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def relu_adam() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp(nn.ReLU)
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def tanh_sgd() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp(nn.Tanh)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def convolutional() -> tuple[nn.Module, torch.optim.Optimizer]:
    def block(m: int, n: int) -> list[nn.Module]:
        return [nn.Conv2d(m, n, 3, padding=1), nn.BatchNorm2d(n), nn.ReLU()]

    model = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), *block(1, 16), nn.MaxPool2d(2), *block(16, 32), *block(32, 32), nn.Flatten(),
        nn.Linear(512, 10),
    )  # fmt: skip
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def transformer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Rows()
    return model, torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)


def adapted() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = mlp(nn.ReLU)
    for place in range(0, len(model) - 2, 2):
        model[place] = Adapter(model[place])  # type: ignore[arg-type]
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)


KINDS: dict[str, Callable[[], tuple[nn.Module, torch.optim.Optimizer]]] = {
    "relu, Adam": relu_adam,
    "tanh, SGD": tanh_sgd,
    "convolutions, SGD": convolutional,
    "transformer, AdamW": transformer,
    "low-rank adapters, AdamW": adapted,
}
RECTIFIED = ("relu, Adam", "convolutions, SGD", "transformer, AdamW")  # with units that can die


def begun(kind: str, seed: int) -> Training:
    """A training at its first step; a third have a warm-up, all a cosine."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, optimizer = KINDS[kind]()
    warm = 60 if seed % 3 == 0 else 0

    def schedule(step: int) -> float:
        ramp = min(1.0, (step + 1) / warm) if warm else 1.0
        return ramp * (0.55 + 0.45 * math.cos(math.pi * min(step, 600) / 600))

    return Training(model, optimizer, torch.Generator().manual_seed(seed), schedule)


# -- faults ----------------------------------------------------------------------------------------------------------

Fault = Callable[[Training, int, int], None]  # training, seed, steps since the fault began


def victims(model: nn.Module) -> list[nn.Parameter]:
    """Trained matrices inside the network, large enough to collapse."""
    found = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2 and min(p.flatten(1).shape) >= 16]
    return found[1:-1] or found


@torch.no_grad()
def blow_up(training: Training, seed: int, since: int) -> None:
    """The learning rate jumps a hundredfold, or one weight grows by 6 % a step."""
    if seed % 2 == 0:
        training.factor = 100.0
    else:
        inside = victims(training.model)
        inside[seed % len(inside)].mul_(1.06)


@torch.no_grad()
def collapse(training: Training, seed: int, since: int) -> None:
    """All but two singular values of one weight shrink by a tenth a step."""
    inside = victims(training.model)
    weight = inside[seed % len(inside)]
    U, S, Vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    S[2:] *= 0.9
    weight.copy_((U * S @ Vh).reshape(weight.shape))


@torch.no_grad()
def dead_layer(training: Training, seed: int, since: int) -> None:
    """The biases before one layer's rectifiers fall so low that no unit answers any more."""
    if since:
        return
    modules = dict(training.model.named_modules())
    norms = [m for m in modules.values() if isinstance(m, nn.BatchNorm2d)]
    layers = [m for name, m in modules.items() if isinstance(m, nn.Linear) and name.endswith("linear1")]
    plain = [m for m in modules.values() if isinstance(m, nn.Linear) and m.out_features > 10]
    inside = norms or layers or plain[1:]
    inside[seed % len(inside)].bias.fill_(-50.0)


FAULTS: dict[str, tuple[Fault, tuple[str, ...], tuple[str, ...]]] = {
    "blow-up": (blow_up, ("blow-up", "not-finite"), tuple(k for k in KINDS if "adapters" not in k)),
    "rank collapse": (collapse, ("rank-collapse",), tuple(k for k in KINDS if "adapters" not in k)),
    "dead layer": (dead_layer, ("dead-layer",), RECTIFIED),
}
