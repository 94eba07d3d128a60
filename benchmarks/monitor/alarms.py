"""How soon injected faults are told, and how often a healthy training is disturbed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.monitor.trainings import FAULTS, KINDS, begun
from benchmarks.results import table
from netspectra import Monitor
from netspectra.linalg.threads import threads

WITHIN = 50  # steps
HEALTHY = 400
ENDS = 0.0  # full spectra at begin and end tell of no fault


def study(quick: bool, seeds: Sequence[int] = range(20)) -> dict[str, Any]:
    seeds = list(seeds)[:3] if quick else list(seeds)
    with threads(1):
        return {
            "seeds": seeds,
            "faults": [faulty(name, seed) for name in FAULTS for seed in seeds],
            "healthy": [healthy(list(KINDS)[seed % len(KINDS)], seed) for seed in seeds],
        }


def faulty(name: str, seed: int) -> dict[str, Any]:
    """One training with a fault that begins between steps 100 and 200; the default monitor."""
    inject, rules, kinds = FAULTS[name]
    kind, at = kinds[seed % len(kinds)], 100 + (37 * seed) % 100
    training = begun(kind, seed)
    with Monitor(training.model, optimizer=training.optimizer, ends=ENDS) as monitor:
        for step in range(at + WITHIN):
            if step >= at:
                inject(training, seed, step - at)
            training.step()
            if any(alarm.verdict.rule in rules and alarm.step > at for alarm in monitor.alarms):
                break
        told = list(monitor.alarms)
    right = [alarm for alarm in told if alarm.verdict.rule in rules and at < alarm.step <= at + WITHIN]
    return {
        "fault": name, "kind": kind, "seed": seed, "at": at,
        "after": right[0].step - at if right else None,
        "rules": sorted({alarm.verdict.rule for alarm in told}),
        "before": [str(alarm) for alarm in told if alarm.step <= at],
    }  # fmt: skip


def healthy(kind: str, seed: int) -> dict[str, Any]:
    training = begun(kind, seed)
    with Monitor(training.model, optimizer=training.optimizer, ends=ENDS) as monitor:
        losses = [training.step() for _ in range(HEALTHY)]
    return {
        "kind": kind, "seed": seed, "first loss": losses[0], "last loss": sum(losses[-20:]) / 20,
        "alarms": [str(alarm) for alarm in monitor.alarms], "gap": monitor.state()["lanes"]["cheap"]["gap"],
        "overhead": monitor.overhead,
    }  # fmt: skip


def page(found: dict[str, Any]) -> str:
    rows = []
    for name in FAULTS:
        mine = [row for row in found["faults"] if row["fault"] == name]
        after = sorted(row["after"] for row in mine if row["after"] is not None)
        rows.append([
            name, len(mine), f"{len(after)} ({len(after) / len(mine):.0%})",
            f"{median(after):g} (to {after[-1]})" if after else "-", sum(bool(row["before"]) for row in mine),
        ])  # fmt: skip
    head = ("fault", "trainings", f"told within {WITHIN} steps", "steps, median (largest)", "alarms before it")
    disturbed = [row for row in found["healthy"] if row["alarms"]]
    lines = [f"{row['kind']}, seed {row['seed']}: {row['alarms'][0]}" for row in disturbed]
    missed = [
        f"missed: {row['fault']}, {row['kind']}, seed {row['seed']}" for row in found["faults"] if row["after"] is None
    ]
    return "\n\n".join([
        "## Alarms",
        f"Default monitor, budget 1 %. Kinds of training in turn: {', '.join(KINDS)}; seeds {found['seeds'][0]} to "
        f"{found['seeds'][-1]}. The thresholds were chosen on seeds from 1000 on.",
        table(head, rows),
        f"Healthy trainings with any alarm in {HEALTHY} steps: **{len(disturbed)} of {len(found['healthy'])}**.",
        *(["\n".join(f"- {line}" for line in [*lines, *missed])] if lines or missed else []),
    ])  # fmt: skip
