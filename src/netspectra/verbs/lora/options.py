"""What is asked of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
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
        ranks: or a rank for each weight that is named here, and nothing for the others.
        vectors: whether biases, norms and other small tensors that changed go along (they load with PEFT; servers
            that take factors alone refuse them).
        dtype: of the factors.
    """

    rank: int | None = None
    energy: float | None = None
    vectors: bool = True
    dtype: str = "float32"
    ranks: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if sum(asked is not None for asked in (self.rank, self.energy, self.ranks)) != 1:
            raise InputRefused("give a rank, an energy or ranks by name, one of the three")
        if self.rank is not None and self.rank < 1:
            raise InputRefused(f"a rank is at least 1, got {self.rank}")
        if self.energy is not None and not 0.0 < self.energy <= 1.0:
            raise InputRefused(f"an energy lies in (0, 1], got {self.energy:g}")
        if self.dtype not in ("float32", "float16", "bfloat16"):
            raise InputRefused(f"factors are written in float32, float16 or bfloat16, not {self.dtype}")

    def rank_of(self, name: str, spectrum: Spectrum) -> int:
        """How many directions of the weight, or change, with these singular values; none that may be zero."""
        there = int((spectrum.values > spectrum.error).sum())
        if self.energy is not None:
            return min(rank_for(spectrum, energy=self.energy), there)
        return min((self.ranks or {}).get(name, 0) if self.rank is None else self.rank, there)


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
