"""What every benchmark shares: peers timed in turn, the machine written down, one JSON and one readable page."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netspectra.faces.cli.environment import environment


@dataclass(frozen=True)
class Timing:
    """Seconds of one peer over several rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return {"median": self.median, "min": min(self.seconds), "max": max(self.seconds), "runs": len(self.seconds)}

    def __str__(self) -> str:
        return f"{self.median:.4g} s ({min(self.seconds):.4g} .. {max(self.seconds):.4g})"


def in_turn(
    peers: Mapping[str, Callable[[], Any]],
    rounds: int = 5,
    *,
    warm: bool = True,
    budget: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the peers in one process, A B A B ..., so that a drift of the machine's speed meets all of them.

    Args:
        peers: what to run, by name.
        rounds: how many of each.
        warm: run each once before, uncounted.
        budget: seconds after which no further round begins.
        clock: wall seconds by default; ``time.process_time`` on a machine that others use too.
    """
    if warm:
        for peer in peers.values():
            peer()
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    begun = time.perf_counter()
    for done in range(rounds):
        if done and (time.perf_counter() - begun) * (done + 1) / done > budget:
            break
        for name, peer in peers.items():
            started = clock()
            peer()
            seconds[name].append(clock() - started)
    return {name: Timing(tuple(times)) for name, times in seconds.items()}


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def keep(folder: Path, title: str, data: Mapping[str, Any], page: str) -> None:
    """Write results.json and results.md, with the environment in both."""
    found = environment()
    (folder / "results.json").write_text(json.dumps({"environment": found, **data}, indent=1) + "\n")
    machine = ", ".join(f"{name} {value}" for name, value in found.items() if name in SHOWN)
    command = f"python -m benchmarks {folder.name}"
    (folder / "results.md").write_text(f"# {title}\n\n`{command}`\n\n{page}\n\nMeasured on: {machine}.\n")
    print(page)


SHOWN = ("netspectra", "python", "processor", "cores", "memory", "torch", "numpy", "blas")
