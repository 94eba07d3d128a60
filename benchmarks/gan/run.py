"""Does normalizing a critic help a GAN, and by which norm? Planar mixtures and digits."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gan import digits, planar
from benchmarks.gan.pictures import clouds, numerals
from benchmarks.normalize.run import spread, told
from benchmarks.results import keep, table
from netspectra.linalg.threads import threads

HERE = Path(__file__).parent
KEPT = HERE / "runs.jsonl"  # every run as it comes; a second start goes on from it
SEEDS = 5
PLANES = {"ring of 8": planar.ring(), "grid of 25": planar.grid()}

Key = tuple[str, str, int]  # data, method, seed
Runs = dict[Key, dict[str, Any]]


def jobs(quick: bool) -> Iterator[tuple[Key, Callable[[], planar.Outcome | digits.Outcome]]]:
    """Every run, data by data and within them seed by seed."""
    seeds = range(2 if quick else SEEDS)
    for data, centres in PLANES.items():
        steps = 300 if quick else planar.STEPS
        for seed in seeds:
            for method in planar.METHODS:
                yield (data, method, seed), lambda c=centres, m=method, s=seed, n=steps: planar.train(c, m, s, n)
    for seed in seeds:
        for method in digits.CONSTRAINTS:
            steps = 100 if quick else digits.STEPS
            yield ("digits", method, seed), lambda m=method, s=seed, n=steps: digits.train(m, s, n)


def collect(quick: bool) -> Runs:
    """Run what is not there yet."""
    found: Runs = {}
    if not quick and KEPT.exists():
        for line in KEPT.read_text().splitlines():
            *key, run = json.loads(line)
            found[key[0], key[1], key[2]] = run
    for key, run in jobs(quick):
        if key in found:
            continue
        found[key] = asdict(run())
        told = ", ".join(f"{name} {value}" for name, value in found[key].items() if name != "samples")
        print(f"{key[0]}, {key[1]}, seed {key[2]}: {told}", flush=True)
        if not quick:
            with KEPT.open("a") as file:
                file.write(json.dumps([*key, found[key]]) + "\n")
    return found


def rows(runs: Runs, data: str) -> list[dict[str, Any]]:
    """One row a method: counts by seed, medians and spread of the rest."""
    found = []
    for method in planar.METHODS if data in PLANES else digits.CONSTRAINTS:
        mine = [run for (where, how, _), run in sorted(runs.items()) if (where, how) == (data, method)]
        row: dict[str, Any] = {"method": method}
        for name in mine[0]:
            column = [run[name] for run in mine]
            if name in ("modes", "classes", "path"):
                row[name] = column
            elif name == "diverged":
                row[name] = sum(column)
            elif name != "samples":
                row[name] = spread(column)
        found.append(row)
    return found


def main(quick: bool = False) -> None:
    with threads(1):
        runs = collect(quick)
    found = {data: rows(runs, data) for data in (*PLANES, "digits")}
    page = "\n\n".join((*_planar_page(found), *_digits_page(found["digits"])))
    if quick:
        print(page)
        return
    first = {key[:2]: run["samples"] for key, run in runs.items() if key[2] == 0}
    clouds({(data, method): first[data, method] for data in PLANES for method in planar.METHODS}, HERE / "planar.png")
    numerals({method: first["digits", method] for method in digits.CONSTRAINTS}, HERE / "digits.png")
    keep(HERE, "Critics under a budget", found, page)


def _planar_page(found: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield (
        "GANs on points of the plane: modes held of 5 seeds (a mode counts with a fifth of its share within three "
        "standard deviations), the most they held at any sixth of the way, share of samples near a mode, largest "
        "Jacobian of the critic on data and samples, product of its norms, mean |D| on data, seconds of one core. "
        f"{planar.STEPS} steps; critic and generator have 3 layers of width {planar.WIDTH}; non-saturating logistic "
        f"loss, but for WGAN-GP, with {planar.CRITIC_STEPS} critic steps."
    )
    head = ("data", "critic", "modes", "median", "most", "near", "used", "product of norms", "mean abs D", "diverged")
    lines = []
    for data in PLANES:
        for r in found[data]:
            modes = [
                " ".join(map(str, r["modes"])),
                statistics.median(r["modes"]),
                " ".join(str(max(p)) for p in r["path"]),
            ]
            numbers = (told(r["near"], 2), told(r["used"]), told(r["budget"]), told(r["scale"], 2), r["diverged"])
            lines.append((data, r["method"], *modes, *numbers, f"{r['seconds']['median']:.0f}"))
    yield table((*head, "seconds"), lines)
    held = next(r for r in found["ring of 8"] if r["method"] == planar.BUDGETED)
    median = statistics.median(held["modes"])
    yield (
        f"Ring of 8 with a budget ({planar.BUDGETED}): median of {median} of 8 modes; mark 8: "
        f"{'reached' if median == 8 else 'not reached'}."
    )
    yield "![Samples of the first seed; data in orange](planar.png)"


def _digits_page(found: list[dict[str, Any]]) -> Iterator[str]:
    yield (
        f"GANs on the 8 x 8 digits ({digits.STEPS} steps): classes held of 5 seeds (2 % of the samples each), total "
        "variation of class shares from even, Frechet distance in a classifier's features (less is better)."
    )
    head = ("critic", "classes", "unevenness", "Frechet", "used", "product of norms", "diverged", "seconds")
    lines = []
    for r in found:
        numbers = (told(r["unevenness"], 2), told(r["frechet"]), told(r["used"]), told(r["budget"]), r["diverged"])
        lines.append((r["method"], " ".join(map(str, r["classes"])), *numbers, f"{r['seconds']['median']:.0f}"))
    yield table(head, lines)
    yield "![Samples of the first seed](digits.png)"
