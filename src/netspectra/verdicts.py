"""What stands out, as rules: each row says what it looks at, when it speaks, how sure the field is, what to do.

A rule speaks only where the whole interval of its number supports it, and no rule labels a tail of fewer than 20
values. Level ``ok`` describes and asks for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from netspectra.depth import Deviation
from netspectra.linalg.spectrum import Spectrum
from netspectra.record import Level, Record, Value, Verdict

__all__ = [
    "RULES",
    "THRESHOLDS",
    "Case",
    "Finding",
    "Rule",
    "Standing",
    "judge",
    "judge_among",
    "noise_distance",
    "spoken",
]

Standing = Literal["established", "heuristic", "hypothesis"]
Finding = tuple[str, dict[str, Any]] | None
Seen = TypeVar("Seen")  # what a rule looks at: a weight here, a whole network elsewhere

# Every number a rule compares with.
THRESHOLDS: dict[str, float] = {
    "ill-conditioned": 1e6,  # kappa: a solve in float32 keeps about one digit
    "concentrated": 0.5,  # share of the energy in one direction
    "concentrated from": 8,  # values
    "label from": 20,  # values, for whatever describes a distribution
    "outlier-spike": 3.0,  # sigma_1 / sigma_2
    "frequency-direction": 2.0,  # sigma_1 / sigma_2 of an embedding
    "heavy-tailed low": 2.0,  # alpha
    "heavy-tailed high": 6.0,
    "goodness of fit": 0.1,  # p below which a tail is no power law
    "flat": 1.25,  # stable rank over that of noise of the shape
    "compressible": 0.75,  # parameters of factors of rank k90 over those of the matrix
    "stands-out": 12.0,  # robust deviations from the line through the siblings
    "stands-out at least": 1.5,  # times the line, or a part of it
}


@dataclass(frozen=True)
class Case:
    """What a rule sees of a weight."""

    spectrum: Spectrum
    metrics: Mapping[str, Value]
    kind: str = ""
    deviations: Sequence[Deviation] = ()

    def metric(self, name: str) -> Value | None:
        """The metric, if it was measured and is known."""
        value = self.metrics.get(name)
        return value if value is not None and value.known else None


@dataclass(frozen=True)
class Rule(Generic[Seen]):
    """One row of a table.

    Attributes:
        name: what ``--fail-on`` calls it.
        level: how serious it is.
        standing: established result, rule of thumb, or open hypothesis.
        reference: where it comes from.
        advice: what to do.
        find: from what the rule sees to the sentence and its evidence, or None.
        study: what this project's own study found about the claim, and where; empty where it was not asked.
        among: compares with the other weights of the model, and so can speak only when all are known.
    """

    name: str
    level: Level
    standing: Standing
    reference: str
    advice: str
    find: Callable[[Seen], Finding]
    study: str = ""
    among: bool = False


def judge(spectrum: Spectrum, metrics: Mapping[str, Value], kind: str = "") -> tuple[Verdict, ...]:
    """Apply every rule that looks at one weight alone; an empty matrix has no verdicts.

    Args:
        spectrum: of the weight.
        metrics: what was measured; a rule whose metric is missing or unknown says nothing.
        kind: linear, embedding, ...
    """
    if len(spectrum) == 0:
        return ()
    return spoken(tuple(rule for rule in RULES if not rule.among), Case(spectrum, metrics, kind))


def judge_among(records: Sequence[Record], deviations: Mapping[int, Sequence[Deviation]]) -> tuple[Record, ...]:
    """The records with the verdicts of the rules that compare each with its siblings; what these said before goes.

    Args:
        records: of one model.
        deviations: as `netspectra.depth.deviations` found them, by position.
    """
    rules = tuple(rule for rule in RULES if rule.among)
    names = {rule.name for rule in rules}
    judged = []
    for place, record in enumerate(records):
        alone = tuple(verdict for verdict in record.verdicts if verdict.rule not in names)
        case = Case(record.spectrum, record.metrics, record.kind, deviations.get(place, ()))
        verdicts = alone + spoken(rules, case)
        judged.append(record if verdicts == record.verdicts else replace(record, verdicts=verdicts))
    return tuple(judged)


def spoken(rules: Sequence[Rule[Seen]], case: Seen) -> tuple[Verdict, ...]:
    """What the rules of a table say of one case, in the order of the table."""
    verdicts = []
    for rule in rules:
        found = rule.find(case)
        if found is not None:
            message, evidence = found
            evidence = {**evidence, "standing": rule.standing, "reference": rule.reference, "advice": rule.advice}
            evidence |= {"study": rule.study} if rule.study else {}
            verdicts.append(Verdict(rule.name, rule.level, message, evidence))
    return tuple(verdicts)


def noise_distance(M: int) -> float:
    """Distance from the Marchenko-Pastur law, (2 + ln(M) / 2) / M, that at least 95 % of noise matrices stay below.

    Measured on 20 x 20 to 500 x 500, aspects up to 8: the 95 % quantile of M times the distance is 2.7 to 4.1.
    """
    return (2 + 0.5 * math.log(M)) / M


def _zero(case: Case) -> Finding:
    return ("every entry is zero", {"sigma_max": 0.0}) if case.spectrum.sigma_max == 0 else None


def _rank_deficient(case: Case) -> Finding:
    s = case.spectrum
    rank = int((s.values > s.floor + s.error).sum())
    lost = len(s) - rank
    if s.sigma_max == 0 or lost == 0:
        return None
    sentence = f"{lost} of {len(s)} singular values are below the rounding floor of {s.dtype}"
    return sentence, {"numerical_rank": rank, "count": len(s), "floor": s.floor}


def _rounded(case: Case) -> Finding:
    edge = case.metric("rounding_edge")
    if edge is None or not edge.detail.get("of"):
        return None
    above, count = edge.detail["above"], edge.detail["of"]
    if above == count:
        return None
    sentence = (
        f"rounded to few levels ({edge.detail['grid']}): {count - above} of {count} singular values lie below the "
        f"noise that this adds, {float(edge):.3g}"
    )
    return sentence, {"rounding_edge": float(edge), **edge.detail}


def _dead_units(case: Case) -> Finding:
    dead = case.metric("dead_units")
    if dead is None or dead == 0:
        return None
    rows, columns = dead.detail["rows"], dead.detail["columns"]
    m, n = case.spectrum.shape
    row = "tokens" if case.kind == "embedding" else "outputs"
    parts = [f"{rows} of {m} rows ({row})"] * bool(rows) + [f"{columns} of {n} columns (inputs)"] * bool(columns)
    return f"{' and '.join(parts)} are zero or a thousand times below the usual norm", {
        "rows": rows,
        "columns": columns,
    }


def _ill_conditioned(case: Case) -> Finding:
    s = case.spectrum
    top, bottom = s.sigma_max, float(s.values[-1])
    error = float(s.error[0]), float(s.error[-1])
    threshold = THRESHOLDS["ill-conditioned"]
    if top == 0 or bottom <= s.floor + error[1] or top - error[0] <= threshold * (bottom + error[1]):
        return None
    return f"condition number {top / bottom:.3g}", {"condition_number": top / bottom, "threshold": threshold}


def _concentrated(case: Case) -> Finding:
    s = case.spectrum
    share, threshold = (1 / s.relative_energy if s.sigma_max else 0.0), THRESHOLDS["concentrated"]
    if len(s) < THRESHOLDS["concentrated from"] or share <= threshold:
        return None
    return f"one direction holds {share:.0%} of the energy", {"share": share, "threshold": threshold}


def _lead(case: Case) -> tuple[float, Value] | None:
    """Sigma_1 over sigma_2, from below, where the largest value is a spike."""
    s, spikes = case.spectrum, case.metric("spikes")
    if spikes is None or spikes < 1 or len(s) < 2:
        return None
    second = float(s.values[1] + s.error[1])
    return ((s.sigma_max - float(s.error[0])) / second, spikes) if second > 0 else None


def _outlier_spike(case: Case) -> Finding:
    lead = _lead(case)
    if lead is None or case.kind == "embedding" or lead[0] <= THRESHOLDS["outlier-spike"]:
        return None
    ratio, spikes = lead
    evidence = {"ratio": ratio, "threshold": THRESHOLDS["outlier-spike"], "edge": spikes.detail["edge"]}
    return f"the largest singular value is {ratio:.1f} times the next", evidence


def _frequency(case: Case) -> Finding:
    lead = _lead(case)
    if lead is None or case.kind != "embedding" or lead[0] <= THRESHOLDS["frequency-direction"]:
        return None
    share = 1 / case.spectrum.relative_energy
    evidence = {"ratio": lead[0], "share": share, "threshold": THRESHOLDS["frequency-direction"]}
    return f"the embeddings share one direction, {lead[0]:.1f} times the next, {share:.0%} of the energy", evidence


def _trap(case: Case) -> Finding:
    twin = case.metric("twin_distance")
    spikes = twin.detail.get("spikes") if twin is not None else None
    if not spikes:
        return None
    return f"{spikes:.0f} of its spikes remain when the entries are shuffled", {"twin_spikes": spikes}


def _untrained(case: Case) -> Finding:
    distance, spikes = case.metric("mp_distance"), case.metric("spikes")
    M = len(case.spectrum)
    if distance is None or spikes is None or spikes > 0 or THRESHOLDS["label from"] > M:
        return None
    limit = noise_distance(M)
    if distance > limit:
        return None
    return "the spectrum is that of noise of this shape", {"distance": float(distance), "threshold": limit, "spikes": 0}


def _tail(case: Case) -> tuple[Value, dict[str, Any]] | None:
    """The tail exponent with its evidence, where there is one of enough values that the data do not contradict."""
    alpha = case.metric("alpha")
    if alpha is None or alpha.low is None or alpha.high is None or case.kind == "embedding":
        return None
    p, tail = alpha.detail.get("p"), alpha.detail.get("tail", 0)
    if tail < THRESHOLDS["label from"] or (p is not None and p < THRESHOLDS["goodness of fit"]):
        return None
    return alpha, {"alpha": float(alpha), "low": alpha.low, "high": alpha.high, "tail": tail, "p": p}


def _heavy(case: Case) -> Finding:
    found = _tail(case)
    low, high = THRESHOLDS["heavy-tailed low"], THRESHOLDS["heavy-tailed high"]
    if found is None or found[1]["low"] < low or found[1]["high"] > high:
        return None
    alpha, evidence = found
    return f"tail exponent {_interval(alpha)}, within {low:g} ... {high:g}", {**evidence, "from": low, "to": high}


def _wide(case: Case) -> Finding:
    found, low = _tail(case), THRESHOLDS["heavy-tailed low"]
    if found is None or found[1]["high"] >= low:
        return None
    alpha, evidence = found
    return f"tail exponent {_interval(alpha)}, below {low:g}: very wide", {**evidence, "threshold": low}


def _interval(alpha: Value) -> str:
    return f"{alpha:.2f} ({alpha.low:.2f} ... {alpha.high:.2f})"


def _flat(case: Case) -> Finding:
    s, rank = case.spectrum, case.metric("stable_rank")
    if rank is None or len(s) < THRESHOLDS["label from"] or s.blocks > 1:
        return None
    noise = len(s) / (1 + math.sqrt(min(s.shape) / max(s.shape))) ** 2
    if rank <= THRESHOLDS["flat"] * noise:
        return None
    evidence = {"stable_rank": float(rank), "noise": noise, "threshold": THRESHOLDS["flat"]}
    return f"stable rank {rank:.1f} of {len(s)}, noise of this shape has {noise:.1f}", evidence


def _compressible(case: Case) -> Finding:
    k90, (m, n) = case.metric("k90"), case.spectrum.shape
    if k90 is None or len(case.spectrum) < THRESHOLDS["label from"] or case.spectrum.blocks > 1:
        return None
    share = k90 * (m + n) / (m * n)
    if share > THRESHOLDS["compressible"]:
        return None
    evidence = {"k90": float(k90), "parameters": share, "threshold": THRESHOLDS["compressible"]}
    return f"rank {k90:.0f} keeps 90 % of the energy in {share:.0%} of the parameters", evidence


def _stands_out(case: Case) -> Finding:
    """The metric that is furthest from its siblings' line, if that is both unusual and more than a little."""
    limit, least = THRESHOLDS["stands-out"], math.log(THRESHOLDS["stands-out at least"])
    far = [d for d in case.deviations if abs(d.deviations) > limit and abs(math.log(d.ratio)) > least]
    if not far:
        return None
    worst = max(far, key=lambda d: abs(d.deviations))
    title = worst.metric.replace("_", " ")
    sentence = f"{title} {worst.value:.3g}, the line through its {worst.siblings} siblings gives {worst.expected:.3g}"
    return sentence, {
        "metric": worst.metric,
        "value": worst.value,
        "expected": worst.expected,
        "deviations": worst.deviations,
        "threshold": limit,
        "siblings": worst.siblings,
        "role": worst.role,
        "also": [d.metric for d in far if d is not worst],
    }


GOLUB = "Golub & Van Loan 2013, Matrix Computations, 2.4 to 2.6"
MARTIN = "Martin & Mahoney 2021, JMLR 22, arXiv 1810.01075"
# What 767 small networks on two real data sets showed; the figures are in benchmarks/generalization/results.md.
STUDY = "benchmarks/generalization"

RULES: tuple[Rule[Case], ...] = (
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
        "dead-units",
        "note",
        "heuristic",
        "Lu et al. 2020, Commun. Comput. Phys. 28(5), arXiv 1903.06733",
        "check whether they are padding, pruned, or lost in training; they can be cut out",
        _dead_units,
    ),
    Rule(
        "rounded",
        "note",
        "heuristic",
        "Bennett 1948, Bell Syst. Tech. J. 27(3); Bandeira & van Handel 2016, arXiv 1408.6185",
        "read tails, ranks and condition numbers from the original weights: below the noise they tell of the rounding",
        _rounded,
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
        "sensitive to few directions: look whether the first is a constant offset or an outlier feature before "
        "compressing or quantizing",
        _concentrated,
        study=f"{STUDY}: supported; the larger the first direction's share, the more a push along it moves the outputs "
        "beside one in a random direction; it says nothing of noise in all directions",
    ),
    Rule(
        "outlier-spike",
        "note",
        "heuristic",
        f"Johnstone 2001, Ann. Statist. 29(2); {MARTIN}",
        "signal or a possible correlation trap: --thorough tells whether it stays when the entries are shuffled",
        _outlier_spike,
    ),
    Rule(
        "correlation-trap",
        "note",
        "hypothesis",
        MARTIN,
        "single large entries make these directions, not how the entries are arranged: look at the largest entries",
        _trap,
    ),
    Rule(
        "frequency-direction",
        "note",
        "heuristic",
        "Mu & Viswanath 2018, arXiv 1702.01417; Gao et al. 2019, arXiv 1907.12009",
        "often the common mean or the frequency of tokens: subtract it before measuring similarity",
        _frequency,
    ),
    Rule(
        "looks-untrained",
        "note",
        "heuristic",
        "Marchenko & Pastur 1967, Math. USSR Sb. 1",
        "check that the layer was trained and is used",
        _untrained,
    ),
    Rule(
        "stands-out",
        "note",
        "heuristic",
        "Iglewicz & Hoaglin 1993, How to Detect and Handle Outliers; Theil 1950, Proc. KNAW 53",
        "first and last layers often differ and may; one in the middle may be damaged, unused or merged from elsewhere",
        _stands_out,
        among=True,
    ),
    Rule(
        "wide",
        "ok",
        "hypothesis",
        MARTIN,
        "said to over-fit; strong weight decay and a few strong directions make it too: measure on held-out data",
        _wide,
        study=f"{STUDY}: not supported; neither the rule nor a small exponent went with a larger generalization gap",
    ),
    Rule(
        "heavy-tailed",
        "ok",
        "hypothesis",
        "Martin, Peng & Mahoney 2021, Nat. Commun. 12, arXiv 2002.06716",
        "the range of well-trained layers in one theory; it ranks models of one family and certifies none",
        _heavy,
        study=f"{STUDY}: not supported; neither the rule nor the exponent went with gap or test accuracy, norms did",
    ),
    Rule(
        "flat",
        "ok",
        "hypothesis",
        MARTIN,
        "many directions alike: poor to compress; expressive at most in that more dimensions of the features are used",
        _flat,
        study=f"{STUDY}: half supported; flatter layers went with features of more dimensions, not with a better fit "
        "of noisy labels; no network was flat enough for the rule itself",
    ),
    Rule(
        "compressible",
        "ok",
        "heuristic",
        "Eckart & Young 1936, Psychometrika 1",
        "the error of 0.316 counts weights, not outputs: measure the outputs before believing it",
        _compressible,
    ),
)
