"""What a teacher's modules make beside what the student's see at the same places, on its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.linalg.pairs import Pairs
from netspectra.live.batches import call, main_output
from netspectra.live.untouched import untouched
from netspectra.live.watching import watching
from netspectra.verbs.compress.calibrate import CONVOLUTIONS, rows
from netspectra.verbs.compress.objective import token_mask

__all__ = ["Rows", "entering", "leaving", "paired", "refuse_broken"]

Rows = Callable[[str, nn.Module, Tensor, Tensor, Any], Tensor]


def entering(name: str, module: nn.Module, x: Tensor, y: Tensor, batch: Any) -> Tensor:
    """What a layer multiplies its matrix with, as rows (n, q), padding left out."""
    keep = None if isinstance(module, CONVOLUTIONS) else token_mask(name, x.shape[:-1], batch)
    return torch.cat(list(rows(module, x, keep)))


def leaving(name: str, module: nn.Module, x: Tensor, y: Tensor, batch: Any) -> Tensor:
    """What it makes, as rows (n, m)."""
    if isinstance(module, CONVOLUTIONS):
        return y.movedim(1, -1).flatten(0, -2)
    keep = token_mask(name, y.shape[:-1], batch)
    return y[keep] if keep is not None else y.flatten(0, -2)


def paired(
    teacher: nn.Module, student: nn.Module, batches: Sequence[Any], names: Sequence[str], seen: Rows, wanted: Rows
) -> dict[str, tuple[Pairs, Pairs]]:
    """By module the sums over either half of the samples: z of the student as it is now, y of the teacher.

    Args:
        teacher: called with every batch, not changed.
        student: with modules of these names.
        batches: halved each, so that no sample's tokens are in both halves (of an odd number one sample's are).
        names: of modules that run once a batch or more, as often in both.
        seen: rows (n, q) of a run in the student.
        wanted: rows (n, m) of a run in the teacher.
    """
    sums: dict[str, tuple[Pairs, Pairs]] = {}
    made: dict[str, list[Tensor]] = {name: [] for name in names}
    now: Any = None
    runs = 0  # of these modules together in a batch, known once one has run; what comes after the last is not needed
    theirs, mine = ({name: model.get_submodule(name) for name in names} for model in (teacher, student))

    def keep(name: str, x: Tensor, y: Tensor) -> None:
        made[name].append(wanted(name, theirs[name], x, y, now).float().cpu())
        if runs and sum(map(len, made.values())) == runs:
            raise _Enough

    def add(name: str, x: Tensor, y: Tensor) -> None:
        target, z = made[name].pop(0), seen(name, mine[name], x, y, now).float().cpu()
        if name not in sums:
            m, q = target.shape[1], z.shape[1]
            sums[name] = Pairs.zeros(m, q), Pairs.zeros(m, q)
        middle = (len(z) + 1) // 2  # rows are in the order of the samples
        sums[name][0].add_(z[:middle], target[:middle])
        sums[name][1].add_(z[middle:], target[middle:])
        if student is not teacher and not any(made.values()):
            raise _Enough

    with untouched(teacher), untouched(student), torch.no_grad():
        for now in batches:
            if student is teacher:
                with watching(theirs, keep), watching(mine, add):
                    call(teacher, now)
                continue
            with suppress(_Enough), watching(theirs, keep):
                call(teacher, now)
            runs = runs or sum(map(len, made.values()))
            with suppress(_Enough), watching(mine, add):
                call(student, now)
            made = {name: [] for name in names}
    return sums


class _Enough(Exception):
    """All that was to be seen of a batch has been seen."""


def refuse_broken(student: nn.Module, batch: Any) -> None:
    """Raise `InputRefused` where a narrower copy does not run: a forward that counts on a width of its own."""
    with untouched(student), torch.no_grad():
        try:
            main_output(call(student, batch))
        except (RuntimeError, ValueError, IndexError) as wrong:
            raise InputRefused(f"the narrower copy does not run: {' '.join(str(wrong).split())[:160]}") from None
