"""Watching: what it costs, how soon it tells, how often it is wrong."""

from __future__ import annotations

from pathlib import Path

from benchmarks.monitor import alarms, overhead
from benchmarks.results import keep
from netspectra.linalg.threads import threads

HERE = Path(__file__).parent


def main(quick: bool = False) -> None:
    found = {"overhead": overhead.study(quick)}
    with threads(1):
        found["alarms"] = alarms.study(quick)
    text = "\n\n".join([overhead.page(found["overhead"]), alarms.page(found["alarms"])])
    if quick:
        print(text)
    else:
        keep(HERE, "Watching a training", found, text)


if __name__ == "__main__":
    main()
