"""Where a Ray cluster stops scaling: ``python -m benchmarks.scale.ray [--quick]``.

For matrices of one size: weights per second with threads of one process and with Ray at 1 and 2 workers, the
efficiency of two, and the processor time that the driver spends on a layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import netspectra as ns
from benchmarks.results import SHOWN, table
from netspectra.faces.cli.environment import environment
from netspectra.run import Run
from netspectra.run.local import LocalRun
from netspectra.run.parcel import pack
from netspectra.run.ray import RayRun
from netspectra.verbs.analyze import AnalyzeOptions, measure
from netspectra.weight import Weight

HERE = Path(__file__).parent
SIZES = {32: 400, 256: 60, 768: 12}  # side of the matrices: how many
ROUNDS = 3


def rate(run: Run, weights: list[Weight]) -> tuple[float, float]:
    """Weights a second, and processor seconds of this process for each."""
    begun, spent = time.perf_counter(), time.process_time()
    done = sum(1 for _ in run(partial(measure, options=AnalyzeOptions()), weights))
    return done / (time.perf_counter() - begun), (time.process_time() - spent) / done


def main(quick: bool) -> None:
    import ray

    sizes = {32: 40, 256: 6} if quick else SIZES
    rounds = 1 if quick else ROUNDS
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as home:
        sources = {n: _weights(Path(home), n, count) for n, count in sizes.items()}
        for workers in (1, 2):
            begun = time.perf_counter()
            with RayRun(workers=workers).joined():
                started = time.perf_counter() - begun
                begun = time.perf_counter()
                list(RayRun()(partial(measure, options=AnalyzeOptions()), sources[32][: 4 * workers]))
                first = time.perf_counter() - begun
                assert ray.is_initialized()
                for n, weights in sources.items():
                    cluster = RayRun(workers=2 * workers)
                    engines: dict[str, Run] = {"ray": cluster, "threads": LocalRun(workers=workers)}
                    found: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
                    for _ in range(rounds):
                        for name, run in engines.items():
                            found[name].append(rate(run, weights))
                    row = {"workers": workers, "side": n, "weights": len(weights), "start": started, "first": first}
                    rates = {name: [rate for rate, _ in each] for name, each in found.items()}
                    driver = [spent for _, spent in found["ray"]]
                    rows.append(row | {"parcel": len(pack(weights[0])), "rates": rates, "driver": driver})
    _keep(rows, quick)


def _weights(home: Path, n: int, count: int) -> list[Weight]:
    generator = torch.Generator().manual_seed(n)
    path = home / f"{n}.safetensors"
    save_file({f"layers.{i}.weight": torch.randn(n, n, generator=generator) for i in range(count)}, path)
    return list(ns.open(path).weights)


def _keep(rows: list[dict[str, Any]], quick: bool) -> None:
    one = {row["side"]: statistics.median(row["rates"]["ray"]) for row in rows if row["workers"] == 1}
    lines = []
    for row in rows:
        cluster, threads = (statistics.median(row["rates"][name]) for name in ("ray", "threads"))
        spread = f"{min(row['rates']['ray']):.3g} .. {max(row['rates']['ray']):.3g}"
        efficiency = f"{cluster / one[row['side']] / row['workers']:.0%}"
        driver = f"{1e3 * statistics.median(row['driver']):.2f} ms"
        lines.append([row["side"], row["workers"], f"{cluster:.3g} ({spread})", f"{threads:.3g}", efficiency, driver])
    head = [
        "matrices n x n",
        "workers",
        "weights/s on Ray (spread)",
        "with threads",
        "efficiency",
        "driver's CPU each",
    ]
    starts = "; ".join(
        f"{row['workers']} workers: start {row['start']:.0f} s, first tasks {row['first']:.0f} s"
        for row in rows if row["side"] == 32
    )  # fmt: skip
    page = f"{table(head, lines)}\n\n{starts}. A task's message is {rows[0]['parcel']} bytes."
    print(page)
    if quick:
        return
    found = environment()
    machine = ", ".join(f"{name} {value}" for name, value in found.items() if name in SHOWN)
    (HERE / "ray.json").write_text(json.dumps({"environment": found, "rows": rows}, indent=1) + "\n")
    (HERE / "ray.md").write_text(
        f"# Ray: tasks a second\n\n`python -m benchmarks.scale.ray`\n\n{page}\n\nMeasured on: {machine}.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and small; results are not kept")
    main(parser.parse_args().quick)
