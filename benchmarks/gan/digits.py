"""A convolutional GAN on the 8 x 8 digits of scikit-learn, judged by a classifier that was trained on them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import netspectra as ns

BATCH, STEPS, NOISE = 64, 800, 32


@dataclass(frozen=True)
class Outcome:
    """How one run ended: classes held, distance of class shares from even, Frechet distance, Lipschitz used."""

    classes: int
    unevenness: float
    frechet: float
    used: float
    budget: float
    diverged: bool
    seconds: float
    samples: list[list[list[float]]]


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)[:, None] / 8 - 1
    return x, torch.tensor(found.target)


@cache
def judge() -> nn.Sequential:
    """A small classifier; its last hidden layer is where distances are measured."""
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(600):
        rows = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def generator() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(NOISE, 32 * 4), nn.ReLU(), nn.Unflatten(1, (32, 2, 2)),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1), nn.Tanh(),
    )  # fmt: skip


def critic() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Flatten(), nn.Linear(32 * 16, 1),
    )  # fmt: skip


def _torch(model: nn.Sequential, x: Tensor) -> None:
    for layer in model:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            parametrizations.spectral_norm(layer)


CONSTRAINTS: dict[str, Callable[[nn.Sequential, Tensor], object]] = {
    "none": lambda model, x: None,
    "torch spectral_norm": _torch,
    "exact, product 1": lambda model, x: ns.normalize_(model, x, budget=1.0),
    "exact, product 20": lambda model, x: ns.normalize_(model, x, budget=20.0),
}


def train(method: str, seed: int, steps: int = STEPS) -> Outcome:
    """One run with the non-saturating logistic loss."""
    judge()  # it seeds too
    started = time.process_time()
    torch.manual_seed(seed)
    x, _ = digits()
    G, D = generator(), critic()
    CONSTRAINTS[method](D, x[:2])
    for_g = torch.optim.Adam(G.parameters(), 1e-3, betas=(0.5, 0.999))
    for_d = torch.optim.Adam(D.parameters(), 1e-3, betas=(0.5, 0.999))
    for _ in range(steps):
        real = x[torch.randint(len(x), (BATCH,))]
        fake = G(torch.randn(BATCH, NOISE))
        on_real, on_fake = D(torch.cat([real, fake.detach()])).chunk(2)
        loss = nn.functional.softplus(-on_real).mean() + nn.functional.softplus(on_fake).mean()
        for_d.zero_grad()
        loss.backward()
        for_d.step()
        loss = nn.functional.softplus(-D(fake)).mean()
        for_g.zero_grad()
        loss.backward()
        for_g.step()
    with torch.no_grad():
        samples = G.eval()(torch.randn(2000, NOISE))
        diverged = not bool(torch.isfinite(samples).all())
        shares = torch.bincount(judge()(samples).argmax(1), minlength=10) / len(samples)
        apart = frechet(judge()[:-1](x), judge()[:-1](samples)) if not diverged else math.nan
    D.eval()
    meter = ns.lipschitz(D, torch.cat([x[:64], samples[:64]])) if not diverged else None
    return Outcome(
        int((shares >= 0.02).sum()),
        float((shares - 0.1).abs().sum() / 2),
        apart,
        meter.used if meter else math.nan,
        meter.budget if meter else math.nan,
        diverged,
        time.process_time() - started,
        samples[:60, 0].tolist(),
    )


def frechet(a: Tensor, b: Tensor) -> float:
    """Distance of two Gaussians with the samples' means and covariances (Heusel et al. 2017), small is near."""
    A, B = torch.cov(a.double().mT), torch.cov(b.double().mT)
    root = torch.linalg.eigvals(A @ B).real.clamp_min(0).sqrt().sum()
    return float((a.double().mean(0) - b.double().mean(0)).square().sum() + A.trace() + B.trace() - 2 * root)
