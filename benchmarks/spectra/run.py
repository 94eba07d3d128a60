"""Singular values and factors, side by side with torch, numpy, scipy and scikit-learn.

One thread, CPU seconds, contenders in turn within one process. What we lose is printed like what we win.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.results import Timing, in_turn, keep, table
from benchmarks.spectra import contenders as who
from benchmarks.spectra.rates import rates, reduction
from netspectra.linalg.threads import threads
from netspectra.linalg.values import svdvals

HERE = Path(__file__).parent
BASELINES = ("torch f32", "torch full svd f32", "rfft2 + torch svdvals c64", "rfft2 + torch svdvals c128")
BUDGET = 40.0  # seconds a job, all contenders together


@dataclass(frozen=True)
class Job:
    """Timings of all contenders on one matrix."""

    name: str
    timings: Mapping[str, Timing]
    errors: Mapping[str, float]


def jobs(quick: bool) -> list[Job]:
    """Run them all; big matrices come after small ones and are freed in between."""
    found: list[Job] = []

    def run(name: str, peers: dict[str, Callable[[], object]], errors: Mapping[str, float] | None = None) -> None:
        timings = in_turn(peers, 9, warm=False, budget=BUDGET / (4 if quick else 1), clock=time.process_time)
        found.append(Job(name, timings, errors or {}))
        print(name, *(f"{peer} {timing}" for peer, timing in timings.items()), sep=" | ", flush=True)

    for m, n in who.QUICK if quick else who.SQUARE_AND_WIDE:
        A = who.gaussian(m, n)
        errors = who.value_errors(A) if m * n <= 2048 * 2048 else None
        svdvals(A)
        run(f"all values, {m} x {n}", who.all_values(A, slow=max(m, n) <= 3072), errors)
    for m, n in who.SMALL:
        run(f"all values, {m} x {n}", repeated(who.all_values(who.gaussian(m, n), slow=False)))
    for g, m, n in ((64, 64, 512), (1024, 64, 64)):
        run(f"all values, {g} of {m} x {n}", who.batch(g, m, n))
    channels, grid = (64, 16) if quick else (256, 32)
    run(f"circular conv {channels} x {channels} x 3 x 3 at {grid} x {grid}", who.convolution(channels, grid))
    name = f"norm of zero-padded conv {channels} x {channels} x 3 x 3 at {grid} x {grid}"
    run(name, who.zero_padded_norm(channels, grid))
    side = 1024 if quick else 2048
    A = who.gaussian(side, side)
    for k in (16, 64, 256):
        run(f"leading {k} triplets, {side} x {side}", who.truncated(A, k), who.truncated_residuals(A, k))
    return found


def repeated(peers: dict[str, Callable[[], object]], times: int = 50) -> dict[str, Callable[[], object]]:
    """Each peer many times over, so that the clock can see it."""

    def again(peer: Callable[[], object]) -> Callable[[], object]:
        return lambda: [peer() for _ in range(times)]

    return {name: again(peer) for name, peer in peers.items()}


def limit_seconds(m: int, n: int, dgemm: float) -> float:
    """(n^2 m + 4/3 n^3) operations at the measured rate of the matrix product, n the short side."""
    m, n = max(m, n), min(m, n)
    return (n * n * m + 4 / 3 * n**3) / dgemm / 1e9


def plain(name: str) -> tuple[int, int] | None:
    """The shape, where a job is all values of one matrix."""
    found = re.fullmatch(r"all values, (\d+) x (\d+)", name)
    return (int(found[1]), int(found[2])) if found else None


def page(jobs: list[Job], rate: dict[str, float]) -> str:
    """One row a contender: ratio of its time to ours, error, share of the limit for ours."""
    rows = []
    for job in jobs:
        ours = job.timings[who.OURS].median
        for peer, timing in job.timings.items():
            share = ""
            if peer == who.OURS and (sides := plain(job.name)) and min(sides) > 192:
                m, n = sides
                share = f"{limit_seconds(m, n, rate['dgemm']) / timing.median:.0%}"
            ratio = timing.median / ours
            lost = " **lost**" if peer in BASELINES and ratio < 0.9 else ""
            error = f"{job.errors[peer]:.1e}" if peer in job.errors else ""
            rows.append([job.name, peer, timing, f"{ratio:.2f}{lost}", error, share])
    return table(["job", "contender", "CPU seconds", "time / ours", "error", "share of the dgemm limit"], rows)


def projection(jobs: list[Job]) -> str:
    """CPU minutes for a 7B model, by shape."""
    medians = {(job.name, peer): timing.median for job in jobs for peer, timing in job.timings.items()}
    lines = []
    for peer in (who.OURS, "torch f32"):
        parts = [(medians.get((f"all values, {m} x {n}", peer)), count) for (m, n), count in who.MODEL_7B.items()]
        if all(seconds is not None for seconds, _ in parts):
            total = sum(seconds * count for seconds, count in parts if seconds is not None)
            lines.append(f"- {peer}: {total / 60:.1f} CPU minutes")
    return "\n".join(lines) or "- not measured: run without --quick"


def main(quick: bool = False) -> None:
    torch.manual_seed(0)
    with threads(1):
        rate = rates()
        ways = {n: reduction(n) for n in ((1024,) if quick else (2048, 4096))}
        for n, seconds in ways.items():
            print(f"eigenvalues, n = {n}", *(f"{way} {s:.3g} s" for way, s in seconds.items()), sep=" | ", flush=True)
        found = jobs(quick)
    told = ", ".join(f"{name} {value:.0f}" for name, value in rate.items())
    sizes = list(ways)
    rows = [[way, *(f"{ways[n][way]:.3g}" for n in sizes)] for way in ways[sizes[0]]]
    text = "\n\n".join(
        [
            f"One thread, CPU seconds. Rates in GF/s: {told}. Matrices of up to 192 rows: 50 calls together.",
            page(found, rate),
            "## A 7B model by shape",
            projection(found),
            "## From the Gram matrix to its eigenvalues: what bounds the squares",
            table(["way", *(f"n = {n}" for n in sizes)], rows),
        ]
    )
    data = {
        "rates": rate,
        "reduction": {str(n): seconds for n, seconds in ways.items()},
        "jobs": {
            job.name: {peer: {**t.to_dict(), "error": job.errors.get(peer)} for peer, t in job.timings.items()}
            for job in found
        },
    }
    if quick:
        print(text)
    else:
        keep(HERE, "Singular values and factors, side by side", data, text)
