"""A family of small networks: every combination of the axes, many trained at once by stacked products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.generalization.tasks import Task

BATCH = 64
TOGETHER = 12  # networks in one stack: larger ones leave the cache
MOMENTUM, BETA2, EPS = 0.9, 0.999, 1e-8
# What "low" and "high", "none" and "some" mean for each optimizer.
RATES = {"sgd": {"low": 0.02, "high": 0.1}, "adam": {"low": 1e-3, "high": 4e-3}}
DECAYS = {"sgd": {"none": 0.0, "some": 5e-2}, "adam": {"none": 0.0, "some": 1.5}}
EXAMPLES = {"digits": {"few": 150, "many": 900}, "manual": {"few": 500, "many": 4000}}


@dataclass(frozen=True)
class Network:
    """One point of the grid; the seed draws its data, label noise, start and batches.

    Attributes:
        width: of every hidden layer.
        depth: hidden layers; there is one more matrix.
        optimizer: SGD with momentum 0.9, or Adam; the rate falls to 0 along a half cosine.
        rate: learning rate.
        decay: decoupled weight decay.
        noise: share of training labels that are replaced by another class.
        examples: how many training examples.
        seed: of everything drawn.
    """

    width: int
    depth: int
    optimizer: str
    rate: str
    decay: str
    noise: float
    examples: str
    seed: int


@dataclass(frozen=True)
class Grid:
    """The values of each axis, and how long each network trains."""

    width: tuple[int, ...] = (64, 160)
    depth: tuple[int, ...] = (2, 4)
    optimizer: tuple[str, ...] = ("sgd", "adam")
    rate: tuple[str, ...] = ("low", "high")
    decay: tuple[str, ...] = ("none", "some")
    noise: tuple[float, ...] = (0.0, 0.2, 0.4)
    examples: tuple[str, ...] = ("few", "many")
    seed: tuple[int, ...] = (0, 1)
    steps: int = 800

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        return {name: values for name, values in asdict(self).items() if name != "steps"}

    @property
    def count(self) -> int:
        return math.prod(len(values) for values in self.axes.values())

    def stacks(self) -> Iterator[tuple[Network, ...]]:
        """Networks of one architecture and optimizer, some at a time, in a mixed order that is always the same."""
        networks = [Network(*point) for point in itertools.product(*self.axes.values())]
        order = np.random.default_rng(0).permutation(len(networks))
        alike: dict[tuple[int, int, str], list[Network]] = {}
        for i in order:
            net = networks[i]
            alike.setdefault((net.width, net.depth, net.optimizer), []).append(net)
        stacks = [tuple(nets[i : i + TOGETHER]) for nets in alike.values() for i in range(0, len(nets), TOGETHER)]
        for i in np.random.default_rng(1).permutation(len(stacks)):
            yield stacks[i]


@dataclass(frozen=True)
class Trained:
    """A stack of networks after training, the network first in every tensor.

    Attributes:
        networks: which.
        weights: one (g, out, in) a layer.
        biases: one (g, out) a layer.
        start: the weights before training.
        x: training inputs (g, n, d), padded with repetitions to the longest.
        y: their labels as trained on.
        count: how many of them are each network's own, (g,).
    """

    networks: tuple[Network, ...]
    weights: list[Tensor]
    biases: list[Tensor]
    start: list[Tensor]
    x: Tensor
    y: Tensor
    count: Tensor

    def converged(self) -> Trained:
        """Without the networks that diverged."""
        finite = torch.stack([w.isfinite().flatten(1).all(1) for w in (*self.weights, *self.biases)]).all(0)
        if finite.all():
            return self
        networks = tuple(net for net, kept in zip(self.networks, finite.tolist(), strict=True) if kept)
        weights, biases, start = ([w[finite] for w in part] for part in (self.weights, self.biases, self.start))
        return Trained(networks, weights, biases, start, self.x[finite], self.y[finite], self.count[finite])


def forward(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
    """The input of every layer and, last, the logits: (g, n, .) each."""
    flow = [x]
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = torch.baddbmm(bias.unsqueeze(1), flow[-1], weight.mT)
        flow.append(out.relu() if place < len(weights) - 1 else out)
    return flow


def examples(task: Task, net: Network) -> tuple[Tensor, Tensor]:
    """Indices of a network's training examples, and their labels with noise; fewer ones are the first of more."""
    rng = np.random.default_rng([net.seed, 1])
    chosen = torch.from_numpy(rng.permutation(len(task.y)))[: EXAMPLES[task.name][net.examples]]
    flip = torch.from_numpy(rng.random(len(task.y)))[: len(chosen)] < net.noise
    shift = torch.from_numpy(rng.integers(1, task.classes, len(task.y)))[: len(chosen)]
    y = task.y[chosen]
    return chosen, torch.where(flip, (y + shift) % task.classes, y)


def start(task: Task, net: Network) -> list[Tensor]:
    """He's normal start; networks of one architecture and seed start alike."""
    generator = torch.Generator().manual_seed(1000 + net.seed)
    sizes = [task.x.shape[1], *[net.width] * net.depth, task.classes]
    return [torch.randn(m, n, generator=generator) * math.sqrt(2 / n) for n, m in itertools.pairwise(sizes)]


def train(task: Task, networks: tuple[Network, ...], steps: int) -> Trained:
    """Train a stack; every network sees its own batches."""
    data = [examples(task, net) for net in networks]
    longest = max(len(y) for _, y in data)
    fill = [torch.arange(longest) % len(y) for _, y in data]
    chosen = torch.stack([indices[f] for (indices, _), f in zip(data, fill, strict=True)])
    y = torch.stack([labels[f] for (_, labels), f in zip(data, fill, strict=True)])
    count = torch.tensor([len(labels) for _, labels in data])
    begun = [torch.stack(layer) for layer in zip(*(start(task, net) for net in networks), strict=True)]
    weights = [w.clone().requires_grad_() for w in begun]
    biases = [torch.zeros(w.shape[:2]).requires_grad_() for w in begun]
    step = Step(networks, weights + biases, steps)
    generators = [torch.Generator().manual_seed(2000 + net.seed) for net in networks]
    for now in range(steps):
        draws = zip(count.tolist(), generators, strict=True)
        batch = torch.stack([torch.randint(n, (BATCH,), generator=generator) for n, generator in draws])
        logits = forward(task.x[chosen.gather(1, batch)], weights, biases)[-1]
        loss = cross_entropy(logits.flatten(0, 1), y.gather(1, batch).flatten(), reduction="sum") / BATCH
        step(now, torch.autograd.grad(loss, step.parameters))
    done = [w.detach() for w in weights], [b.detach() for b in biases]
    return Trained(networks, *done, begun, task.x[chosen], y, count)


class Step:
    """SGD with momentum or AdamW over a stack, each network with its own rate and decay."""

    def __init__(self, networks: Sequence[Network], parameters: list[Tensor], steps: int) -> None:
        self.parameters, self.steps = parameters, steps
        self.optimizer = networks[0].optimizer
        self.rate = torch.tensor([RATES[net.optimizer][net.rate] for net in networks])
        self.decay = torch.tensor([DECAYS[net.optimizer][net.decay] for net in networks])
        self.first = [torch.zeros_like(p) for p in parameters]
        self.second = [torch.zeros_like(p) for p in parameters]

    @torch.no_grad()
    def __call__(self, now: int, gradients: Sequence[Tensor]) -> None:
        rate = self.rate * (1 + math.cos(math.pi * now / self.steps)) / 2
        kept = 1 - rate * self.decay
        for p, g, first, second in zip(self.parameters, gradients, self.first, self.second, strict=True):
            shape = (-1, *[1] * (p.ndim - 1))
            if p.ndim == 3:  # biases do not decay
                p *= kept.view(shape)
            if self.optimizer == "sgd":
                first.mul_(MOMENTUM).add_(g)
                p.sub_(first * rate.view(shape))
            else:
                first.lerp_(g, 1 - MOMENTUM)
                second.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
                size = (second / (1 - BETA2 ** (now + 1))).sqrt_().add_(EPS)
                p.sub_(first / size * (rate / (1 - MOMENTUM ** (now + 1))).view(shape))
