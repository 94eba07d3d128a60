"""How a reference is made."""

from __future__ import annotations

from dataclasses import dataclass

from netspectra.errors import InputRefused

__all__ = ["DriftOptions"]


@dataclass(frozen=True)
class DriftOptions:
    """What a reference keeps of the rows it is made of.

    Attributes:
        directions: principal directions kept of each layer.
        reserve: rows held out of the fit, with which windows are compared; of few rows at most three fifths.
        exact: widest layer whose covariance is summed; wider ones are sketched.
        most: rows of one window that are used, drawn evenly where there are more.
        seed: of the split and of the permutations.
    """

    directions: int = 32
    reserve: int = 1000
    exact: int = 1024
    most: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that make no sense."""
        if min(self.directions, self.reserve, self.exact, self.most) < 1:
            raise InputRefused("directions, reserve, exact and most count things: give whole numbers from 1 on")
