"""What stands out, as rules: each row says what it looks at, when it speaks, how sure the field is, what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from netspectra.linalg.spectrum import Spectrum
from netspectra.record import Level, Value, Verdict

__all__ = ["RULES", "Rule", "judge"]

Standing = Literal["established", "heuristic", "hypothesis"]
Finding = tuple[str, dict[str, Any]] | None


@dataclass(frozen=True)
class Rule:
    """One row of the table.

    Attributes:
        name: what ``--fail-on`` calls it.
        level: how serious it is.
        standing: established result, rule of thumb, or open hypothesis.
        reference: where it comes from.
        advice: what to do.
        find: (spectrum, metrics) -> the sentence and its evidence, or None.
    """

    name: str
    level: Level
    standing: Standing
    reference: str
    advice: str
    find: Callable[[Spectrum, Mapping[str, Value]], Finding]


def judge(spectrum: Spectrum, metrics: Mapping[str, Value], kind: str = "") -> tuple[Verdict, ...]:
    """Apply every rule; an empty matrix has no verdicts."""
    if len(spectrum) == 0:
        return ()
    verdicts = []
    for rule in RULES:
        found = rule.find(spectrum, metrics)
        if found is not None:
            message, evidence = found
            evidence = {**evidence, "standing": rule.standing, "reference": rule.reference, "advice": rule.advice}
            verdicts.append(Verdict(rule.name, rule.level, message, evidence))
    return tuple(verdicts)


def _zero(s: Spectrum, metrics: Mapping[str, Value]) -> Finding:
    return ("every entry is zero", {"sigma_max": 0.0}) if s.sigma_max == 0 else None


def _rank_deficient(s: Spectrum, metrics: Mapping[str, Value]) -> Finding:
    rank = int((s.values > s.floor + s.error).sum())
    lost = len(s) - rank
    if s.sigma_max == 0 or lost == 0:
        return None
    sentence = f"{lost} of {len(s)} singular values are below the rounding floor of {s.dtype}"
    return sentence, {"numerical_rank": rank, "count": len(s), "floor": s.floor}


def _ill_conditioned(s: Spectrum, metrics: Mapping[str, Value]) -> Finding:
    top, bottom = s.sigma_max, float(s.values[-1])
    if top == 0 or bottom <= s.floor + float(s.error[-1]) or top <= ILL_CONDITIONED * bottom:
        return None
    return f"condition number {top / bottom:.3g}", {"condition_number": top / bottom, "threshold": ILL_CONDITIONED}


def _concentrated(s: Spectrum, metrics: Mapping[str, Value]) -> Finding:
    share = s.sigma_max**2 / s.frobenius2 if s.frobenius2 else 0.0
    if len(s) < 8 or share <= CONCENTRATED:
        return None
    return f"one direction holds {share:.0%} of the energy", {"share": share, "threshold": CONCENTRATED}


ILL_CONDITIONED = 1e4
CONCENTRATED = 0.5
GOLUB = "Golub & Van Loan 2013, Matrix Computations, 2.4 to 2.6"

RULES: tuple[Rule, ...] = (
    Rule("zero", "error", "established", GOLUB, "check that the layer was trained and saved", _zero),
    Rule(
        "rank-deficient",
        "warn",
        "established",
        "Stewart & Sun 1990, Matrix Perturbation Theory, ch. 4",
        "the lost directions cannot come back: the layer can be factored without loss",
        _rank_deficient,
    ),
    Rule(
        "ill-conditioned",
        "note",
        "heuristic",
        GOLUB,
        "matters where the inverse does; for training, look at the end-to-end Jacobian instead",
        _ill_conditioned,
    ),
    Rule(
        "concentrated",
        "note",
        "heuristic",
        "Rudelson & Vershynin 2007, arXiv math/0503442 (stable rank below 2)",
        "look whether the direction is a constant offset or an outlier feature before compressing or quantizing",
        _concentrated,
    ),
)
