"""A short distillation of the compressed model towards the original, without labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.live.batches import call
from netspectra.live.untouched import untouched
from netspectra.live.watching import watching
from netspectra.verbs.compress.objective import Objective, token_mask
from netspectra.verbs.compress.refit import last_stage
from netspectra.verbs.compress.replace import Replacement, tried

__all__ = ["heal_"]

LAYERWISE = 1.0  # weight of the layers' own relative errors beside that of the signal
WARM = 0.1  # share of the steps in which the rate rises


def heal_(
    model: nn.Module,
    replacements: Sequence[Replacement],
    batches: Sequence[Any],
    objective: Objective,
    *,
    steps: int,
    rate: float,
    judge: Callable[[], float],
    progress: Callable[[float], None] = lambda share: None,
    checks: int = 4,
) -> tuple[float, float]:
    """Train the replacements (and the norms and biases around them) to give the original's signal.

        loss = d(signal, original) / E|original|^2 + mean over layers of |y - y_original|^2 / |y_original|^2

    AdamW, a cosine of the rate after a short rise; the state of least held-out loss is kept, which may be the one
    before the first step.

    Args:
        model: the original, with its own modules; its parameters are not changed.
        replacements: trained in place.
        batches: calibration data, no labels.
        objective: the signal.
        steps: optimizer steps, a batch each.
        rate: largest learning rate.
        judge: held-out loss of the replacements as they are.
        progress: told the share done.
        checks: how often the judge is asked.

    Returns:
        Held-out loss before, and of what was kept.
    """
    parameters = [p for one in replacements for p in one.module.parameters()]
    parameters = list({id(p): p for p in parameters}.values())
    best = first = judge()
    kept = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    warm = max(1, int(WARM * steps))
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0)).tolist()
    names = [one.name for one in replacements if _comparable(model, one)]
    with untouched(model):
        for p in model.parameters():
            p.requires_grad_(False)
        for p in parameters:
            p.requires_grad_(True)
        for step in range(steps):
            share = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
            for group in optimizer.param_groups:
                group["lr"] = rate * max(share, 1e-3)
            with torch.enable_grad():
                loss = _loss(model, replacements, names, batches[order[step % len(batches)]], objective)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            progress((step + 1) / steps)
            if (step + 1) % max(1, steps // checks) == 0 or step + 1 == steps:
                found = judge()
                if found < best:
                    best, kept = found, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
            p.grad = None
    return first, best


def _comparable(model: nn.Module, one: Replacement) -> bool:
    """Whether the replacement's output means what the original's means."""
    original = model.get_submodule(one.name)
    new, old = getattr(one.module, "out_features", None), getattr(original, "out_features", None)
    return last_stage(one.module) is not None and new is not None and new == old


def _loss(
    model: nn.Module, replacements: Sequence[Replacement], names: Sequence[str], batch: Any, objective: Objective
) -> Tensor:
    targets: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    with torch.no_grad(), watching({n: model.get_submodule(n) for n in names}, lambda n, x, y: targets.update({n: y})):
        wanted = objective.signal(call(model, batch), batch)
    with tried(model, replacements) as changed:
        modules = {name: changed.get_submodule(name) for name in names}
        with watching(modules, lambda n, x, y: found.update({n: y})):
            signal = objective.signal(call(changed, batch), batch)
    loss = objective.difference(signal, wanted)
    layers = []
    for name, y in found.items():
        keep = token_mask(name, y.shape[:-1], batch)
        new, old = (y, targets[name]) if keep is None else (y[keep], targets[name][keep])
        layers.append((new - old).square().sum() / old.square().sum().clamp_min(1e-30))
    return loss + LAYERWISE * torch.stack(layers).mean() if layers else loss
