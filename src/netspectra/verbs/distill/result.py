"""What was found out about a teacher, and the students that can be made of it."""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.matching import SubspaceLoss
from netspectra.report.distillation_page import render_distillation
from netspectra.verbs.compress.objective import Objective
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.distill.activity import Activity
from netspectra.verbs.distill.stream import narrower
from netspectra.verbs.distill.student import best_layers, initial_state, shallower, share_of, shrunk_copy, stacks
from netspectra.verbs.distill.training import matched, train
from netspectra.verbs.distill.widths import Width
from netspectra.written import columns, strict_json, write_by_suffix

__all__ = ["Distillation", "Expressivity", "Likeness", "Width"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Expressivity:
    """Which directions each layer uses on data: iterate over the `Activity` of its layers, or index by name.

    Attributes:
        layers: in the order in which they ran.
        samples: how many were seen.
        notes: what a reader should know.
    """

    layers: tuple[Activity, ...]
    samples: int
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[Activity]:
        """Iterate over the layers."""
        return iter(self.layers)

    def __len__(self) -> int:
        """Count them."""
        return len(self.layers)

    def __getitem__(self, name: str) -> Activity:
        """Find a layer by its module's name."""
        for one in self.layers:
            if one.name == name:
                return one
        raise KeyError(f"no layer {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        return {
            "schema": 1,
            "verb": "expressivity",
            "samples": self.samples,
            "notes": list(self.notes),
            "layers": [one.to_dict() for one in self],
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict())

    def to_html(self) -> str:
        """A self-contained page."""
        return render_distillation(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.html``; never half a file."""
        write_by_suffix(path, {".json": self.to_json, ".html": self.to_html})

    def __repr__(self) -> str:
        """Say it in one line."""
        return f"Expressivity({len(self)} layers, {self.samples} samples)"

    def __str__(self) -> str:
        """Show a table."""
        head = ("layer", "shape", "inputs: rank", "k90", "k99", "weights: k90", "action: k90", "k99")
        rows = [
            (
                one.name,
                "{} x {}".format(*one.shape),
                _short(one.inputs.effective_rank),
                _short(one.inputs.k90),
                _short(one.inputs.k99),
                f"{one.plain.k90:.0f}",
                _short(one.used.k90),
                _short(one.used.k99),
            )
            for one in self
        ]
        return "\n".join([_columns([head, *rows]), *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Show the table in notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True)
class Likeness:
    """How alike two modules' outputs are, a row a sample.

    Attributes:
        teacher: name of the module.
        student: of the student's; of the teacher's own where no student was given.
        cka: debiased centred kernel alignment.
        cosine: root mean squared cosine of the ``k`` leading principal angles.
        chance: of independent representations, what ``cosine`` would be.
        k: how many.
        procrustes: of the best rotation and scale.
    """

    teacher: str
    student: str
    cka: float
    cosine: float
    chance: float
    k: int
    procrustes: float


@dataclass(frozen=True, eq=False)
class Distillation:
    """A teacher, what it uses, and how to start a student from it.

    Attributes:
        use: ranks of every layer, with intervals.
        widths: one a chain.
        likeness: all pairs of landmarks, teacher by student.
        teacher: the model.
        batches: the data.
        objective: what of its output counts.
    """

    use: Expressivity
    widths: tuple[Width, ...]
    likeness: tuple[Likeness, ...]
    teacher: nn.Module = field(repr=False)
    batches: Sequence[Any] = field(repr=False)
    objective: Objective = field(repr=False)

    def student(
        self,
        width: float | Mapping[str, int] | None = None,
        *,
        depth: int | Mapping[str, Sequence[int]] | None = None,
        heads: float = 1.0,
        stream: int | None = None,
        progress: Progress = lambda what, share: None,
    ) -> nn.Module:
        """A shrunk copy of the teacher, ready to be trained; the teacher is not changed.

        Units are chosen one after another by what they tell of their reader's output, which is then refitted to them.
        The residual stream is rotated to its principal directions, which commutes with norms that stand before layers.

        Args:
            width: a share of every chain's units, or units by name (`widths` lists them); None: what is suggested.
            depth: layers to keep of the model's only stack, chosen by what their absence costs; or which, by stack.
            heads: share of attention heads that stay, where a share is given.
            stream: dimensions of the residual stream that stay; None: all.
            progress: told what is done and its share.

        Raises:
            InputRefused: no such width or depth, or no stream that can be rotated (norms after the sum, as in BERT).
        """
        base = self.teacher
        if depth is not None:
            for stack, kept in self._depths(depth, progress).items():
                base = shallower(base, stack, kept)
        if width is None:
            widths: Any = {one.name: int(one.suggested) for one in self.widths if one.kind != "heads"}
            if depth is not None:
                kept_names = {name for name, _ in base.named_modules()}
                widths = {name: k for name, k in widths.items() if name in kept_names}
        elif isinstance(width, Mapping):
            widths = width
        elif 0 < width <= 1:
            widths = share_of(float(width), heads)
        else:
            raise InputRefused(f"width is a share between 0 and 1, or units by name; found {width}")
        whole = width == 1 and heads == 1  # nothing to choose: a copy
        found = copy.deepcopy(base) if whole else shrunk_copy(base, self.batches, widths, progress=progress)
        if stream is None:
            return found
        return narrower(found, self.batches, stream, progress=lambda share: progress("rotate", share))

    def _depths(self, depth: Any, progress: Progress) -> Mapping[str, Sequence[int]]:
        if isinstance(depth, Mapping):
            return depth
        found = stacks(self.teacher)
        if len(found) != 1:
            names = ", ".join(found) or "none"
            raise InputRefused(f"depth={depth}: the model has {len(found)} stacks of layers ({names}); say which")
        ((name, stack),) = found.items()
        if not 1 <= depth <= len(stack):
            raise InputRefused(f"depth={depth}: {name} has {len(stack)} layers")
        held = HeldOut.of(self.teacher, self.batches[: max(1, min(4, len(self.batches)))], self.objective)
        return {name: best_layers(self.teacher, name, depth, held, progress)}

    def state_dict(
        self,
        student: nn.Module,
        *,
        kept: Mapping[str, Sequence[int]] | None = None,
        progress: Progress = lambda what, share: None,
    ) -> dict[str, Tensor]:
        """Initial numbers for a student of your own, whose modules have the teacher's names and smaller sizes.

        Args:
            student: fewer layers in a stack, neurons, channels, heads, a narrower residual stream; only names, shapes
                and what is tied are looked at.
            kept: by stack, which of the teacher's layers; by default those whose absence costs most.
            progress: told what is done and its share.

        Raises:
            InputRefused: a parameter that does not follow from the teacher's.
        """
        return initial_state(self.teacher, student, self.batches, self.objective, kept=kept, progress=progress)

    def loss(
        self, student: nn.Module, pairs: Sequence[tuple[str, str]], *, share: float = 0.99
    ) -> dict[tuple[str, str], SubspaceLoss]:
        """Principal-subspace losses for pairs of modules (teacher's, student's), to train with.

        Args:
            student: a live student.
            pairs: names; `likeness` helps to choose.
            share: of the teacher's variance that is matched.
        """
        return matched(student, self.teacher, self.batches[: max(1, min(16, len(self.batches)))], pairs, share=share)

    def train(self, student: nn.Module, *, steps: int, **options: Any) -> list[float]:
        """Train the student in place on the data; see `netspectra.verbs.distill.training.train` for the options."""
        return train(student, self.teacher, self.batches, steps=steps, **options)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        found = self.use.to_dict()
        found |= {
            "verb": "distill",
            "objective": self.objective.name,
            "widths": [one.to_dict() for one in self.widths],
            "likeness": [vars(one) for one in self.likeness],
        }
        return found

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict())

    def to_html(self) -> str:
        """A self-contained page."""
        return render_distillation(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.html``; never half a file."""
        write_by_suffix(path, {".json": self.to_json, ".html": self.to_html})

    def __repr__(self) -> str:
        """Say it in one line."""
        return f"Distillation({len(self.use)} layers, {len(self.widths)} chains, {self.use.samples} samples)"

    def __str__(self) -> str:
        """Show ranks, widths and the best matches."""
        parts = [str(self.use)]
        if self.widths:
            rows = [(w.name, w.kind, str(w.width), _short(w.suggested), _short(w.tenth)) for w in self.widths]
            parts.append(_columns([("narrower", "", "now", "for 1 %", "for 10 %"), *rows]))
        if self.likeness:
            best: dict[str, Likeness] = {}
            for one in self.likeness:
                if one.student not in best or one.cka > best[one.student].cka:
                    best[one.student] = one
            matches = [
                (
                    one.student,
                    one.teacher,
                    f"{one.cka:.3f}",
                    f"{one.cosine:.2f} ({one.chance:.2f})",
                    f"{one.procrustes:.2f}",
                )
                for one in best.values()
            ]
            parts.append(_columns([("student", "most like", "CKA", "cosine (chance)", "Procrustes"), *matches]))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        """Show the tables in notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def _short(value: Any) -> str:
    """A value with its interval."""
    if not value.known:
        return "-"
    form = ".0f" if float(value).is_integer() else ".1f"
    return format(float(value), form) + ("" if value.low is None else f" ({value.low:{form}}-{value.high:{form}})")


def _columns(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(columns(rows))
