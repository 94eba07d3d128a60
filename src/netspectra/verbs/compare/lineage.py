"""What two checkpoints are to one another, as rules: the first of the table that speaks is the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netspectra.record import Verdict
from netspectra.verbs.compare.delta import Delta
from netspectra.verdicts import Finding, Rule, spoken

__all__ = ["CHANGED", "LINEAGES", "RULES", "THRESHOLDS", "Family", "Vector", "lineage"]

LINEAGES = (
    "identical",
    "same-up-to-precision",
    "fine-tuned",
    "low-rank-adapted",
    "modified",
    "unrelated",
    "different-architecture",
)
CHANGED = tuple(name for name in LINEAGES if name not in ("identical", "same-up-to-precision"))

# Fixed on seeds 100 ... 104 of benchmarks/compare, which reports others.
THRESHOLDS: dict[str, float] = {
    "matched": 0.5,  # share of the numbers of the larger source that have a partner
    "related": 0.3,  # cosine of two weights below which neither descends from the other
    "pruned": 0.99,  # share of the moved entries that went to zero
    "gone": 0.1,  # the same where the rest was trained as well: training alone makes no exact zeros
    "scaled": 1e-3,  # of the change that scaling leaves
    "edited": 0.02,  # share of all entries that moved
    "white": 1.2,  # sigma_1 of the change over that of noise of its size
    "low rank": 0.25,  # directions of the change over the short side
    "rest": 2.0,  # energy of the change outside these over the energy of rounding
    "short side": 16,  # of weights on which rank and whiteness say something
}
STUDY = "benchmarks/compare"


@dataclass(frozen=True)
class Vector:
    """A tensor that is no weight matrix (bias, norm, buffer), in both sources."""

    name: str
    after: str
    shape: tuple[int, ...]
    relative_change: float
    change: str  # none, rounding, change


@dataclass(frozen=True, eq=False)
class Family:
    """What a rule sees: all that was compared.

    Attributes:
        deltas: of every pair of weights that could be compared.
        vectors: of the other tensors.
        matched: share of the numbers in weight matrices of the larger source that have a partner.
        unmatched: names of weights in one source only.
        unread: names of pairs that could not be compared (NaN inside).
        alone: names of other floating tensors (biases, norms) in one source only.
        adapter: one source holds only adapters of the other's weights.
    """

    deltas: tuple[Delta, ...]
    vectors: tuple[Vector, ...]
    matched: float
    unmatched: tuple[str, ...]
    unread: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    adapter: bool = False

    @property
    def changed(self) -> list[Delta]:
        """Weights with more than rounding."""
        return [d for d in self.deltas if d.changed]

    @property
    def cosine(self) -> float:
        """Of all weights as one vector; 1 where both are zero."""
        a, b, ab = (math.fsum(d.norms[i] for d in self.deltas) for i in range(3))
        return ab / math.sqrt(a * b) if a > 0 and b > 0 else float(a == b)

    @property
    def relative_change(self) -> float:
        """||D|| / ||W|| of all weights as one vector."""
        a = math.fsum(d.norms[0] for d in self.deltas)
        d2 = math.fsum((float(d.relative_change) ** 2) * d.norms[0] for d in self.deltas if d.relative_change.known)
        return math.sqrt(d2 / a) if a > 0 else 0.0

    def strangers(self) -> list[Delta]:
        """Changed weights whose cosine is too low for a common origin."""
        return [d for d in self.changed if not d.cosine.known or abs(d.cosine) < THRESHOLDS["related"]]

    def share(self, of: Sequence[Delta]) -> float:
        """Share of these among all compared numbers."""
        return math.fsum(d.parameters for d in of) / max(sum(d.parameters for d in self.deltas), 1)

    def telling(self) -> list[Delta]:
        """Changed weights large enough for rank and whiteness."""
        return [d for d in self.changed if min(d.shape) >= THRESHOLDS["short side"]]


def lineage(family: Family) -> Verdict:
    """The verdict: the first rule that speaks; the last always does."""
    return spoken(RULES, family)[0]


def _evidence(f: Family, **more: Any) -> dict[str, Any]:
    return {
        "weights": len(f.deltas),
        "equal": sum(d.equal for d in f.deltas),
        "rounding": sum(d.precise for d in f.deltas),
        "changed": len(f.changed),
        "vectors_changed": sum(v.change == "change" for v in f.vectors),
        "cosine": f.cosine,
        "relative_change": f.relative_change,
        "matched": f.matched,
        **more,
    }


def _another(f: Family) -> Finding:
    alien = f.share(f.strangers()) > 0.5
    if (f.deltas or f.unread) and f.matched >= THRESHOLDS["matched"] and not (f.unmatched and alien):
        return None
    told = f"{f.matched:.0%} of the numbers in weight matrices have a partner of the same shape"
    return told + (", and those are unrelated" if alien else ""), _evidence(f)


def _identical(f: Family) -> Finding:
    whole = not (f.unread or f.unmatched or f.alone)
    if whole and all(d.equal for d in f.deltas) and all(v.change == "none" for v in f.vectors):
        return f"every number of {len(f.deltas)} weights and {len(f.vectors)} other tensors is equal", _evidence(f)
    return None


def _precise(f: Family) -> Finding:
    if f.changed or any(v.change == "change" for v in f.vectors) or f.unread:
        return None
    forms = sorted({" against ".join(d.forms) for d in f.deltas if d.precise})
    sizes = [d.rounding for d in f.deltas if d.rounding is not None]
    told = "what both hold is equal"
    if forms or any(v.change == "rounding" for v in f.vectors):
        told = f"all differences are within the rounding of the coarser form ({', '.join(forms[:3]) or 'vectors'})"
    if sizes:
        told += "; changes smaller than that cannot be seen"
    if f.unmatched or f.alone:
        told += f"; {len(f.unmatched)} weights and {len(f.alone)} vectors are in one of the two only"
    return told, _evidence(f, forms=forms, largest_over_rounding=max(sizes, default=None))


def _unrelated(f: Family) -> Finding:
    strangers = f.strangers()
    if f.share(strangers) <= 0.5:
        return None
    return (
        f"the cosine of {len(strangers)} of {len(f.deltas)} weights is below {THRESHOLDS['related']:g} (all together "
        f"{f.cosine:.2f}): same shapes, another training run",
        _evidence(f, strangers=len(strangers)),
    )


def _modified(f: Family) -> Finding:
    changed = f.changed
    if not changed:
        told = "only tensors that are no weight matrices changed (biases, norms, buffers)"
        return told if not f.unread else "some weights could not be compared (NaN or Inf)", _evidence(f)
    numbers = sum(d.parameters for d in changed)
    zeroed = math.fsum(d.zeroed * d.parameters for d in changed) / numbers
    if zeroed >= THRESHOLDS["pruned"] and not f.adapter:
        gone = math.fsum(d.moved * d.parameters for d in changed) / sum(d.parameters for d in f.deltas)
        return f"pruned: {gone:.0%} of the entries became zero, nothing else moved", _evidence(f, edit="pruned")
    if zeroed >= THRESHOLDS["gone"] and not f.adapter:
        told = f"pruned and trained: {zeroed:.0%} of the entries that changed became exactly zero, the others moved"
        return told, _evidence(f, edit="pruned and trained", zeroed=zeroed)
    if all(d.scaling[1] < THRESHOLDS["scaled"] for d in changed) and not f.adapter:
        factors = [d.scaling[0] for d in changed]
        told = f"scaled: {len(changed)} weights by {min(factors):.4g} to {max(factors):.4g}"
        return told, _evidence(f, edit="scaled")
    strangers = f.strangers()
    if strangers and len(strangers) == len(changed):
        return f"replaced: {len(strangers)} weights are others, the rest is unchanged", _evidence(f, edit="replaced")
    moved = math.fsum(d.moved * d.parameters for d in changed) / sum(d.parameters for d in f.deltas)
    if moved < THRESHOLDS["edited"] and max(d.moved for d in changed) < 0.5 and not f.adapter:
        return f"edited: {moved:.2%} of the entries changed", _evidence(f, edit="edited", moved=moved)
    telling = [d for d in f.telling() if d.whiteness is not None]
    weight = sum(d.parameters for d in telling)
    white = math.fsum((d.whiteness or 0.0) * d.parameters for d in telling) / weight if weight else math.inf
    if white < THRESHOLDS["white"] and not f.adapter:
        told = f"noised: the change has no direction (its largest singular value is {white:.2f} x that of noise)"
        return told, _evidence(f, edit="noised", whiteness=white)
    return None


def _low_rank(f: Family) -> Finding:
    telling = f.telling()
    thin = [
        d
        for d in telling
        if d.rank <= THRESHOLDS["low rank"] * min(d.shape) and d.rest <= THRESHOLDS["rest"] and d.rank > 0
    ]
    if not telling or sum(d.parameters for d in thin) < 0.95 * sum(d.parameters for d in telling):
        return None
    ranks = [d.rank for d in thin]
    told = f"the change of {len(thin)} weights has rank {min(ranks)} to {max(ranks)}, beyond it nothing but rounding"
    return told, _evidence(f, ranks=[min(ranks), max(ranks)])


def _tuned(f: Family) -> Finding:
    most = sorted(f.changed, key=lambda d: -float(d.relative_change) if d.relative_change.known else -math.inf)[:3]
    told = f"{len(f.changed)} of {len(f.deltas)} weights changed, by {f.relative_change:.2%} together "
    told += f"(cosine {f.cosine:.4f})"
    return told + f"; most: {', '.join(d.name for d in most)}", _evidence(f, most=[d.name for d in most])


RULES: tuple[Rule[Family], ...] = (
    Rule("different-architecture", "error", "established", "shapes",
         "Compare checkpoints of one model.", _another, STUDY),
    Rule("identical", "ok", "established", "equality of numbers", "Nothing to do.", _identical, STUDY),
    Rule(
        "same-up-to-precision", "ok", "established", "half a unit in the last place, or half a step of the quantizer",
        "Compare outputs if coarse quantization matters.", _precise, STUDY,
    ),
    Rule(
        "unrelated", "error", "established", "independent random matrices have a cosine near 0",
        "Same shapes do not make a lineage: this is another training run.", _unrelated, STUDY,
    ),
    Rule("modified", "warn", "heuristic", "patterns of the change", "Ask who changed it, and why.", _modified, STUDY),
    Rule(
        "low-rank-adapted", "warn", "heuristic", "Hu et al. 2021, arXiv 2106.09685",
        "The change fits into an adapter of this rank.", _low_rank, STUDY,
    ),
    Rule("fine-tuned", "warn", "heuristic", "a change of full rank from a common origin",
         "See which weights changed most.", _tuned, STUDY),
)  # fmt: skip
