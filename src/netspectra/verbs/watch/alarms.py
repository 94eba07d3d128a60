"""What goes wrong in trainings and shows in spectra, as rules: what is suspect, over all weights at once, and why.

Every threshold is in one table. They were chosen on other seeds than those of benchmarks/monitor, which measures how
soon they speak and how often they speak for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from netspectra.errors import NetspectraError
from netspectra.record import Level, Verdict
from netspectra.verbs.watch.recent import Recent
from netspectra.verdicts import Standing

__all__ = ["RULES", "THRESHOLDS", "Alarm", "AlarmRaised", "AlarmRule", "falling", "suspects"]

THRESHOLDS: dict[str, float] = {
    "growth": 4.0,  # times as large as within the last `growth steps`
    "growth steps": 50,
    "growth of zero": 30.0,  # the same for weights that began at, or near, zero, in their first `zero steps`
    "zero steps": 150,
    "rank": 1.5,  # stable rank
    "rank fall": 4.0,  # times below the largest so far
    "tail": 0.1,  # share of the energy beyond the leading values
    "tail fall": 4.0,  # times below what it was at first
    "collapse from": 16,  # min(m, n)
    "dead steps": 15,  # without any gradient
    "lost": 1e-7,  # gradient over weight, relative to the largest of the network
    "lost steps": 25,
    "stale steps": 100,
    "logits": 6.0,  # growth of the bound on attention logits within `logits steps`
    "logits steps": 100,
}


@dataclass(frozen=True)
class Alarm:
    """Something went wrong at a step.

    Attributes:
        step: when it was seen.
        name: of the weight or layer.
        verdict: rule, level, sentence and evidence.
    """

    step: int
    name: str
    verdict: Verdict

    def __str__(self) -> str:
        """One line."""
        return f"step {self.step}: {self.verdict.rule}: {self.name}: {self.verdict.message}"

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        v = self.verdict
        return {"step": self.step, "name": self.name, "rule": v.rule, "level": v.level, "message": v.message,
                "evidence": dict(v.evidence)}  # fmt: skip


class AlarmRaised(NetspectraError):
    """The training was ended by an alarm, as was asked for (``raise_on``).

    Attributes:
        alarm: which.
    """

    exit_code = 3

    def __init__(self, alarm: Alarm) -> None:
        """Say what was seen and what to do."""
        super().__init__(f"{alarm}. {alarm.verdict.evidence.get('advice', '')}".strip())
        self.alarm = alarm


SUSPECT = 3.0  # a stable rank that is worth a look at the leading values
AGAIN = 8  # steps until the next one
FALLEN, FALLS = 1 / 3, 0.8  # of the largest stable rank so far, and of the one before: worth looking soon again
Found = tuple[str, str, dict[str, Any]]  # name, sentence, evidence


@dataclass(frozen=True)
class AlarmRule:
    """One row of the table.

    Attributes:
        name: what it is called.
        level: how serious it is.
        standing: established result, rule of thumb, or open hypothesis.
        reference: where it comes from.
        advice: what to do.
        find: from the last looks to whatever is wrong now, weight by weight.
    """

    name: str
    level: Level
    standing: Standing
    reference: str
    advice: str
    find: Callable[[Recent], Iterable[Found]]

    def spoken(self, recent: Recent) -> Iterator[Alarm]:
        """What it says of the last looks."""
        for name, message, evidence in self.find(recent):
            told = {**evidence, "standing": self.standing, "reference": self.reference, "advice": self.advice}
            yield Alarm(recent.now, name, Verdict(self.name, self.level, message, told))


def suspects(recent: Recent) -> list[int]:
    """Weights whose stable rank has just fallen: worth a look at their leading values before it is due."""
    rank, old = recent.rank, recent.tail_step < recent.now - AGAIN
    fallen = rank < np.minimum(recent.rank_most * FALLEN, SUSPECT)
    known = np.isnan(recent.tail) | (recent.tail > THRESHOLDS["tail"])
    return np.flatnonzero(fallen & old & known & (recent.sizes >= THRESHOLDS["collapse from"])).tolist()


def falling(recent: Recent) -> bool:
    """Whether the stable rank of any weight is far below what it was and falls on."""
    with np.errstate(invalid="ignore"):
        falls = (recent.rank < FALLEN * recent.rank_most) & (recent.rank < FALLS * recent.rank_before)
    return bool((falls & (recent.sizes >= THRESHOLDS["collapse from"])).any())


def _not_finite(recent: Recent) -> Iterator[Found]:
    for place in np.flatnonzero(~np.isfinite(recent.frobenius[-1])).tolist():
        yield recent.names[place], "its numbers are no longer finite", {"frobenius_norm": None}
    for place in np.flatnonzero(np.isinf(recent.gradient[-1])).tolist():
        yield recent.names[place], "its gradient is infinite", {"gradient_norm": None}


def _blow_up(recent: Recent) -> Iterator[Found]:
    count = recent.within(int(THRESHOLDS["growth steps"]))
    if count < 2:
        return
    now, before = recent.sigma[-1], np.fmin.reduce(list(recent.sigma)[-count:])
    frobenius = recent.frobenius[-1]
    # a weight that begins at zero grows by any factor: it is measured by what the others are
    median = float(np.partition(recent.sigma[-count], len(now) // 2)[len(now) // 2])
    usual = 0.1 * median
    young = recent.began is not None and recent.now - recent.began < THRESHOLDS["zero steps"]
    small = (before < usual) | recent.zero if young else before < usual
    limit = np.where(small, THRESHOLDS["growth of zero"], THRESHOLDS["growth"])
    # and one that only grows up to what the others are has not blown up
    floor = np.fmax(before, np.where(small, usual, median / limit))
    with np.errstate(invalid="ignore"):
        grown = (now > limit * floor) & (floor > 0) & np.isfinite(now) & np.isfinite(frobenius)
    for place in np.flatnonzero(grown).tolist():
        steps = recent.now - recent.steps[-count]
        ratio = float(now[place] / max(before[place], 1e-300))
        yield recent.names[place], f"sigma_1 grew {ratio:.3g} times within {steps} steps, to {now[place]:.3g}", {
            "sigma_1": float(now[place]), "before": float(before[place]), "steps": steps,
            "threshold": float(limit[place]),
        }  # fmt: skip


def _collapse(recent: Recent) -> Iterator[Found]:
    rank = recent.rank
    large = recent.sizes >= THRESHOLDS["collapse from"]
    with np.errstate(invalid="ignore"):
        tail = (recent.tail < THRESHOLDS["tail"]) & (recent.tail * THRESHOLDS["tail fall"] < recent.tail_first)
        one = (rank < THRESHOLDS["rank"]) & (rank * THRESHOLDS["rank fall"] < recent.rank_most)
    for place in np.flatnonzero(large & (tail | one)).tolist():
        evidence = {"stable_rank": float(rank[place]), "largest": float(recent.rank_most[place])}
        if tail[place]:
            share, first = float(recent.tail[place]), float(recent.tail_first[place])
            message = f"all but {share:.2%} of its energy lies in its leading directions, {1 - first:.0%} did at first"
            evidence |= {"tail": share, "first": first, "threshold": THRESHOLDS["tail"]}
        else:
            message = f"stable rank {rank[place]:.2f}, it was {recent.rank_most[place]:.3g}"
            evidence |= {"threshold": THRESHOLDS["rank"]}
        yield recent.names[place], message, evidence


def _dead(recent: Recent) -> Iterator[Found]:
    if not (recent.gradient[-1] == 0).any():
        return
    count = recent.within(int(THRESHOLDS["dead steps"]))
    rows = np.array(list(recent.gradient)[-count:])
    steps = recent.now - recent.steps[-count]
    if count < 2 or steps < 1:
        return
    for place in np.flatnonzero((rows == 0).all(axis=0)).tolist():
        yield recent.names[place], f"no gradient has reached it for {steps} steps or more", {
            "steps": steps, "looks": count, "gradient_norm": 0.0,
        }  # fmt: skip


def _lost(recent: Recent) -> Iterator[Found]:
    count = recent.within(int(THRESHOLDS["lost steps"]), 3)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        now = recent.gradient[-1] / recent.frobenius[-1]
        if count < 3 or not (now < THRESHOLDS["lost"] * np.fmax.reduce(now)).any():
            return
        relative = np.array(list(recent.gradient)[-count:]) / np.array(list(recent.frobenius)[-count:])
        share = np.fmax.reduce(relative / np.fmax.reduce(relative, axis=1, keepdims=True))
    for place in np.flatnonzero((share > 0) & (share < THRESHOLDS["lost"])).tolist():
        yield recent.names[place], f"its gradient is {share[place]:.1e} of the largest, relative to the weights", {
            "share": float(share[place]), "threshold": THRESHOLDS["lost"], "looks": count,
        }  # fmt: skip


def _stale(recent: Recent) -> Iterator[Found]:
    for name, held in recent.norms.items():
        step, state = held[-1]
        if not state.finite:
            yield name, "its running statistics are not finite", {}
            continue
        same = [at for at, before in held if before.count == state.count]
        if step - same[0] < THRESHOLDS["stale steps"] or not state.trains:
            continue
        mode = "training" if state.training else "eval"
        yield name, f"its running statistics have not moved for {step - same[0]} steps, in {mode} mode", {
            "steps": step - same[0], "batches": state.count, "mode": mode,
        }  # fmt: skip


def _logits(recent: Recent) -> Iterator[Found]:
    count = recent.within(int(THRESHOLDS["logits steps"]))
    if count < 2 or recent.began is None or recent.steps[-count] - recent.began < THRESHOLDS["logits steps"] / 2:
        return
    for q, k in recent.pairs:
        sizes = np.array([row[q] * row[k] for row in list(recent.sigma)[-count:]])
        before, now = np.nanmin(sizes), sizes[-1]
        if np.isfinite(now) and now > THRESHOLDS["logits"] * before > 0:
            steps = recent.now - recent.steps[-count]
            told = f"the bound on attention logits grew {now / before:.3g} times within {steps} steps"
            yield recent.names[q], told, {
                "sigma_1 of query times key": float(now), "before": float(before), "steps": steps,
                "key": recent.names[k], "threshold": THRESHOLDS["logits"],
            }  # fmt: skip


RULES: tuple[AlarmRule, ...] = (
    AlarmRule(
        "not-finite", "error", "established", "IEEE 754",
        "go back to the last good checkpoint; a smaller learning rate, clipped gradients or a wider dtype",
        _not_finite,
    ),
    AlarmRule(
        "blow-up", "error", "heuristic", "Cohen et al. 2021, arXiv 2103.00065; benchmarks/monitor",
        "a smaller learning rate or a longer warm-up; clip gradients",
        _blow_up,
    ),
    AlarmRule(
        "rank-collapse", "warn", "heuristic", "Rudelson & Vershynin 2007, arXiv math/0503442; benchmarks/monitor",
        "less weight decay or a smaller learning rate; look whether the inputs have collapsed too",
        _collapse,
    ),
    AlarmRule(
        "dead-layer", "error", "heuristic", "Lu et al. 2020, Commun. Comput. Phys. 28(5), arXiv 1903.06733",
        "its activations may all be in the flat half, or it is cut off: look at its biases, or freeze it on purpose",
        _dead,
    ),
    AlarmRule(
        "signal-lost", "warn", "heuristic", "Pennington, Schoenholz & Ganguli 2017, arXiv 1711.04735",
        "netspectra.trainability(model, batch) shows where; residual connections, normalization or another start help",
        _lost,
    ),
    AlarmRule(
        "stale-statistics", "warn", "heuristic", "Ioffe & Szegedy 2015, arXiv 1502.03167",
        "call model.train() before training on, or exclude the layer if it is frozen on purpose",
        _stale,
    ),
    AlarmRule(
        "attention-logits", "warn", "heuristic",
        "Zhai et al. 2023, arXiv 2303.06296; Dehghani et al. 2023, arXiv 2302.05442",
        "normalize queries and keys, or hold their norms (netspectra.normalize_); a smaller learning rate",
        _logits,
    ),
)  # fmt: skip
