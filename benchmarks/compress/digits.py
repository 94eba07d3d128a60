"""A CNN trained on scikit-learn's digits: the forms of convolutions at the same sizes, error of the logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.forms import FORMS, Member, Site
from netspectra.linalg.moments import Moments, shrunk
from netspectra.verbs.compress.calibrate import rows

KEEP = (0.5, 0.3, 0.15)
PEERS = (
    ("channel", "plain"),
    ("spatial", "plain"),
    ("tucker", "plain"),
    ("channel", "whitened"),
    ("spatial", "whitened"),
    ("tucker", "whitened"),
)


def network() -> nn.Sequential:
    """Four convolutions and a linear layer, for 8 x 8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 96, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(96, 96, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def trained(epochs: int, seed: int = 0) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """The network, its training images, test images and test labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images).float()[:, None] / 16
    labels = torch.from_numpy(data.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:1400], order[1400:]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for _ in range(epochs):
            for batch in train[torch.randperm(len(train), generator=generator)].split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(images[batch]), labels[batch]).backward()
                optimizer.step()
    return model.eval(), images[train], images[test], labels[test]


@torch.no_grad()
def _member(name: str, conv: nn.Conv2d, x: Tensor, target: nn.Conv2d | None = None) -> Member:
    moments = Moments.zeros(conv.weight[0].numel())
    for part in rows(conv, x):
        moments.add_(part)
    W = (target or conv).weight.detach().double().flatten(1)
    return Member(name, conv, W, shrunk(moments.covariance, 1e-4), None, moments.mean, moments.count / len(x))


@torch.no_grad()
def compressed(model: nn.Sequential, images: Tensor, keep: float, form: str, method: str) -> nn.Sequential:
    """Every convolution but the first (32 filters of 9 numbers) replaced by the largest chain within its share."""
    new, x = copy.deepcopy(model), images
    for place, module in enumerate(model):
        if isinstance(module, nn.Conv2d) and place:
            site = Site(str(place), "convolution", {"weight": _member(str(place), module, x)}, method=method)
            curve = FORMS[form].curve(site)
            fits = np.flatnonzero(curve.parameters <= keep * site.parameters)
            if len(fits):
                size = int(curve.sizes[fits[-1]])
                new[place] = FORMS[form].fit(site, size)[str(place)]
            else:
                return nn.Sequential()
        x = module(x)
    return new


def measured(quick: bool = False) -> Mapping[str, Any]:
    """Relative error of the logits and accuracy, by form and share kept."""
    model, train, test, labels = trained(4 if quick else 30)
    model.requires_grad_(False)
    logits = model(test)
    found: dict[str, Any] = {"accuracy": float((logits.argmax(1) == labels).float().mean()), "rows": []}
    for form, method in PEERS:
        for keep in KEEP:
            new = compressed(model, train, keep, form, method)
            if not len(new):
                continue
            answer = new(test)
            found["rows"].append(
                {
                    "form": form,
                    "method": method,
                    "keep": keep,
                    "error": float((answer - logits).norm() / logits.norm()),
                    "accuracy": float((answer.argmax(1) == labels).float().mean()),
                    "parameters": sum(p.numel() for p in new.parameters()),
                }
            )
    return found
