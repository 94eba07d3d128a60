"""A small training loop: a student towards its teacher's output, and towards its features where they are matched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import call
from netspectra.live.matching import SubspaceLoss
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.objective import Objective, as_objective, token_mask
from netspectra.verbs.distill.features import captured

__all__ = ["distillation_loss", "matched", "train"]

WARM = 0.05  # share of the steps in which the rate rises


def distillation_loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: Any,
    objective: Objective,
    matches: Mapping[tuple[str, str], SubspaceLoss] | None = None,
    weight: float = 1.0,
) -> Tensor:
    """The loss of one batch, to be used in any loop (PyTorch, Lightning, ...).

        loss = d(student's signal, teacher's) + weight * mean over matches of `SubspaceLoss`

    Args:
        student: called with gradients as they are set.
        teacher: called without.
        batch: what both are called with.
        objective: the signal; d is the mean KL divergence of logits, or the relative squared error.
        matches: by (teacher's module, student's module).
        weight: of the matches.
    """
    matches = matches or {}
    with torch.no_grad(), captured(teacher, [pair[0] for pair in matches]) as theirs:
        wanted = objective.signal(call(teacher, batch), batch)
    with captured(student, [pair[1] for pair in matches]) as mine:
        loss = objective.difference(objective.signal(call(student, batch), batch), wanted)
    if matches:
        parts = [
            match(mine[new], theirs[old], token_mask(old, theirs[old].shape[:-1], batch))
            for (old, new), match in matches.items()
        ]
        loss = loss + weight * torch.stack(parts).mean()
    return loss


def matched(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Any],
    pairs: Sequence[tuple[str, str]],
    *,
    share: float = 0.99,
) -> dict[tuple[str, str], SubspaceLoss]:
    """A `SubspaceLoss` for each pair of modules (teacher's, student's), its map fitted to the student as it is."""
    if not batches or not pairs:
        raise InputRefused("matching features needs batches and pairs of modules")
    old: dict[str, list[Tensor]] = {a: [] for a, _ in pairs}
    new: dict[str, list[Tensor]] = {b: [] for _, b in pairs}
    for model, rows in ((teacher, old), (student, new)):
        with untouched(model), torch.no_grad(), captured(model, list(rows)) as found:
            for batch in batches:
                call(model, batch)
                for name, some in rows.items():
                    y = found[name]
                    keep = token_mask(name, y.shape[:-1], batch)
                    some.append((y[keep] if keep is not None else y.reshape(-1, y.shape[-1])).float())
    made = {}
    for a, b in pairs:
        wanted, mine = torch.cat(old[a]), torch.cat(new[b])
        if len(wanted) != len(mine):
            raise InputRefused(f"{a} and {b} have {len(wanted)} and {len(mine)} positions on the same data")
        with torch.random.fork_rng(devices=[]):
            made[a, b] = SubspaceLoss(wanted, mine.shape[-1], share=share).fit_(mine, wanted).to(wanted.device)
    return made


def train(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Any],
    *,
    steps: int,
    rate: float = 1e-3,
    objective: str | Callable[[Any, Any], Tensor] | None = None,
    matches: Mapping[tuple[str, str], SubspaceLoss] | None = None,
    weight: float = 1.0,
    seed: int = 0,
    each: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train a student in place towards its teacher, without labels.

    AdamW, gradients clipped at norm 1, a cosine of the rate after a short rise; batches in a seeded order. The student
    is in training mode while it learns and comes back in the mode it had; the teacher comes back untouched.

    Args:
        student: its parameters that require gradients are trained.
        teacher: the model to follow.
        batches: what both are called with.
        steps: optimizer steps, a batch each.
        rate: largest learning rate.
        objective: as in compression: logits, embedding, hidden, output, a function; None: what the output suggests.
        matches: of `matched`; their maps are trained too.
        weight: of the matches.
        seed: of the order.
        each: called with the step done (from 1) and its loss; may evaluate.

    Returns:
        The loss of every step.
    """
    batches = list(batches)
    if not batches:
        raise InputRefused("training needs at least one batch")
    with untouched(teacher):
        goal = as_objective(objective, teacher, batches[0])
    maps = [p for match in (matches or {}).values() for p in match.parameters()]
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([*parameters, *maps], lr=rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    warm, was, losses = max(1, int(WARM * steps)), student.training, []
    student.train()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of dropout
            for step in range(steps):
                if not order:
                    order = torch.randperm(len(batches), generator=generator).tolist()
                done = (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * step / steps))
                for group in optimizer.param_groups:
                    group["lr"] = rate * max(done, 0.01)
                with untouched(teacher):
                    loss = distillation_loss(student, teacher, batches[order.pop()], goal, matches, weight)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                losses.append(float(loss.detach()))
                each(step + 1, losses[-1])
    finally:
        student.train(was)
    return losses
