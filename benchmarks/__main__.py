"""Run benchmarks: ``python -m benchmarks [NAME ...] [--quick]``; each writes its results beside itself."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    names = sorted(path.parent.name for path in HERE.glob("*/run.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes in all; results are not kept")
    asked = parser.parse_args()
    for name in asked.names or names:
        if name not in names:
            parser.error(f"no benchmark {name!r}; there are {', '.join(names)}")
        print(f"== {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}.run").main(quick=asked.quick)


if __name__ == "__main__":
    main()
