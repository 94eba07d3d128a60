"""Many deep networks of one shape, initialised in many ways and trained side by side on the 8 x 8 digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

Draw = Callable[[int, int, torch.Generator], Tensor]
CLASSES, PIXELS = 10, 64
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}
MODULES = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


@dataclass(frozen=True)
class Shape:
    """What networks that are trained together have in common."""

    depth: int
    width: int
    activation: str
    residual: bool = False
    seed: int = 0

    def __str__(self) -> str:
        return f"depth {self.depth}, width {self.width}, {self.activation}{', residual' * self.residual}"


# -- ways to initialise ----------------------------------------------------------------------------------------------


def uniform(m: int, n: int, generator: torch.Generator) -> Tensor:
    """What ``nn.Linear`` does by default."""
    return (torch.rand(m, n, generator=generator) * 2 - 1) / math.sqrt(n)


def gauss(gain: float) -> Draw:
    return lambda m, n, generator: gain * torch.randn(m, n, generator=generator) / math.sqrt(n)


def xavier(m: int, n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(m, n, generator=generator) * math.sqrt(2 / (m + n))


def orthogonal(gain: float) -> Draw:
    return lambda m, n, generator: gain * semi_orthogonal(m, n, generator)


def semi_orthogonal(m: int, n: int, generator: torch.Generator) -> Tensor:
    a = torch.randn(max(m, n), min(m, n), generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(a)
    q = q * r.diagonal().sign()
    return (q if m >= n else q.mT).float()


def spread(condition: float, gain: float, *, top: bool = False) -> Draw:
    """Singular values geometric over a condition number; their root mean square, or the largest, is the gain."""

    def draw(m: int, n: int, generator: torch.Generator) -> Tensor:
        k = min(m, n)
        s = torch.logspace(0, -math.log10(condition), k)
        s = gain * (s if top else s / s.square().mean().sqrt())
        return (semi_orthogonal(m, k, generator) * s) @ semi_orthogonal(k, n, generator)

    return draw


WAYS: dict[str, Draw] = {
    "PyTorch's default": uniform,
    "Xavier": xavier,
    **{f"Gauss {g:g}": gauss(g) for g in (0.7, 1.2, 1.414, 1.6, 2.0)},
    **{f"orthogonal {g:g}": orthogonal(g) for g in (0.5, 0.8, 0.9, 1.0, 1.1, 1.2, 1.414, 1.7, 2.0)},
    **{f"condition {c:g}, rms {g:g}": spread(c, g) for c in (10, 450, 1e4) for g in (1.0, 1.414)},
    **{f"condition {c:g}, norm 1": spread(c, 1.0, top=True) for c in (3, 10)},
}


def drawn(shape: Shape, way: str) -> list[Tensor]:
    """The weights of one network, first layer to head."""
    generator = torch.Generator().manual_seed(1000 * shape.seed + list(WAYS).index(way))
    inner = [(shape.width, shape.width)] * (shape.depth - 2)
    return [WAYS[way](m, n, generator) for m, n in [(shape.width, PIXELS), *inner, (CLASSES, shape.width)]]


# -- the same networks as modules, and stacked -----------------------------------------------------------------------


class Residual(nn.Module):
    """x + act(W x + b)."""

    def __init__(self, linear: nn.Linear, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.activation(self.linear(x))


def module(shape: Shape, weights: Sequence[Tensor] | None = None) -> nn.Sequential:
    """One network as a module; without weights initialised as PyTorch does."""
    make = MODULES[shape.activation]
    first, head = nn.Linear(PIXELS, shape.width), nn.Linear(shape.width, CLASSES)
    inner = [nn.Linear(shape.width, shape.width) for _ in range(shape.depth - 2)]
    linears = [first, *inner, head]
    if weights is not None:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight.data, linear.bias.data = weight.clone(), torch.zeros(len(weight))
    if shape.residual:
        return nn.Sequential(first, make(), *(Residual(linear, make()) for linear in inner), head)
    return nn.Sequential(*(layer for linear in linears[:-1] for layer in (linear, make())), head)


def stacked(networks: Sequence[nn.Module]) -> list[Tensor]:
    """Weights (networks, m, n) and biases (networks, 1, m) of every layer, weights first."""
    layers = [[m for m in network.modules() if isinstance(m, nn.Linear)] for network in networks]
    weights = [torch.stack([linear.weight.detach() for linear in level]) for level in zip(*layers, strict=True)]
    biases = [torch.stack([linear.bias.detach()[None] for linear in level]) for level in zip(*layers, strict=True)]
    return weights + biases


def forward(shape: Shape, parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    """Outputs (networks, samples, classes) of stacked networks."""
    weights, biases = parameters[: shape.depth], parameters[shape.depth :]
    act = ACTIVATIONS[shape.activation]
    h = act(torch.baddbmm(biases[0], x.expand(len(weights[0]), -1, -1), weights[0].mT))
    for weight, bias in zip(weights[1:-1], biases[1:-1], strict=True):
        z = act(torch.baddbmm(bias, h, weight.mT))
        h = h + z if shape.residual else z
    return torch.baddbmm(biases[-1], h, weights[-1].mT)


# -- data and training -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Digits:
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


@cache
def digits() -> Digits:
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-3)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Digits(x[:1400], y[:1400], x[1400:], y[1400:])


@dataclass(frozen=True)
class Recipe:
    """An optimizer as one would first try it."""

    optimizer: str
    rate: float


RECIPES = (Recipe("sgd", 0.03), Recipe("sgd", 0.01), Recipe("sgd", 0.003), Recipe("adam", 1e-3))
STEPS, BATCH, LOOK, GOAL = 300, 64, 5, 0.9
NEVER = math.inf


def steps_to_goal(
    shape: Shape, networks: Sequence[nn.Module], recipe: Recipe, *, steps: int = STEPS, seed: int = 0
) -> Tensor:
    """Optimizer steps until 90 % of the test digits are right, one number a network; infinity if they never are."""
    data = digits()
    parameters = [p.clone().requires_grad_() for p in stacked(networks)]
    means = [torch.zeros_like(p) for p in parameters]
    squares = [torch.zeros_like(p) for p in parameters]
    left = torch.arange(len(networks))
    found = torch.full((len(networks),), NEVER)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        pick = torch.randint(len(data.x), (BATCH,), generator=generator)
        out = forward(shape, parameters, data.x[pick])
        flat = nn.functional.cross_entropy(out.flatten(0, 1), data.y[pick].repeat(len(left)), reduction="none")
        loss = flat.view(len(left), -1).mean(1)
        grads = torch.autograd.grad(loss.sum(), parameters)
        with torch.no_grad():
            _move(recipe, step, parameters, means, squares, grads)
            if step % LOOK:
                continue
            right = forward(shape, parameters, data.test_x).argmax(-1) == data.test_y
            done = right.float().mean(1) >= GOAL
            found[left[done]] = step
            keep = ~done & loss.isfinite()
        if not keep.any():
            break
        if not keep.all():
            left = left[keep]
            parameters = [p.detach()[keep].requires_grad_() for p in parameters]
            means, squares = [p[keep] for p in means], [p[keep] for p in squares]
    return found


def _move(recipe: Recipe, step: int, parameters, means, squares, grads) -> None:
    """One step of SGD with momentum 0.9, or of Adam."""
    for p, mean, square, grad in zip(parameters, means, squares, grads, strict=True):
        if recipe.optimizer == "sgd":
            mean.mul_(0.9).add_(grad)
            p.sub_(mean, alpha=recipe.rate)
        else:
            mean.lerp_(grad, 0.1)
            square.mul_(0.999).addcmul_(grad, grad, value=0.001)
            p.sub_((mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8), alpha=recipe.rate)


def fewest_steps(shape: Shape, networks: Sequence[nn.Module], steps: int = STEPS) -> Tensor:
    """`steps_to_goal` by the best recipe."""
    return torch.stack([steps_to_goal(shape, networks, recipe, steps=steps) for recipe in RECIPES]).amin(0)
