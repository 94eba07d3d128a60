"""A student from its teacher: fewer layers, fewer neurons, channels and heads, and matrices fitted to what is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.verbs.compress.calibrate import calibrate, layers
from netspectra.verbs.compress.objective import Objective
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.sites import matrix
from netspectra.verbs.distill.channels import Chain, chain_order, chains, narrow_, outputs_of
from netspectra.verbs.distill.paired import refuse_broken
from netspectra.verbs.distill.refit import refit_
from netspectra.verbs.distill.stream import narrower, width_of

__all__ = ["best_layers", "initial_state", "shallower", "shrunk_copy", "stacks"]

Progress = Callable[[str, float], None]


def stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of at least two layers of one class that follow one another, by name; none inside another."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        alike = isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(one) for one in module}) == 1
        if alike and not any(name.startswith(f"{other}.") for other in found):
            found[name] = module  # type: ignore[assignment]
    return found


def best_layers(
    model: nn.Module, stack: str, count: int, held: HeldOut, progress: Progress = lambda what, share: None
) -> tuple[int, ...]:
    """Which ``count`` layers of a stack to keep: one after another, the one whose absence changes the output least.

    Measured, not guessed: L (L - l) runs at most on the held-out batches.
    """
    kept = list(range(len(model.get_submodule(stack))))  # type: ignore[arg-type]
    steps = len(kept) - count
    while len(kept) > count:
        losses = []
        for layer in kept:
            rest = [one for one in kept if one != layer]
            losses.append(held.loss(shallower(model, stack, rest)))
        kept.pop(min(range(len(kept)), key=losses.__getitem__))
        progress("choose layers", 1 - (len(kept) - count) / max(steps, 1))
    return tuple(kept)


def shallower(model: nn.Module, stack: str, kept: Sequence[int]) -> nn.Module:
    """A model of the same modules with only some layers of a stack; its config says so, where it has one."""
    all_layers: Any = model.get_submodule(stack)
    memo: dict[int, Any] = {id(p): p for p in (*model.parameters(), *model.buffers())}
    new = copy.deepcopy(model, memo)  # the same tensors, new modules around them
    new.set_submodule(stack, nn.ModuleList([new.get_submodule(f"{stack}.{layer}") for layer in kept]))
    config: Any = getattr(new, "config", None)
    for word in ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"):
        if getattr(config, word, None) == len(all_layers):
            setattr(config, word, len(kept))
    for place, layer in enumerate(new.get_submodule(stack)):  # type: ignore[arg-type]
        for part in layer.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = place
    return new


def shrunk_copy(
    teacher: nn.Module,
    batches: Sequence[Any],
    widths: Mapping[str, int] | Callable[[Chain], int],
    *,
    select: Literal["forward", "pivoted", "random"] = "forward",
    refit: bool = True,
    seed: int = 0,
    progress: Progress = lambda what, share: None,
) -> nn.Module:
    """A copy of the teacher with fewer units in its chains, each reader fitted to those that are left.

    Args:
        teacher: not changed.
        batches: what it is called with.
        widths: units to keep, by `Chain.name`; or a function that says so.
        select: ``forward``; ``pivoted`` or ``random`` to compare with.
        refit: least squares, or plain cutting (to compare with).
        seed: of random selection.
        progress: told what is done and its share.

    Raises:
        InputRefused: a name that is no chain, a width out of range, or a copy that does not run.
    """
    modules = layers(teacher)
    found = calibrate(teacher, batches, modules, None)
    every = chains(teacher, batches[0], modules, found.structure)
    if not callable(widths):
        unknown = [name for name in widths if name not in {chain.name for chain in every}]
        if unknown:
            known = ", ".join(f"{chain.name} ({chain.width})" for chain in every[:6])
            raise InputRefused(f"{unknown[0]}: is not a layer that can become narrower; there are {known or 'none'}")
    student = copy.deepcopy(teacher)
    narrowed: list[Chain] = []
    outputs: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    for done, chain in enumerate(every):
        wanted = widths(chain) if callable(widths) else widths.get(chain.name, chain.width)
        if not 1 <= wanted <= chain.width:
            raise InputRefused(f"{chain.name}: has {chain.width} {chain.kind}, cannot keep {wanted}")
        if wanted < chain.width:
            order = chain_order(teacher, chain, found, "pivoted" if select == "random" else select, wanted)
            keep = order.kept(wanted)
            if select == "random":
                keep = torch.randperm(chain.width, generator=generator)[:wanted].sort().values
            mean = found.inputs[found.owner[chain.reader]].mean
            narrow_(student, chain, order, keep, mean, refit=refit)
            narrowed.append(chain)
            outputs |= {name: outputs_of(teacher.get_submodule(name), chain, keep) for name in chain.makers}
        progress("select", (done + 1) / len(every))
    refuse_broken(student, batches[0])
    if refit:
        refit_(student, teacher, batches, narrowed, outputs, found.structure.norms, lambda x: progress("refit", x))
    return student


def initial_state(
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Any],
    objective: Objective,
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = lambda what, share: None,
) -> dict[str, Tensor]:
    """A ``state_dict`` for a student whose modules have the teacher's names: depths and widths are read off its shapes.

    Layers that it lacks are those whose absence changes the teacher's output least; units are chosen one after another
    by what they tell of the reader's output, and a matrix that reads fewer units is the least-squares fit to the
    teacher's. A narrower residual stream (norms of another size) is rotated to its principal directions.

    Args:
        teacher: not changed.
        student: only its names and shapes are looked at.
        batches: what the teacher is called with.
        objective: what of the output counts when layers are chosen.
        kept: by stack, which layers; chosen where it does not say.
        progress: told what is done and its share.

    Raises:
        InputRefused: a parameter whose shape is not the teacher's with fewer layers, neurons, channels or heads, or
            whose stream cannot be rotated.
    """
    base = teacher
    mine = stacks(student)
    for name, stack in stacks(teacher).items():
        want = len(mine[name]) if name in mine else _length(student, name)
        if want and want < len(stack):
            few = batches[: max(1, min(4, len(batches)))]
            chosen = (kept or {}).get(name) or best_layers(base, name, want, HeldOut.of(base, few, objective), progress)
            base = shallower(base, name, chosen)
    shapes = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}

    def wanted(chain: Chain) -> int:
        total = matrix(base.get_submodule(chain.reader)).shape[1]
        found = shapes.get(f"{chain.reader}.weight")
        if found is None:
            return chain.width
        own = student.get_submodule(chain.reader)
        return matrix(own).shape[1] * chain.width // total

    small = shrunk_copy(base, batches, wanted, progress=progress)
    stream = _stream(small, shapes)
    if stream:
        small = narrower(small, batches, stream, progress=lambda share: progress("rotate", share))
    state = small.state_dict()
    wrong = [
        f"{name} {list(shape)} (from {list(state[name].shape) if name in state else 'nothing'})"
        for name, shape in shapes.items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputRefused(
            f"the student does not follow from the teacher by fewer layers, neurons, channels, heads or a narrower "
            f"residual stream: {', '.join(wrong[:3])}{more}"
        )
    _refuse_ties(student, state)
    return {name: state[name].detach().clone() for name in shapes}


def _stream(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """How wide the student's residual stream is where it is narrower than the model's; else 0."""
    width, norms = width_of(model)
    theirs = {shapes[f"{name}.weight"][0] for name in norms if len(shapes.get(f"{name}.weight", ())) == 1}
    return theirs.pop() if len(theirs) == 1 and max(theirs) < width else 0


def _refuse_ties(student: nn.Module, state: Mapping[str, Tensor]) -> None:
    """What the student holds once cannot be given two values: the one that is loaded last would win silently."""
    first: dict[int, str] = {}
    for name, tensor in student.state_dict(keep_vars=True).items():
        other = first.setdefault(id(tensor), name)
        if other != name and not torch.equal(state[name], state[other]):
            raise InputRefused(
                f"the student ties {name} to {other}, which differ here (a rotated stream takes the final norm's gain "
                "into the head): untie them, in transformers by tie_word_embeddings=False"
            )


def _length(student: nn.Module, stack: str) -> int:
    """How many layers a stack of this name has in the student, also where it is one."""
    try:
        return len(student.get_submodule(stack))  # type: ignore[arg-type]
    except (AttributeError, TypeError):
        return 0


def share_of(share: float, heads: float = 1.0) -> Callable[[Chain], int]:
    """Widths that keep a share of every chain's units (``heads``: of attention heads).

    >>> share_of(0.25)(Chain("neurons", ("up",), "down", 1536))
    384
    """
    return lambda chain: max(1, math.ceil(chain.width * (heads if chain.kind == "heads" else share)))
