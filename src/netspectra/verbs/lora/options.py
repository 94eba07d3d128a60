"""What is asked of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from netspectra.errors import InputRefused
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.svd import rank_for

__all__ = ["LoraOptions", "asked_rank"]


@dataclass(frozen=True)
class LoraOptions:
    """What is asked of an adapter.

    Attributes:
        rank: the same rank for every weight (no more than its short side).
        energy: or as many directions as this share, in (0, 1], of each weight's squared singular values needs.
        vectors: whether biases, norms and other small tensors that changed go along (they load with PEFT; servers
            that take factors alone refuse them).
        dtype: of the factors.
    """

    rank: int | None = None
    energy: float | None = None
    vectors: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if (self.rank is None) == (self.energy is None):
            raise InputRefused("give a rank or an energy, one of the two")
        if self.rank is not None and self.rank < 1:
            raise InputRefused(f"a rank is at least 1, got {self.rank}")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise InputRefused(f"an energy lies in (0, 1], got {self.energy:g}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise InputRefused(f"factors are written in float32, float16 or bfloat16, not {self.dtype}")

    def rank_of(self, spectrum: Spectrum) -> int:
        """How many directions of a matrix with these singular values are taken; none that may be zero."""
        there = int((spectrum.values > spectrum.error).sum())
        wanted = self.rank if self.energy is None else rank_for(spectrum, energy=self.energy)
        return min(wanted or 0, there)


def asked_rank(text: str) -> LoraOptions:
    """A whole number is a rank, a number with a point an energy.

    >>> asked_rank("16").rank, asked_rank("0.95").energy
    (16, 0.95)
    """
    try:
        return LoraOptions(rank=int(text))
    except ValueError:
        pass
    try:
        return LoraOptions(energy=float(text))
    except ValueError:
        raise InputRefused(f"{text!r}: give a rank such as 16, or a share of the energy such as 0.95") from None
