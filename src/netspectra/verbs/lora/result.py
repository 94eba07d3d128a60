"""What was written as an adapter, and what it misses."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from netspectra.written import columns

__all__ = ["Adapted", "Extraction"]

SHOWN = 12


@dataclass(frozen=True)
class Adapted:
    """One weight's factors.

    Attributes:
        name: of the weight in the base.
        rank: of the factors.
        full: the short side.
        size: ||D||_F of what the factors stand for.
        left: ||D - B A||_F with the factors as written, measured.
        predicted: sqrt of the sum of the squared singular values beyond the rank (Eckart & Young 1936).
        largest: largest entry of |D - B A|.
        spectral: the first singular value beyond the rank, the largest error for an input of length 1.
        weight: ||W + D||_F.
    """

    name: str
    rank: int
    full: int
    size: float
    left: float
    predicted: float
    largest: float
    spectral: float
    weight: float

    @property
    def energy_left(self) -> float:
        """Share of the energy of D that the factors miss."""
        return (self.left / self.size) ** 2 if self.size > 0 else 0.0


@dataclass(frozen=True)
class Extraction:
    """An adapter as it was written.

    Attributes:
        path: the folder.
        weights: what went into factors.
        carried: other tensors that changed and go along whole (biases, norms).
        missed: what changed and could not be carried, and why.
        notes: what a reader should know.
        bytes: of the adapter's file.
        base: where the rest of the weights stands, for an adapter that begins from them; then nothing is missed.
    """

    path: str
    weights: tuple[Adapted, ...]
    carried: tuple[str, ...]
    missed: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    bytes: int = 0
    base: str = ""

    @property
    def energy_left(self) -> float:
        """Share of the energy of all changes in factors that is missed; what `missed` names is not in it."""
        whole = math.fsum(w.size**2 for w in self.weights)
        return math.fsum(w.left**2 for w in self.weights) / whole if whole > 0 else 0.0

    @property
    def relative_error(self) -> float:
        """||B - (A + adapter)||_F / ||B||_F over the weights in factors."""
        whole = math.fsum(w.weight**2 for w in self.weights)
        return math.sqrt(math.fsum(w.left**2 for w in self.weights) / whole) if whole > 0 else 0.0

    @property
    def largest(self) -> float:
        """Largest error of an entry."""
        return max((w.largest for w in self.weights), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        rows = [asdict(w) | {"energy_left": w.energy_left} for w in self.weights]
        return {
            "path": self.path,
            "bytes": self.bytes,
            "base": self.base,
            "energy_left": self.energy_left,
            "relative_error": self.relative_error,
            "largest_error": self.largest,
            "weights": rows,
            "carried": list(self.carried),
            "missed": [{"name": name, "reason": reason} for name, reason in self.missed],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """Show the totals, the weights of which most is missed, and what was not carried."""
        ranks = [w.rank for w in self.weights]
        lines = [
            f"{self.path}: adapter of {len(ranks)} weights, rank {min(ranks, default=0)} to {max(ranks, default=0)}, "
            f"{self.bytes:,} bytes",
            f"holds {1 - self.energy_left:.3%} of the energy of these weights; the rest stands in {self.base}"
            if self.base
            else f"misses {self.energy_left:.3%} of the energy of the change; what it makes differs by "
            f"{self.relative_error:.2e} of the weights' size, {self.largest:.2e} in the worst entry",
        ]
        if self.weights:
            most = sorted(self.weights, key=lambda w: -w.left)[:SHOWN]
            rows = [["weight", "rank", "energy left", "largest entry left" if self.base else "largest error"]]
            rows += [[w.name, f"{w.rank}/{w.full}", f"{w.energy_left:.3%}", f"{w.largest:.2e}"] for w in most]
            lines += ["", *columns(rows)]
            if len(self.weights) > SHOWN:
                lines.append(f"... and {len(self.weights) - SHOWN} more with less left")
        if self.carried:
            lines.append(f"{len(self.carried)} other tensors go along whole, such as {self.carried[0]}")
        lines += [f"not carried: {name}: {reason}" for name, reason in self.missed[:SHOWN]]
        if len(self.missed) > SHOWN:
            lines.append(f"... and {len(self.missed) - SHOWN} more are not carried")
        return "\n".join([*lines, *self.notes])
