"""What is measured of a trained network: outcomes, every registered metric of every matrix, baselines, sensitivity."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.generalization.tasks import Task
from benchmarks.generalization.train import Trained, forward
from netspectra.linalg.values import svdvals
from netspectra.metrics import METRICS, evaluate
from netspectra.record import Value
from netspectra.verdicts import judge

PUSH = 0.1  # of the input's norm, in one direction
NOISE = 0.5  # of the input's norm, in random directions
PROBED = 256  # test inputs that are pushed
RANDOM = 4  # random directions a leading one is compared with
SHAKE = 0.2  # of every weight, for the sharpness


@torch.no_grad()
def measure(task: Task, trained: Trained) -> list[dict[str, Any]]:
    """One row a network."""
    outcomes, baselines = outcome(task, trained), simple(trained)
    pushed, unsteady = pushes(task, trained), noisy(task, trained)
    dimension = features(task, trained)
    rows = []
    for place, net in enumerate(trained.networks):
        layers, verdicts = spectra([w[place] for w in trained.weights])
        rows.append(
            {
                "network": asdict(net),
                **{name: float(values[place]) for name, values in (outcomes | baselines).items()},
                "noise_drop": float(unsteady[place]),
                "feature_dimension": float(dimension[place]),
                "push": [[float(answer[place]) for answer in layer] for layer in pushed],
                "layers": layers,
                "verdicts": verdicts,
            }
        )
    return rows


def spectra(weights: list[Tensor]) -> tuple[list[dict[str, float | None]], list[list[str]]]:
    """Every registered metric of every matrix (None where unknown), and the rules that speak.

    Everything but the bootstrap of alpha: its interval is the asymptotic one.
    """
    layers, verdicts = [], []
    for weight in weights:
        spectrum = svdvals(weight)
        found = evaluate(METRICS.values(), spectrum, weight)
        row = {name: known(value) for name, value in found.items()}
        top, middle = spectrum.values[0], spectrum.values[len(spectrum) // 2]
        row["share_of_first"] = 1 / spectrum.relative_energy
        row["flatness"] = found["effective_rank"] / len(spectrum)
        row["spread"] = math.log10(top / middle) if middle > 0 else None
        row["alpha_distance"] = found["alpha"].detail.get("distance")
        row["twin_spikes"] = found["twin_distance"].detail.get("spikes")
        layers.append(row)
        verdicts.append([verdict.rule for verdict in judge(spectrum, found, "linear")])
    return layers, verdicts


def known(value: Value) -> float | None:
    return float(value) if value.known else None


def outcome(task: Task, t: Trained) -> dict[str, Tensor]:
    """Accuracies and losses; the gap compares like with like: both parts with the same label noise.

    test_accuracy is on clean labels, a. With a share p of labels replaced by one of the other K - 1 classes its
    expectation is a (1 - p) + (1 - a) p / (K - 1), and gap = train_accuracy - that.
    """
    own = torch.arange(t.y.shape[1]) < t.count[:, None]
    logits = forward(t.x, t.weights, t.biases)[-1]
    loss = cross_entropy(logits.mT, t.y, reduction="none")
    train_loss, train_accuracy = averaged(loss, own), averaged((logits.argmax(2) == t.y).float(), own)
    margins = logits.gather(2, t.y[:, :, None])[:, :, 0] - others(logits, t.y).amax(2)
    low = torch.stack([m[o].quantile(0.1) for m, o in zip(margins, own, strict=True)])
    test = forward(spread(task.test_x, t), t.weights, t.biases)[-1]
    accuracy = (test.argmax(2) == task.test_y).float().mean(1)
    test_loss = cross_entropy(test.mT, task.test_y.expand(len(test), -1), reduction="none").mean(1)
    p = torch.tensor([net.noise for net in t.networks])
    alike = accuracy * (1 - p) + (1 - accuracy) * p / (task.classes - 1)
    return {
        "test_accuracy": accuracy,
        "gap": train_accuracy - alike,
        "test_loss": test_loss,
        "train_accuracy": train_accuracy,
        "train_loss": train_loss,
        "margin": low,
        "sharpness": sharpness(t, own, train_loss),
    }


def averaged(values: Tensor, own: Tensor) -> Tensor:
    return (values * own).sum(1) / own.sum(1)


def spread(x: Tensor, t: Trained) -> Tensor:
    """The same inputs for every network."""
    return x.expand(len(t.networks), *x.shape)


def others(logits: Tensor, y: Tensor) -> Tensor:
    """The logits without that of the label."""
    return logits.scatter(2, y[:, :, None], -math.inf)


def sharpness(t: Trained, own: Tensor, loss: Tensor) -> Tensor:
    """By how much the training loss rises when every weight is shaken by a fifth of itself (mean of 3 draws)."""
    generator = torch.Generator().manual_seed(3)
    rises = []
    for _ in range(3):
        shaken = [w * (1 + SHAKE * torch.randn(w.shape[1:], generator=generator)) for w in t.weights]
        logits = forward(t.x, shaken, t.biases)[-1]
        rises.append(averaged(cross_entropy(logits.mT, t.y, reduction="none"), own) - loss)
    return torch.stack(rises).mean(0)


def simple(t: Trained) -> dict[str, Tensor]:
    """Baselines that need no spectrum but its largest value."""
    moved = [(w - w0).flatten(1).norm(dim=1) for w, w0 in zip(t.weights, t.start, strict=True)]
    sizes = [w.flatten(1).norm(dim=1) for w in t.weights]
    tops = [torch.linalg.matrix_norm(w, 2) for w in t.weights]
    ratios = [(a / b) ** 2 for a, b in zip(moved, tops, strict=True)]
    product = torch.stack(tops).log().sum(0)
    return {
        "parameters": torch.full((len(sizes[0]),), float(sum(w[0].numel() for w in t.weights + t.biases))),
        "log_frobenius_product": torch.stack(sizes).log().sum(0),
        "log_spectral_product": product,
        "sum_of_squares": torch.stack(sizes).square().sum(0),
        "distance_from_start": torch.stack(moved).square().sum(0).sqrt(),
        "log_spectral_complexity": product + torch.stack(ratios).sum(0).log() / 2,  # Neyshabur et al., 1707.09564
    }


def pushes(task: Task, t: Trained) -> list[tuple[Tensor, Tensor]]:
    """For every layer how far the logits move when its input is pushed along v_1, and along a random direction.

    The push has PUSH times the norm of each input; both signs of v_1, RANDOM draws for the other.
    """
    generator = torch.Generator().manual_seed(4)
    flow = forward(spread(task.test_x[:PROBED], t), t.weights, t.biases)
    answers = []
    for layer, weight in enumerate(t.weights):
        _, _, Vh = torch.linalg.svd(weight, full_matrices=False)
        leading = [Vh[:, :1], -Vh[:, :1]]
        random = torch.randn(RANDOM, len(weight), 1, weight.shape[2], generator=generator)
        random /= random.norm(dim=-1, keepdim=True)
        moved = [
            torch.stack([_moved(t, flow, layer, direction) for direction in directions]).mean(0)
            for directions in (leading, list(random))
        ]
        answers.append((moved[0], moved[1]))
    return answers


def _moved(t: Trained, flow: list[Tensor], layer: int, direction: Tensor) -> Tensor:
    pushed = flow[layer] + PUSH * flow[layer].norm(dim=2, keepdim=True) * direction
    return (forward(pushed, t.weights[layer:], t.biases[layer:])[-1] - flow[-1]).norm(dim=2).mean(1)


def noisy(task: Task, t: Trained) -> Tensor:
    """Share of the test accuracy that is lost when every input gets noise of NOISE times its norm."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(task.test_x.shape, generator=generator)
    noise *= NOISE * task.test_x.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    clean, disturbed = (
        (forward(spread(x, t), t.weights, t.biases)[-1].argmax(2) == task.test_y).float().mean(1)
        for x in (task.test_x, task.test_x + noise)
    )
    return 1 - disturbed / clean.clamp_min(1e-9)


def features(task: Task, t: Trained) -> Tensor:
    """Dimension of the last hidden layer on test inputs: participation ratio of its covariance."""
    last = forward(spread(task.test_x, t), t.weights, t.biases)[-2]
    covariance = (last - last.mean(1, keepdim=True)).mT @ (last - last.mean(1, keepdim=True))
    trace = covariance.diagonal(dim1=1, dim2=2).sum(1)
    return trace**2 / covariance.square().sum((1, 2))
