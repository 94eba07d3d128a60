"""What is asked of a monitor."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from netspectra.errors import InputRefused
from netspectra.metrics import chosen
from netspectra.verbs.watch.alarms import RULES

__all__ = ["MonitorOptions"]


@dataclass(frozen=True)
class MonitorOptions:
    """How often, how much, of what.

    Attributes:
        every: steps between two cheap looks: norms, gradients' norms and sigma_1 of every weight.
        leading_every: steps between two looks at the leading singular values.
        leading: how many of them.
        spectrum_every: steps between two full spectra of a weight; None: as often as the budget allows.
        budget: share of the training's time that looks may take; where they would take more they are spaced out, and
            the record says so. None: keep to the steps whatever it costs, so that two runs look at the same steps.
        ends: seconds for the full spectra at the begin and at the end, beside the budget.
        metrics: names from the registry for the full spectra; None for those that cost little.
        include: patterns of weight names to take (glob, or ``re:`` and a regular expression); none means all.
        exclude: patterns to leave out.
        updates: also the norm of one step's change of each weight, and its full spectrum beside the weight's.
        gradients: also the full spectrum of each gradient; gradients' norms are always looked at.
        history: points in time that are kept of each curve; older ones are thinned evenly.
        megabytes: what the full spectra in the run file may take together; thinned likewise.
        raise_on: alarms that end the training with `AlarmRaised`: names of rules, or a level.
        seed: of the start vectors.
    """

    every: int = 10
    leading_every: int = 50
    leading: int = 8
    spectrum_every: int | None = None
    budget: float | None = 0.01
    ends: float = 1.0
    metrics: tuple[str, ...] | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    updates: bool = False
    gradients: bool = False
    history: int = 2000
    megabytes: float = 64.0
    raise_on: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        for name, least in (("every", 1), ("leading_every", 1), ("leading", 1), ("history", 100)):
            if getattr(self, name) < least:
                raise InputRefused(f"{name}={getattr(self, name)!r}: give a whole number from {least} on")
        if self.spectrum_every is not None and self.spectrum_every < 1:
            raise InputRefused(f"spectrum_every={self.spectrum_every!r}: give a number of steps, or None")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise InputRefused(f"budget={self.budget!r}: give a share of the training's time, 0.01 for one per cent")
        chosen(self.metrics)
        known = [*(rule.name for rule in RULES), "warn", "error"]
        for name in self.raise_on:
            if name not in known:
                raise InputRefused(f"raise_on={name!r}: there are {', '.join(known)}")

    def to_dict(self) -> dict[str, Any]:
        """As the run file keeps them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
