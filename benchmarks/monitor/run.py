"""Watching: what it costs, how soon it tells, how often it is wrong.

``python -m benchmarks monitor [--quick]`` measures both; ``python -m benchmarks.monitor.run PART ...`` one of overhead
and alarms anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.monitor import alarms, overhead
from benchmarks.results import keep

HERE = Path(__file__).parent
PARTS: dict[str, tuple[Callable[[bool], Any], Callable[[Any], str]]] = {
    "overhead": (overhead.study, overhead.page),
    "alarms": (alarms.study, alarms.page),
}


def main(quick: bool = False, parts: Sequence[str] = tuple(PARTS)) -> None:
    """Measure these parts; quick results are shown, not kept."""
    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.exists() and not quick else {}
    found = {name: known[name] for name in PARTS if name in known}
    for name in parts:
        study, page = PARTS[name]
        found[name] = study(quick)
        if quick:
            print(page(found[name]), flush=True)
        else:
            keep(HERE, "Watching a training", found, "\n\n".join(PARTS[n][1](found[n]) for n in PARTS if n in found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor.run", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help="overhead or alarms")
    parser.add_argument("--quick", action="store_true", help="few rounds and seeds; results are not kept")
    asked = parser.parse_args()
    main(asked.quick, asked.parts or tuple(PARTS))
