"""What a signal's way through a network says, as rules: when each speaks, how sure the field is, what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from netspectra.record import Value
from netspectra.verbs.train.spectra import JacobianSpectrum
from netspectra.verdicts import Finding, Rule

__all__ = ["RULES", "THRESHOLDS", "BlockFinding", "Case", "score"]

# Every number a rule compares with. `score` and its weight were fixed on networks of depth 20 and tested on others:
# benchmarks/training.
THRESHOLDS: dict[str, float] = {
    "score": 3.0,  # decades
    "gain weight": 1.5,  # a decade too much costs more than a decade too few
    "block": 1.0,  # decades lost or gained in one block
    "share": 0.5,  # of the singular values in the band
    "cosine": 0.99,
    "dead": 0.5,  # share of units that are zero for every sample
    "dead from": 8,  # samples
    "input low": 0.05,  # rms
    "input high": 20.0,
}


@dataclass(frozen=True, eq=False)
class BlockFinding:
    """One block along the depth.

    Attributes:
        name: of the module that holds its weights.
        kind: classes of its modules.
        residual: whether the signal has a way around its weights.
        weighted: whether it has a weight matrix at all.
        shape: (m, n) of its Jacobian, one sample.
        rms: of the singular values of its own Jacobian, sqrt(||J||_F^2 / narrowest size).
        max: the largest of them.
        gain: by what factor a gradient that comes from the output changes in it: ratio of ``backward`` at its two ends.
        backward: rms singular value of the Jacobian from the end of this block to the output.
        forward: rms singular value of the Jacobian from the start to the end of this block.
        activation: rms of the activations at its end.
        cosine: mean cosine between the activations of different samples at its end.
        dead: share of its units that are exactly zero for every sample.
    """

    name: str
    kind: str
    residual: bool
    weighted: bool
    shape: tuple[int, int]
    rms: Value
    max: Value
    gain: Value
    backward: Value
    forward: Value
    activation: float
    cosine: Value
    dead: Value

    @property
    def decades(self) -> float:
        """log10 of the gain: negative where the signal is lost, positive where it grows."""
        return math.log10(self.gain) if self.gain > 0 else -math.inf


@dataclass(frozen=True)
class Case:
    """What a rule sees."""

    whole: JacobianSpectrum | None
    blocks: Sequence[BlockFinding]
    input_rms: float | None
    input_cosine: Value
    broken: str  # name of the first block with numbers that are not finite


def score(whole: JacobianSpectrum) -> tuple[Value, float, float]:
    """Decades between the end-to-end Jacobian and one that passes signals on; and the two terms.

        lost   = mean of max(0, -log10 sigma)       the average direction vanishes
        gained = 1.5 max(0, log10 rms sigma)        the largest ones explode

    The score is their sum; both vanish for an isometry.
    """
    if not whole.lost.known:
        return Value.unknown(whole.lost.note), math.nan, math.nan
    gained = THRESHOLDS["gain weight"] * max(0.0, math.log10(whole.rms)) if whole.rms > 0 else 0.0
    return Value(whole.lost + gained, note=whole.lost.note), float(whole.lost), gained


def _broken(case: Case) -> Finding:
    return (f"NaN or Inf first at {case.broken}", {"block": case.broken}) if case.broken else None


def _place(case: Case, sign: int) -> tuple[str, dict[str, Any]]:
    """Where along the depth: one block if half of the change is there, else evenly."""
    changes = [(sign * block.decades, block.name) for block in case.blocks]
    total = sum(max(0.0, change) for change, _ in changes)
    most, name = max(changes, default=(0.0, ""))
    if total <= 0:
        return "", {}
    if math.isinf(most):
        return f", all of it in {name}", {"block": name}
    if most > total / 2 and len(changes) > 1:
        return f", most of it in {name}", {"block": name, "decades": sign * most}
    moving = [change for change, _ in changes if change > total / (4 * len(changes))]
    each = 10 ** (sign * sum(moving) / len(moving))
    return f", by a factor of {each:.2g} in each of {len(moving)} blocks", {"factor": each, "blocks": len(moving)}


def _lost(case: Case) -> Finding:
    if case.whole is None:
        return None
    total, lost, gained = score(case.whole)
    if math.isnan(total) or total <= THRESHOLDS["score"] or lost < gained:
        return None
    where, evidence = _place(case, -1)
    rms = float(case.whole.rms)
    told = f"signals shrink by {lost:.1f} decades on average (rms {rms:.1e}){where}"
    return told, {"rms": rms, "lost": lost, "score": float(total), "threshold": THRESHOLDS["score"], **evidence}


def _explodes(case: Case) -> Finding:
    if case.whole is None:
        return None
    total, lost, gained = score(case.whole)
    if math.isnan(total) or total <= THRESHOLDS["score"] or lost >= gained:
        return None
    where, evidence = _place(case, 1)
    rms = float(case.whole.rms)
    told = f"the end-to-end Jacobian multiplies signals by {rms:.3g}{where}"
    return told, {"rms": rms, "score": float(total), "threshold": THRESHOLDS["score"], **evidence}


def _one_block(case: Case) -> Finding:
    # a norm divides by the size of what it gets, and an embedding may have any size: neither is a fault
    blocks = [block for place, block in enumerate(case.blocks) if block.weighted and (place or case.input_rms)]
    worst = max(blocks, key=lambda block: abs(block.decades), default=None)
    if worst is None or abs(worst.decades) < THRESHOLDS["block"] or len(blocks) < 2:
        return None
    others = [abs(block.decades) for block in blocks if block is not worst]
    if abs(worst.decades) < 3 * sorted(others)[len(others) // 2]:
        return None
    evidence = {"block": worst.name, "gain": float(worst.gain), "threshold": THRESHOLDS["block"]}
    return f"{worst.name} multiplies gradients by {float(worst.gain):.2g}, unlike the others", evidence


def _uneven(case: Case) -> Finding:
    if case.whole is None or not case.whole.share.known:
        return None
    total, _, _ = score(case.whole)
    share = float(case.whole.share)
    if share >= THRESHOLDS["share"] or total > THRESHOLDS["score"]:
        return None
    evidence = {"share": share, "threshold": THRESHOLDS["share"]}
    return f"only {share:.0%} of the singular values of the end-to-end Jacobian lie in 0.1 ... 10", evidence


def _alike(case: Case) -> Finding:
    known = [block for block in case.blocks[:-1] if block.cosine.known]
    if not known or not case.input_cosine.known:
        return None
    last = known[-1]
    if last.cosine < THRESHOLDS["cosine"] or case.input_cosine > 0.9:
        return None
    evidence = {"cosine": float(last.cosine), "input": float(case.input_cosine), "threshold": THRESHOLDS["cosine"]}
    first = next(block for block in known if block.cosine >= THRESHOLDS["cosine"])
    return f"different inputs look alike from {first.name} on: cosine {float(last.cosine):.3f}", evidence


def _dead(case: Case) -> Finding:
    known = [block for block in case.blocks if block.dead.known and block.dead > THRESHOLDS["dead"]]
    if not known:
        return None
    worst = max(known, key=lambda block: float(block.dead))
    evidence = {"block": worst.name, "dead": float(worst.dead), "blocks": len(known), "threshold": THRESHOLDS["dead"]}
    return f"{float(worst.dead):.0%} of the units of {worst.name} are zero for every sample", evidence


def _input(case: Case) -> Finding:
    rms = case.input_rms
    if rms is None or THRESHOLDS["input low"] <= rms <= THRESHOLDS["input high"]:
        return None
    return f"the input has rms {rms:.3g}", {
        "rms": rms,
        "low": THRESHOLDS["input low"],
        "high": THRESHOLDS["input high"],
    }


def _passes(case: Case) -> Finding:
    if case.whole is None:
        return None
    total, _, _ = score(case.whole)
    if not total <= THRESHOLDS["score"]:
        return None
    told = f"signals pass: rms {float(case.whole.rms):.3g}, {float(total):.1f} decades from an isometry"
    return told, {"score": float(total), "threshold": THRESHOLDS["score"]}


PENNINGTON = "Pennington, Schoenholz & Ganguli 2017, arXiv 1711.04735; benchmarks/training"
INITIALIZE = "netspectra.initialize_(model, batch); or residual connections or normalization layers"

RULES: tuple[Rule[Case], ...] = (
    Rule(
        "not-finite",
        "error",
        "established",
        "IEEE 754",
        "check the weights and the input of that block, and its dtype's range",
        _broken,
    ),
    Rule("signal-lost", "warn", "heuristic", PENNINGTON, INITIALIZE, _lost),
    Rule(
        "signal-explodes",
        "warn",
        "heuristic",
        PENNINGTON,
        f"{INITIALIZE}; a smaller learning rate helps where the factor is moderate",
        _explodes,
    ),
    Rule(
        "one-block",
        "note",
        "heuristic",
        "Mishkin & Matas 2016 (LSUV), arXiv 1511.06422",
        "look at its initialisation, its activation and at what it divides by",
        _one_block,
    ),
    Rule(
        "uneven",
        "note",
        "heuristic",
        PENNINGTON,
        "trains, but slower than it could: orthogonal weights (netspectra.initialize_) even the directions out, as far "
        "as the activations allow; pooling makes every value small and does no harm",
        _uneven,
    ),
    Rule(
        "features-alike",
        "note",
        "heuristic",
        "Schoenholz et al. 2017, arXiv 1611.01232; Balduzzi et al. 2017, arXiv 1702.08591",
        "deep plain networks do this, of ReLU at any scale: netspectra.initialize_ begins them in mirrored pairs; "
        "or residual connections or normalization",
        _alike,
    ),
    Rule(
        "dead-units",
        "note",
        "heuristic",
        "Lu et al. 2020, Commun. Comput. Phys. 28(5), arXiv 1903.06733",
        "smaller biases or learning rate, or an activation without a flat half",
        _dead,
    ),
    Rule(
        "input-scale",
        "note",
        "heuristic",
        "LeCun, Bottou, Orr & Mueller 1998, Efficient BackProp",
        "standardise the inputs",
        _input,
    ),
    Rule("signal-passes", "ok", "heuristic", PENNINGTON, "look elsewhere: learning rate, data, loss", _passes),
)
