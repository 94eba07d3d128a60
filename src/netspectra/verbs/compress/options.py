"""What a user may ask of a compression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms import FORMS
from netspectra.forms.codes import Coding
from netspectra.methods import METHODS

__all__ = ["CompressOptions"]

BUDGETS = ("keep", "parameters", "bytes", "flops", "milliseconds", "loss")


@dataclass(frozen=True)
class CompressOptions:
    """How to compress. One budget is given; all others are None.

    Attributes:
        keep: share of the selected weights' parameters that stays.
        parameters: of the selected weights, at most.
        bytes: of the selected weights, at most.
        flops: multiplications a sample in the selected weights, at most.
        milliseconds: of the selected weights on one calibration batch, measured, at most.
        loss: largest predicted loss a sample; then as few parameters as it allows.
        include: patterns of names to take.
        exclude: patterns of names to leave.
        method: plain, asvd, whitened, fisher, two_sided; None: the best that the data allows.
        forms: names of forms to choose among; empty: all.
        portable: only forms that load without this package.
        objective: what to keep: logits, embedding, hidden, output, a function; None: what the output suggests.
        probes: draws of the label-free loss for each batch.
        backward: differentiate it; without, only inputs are known.
        shrink_inputs: share by which A is drawn to its mean diagonal.
        shrink_outputs: the same of G.
        spread: share of the input moments that is of the same samples with tokens drawn from the whole vocabulary: a
            little worse on texts like the calibration's, much better on others; None: 0.4 where the model reads
            tokens, else 0.
        centre: take errors about the mean and fold the rest into biases.
        checked: draws of samples, about, along whose errors predicted losses are checked; 0: the moments are believed,
            as if tokens did not depend on one another.
        held_out: share of the calibration samples that only judges.
        timed: measure each form's time; None: where a latency budget asks.
        never_slower: leave out forms that are not measured faster than the dense layer; None: with latency budgets.
        refit: sweeps of fitting layers anew behind the compressed ones, kept only if the held-out loss falls.
        task: a metric of your own, model -> {name: value}, measured before and after.
        heal: steps of distillation afterwards, kept only if the held-out loss falls.
        heal_rate: their learning rate.
        seed: of all draws.
        coding: how weights become codes, where ``forms`` names forms of few bits (int4, ...).
    """

    keep: float | None = None
    parameters: float | None = None
    bytes: float | None = None
    flops: float | None = None
    milliseconds: float | None = None
    loss: float | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    method: str | None = None
    forms: tuple[str, ...] = ()
    portable: bool = False
    objective: str | Callable[[Any, Any], Tensor] | None = None
    probes: int = 1
    backward: bool = True
    shrink_inputs: float = 0.02
    shrink_outputs: float = 0.05
    spread: float | None = None
    centre: bool = True
    checked: int = 192
    held_out: float = 0.125
    timed: bool | None = None
    never_slower: bool | None = None
    refit: int = 0
    task: Callable[[nn.Module], Mapping[str, float]] | None = None
    heal: int = 0
    heal_rate: float = 1e-4
    seed: int = 0
    coding: Coding = field(default_factory=Coding)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before any work."""
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputRefused(f"one budget at a time, found {', '.join(given)}")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise InputRefused(f"keep is a share between 0 and 1, found {self.keep}")
        for name in BUDGETS[1:]:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputRefused(f"a budget of {name} is positive, found {value}")
        if self.spread is not None and not 0 <= self.spread < 1:
            raise InputRefused(f"spread is a share from 0 to below 1, found {self.spread}")
        if self.method is not None and self.method not in METHODS:
            raise InputRefused(f"method {self.method!r}: there are {', '.join(METHODS)}")
        for name in self.forms:
            if name not in FORMS:
                raise InputRefused(f"form {name!r}: there are {', '.join(FORMS)}")

    @property
    def budget(self) -> str:
        """Which budget is given; ``keep`` of one half where none is."""
        return next((name for name in BUDGETS if getattr(self, name) is not None), "keep")

    @property
    def axis(self) -> Literal["parameters", "bytes"]:
        """What is made small where nothing else is asked for: bytes where a form trades in nothing else."""
        return "bytes" if any(FORMS[name].named for name in self.forms) else "parameters"

    @property
    def latency(self) -> bool:
        """Whether the budget is about time."""
        return self.milliseconds is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without what was not asked for."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, ())}
        found.pop("task", None)
        found["coding"] = asdict(self.coding)
        if self.axis == "parameters":
            del found["coding"]
        if callable(self.objective):
            found["objective"] = "custom"
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
