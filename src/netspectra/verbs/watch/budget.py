"""A share of the training's time: looks are paid from what has been saved up, so that they space themselves out."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Lane"]

MEMORY = 0.3  # weight of the last cost in the expected one
MOST = 600.0  # seconds of training whose share is saved up at most
LOAN = 8.0  # looks that may be paid afterwards while something is going on


@dataclass
class Lane:
    """One kind of look: how often it is wanted, what it costs, what it may cost.

    Attributes:
        every: steps between two looks where the budget allows.
        share: of the training's time; infinite where there is no budget.
        due: the next step at which a look is wanted.
        credit: seconds saved up; below zero after a look that cost more than was there.
        cost: seconds that a look is expected to take; unknown (0) before the first one.
        spent: seconds so far.
        looks: how many so far.
        last: step of the last one.
        gap: steps between the last two looks.
        urgent: whether something is going on, so that the next look may be paid for afterwards.
    """

    every: int
    share: float
    due: int = 0
    credit: float = 0.0
    cost: float = 0.0
    spent: float = 0.0
    looks: int = 0
    last: int | None = None
    gap: float = 0.0
    urgent: bool = False

    def earn(self, seconds: float) -> None:
        """Save up from so many seconds of training."""
        self.credit = min(self.credit + self.share * seconds, self.share * MOST)

    def wants(self, step: int, cost: float | None = None) -> bool:
        """Whether a look is due and, as far as its cost can be foreseen, paid for.

        One that costs more than can ever be saved up is made when the savings are full; an urgent one on credit.
        """
        if step < self.due:
            return False
        if self._lent():
            return True
        needed = min(self.cost if cost is None else cost, self.share * MOST)
        return self.credit >= 0 and (math.isinf(self.share) or self.credit >= needed)

    def missing(self, cost: float) -> float:
        """Seconds of training after which a look of this cost is paid for."""
        if math.isinf(self.share) or self._lent():
            return 0.0
        return max(0.0, min(cost, self.share * MOST) - self.credit) / self.share

    def _lent(self) -> bool:
        return self.urgent and self.credit > -LOAN * self.cost

    def charge(self, seconds: float) -> None:
        """Take what a look, or what surrounds it, has cost."""
        self.spent += seconds
        if not math.isinf(self.share):
            self.credit -= seconds

    def looked(self, step: int, seconds: float) -> None:
        """A look was made: charge it, expect the next one at a multiple of ``every``."""
        self.charge(seconds)
        self.cost = seconds if not self.cost else (1 - MEMORY) * self.cost + MEMORY * seconds
        self.looks += 1
        self.gap = float(step - self.last) if self.last is not None else 0.0
        self.last = step
        self.due = (step // self.every + 1) * self.every
