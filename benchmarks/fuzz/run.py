"""Every header reader against spoilt files: how each input ended, in this process, under a limit of processor time.

An input must be read or be refused by an `InputRefused` of one line that names the file, within two seconds of
processor time. Anything else is kept in ``failures/`` and counted. Inputs follow from the seed alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.attacks.mutate import spoil
from tests.attacks.seeds import SEEDS, plant

import netspectra as ns
from benchmarks.results import keep, table
from netspectra.sources import FORMATS

HERE = Path(__file__).parent
MILLION = (("safetensors", "file"), ("gguf", "file"))
LIMIT = 2.0
SMALL = 1 << 20
LOADED = 1 << 24


class Hang(BaseException):
    """Two seconds of processor time went by."""


def hang(number: int, frame: Any) -> None:
    raise Hang


def ending(path: Path, target: Path) -> str:
    """How opening and loading ends: one of few words; anything that must not be raises."""
    try:
        source = ns.open(path)
        tuple(weight.shape for weight in source.weights)
        loaded = 0
        for ref in (*source.tensors, *(weight.part.ref for weight in source.weights)):  # as stored, and composed
            if not ref.problem and ref.nbytes < SMALL and loaded < LOADED:
                loaded += ref.nbytes
                ref.load()
    except ns.InputRefused as refusal:
        said = str(refusal)
        assert "\n" not in said and len(said) < 900 and said.isprintable() and said.startswith(str(path.parent)), said
        return f"refused by {_where(refusal)}"
    return "read" if source.tensors else "read, empty"


def _where(refusal: BaseException) -> str:
    """The function that refused."""
    frames = [frame for frame, _ in traceback.walk_tb(refusal.__traceback__)]
    named = [f for f in frames if f.f_code.co_name not in ("refuse", "_refuse", "broken", "_broken", "_damaged")]
    code = named[-1].f_code
    return f"{Path(code.co_filename).stem}.{code.co_qualname.split('.<locals>')[0].lstrip('_')}"


def one_format(name: str, count: Callable[[str, str], int], seed: int, failures: Path) -> dict[str, Any]:
    """Open ``count(format, kind)`` spoilt files of every kind of seed that a format has."""
    endings: Counter[str] = Counter()
    slowest, failed, done = 0.0, 0, 0
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, make in SEEDS[name].items():
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            honest = make()
            path, target = plant(Path(folder), name, honest)
            content = honest[next(iter(honest))]
            assert ending(path, target) == "read", f"the honest {name} file is not read"
            for number in range(count(name, kind)):
                spoilt = spoil(content, name, Random(f"{seed} {name} {kind} {number}"))
                target.write_bytes(spoilt)
                started = time.process_time()
                signal.setitimer(signal.ITIMER_PROF, LIMIT)
                try:
                    endings[ending(path, target)] += 1
                except BaseException as wrong:
                    if isinstance(wrong, KeyboardInterrupt):
                        raise
                    failed += 1
                    endings[f"FAILED: {type(wrong).__name__}"] += 1
                    failures.mkdir(exist_ok=True)
                    (failures / f"{name}-{kind}-{number}").write_bytes(spoilt)
                    if failed < 5:
                        traceback.print_exc(limit=-4)
                finally:
                    signal.setitimer(signal.ITIMER_PROF, 0)
                slowest = max(slowest, time.process_time() - started)
                done += 1
                if done % 20_000 == 0:
                    gc.collect()
                    print(f"{name}: {done} done, {failed} failed", file=sys.stderr, flush=True)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "format": name, "seed": seed, "inputs": done, "failed": failed,
        "read": endings["read"] + endings["read, empty"],
        "cpu_seconds": round(time.process_time() - began, 1), "slowest_ms": round(1000 * slowest, 1),
        "memory_grown_mb": round(grown), "endings": dict(endings.most_common()),
    }  # fmt: skip


def main(quick: bool = False, count: int = 0, only: str = "", seed: int = 1) -> None:
    """A million inputs for the two formats that most strangers' files have, 25 thousand for each other kind of seed."""
    signal.signal(signal.SIGPROF, hang)

    def wanted(name: str, kind: str) -> int:
        return count or (1000 if quick else 1_000_000 if (name, kind) in MILLION else 25_000)

    for name in FORMATS:
        if only and name not in only.split(","):
            continue
        row = one_format(name, wanted, seed, HERE / "failures")
        print(json.dumps(row), file=sys.stderr, flush=True)
        if not quick and not count:
            _kept(row)  # format by format: the whole takes an hour


def _kept(row: dict[str, Any]) -> None:
    """Put a format's row among those kept before."""
    file = HERE / "results.json"
    before = json.loads(file.read_text())["formats"] if file.exists() else []
    rows = sorted([*(r for r in before if r["format"] != row["format"]), row], key=lambda r: r["format"])
    shown = [
        [r["format"], f"{r['inputs']:,}", r["failed"], f"{r['read']:,}", len(r["endings"]), r["slowest_ms"],
         r["cpu_seconds"], r["memory_grown_mb"]] for r in rows
    ]  # fmt: skip
    head = ["format", "inputs", "failed", "read", "kinds of ending", "slowest, ms", "CPU s", "memory grown, MB"]
    kinds = [[r["format"], ending, f"{count:,}"] for r in rows for ending, count in r["endings"].items()]
    page = f"{table(head, shown)}\n\n## How they ended\n\n{table(['format', 'ending', 'inputs'], kinds)}"
    keep(HERE, "Spoilt files against every header reader", {"formats": rows}, page)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    main(asked.quick, asked.count, asked.only, asked.seed)
