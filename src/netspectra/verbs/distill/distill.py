"""The verbs: what a network uses on data, and what that says of the student it could be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.linalg.similarity import debiased_cka, principal_cosines, procrustes
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.calibrate import Calibration, calibrate, fitting, layers
from netspectra.verbs.compress.objective import as_objective
from netspectra.verbs.distill.activity import activities
from netspectra.verbs.distill.channels import chain_order, chains
from netspectra.verbs.distill.features import landmarks, summarised
from netspectra.verbs.distill.result import Distillation, Expressivity, Likeness
from netspectra.verbs.distill.widths import widths_of
from netspectra.weight import Selection

__all__ = ["DistillOptions", "distill", "expressivity"]

ANGLES = 10  # principal angles that are compared
LEAST = 16  # samples, for likeness


@dataclass(frozen=True)
class DistillOptions:
    """What to look at.

    Attributes:
        include: patterns of module names to measure.
        exclude: patterns to leave out.
        objective: what of the output counts: logits, embedding, hidden, output, a function; None: what it suggests.
        seed: of the resampling.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    objective: str | Callable[[Any, Any], Tensor] | None = None
    seed: int = 0


Progress = Callable[[str, float], None]


def _measured(
    model: nn.Module, batches: Sequence[Any], options: DistillOptions, progress: Progress
) -> tuple[Expressivity, Calibration]:
    modules = layers(model)
    if not modules:
        raise InputRefused(f"{type(model).__name__}: has no Linear, convolution or embedding of torch's own classes")
    found = calibrate(model, batches, modules, None, progress=lambda samples: progress("moments", 0.5))
    selection = Selection(options.include, options.exclude)
    chosen = {name: module for name, module in modules.items() if selection.accepts(name)}
    for name in list(chosen):  # what shares an input is measured through its owner
        owner = found.owner.get(name)
        if owner is not None:
            chosen.setdefault(owner, modules[owner])
    seen = activities(
        model, batches, found, chosen, seed=options.seed, progress=lambda share: progress("directions", share)
    )
    seen = tuple(one for one in seen if selection.accepts(one.name))
    if not seen:
        raise InputRefused("no layer is left to measure: see include and exclude, and whether the data reaches them")
    few = [one.name for one in seen if not one.enough]
    notes = []
    if few:
        notes.append(
            f"{len(few)} of {len(seen)} layers saw fewer than ten inputs a dimension ({few[0]}, ...): "
            "their ranks are underestimated, give more data"
        )
    return Expressivity(seen, found.samples, tuple(notes)), found


def expressivity(
    model: nn.Module,
    data: Iterable[Any],
    options: DistillOptions = DistillOptions(),
    *,
    progress: Progress = lambda what, share: None,
) -> Expressivity:
    """How many directions each layer uses on data; see ``netspectra.expressivity``."""
    return _measured(model, _batches(model, data), options, progress)[0]


def distill(
    teacher: nn.Module,
    data: Iterable[Any],
    student: nn.Module | None = None,
    options: DistillOptions = DistillOptions(),
    *,
    progress: Progress = lambda what, share: None,
) -> Distillation:
    """What a student of this teacher could be; see ``netspectra.distill``."""
    batches = _batches(teacher, data)
    with untouched(teacher):
        objective = as_objective(options.objective, teacher, batches[0])
    use, found = _measured(teacher, batches, options, progress)
    every = chains(teacher, batches[0], layers(teacher), found.structure)
    orders = []
    for done, chain in enumerate(every):
        orders.append((chain, chain_order(teacher, chain, found)))
        progress("widths", (done + 1) / len(every))
    widths = widths_of(
        teacher, batches, found, orders, seed=options.seed, progress=lambda share: progress("intervals", share)
    )
    alike = _likeness(teacher, teacher if student is None else student, batches, progress)
    return Distillation(use, widths, alike, teacher, batches, objective)


def _batches(model: nn.Module, data: Iterable[Any]) -> list[Any]:
    batches = [fitting(model, batch) for batch in (data() if callable(data) else data)]
    if not batches:
        raise InputRefused("the data holds no batch; give at least one")
    return batches


def _likeness(
    teacher: nn.Module, student: nn.Module, batches: Sequence[Any], progress: Progress
) -> tuple[Likeness, ...]:
    old = summarised(teacher, batches, landmarks(teacher))
    new = old if student is teacher else summarised(student, batches, landmarks(student))
    samples = len(next(iter(old.values()), ()))
    if samples < LEAST:
        return ()
    found = []
    for done, (a, X) in enumerate(old.items()):
        for b, Y in new.items():
            k = min(ANGLES, X.shape[1], Y.shape[1], (samples - 1) // 4)
            cosine = float(principal_cosines(X, Y, k).square().mean().sqrt())
            cka = debiased_cka(X, Y)
            if cka == cka:
                chance = (k / (samples - 1)) ** 0.5
                found.append(Likeness(a, b, cka, cosine, chance, k, procrustes(X, Y)))
        progress("likeness", (done + 1) / len(old))
    return tuple(found)
