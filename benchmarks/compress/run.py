"""Compression on real models, part by part: every mark, methods and forms in one run, allocation, two whole commands.

``python -m benchmarks compress [--quick]`` measures all; ``python -m benchmarks.compress.run PART ...`` some parts
anew, the others staying as they were. Every part takes a few minutes and is kept when it is done.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compress import allocation, command, digits, minilm, optimality, smollm
from benchmarks.compress.page import page
from benchmarks.results import keep

HERE = Path(__file__).parent
PARTS: dict[str, Callable[[bool], Any]] = {
    "optimality": optimality.measured,
    "digits": digits.measured,
    "methods": minilm.methods,
    "spread": minilm.spread,
    "healing": minilm.healing,
    "embedding": minilm.embedding,
    "speed": minilm.faster,
    "command": command.measured,
    "allocation": allocation.measured,
    "smollm": smollm.measured,
}


def main(quick: bool = False, parts: Sequence[str] = tuple(PARTS)) -> None:
    """Measure these parts; quick results are shown, not kept."""
    known: Mapping[str, Any] = {}
    if not quick and (HERE / "results.json").exists():
        known = json.loads((HERE / "results.json").read_text())
    data = {name: known[name] for name in PARTS if name in known}
    for name in parts:
        print(f"-- {name}", flush=True)
        data[name] = PARTS[name](quick)
        if not quick:
            keep(HERE, "Compression", data, page(data, tuple(PARTS)))
    if quick:
        print(page(data, tuple(parts)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compress.run", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=f"{', '.join(PARTS)}; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; results are not kept")
    asked = parser.parse_args()
    main(asked.quick, asked.parts or tuple(PARTS))
