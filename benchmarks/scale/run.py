"""A checkpoint of real size on this machine: time, peak memory, bytes read, and whether every planted value is found.

The spectra are known exactly (`planted`). Each part runs in a process of its own, so that its peak memory is its own,
and keeps its findings in a run file: interrupted, it goes on where it was. From the rates of the parts follows what
larger models would take, by their shapes; one matrix of a larger model is measured to check that.

``python -m benchmarks scale`` takes 4 of the 32 layers and both embeddings;
``python -m benchmarks.scale.run --depth 32 --folder DIR`` all of it (16 GB on disk, resumed by the same line).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import netspectra
from benchmarks.results import keep, table
from benchmarks.scale import planted
from benchmarks.scale.planted import LLAMA_3_8B, LLAMA_3_70B, LLAMA_3_405B, TOY, Planted, Shape
from netspectra.composed import compose
from netspectra.run.cost import flops
from netspectra.views import Context, view
from netspectra.weight import TensorRef

HERE = Path(__file__).parent
PARTS = {"attention": "*.self_attn.*", "mlp": "*.mlp.*", "embeddings": "re:embed_tokens|lm_head"}
LIKE = "re:layers\\.0\\."  # what is compared: one layer

# One part, in a process of its own; prints what it cost. The run file makes it resumable.
ANALYZE = """
import json, resource, sys, time
import netspectra as ns
path, include, runfile = sys.argv[1:4]
source = ns.open(path)
import torch
import netspectra.verbs.analyze
def read():
    with open("/proc/self/io") as file:
        return {line.split(":")[0]: int(line.split()[1]) for line in file}
before, cpu, wall = read(), time.process_time(), time.perf_counter()
found = ns.analyze(source, include=include, runfile=runfile)
after = read()
print(json.dumps({
    "weights": len(found), "cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "bytes_read": after["rchar"] - before["rchar"],
    "values": {r.name: [r.spectrum.values.tolist(), r.spectrum.error.tolist()] for r in found},
}))
"""
COMPARE = """
import json, resource, sys, time
import netspectra as ns
cpu, wall = time.process_time(), time.perf_counter()
found = ns.compare(sys.argv[1], sys.argv[2], include=sys.argv[3])
print(json.dumps({
    "weights": len(found.deltas), "lineage": found.lineage,
    "cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "values": {d.name: [d.spectrum.values.tolist(), d.spectrum.error.tolist()] for d in found.deltas if d.spectrum},
}))
"""


# From checkpoint to checkpoint: the matrices of SHRUNK become factors or codes, all others are copied.
REWRITE = """
import json, resource, sys, time
import netspectra as ns
from netspectra.run.local import serial
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.streamed import compress_stream
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.streamed import quantize_stream
path, out, include, how = sys.argv[1:5]
source, cpu, wall = ns.open(path), time.process_time(), time.perf_counter()
if how == "compress":
    plan, saved = compress_stream(source, out, CompressOptions(keep=0.5, include=(include,)), run=serial)
else:
    plan, saved = quantize_stream(source, out, QuantizeOptions(bits=4.5, ranks=(0,), include=(include,)), run=serial)
print(json.dumps({
    "weights": sum(d.form != "dense" for d in plan), "bytes": saved.bytes, "planned": plan.totals["model_after"].bytes,
    "cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall,
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "sizes": {d.site: [d.form, d.size] for d in plan if d.form != "dense"},
}))
"""
SHRUNK = {"compress": "re:layers\\.0\\.(self_attn\\.q_proj|mlp\\.down_proj)", "quantize": "*.layers.0.*"}


def rewritten(path: Path, out: Path, how: str, shapes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """Rewrite the checkpoint, and look at what was written: every error against the planted values (Eckart-Young)."""
    found = child(REWRITE, path, out, SHRUNK[how], how)
    before = {ref.name: ref for ref in netspectra.open(path).tensors}
    written = netspectra.open(out)
    after = {ref.name: ref for ref in compose(written.tensors, written.config)}
    apart = {}
    for layer, (_, rank) in found.pop("sizes").items():
        W, sigma = before[name := f"{layer}.weight"].load().float(), planted.expected(f"{layer}.weight", shapes[name])
        if how == "compress":
            W -= after[f"{layer}.1.weight"].load().float() @ after[f"{layer}.0.weight"].load().float()
            apart[layer] = float(W.norm(dtype=torch.float64)) / float(np.sqrt((sigma[rank:] ** 2).sum()))
        else:
            W -= after[name].load().float()
            apart[layer] = float(W.norm(dtype=torch.float64)) / float(np.sqrt((sigma**2).sum()))
    shutil.rmtree(out)
    return {**found, "apart": apart}


def child(code: str, *arguments: str | Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a part failed with {done.returncode}; the same line again goes on from the run files")
    return json.loads(done.stdout)


def checked(found: dict[str, Any], shapes: dict[str, tuple[int, int]], known: Any) -> dict[str, Any]:
    """Compare every value with the planted one: how many lie within their stated error, and the worst relative miss."""
    values = within = 0
    worst = 0.0
    for name, (sigma, error) in found.pop("values").items():
        wanted, sigma, error = known(name, shapes[name]), np.array(sigma), np.array(error)
        miss = np.abs(sigma - wanted)
        values += len(wanted)
        within += int((miss <= error + 1e-13 * wanted[0]).sum())
        worst = max(worst, float((miss / wanted).max()))
    return {**found, "values": values, "within_stated_error": within, "worst_relative": worst}


def work(shape: Shape, depth: int | None = None) -> dict[str, float]:
    """Operations that the singular values of each part take, by shape."""
    refs = [TensorRef(name, size, "bfloat16", Planted(name, size)) for name, size in shape.weights(depth)]
    weights, _ = view(refs, Context(config=shape.config(depth or shape.layers)))
    total = dict.fromkeys(PARTS, 0.0)
    for weight in weights:
        part = "attention" if ".self_attn." in weight.name else "mlp" if ".mlp." in weight.name else "embeddings"
        total[part] += flops(weight)
    return total


def measure(shape: Shape, depth: int, home: Path) -> dict[str, Any]:
    shapes = dict(shape.weights(depth))
    here, after = home / f"{shape.hidden}-{depth}", home / f"{shape.hidden}-tuned"
    result: dict[str, Any] = {"shape": shape.name, "depth": depth, "layers": shape.layers}
    started = time.process_time()
    if not (here / "config.json").exists():
        planted.write(here, shape, depth)
    if not (after / "config.json").exists():
        planted.write(after, shape, 1, tuned=True, embeddings=False)
    result["write_cpu_seconds"] = time.process_time() - started
    result["bytes"] = sum(file.stat().st_size for file in here.glob("*.safetensors"))
    result["files"] = len(list(here.glob("*.safetensors")))
    largest = max(m * n for m, n in shapes.values()) * 2
    result["promised_bytes"] = 2 * largest + 24 * shape.hidden**2 + (1 << 30)
    result["parts"] = {}
    for part, pattern in PARTS.items():
        result["parts"][part] = found = once(
            home / f"{part}-{shape.hidden}-{depth}.json",
            lambda pattern=pattern, part=part: checked(
                child(ANALYZE, here, pattern, home / f"{part}-{shape.hidden}-{depth}.run"), shapes, planted.expected
            ),
        )
        print(f"{part}: {found['cpu_seconds']:.0f} CPU s, peak {found['peak_bytes'] / 1e9:.2f} GB", flush=True)
    result["compare"] = once(
        home / f"compare-{shape.hidden}.json",
        lambda: checked(child(COMPARE, here, after, LIKE), shapes, planted.moved),
    )
    result["rewritten"] = {
        how: once(
            home / f"{how}-{shape.hidden}-{depth}.json",
            lambda how=how: rewritten(here, home / f"{shape.hidden}-{how}", how, shapes),
        )
        for how in SHRUNK
    }
    return result


def once(file: Path, do: Any) -> dict[str, Any]:
    """What ``do`` gives, kept, so that a benchmark in parts goes on where it was."""
    if not file.exists():
        file.write_text(json.dumps(do()))
    return json.loads(file.read_text())


def larger(home: Path) -> dict[str, Any]:
    """One matrix of a 70B model, to check what is said of it."""
    name, size = "model.layers.0.self_attn.q_proj.weight", (LLAMA_3_70B.hidden, LLAMA_3_70B.hidden)
    ref = TensorRef(name, size, "bfloat16", Planted(name, size))
    folder = home / "one"
    folder.mkdir(exist_ok=True)
    if not (folder / "model.safetensors").exists():
        planted.write_shards(folder, [ref])
    found = once(
        home / "one.json",
        lambda: checked(child(ANALYZE, folder, "*", home / "one.run"), {name: size}, planted.expected),
    )
    weights, _ = view([ref], Context(config={}))
    return {**found, "shape": list(size), "flops": flops(weights[0])}


def projected(result: dict[str, Any], shapes: tuple[Shape, ...]) -> list[dict[str, Any]]:
    """Core-hours by shape, from the rate that all parts together reached."""
    done = work(shape_of(result["shape"]), result["depth"])
    cpu = sum(part["cpu_seconds"] for part in result["parts"].values())
    rate = sum(done.values()) / cpu
    attention = done["attention"] / result["parts"]["attention"]["cpu_seconds"]
    result["rate"] = rate
    result["rates"] = {part: done[part] / found["cpu_seconds"] for part, found in result["parts"].items()}
    result["told_from_attention"] = sum(done.values()) / attention / cpu
    return [
        {
            "shape": shape.name,
            "flops": sum(work(shape).values()),
            "core_hours": sum(work(shape).values()) / rate / 3600,
            "bytes": 2 * sum(m * n for _, (m, n) in shape.weights()),
        }
        for shape in shapes
    ]


def shape_of(name: str) -> Shape:
    return next(shape for shape in (LLAMA_3_8B, LLAMA_3_70B, LLAMA_3_405B, TOY) if shape.name == name)


def page(result: dict[str, Any]) -> str:
    parts = {**result["parts"], "compare, one layer": result["compare"]}
    rows = [
        (
            name,
            found["weights"],
            f"{found['cpu_seconds']:.0f}",
            f"{found['peak_bytes'] / 1e9:.2f} GB",
            f"{found['bytes_read'] / 1e9:.2f} GB" if "bytes_read" in found else "",
            f"{found['within_stated_error']} of {found['values']}",
            f"{found['worst_relative']:.1e}",
        )
        for name, found in parts.items()
    ]
    head = ("part", "weights", "CPU s", "peak memory", "read", "values within stated error", "worst relative miss")
    lines = [
        f"{result['shape']} by shape, bfloat16: {result['depth']} of {result['layers']} layers and both embeddings, "
        f"{result['bytes'] / 1e9:.2f} GB in {result['files']} files. "
        f"Promised peak of memory (2 x the largest tensor + 24 bytes an entry of its smaller square + 1 GB): "
        f"{result['promised_bytes'] / 1e9:.2f} GB.",
        table(head, rows),
        f"Rate: {result['rate'] / 1e9:.1f} GFLOP/s a core over all parts ("
        + ", ".join(f"{part} {rate / 1e9:.1f}" for part, rate in result["rates"].items())
        + f"). The attention weights alone would have told {result['told_from_attention']:.2f} of the whole.",
    ]
    if "larger" in result:
        found = result["larger"]
        told = found["flops"] / result["rate"]
        lines.append(
            f"Check: one {found['shape'][0]} x {found['shape'][1]} matrix of the 70B model took "
            f"{found['cpu_seconds']:.0f} CPU s, the rate above told {told:.0f}; "
            f"{found['within_stated_error']} of {found['values']} values within their stated error, peak "
            f"{found['peak_bytes'] / 1e9:.2f} GB."
        )
    rows = [
        (
            {"compress": "compress --stream, keep 0.5", "quantize": "quantize --stream, 4.5 bits, no corrections"}[how],
            found["weights"],
            f"{found['cpu_seconds']:.0f}",
            f"{found['peak_bytes'] / 1e9:.2f} GB",
            f"{found['bytes'] / 1e9:.2f} GB ({found['bytes'] - found['planned']:+,} of the plan)",
            f"{min(found['apart'].values()):.5f} .. {max(found['apart'].values()):.5f}",
        )
        for how, found in result["rewritten"].items()
    ]
    lines += [
        "From this checkpoint to another, all but these weights copied. The error of factors is told in units of the "
        "least that any of their rank can have, by the planted values (Eckart & Young); that of codes as a share of "
        "the weight's norm:",
        table(("what", "weights", "CPU s", "peak memory", "written", "error"), rows),
    ]
    told = [
        (p["shape"], f"{p['bytes'] / 1e9:.0f} GB", f"{p['flops']:.2g}", f"{p['core_hours']:.1f}",
         f"{p['core_hours'] * CENTS / 100:.2f}")
        for p in result["projected"]
    ]  # fmt: skip
    lines += [
        f"Projection by shape from that rate (not run, but for the first row's part above; dollars at {CENTS} cents a "
        "core-hour):",
        table(("model", "bfloat16", "FLOP", "core-hours", "dollars"), told),
    ]
    return "\n\n".join(lines)


CENTS = 5  # a core-hour of a rented processor, roughly; put your own


def main(quick: bool = False, depth: int = 4, folder: Path | None = None) -> None:
    shape, depth = (TOY, 2) if quick else (LLAMA_3_8B, depth)
    with tempfile.TemporaryDirectory() as temporary:
        home = folder or Path(temporary)
        home.mkdir(parents=True, exist_ok=True)
        result = measure(shape, depth, home)
        result["projected"] = projected(result, (LLAMA_3_8B, LLAMA_3_70B, LLAMA_3_405B))
        if not quick:
            result["larger"] = larger(home)
    if quick:
        print(page(result))
    else:
        keep(HERE, "A checkpoint of real size, with known spectra", result, page(result))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=4, help="layers of the 32")
    parser.add_argument("--folder", type=Path, help="where checkpoint and run files lie, and stay")
    parser.add_argument("--quick", action="store_true")
    asked = parser.parse_args()
    main(asked.quick, asked.depth, asked.folder)
