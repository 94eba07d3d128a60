"""False alarms and power of `ns.drift` beside what others do; streams that must stay quiet; the price of sketching."""

from __future__ import annotations

import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import netspectra as ns
from benchmarks.drift import peers
from benchmarks.drift.page import page
from benchmarks.drift.pixels import NETWORKS, SHIFTS, Images, changed, softmax
from benchmarks.drift.sentences import LAYERS, SHARES, Sentences
from benchmarks.results import keep
from netspectra.verbs.drift.activations import activations

HERE = Path(__file__).parent
LEVEL, PERMUTATIONS = 0.05, 499
NETWORK_SEED, DRAW_SEED = 40, 4000  # others than those on which the statistics were chosen (5 to 18)
REFERENCE = {20: 700, 50: 700, 200: 700, 1000: 290}  # rows of the reference for windows of these sizes
REPEATS = {20: 60, 50: 60, 200: 25, 1000: 10}
QUIET_REPEATS = {20: 200, 50: 200, 200: 100, 1000: 30}
TEXT_REFERENCE, TEXT_WINDOWS = 800, {20: 50, 50: 50, 200: 25, 500: 12}

Cell = dict[str, Any]


def cell(data: str, size: int, shift: str, alarms: dict[str, list[bool]], seconds: float) -> Cell:
    rates = {name: float(np.mean(found)) for name, found in alarms.items()}
    repeats = len(next(iter(alarms.values())))
    return {"data": data, "window": size, "shift": shift, "repeats": repeats, "rates": rates, "seconds": seconds}


def judged(
    draws: Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]], hidden: str, soft: bool
) -> tuple[dict[str, list[bool]], float]:
    """What everybody says of the same references and windows; and our processor seconds a test."""
    alarms: dict[str, list[bool]] = {}
    spent = []
    for i, (reference, window) in enumerate(draws):
        started = time.process_time()
        known = ns.drift(None, reference, seed=i)
        begun = time.process_time()
        found = {"netspectra": known.test(window, alpha=LEVEL, permutations=PERMUTATIONS).alarm}
        spent.append((begun - started, time.process_time() - begun))
        a, b = reference[hidden], window[hidden]
        if soft:
            p = peers.kolmogorov_smirnov(softmax(reference["output"]), softmax(window["output"]))
            found["KS softmax"] = p <= LEVEL
        found["KS hidden"] = peers.kolmogorov_smirnov(a, b) <= LEVEL
        found["MMD hidden"] = peers.mmd(a, b, PERMUTATIONS, i) <= LEVEL
        found["PCA"] = peers.reconstruction(a, b, i)
        found["sigma_1"] = peers.naive(a, b)
        for name, alarm in found.items():
            alarms.setdefault(name, []).append(alarm)
    return alarms, statistics.median(test for _, test in spent)


def digits(quick: bool, kind: str, size: int) -> list[Cell]:
    images = Images.trained(kind, NETWORK_SEED)
    print(f"{kind}: accuracy {images.accuracy:.3f}", flush=True)
    cells = []
    for shift in SHIFTS:
        repeats = 2 if quick else (QUIET_REPEATS if shift == "nothing" else REPEATS)[size]
        rng = np.random.default_rng([DRAW_SEED, size, SHIFTS.index(shift)])
        pairs = (images.draw(rng, REFERENCE[size], size, shift) for _ in range(repeats))
        draws = ((images.layers(reference), images.layers(window)) for reference, window in pairs)
        alarms, seconds = judged(draws, images.hidden, soft=True)
        cells.append(cell(f"digits, {kind}", size, shift, alarms, seconds))
        print(cells[-1], flush=True)
    return cells


def calibration(quick: bool) -> list[Cell]:
    """False alarms of ours alone, of many windows: smaller references, fewer exchanges."""
    cells = []
    for kind in NETWORKS:
        images = Images.trained(kind, NETWORK_SEED)
        rows = images.layers(images.images)
        for size in (20, 50):
            rng = np.random.default_rng([DRAW_SEED, size, 99])
            alarms, spent = [], []
            for i in range(5 if quick else 500):
                order, started = rng.permutation(len(images.images)), time.process_time()
                known = ns.drift(None, _taken(rows, order[:300]), seed=i)
                alarms.append(known.test(_taken(rows, order[300 : 300 + size]), permutations=199).alarm)
                spent.append(time.process_time() - started)
            found = {"netspectra": alarms}
            cells.append(cell(f"digits, {kind}", size, "nothing", found, statistics.median(spent)))
    return cells


def texts(quick: bool, size: int) -> list[Cell]:
    sentences = Sentences.embedded(*((350, 20) if quick else ()))
    cells = []
    repeats = 2 if quick else TEXT_WINDOWS[size]
    for share in SHARES:
        rng = np.random.default_rng([DRAW_SEED, size, round(100 * share)])
        held = 300 if quick else TEXT_REFERENCE
        count = repeats if share or quick else 3 * repeats
        draws = (sentences.draw(rng, held, size, share) for _ in range(count))
        alarms, seconds = judged(draws, LAYERS[-1], soft=False)
        shift = f"{share:.0%} strangers" if share else "nothing"
        cells.append(cell("texts, MiniLM", size, shift, alarms, seconds))
        print(cells[-1], flush=True)
    return cells


def streams(quick: bool) -> dict[str, Any]:
    """Watching: how many streams of 1000 quiet windows ever alarm, and how soon drifting ones do."""
    images = Images.trained("MLP", NETWORK_SEED)
    rows = images.layers(images.images)
    count, windows = (3, 50) if quick else (240, 1000)
    shifted = {
        shift: images.layers(changed(images.images, shift, np.random.default_rng(0))) for shift in ("blur", "contrast")
    }
    weak, spent = np.random.default_rng(1), 0.0
    alarms, delays = [], {name: [] for name in (*shifted, "one in ten blurred")}
    for seed in range(count):
        started = time.process_time()
        rng = np.random.default_rng([DRAW_SEED, seed])
        known = ns.drift(None, _taken(rows, rng.integers(0, len(images.images), 1000)), seed=seed)
        stream = known.sequential()
        # evidence is the same however rows are cut into windows, and an alarm at any row stays
        stream.test(_taken(rows, rng.integers(0, len(images.images), 20 * windows)))
        alarms.append(stream.evidence.alarm)
        spent += time.process_time() - started
        if seed < 10:
            for name, found in delays.items():
                found.append(_delay(known.sequential(), rows, shifted, name, rng, weak))
    told = {"streams": count, "windows": windows, "alarmed": int(sum(alarms)), "delays": delays}
    return told | {"seconds_a_row": spent / (count * windows * 20)}


def _taken(rows: dict[str, np.ndarray], places: np.ndarray) -> dict[str, np.ndarray]:
    return {name: one[places] for name, one in rows.items()}


def _delay(stream: Any, rows: Any, shifted: Any, name: str, rng: np.random.Generator, weak: np.random.Generator) -> int:
    """Windows of 20 rows until the alarm, after 20 quiet ones; at most 200."""
    total = len(next(iter(rows.values())))
    for _ in range(20):
        stream.test(_taken(rows, rng.integers(0, total, 20)))
    for window in range(1, 201):
        places = rng.integers(0, total, 20)
        window_rows = _taken(shifted.get(name, rows), places)
        if name == "one in ten blurred":
            hit = weak.random(20) < 0.1
            blurred = _taken(shifted["blur"], places)
            window_rows = {n: np.where(hit[:, None], blurred[n], one) for n, one in window_rows.items()}
        if stream.test(window_rows).alarm:
            return window
    return 201


def sketching(quick: bool) -> list[Cell]:
    """The same references and windows, covariances summed or sketched."""
    images = Images.trained("CNN", NETWORK_SEED)
    name = next(n for n, _ in images.model.named_modules() if n == "6")  # 512 flattened numbers
    cells = []

    def wide(some: np.ndarray) -> dict[str, np.ndarray]:
        import torch

        parts = list(activations(images.model, torch.from_numpy(some), [name], []))
        return {name: np.concatenate([part[name] for part in parts])}

    for shift in ("nothing", "blur", "rotated", "missing"):
        for size in (20, 50):
            rng = np.random.default_rng([DRAW_SEED, size, 77, SHIFTS.index(shift)])
            alarms: dict[str, list[bool]] = {"exact": [], "sketched": []}
            for i in range(2 if quick else 60):
                reference, window = map(wide, images.draw(rng, 700, size, shift))
                for kind, exact in (("exact", 1024), ("sketched", 1)):
                    alarms[kind].append(ns.drift(None, reference, seed=i, exact=exact).test(window).alarm)
            cells.append(cell("digits, CNN, 512 wide", size, shift, alarms, 0.0))
            print(cells[-1], flush=True)
    return cells


def memory(quick: bool) -> list[dict[str, float]]:
    """Peak memory and time of making a reference of rows 4096 wide, of more and more of them."""
    found = []
    for chunks in (4, 8) if quick else (8, 16, 32):
        rows = _wide(chunks)
        tracemalloc.start()
        started = time.process_time()
        known = ns.drift(None, rows)
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        path = HERE / "memory.tmp"
        known.save(path)
        found.append({"rows": 256 * chunks, "peak_bytes": peak, "file_bytes": path.stat().st_size, "seconds": seconds})
        path.unlink()
    return found


def _wide(chunks: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((256, 4096)).astype(np.float32) for _ in range(chunks))


PARTS: dict[str, Callable[[bool], Any]] = {
    "calibration": calibration,
    **{f"digits {kind} {size}": partial(digits, kind=kind, size=size) for kind in NETWORKS for size in REFERENCE},
    **{f"texts {size}": partial(texts, size=size) for size in TEXT_WINDOWS},
    "streams": streams,
    "sketching": sketching,
    "memory": memory,
}


def main(quick: bool = False, only: tuple[str, ...] = ()) -> None:
    """Measure all, or some parts by name; parts that were measured before stay in the results."""
    path, found = HERE / "results.json", {}
    for name, measure in PARTS.items():
        if only and name not in only:
            continue
        part = measure(quick)
        if not quick:
            found = json.loads(path.read_text()) if path.exists() else {}
            found.pop("environment", None)
        found[name] = part
        if not quick:
            found = {known: found[known] for known in PARTS if known in found}
            keep(HERE, "Drift: false alarms and power", found, page(found))
    if quick:
        print(page(found))


if __name__ == "__main__":
    main("--quick" in sys.argv, tuple(a for a in sys.argv[1:] if not a.startswith("-")))
