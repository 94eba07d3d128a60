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
from netspectra.linalg.features import least_squares
from netspectra.linalg.moments import shrunk
from netspectra.verbs.compress.calibrate import rows
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress

KEEP = (0.5, 0.3, 0.15)
METHODS = ("plain", "whitened", "anchored")  # anchored: whitened, inputs from the compressed layers before
FORM_NAMES = ("channel", "spatial", "tucker")
CONVOLUTIONS = ("2.weight", "5.weight", "7.weight")  # the first has 32 filters of 9 numbers: left as it is
RIDGE = 1e-4  # share of the mean diagonal by which moments are drawn to it; 1400 images of 64 pixels are enough


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

    data: Any = load_digits()
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


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return torch.cat(list(rows(conv, x)), -2).double()


def _member(name: str, conv: nn.Conv2d, x: Tensor) -> Member:
    X = _patches(conv, x)
    mean = X.mean(0)
    A = shrunk((X - mean).mT @ (X - mean) / len(X), RIDGE)
    return Member(name, conv, conv.weight.detach().double().flatten(1), A, None, mean, len(X) / len(x))


def _anchored(name: str, conv: nn.Conv2d, x: Tensor, z: Tensor) -> Member:
    """The convolution that makes of the compressed net's input z what this one makes of x, by least squares."""
    X, Z, W = _patches(conv, x), _patches(conv, z), conv.weight.detach().double().flatten(1)
    at, mean = X.mean(0), Z.mean(0)
    ZZ, XZ = (Z - mean).mT @ (Z - mean) / len(Z), (X - at).mT @ (Z - mean) / len(Z)
    A = shrunk(ZZ, RIDGE)
    new = W + least_squares(A, (XZ.mT - ZZ) @ W.mT).mT
    moved = copy.deepcopy(conv).double()
    moved.weight.copy_(new.reshape(conv.weight.shape))
    if moved.bias is not None:
        moved.bias += W @ at - new @ mean
    return Member(name, moved, new, A, None, mean, len(Z) / len(z))


@torch.no_grad()
def compressed(model: nn.Sequential, images: Tensor, keep: float, form: str, method: str) -> nn.Sequential | None:
    """Every convolution but the first (32 filters of 9 numbers) replaced by the largest chain within its share.

    None where a convolution has no chain of that form that is small enough.
    """
    new, x, z = copy.deepcopy(model), images, images
    for place, module in enumerate(model):
        if isinstance(module, nn.Conv2d) and place:
            name = str(place)
            member = _anchored(name, module, x, z) if method == "anchored" else _member(name, module, x)
            known = "plain" if method == "plain" else "whitened"
            site = Site(name, "convolution", {"weight": member}, method=known)
            curve = FORMS[form].curve(site)
            fits = np.flatnonzero(curve.parameters <= keep * site.parameters)
            if not len(fits):
                return None
            new[place] = FORMS[form].fit(site, int(curve.sizes[fits[-1]]))[name].to(images.dtype)
        x, z = module(x), new[place](z)
    return new


def planned(model: nn.Sequential, images: Tensor, keep: float, **wanted: Any) -> nn.Sequential:
    """What ``netspectra compress`` makes of the same convolutions: a form and size for each, by predicted loss."""
    options = CompressOptions(keep=keep, include=CONVOLUTIONS, shrink_inputs=RIDGE, shrink_outputs=RIDGE, **wanted)
    plan, _ = compress(model, options, list(images.split(100)))
    return plan.apply(copy.deepcopy(model))


def measured(quick: bool = False) -> Mapping[str, Any]:
    """Relative error of the logits and accuracy on test images, by form, method and share kept."""
    model, train, test, labels = trained(2 if quick else 30)
    models = [
        (form, method, keep, compressed(model, train, keep, form, method))
        for method in METHODS
        for form in FORM_NAMES
        for keep in KEEP
    ]
    for refit in (0, 1):
        name = "two-sided, allocated" + (", refit" if refit else "")
        models += [("the command's choice", name, keep, planned(model, train, keep, refit=refit)) for keep in KEEP]
    with torch.no_grad():
        logits = model(test)
        found: dict[str, Any] = {"accuracy": float((logits.argmax(1) == labels).float().mean()), "rows": []}
        for form, method, keep, new in models:
            if new is None:
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
