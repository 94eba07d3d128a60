"""Generators and critics on points of the plane: a ring of 8 and a grid of 25 Gaussians."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import netspectra as ns

STD = 0.05
BATCH, STEPS, WIDTH, NOISE = 128, 3000, 64, 8
RATE = 1e-3  # of Adam
CRITIC_STEPS = 5  # of WGAN-GP, as its authors have it


@dataclass(frozen=True)
class Outcome:
    """How one run ended: modes held, share of samples near one, Lipschitz used and allowed, output of the critic.

    ``path`` has the modes held after each sixth of the steps.
    """

    modes: int
    path: list[int]
    near: float
    used: float
    budget: float
    scale: float
    diverged: bool
    seconds: float
    samples: list[list[float]]


def ring() -> Tensor:
    angle = torch.arange(8) * (2 * math.pi / 8)
    return 2 * torch.stack([angle.cos(), angle.sin()], 1)


def grid() -> Tensor:
    line = torch.arange(-2.0, 3.0)
    return torch.cartesian_prod(line, line)


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, outputs)
    )


def _torch(critic: nn.Sequential) -> None:
    for layer in critic:
        if isinstance(layer, nn.Linear):
            parametrizations.spectral_norm(layer)


CONSTRAINTS: dict[str, Callable[[nn.Sequential], object]] = {
    "none": lambda critic: None,
    "torch spectral_norm": _torch,
    "exact, product 1": lambda critic: ns.normalize_(critic, budget=1.0),
    "exact, product 20": lambda critic: ns.normalize_(critic, budget=20.0),
}
BUDGETED, PENALISED = "exact, product 20", "WGAN-GP"
METHODS = (*CONSTRAINTS, PENALISED)


def held(samples: Tensor, centres: Tensor) -> tuple[int, float]:
    """Modes with a fifth of their share of the samples within three standard deviations; share of samples there."""
    distance, nearest = torch.cdist(samples.nan_to_num(1e9), centres).min(1)
    hit = distance < 3 * STD
    counts = torch.bincount(nearest[hit], minlength=len(centres))
    return int((counts >= 0.2 * len(samples) / len(centres)).sum()), float(hit.float().mean())


def train(centres: Tensor, method: str, seed: int, steps: int = STEPS) -> Outcome:
    """One run; ``WGAN-GP`` has its own loss, all others the non-saturating logistic one."""
    started = time.process_time()
    torch.manual_seed(seed)
    generator, critic = mlp(NOISE, 2), mlp(2, 1)
    penalised = method == PENALISED
    if not penalised:
        CONSTRAINTS[method](critic)
    betas = (0.0, 0.9) if penalised else (0.5, 0.999)
    for_g = torch.optim.Adam(generator.parameters(), lr=RATE, betas=betas)
    for_d = torch.optim.Adam(critic.parameters(), lr=RATE, betas=betas)

    def real() -> Tensor:
        return centres[torch.randint(len(centres), (BATCH,))] + STD * torch.randn(BATCH, 2)

    eyes, path = torch.Generator().manual_seed(seed), []

    def look() -> Tensor:
        with torch.no_grad():
            return generator(torch.randn(2000, NOISE, generator=eyes))

    for step in range(1, steps + 1):
        for _ in range(CRITIC_STEPS if penalised else 1):
            x, fake = real(), generator(torch.randn(BATCH, NOISE)).detach()
            on_real, on_fake = critic(torch.cat([x, fake])).chunk(2)
            if penalised:
                between = torch.lerp(x, fake, torch.rand(BATCH, 1)).requires_grad_()
                (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
                loss = on_fake.mean() - on_real.mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
            else:
                loss = nn.functional.softplus(-on_real).mean() + nn.functional.softplus(on_fake).mean()
            for_d.zero_grad()
            loss.backward()
            for_d.step()
        on_fake = critic(generator(torch.randn(BATCH, NOISE)))
        loss = -on_fake.mean() if penalised else nn.functional.softplus(-on_fake).mean()
        for_g.zero_grad()
        loss.backward()
        for_g.step()
        if step % (steps // 6) == 0:
            path.append(held(look(), centres)[0])
    samples = look()
    diverged = not bool(torch.isfinite(samples).all())
    modes, near = held(samples, centres)
    critic.eval()
    x = real()
    meter = ns.lipschitz(critic, torch.cat([x, samples[:BATCH]])) if not diverged else None
    with torch.no_grad():
        scale = float(critic(x).abs().mean())
    return Outcome(
        modes,
        path,
        near,
        meter.used if meter else math.nan,
        meter.budget if meter else math.nan,
        scale,
        diverged,
        time.process_time() - started,
        samples[:500].tolist(),
    )
