"""Digits, two networks trained on them, and what may befall images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, rotate
from torch import Tensor, nn

from benchmarks.compare.pairs import digits, train
from netspectra.verbs.drift.activations import activations

TRAINED = 500  # images; the other 1297 are what windows and references are drawn from
SHIFTS = ("nothing", "contrast", "blur", "rotated", "missing", "noise")
TOLD = {
    "contrast": "contrast x 0.7",
    "blur": "blur, sigma 0.45 pixels",
    "rotated": "half of them rotated by 20 degrees",
    "missing": "three classes of ten missing",
    "noise": "Gaussian noise, sigma 0.1",
}
NETWORKS = ("MLP", "CNN")


def network(kind: str) -> nn.Sequential:
    if kind == "MLP":
        layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)]
    else:
        layers = [
            nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        ]  # fmt: skip
    return nn.Sequential(*layers)


@dataclass
class Images:
    """A trained network, images it never saw, and what its layers make of them."""

    model: nn.Module
    hidden: str  # the layer that peers look at: the last but one
    images: np.ndarray
    labels: np.ndarray
    accuracy: float

    @classmethod
    def trained(cls, kind: str, seed: int) -> Images:
        x, y = digits()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = train(network(kind), x[order[:TRAINED]], y[order[:TRAINED]], 400, 2e-3, seed)
        rest = order[TRAINED:]
        with torch.no_grad():
            accuracy = float((model(x[rest]).argmax(1) == y[rest]).float().mean())
        return cls(model, {"MLP": "3", "CNN": "8"}[kind], x[rest].numpy(), y[rest].numpy(), accuracy)

    def draw(self, rng: np.random.Generator, held: int, size: int, shift: str) -> tuple[np.ndarray, np.ndarray]:
        """A reference and a window, no image in both."""
        order = rng.permutation(len(self.images))
        rest = order[held:]
        if shift == "missing":
            gone = rng.choice(10, 3, replace=False)
            rest = rest[~np.isin(self.labels[rest], gone)]
        return self.images[order[:held]], changed(self.images[rest[:size]], shift, rng)

    def layers(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """What `ns.drift` would see of the model, and the softmax for the peers."""
        names = [name for name, m in self.model.named_modules() if isinstance(m, nn.ReLU)] + ["output"]
        found: dict[str, np.ndarray] = {}
        chunks: Iterator[dict[str, np.ndarray]] = activations(self.model, torch.from_numpy(images), names, [])
        parts = list(chunks)
        for name in names:
            found[name] = np.concatenate([part[name] for part in parts])
        return found


def softmax(logits: np.ndarray) -> np.ndarray:
    rows: Tensor = F.softmax(torch.from_numpy(logits), dim=1)
    return rows.numpy()


def changed(images: np.ndarray, shift: str, rng: np.random.Generator) -> np.ndarray:
    square = images.reshape(-1, 8, 8).copy()
    if shift == "contrast":
        square *= 0.7
    elif shift == "blur":
        square = gaussian_filter(square, (0, 0.45, 0.45))
    elif shift == "rotated":
        half = len(square) // 2
        square[:half] = rotate(square[:half], 20, axes=(1, 2), reshape=False, order=1)
    elif shift == "noise":
        square = square + 0.1 * rng.standard_normal(square.shape).astype(np.float32)
    return np.ascontiguousarray(square.reshape(-1, 64))
