"""Train and measure every network of a grid, and keep what is done, so that a second start goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.generalization.measure import measure
from benchmarks.generalization.tasks import TASKS
from benchmarks.generalization.train import DECAYS, EXAMPLES, RATES, Grid, train

Rows = dict[str, list[dict[str, Any]]]


def families(grid: Grid, kept: Path | None, tell: Callable[[str], None]) -> Rows:
    """The rows of every task, but for networks that diverged; ``kept``: one stack a line, begun or continued."""
    tasks = {name: make() for name, make in TASKS.items()}
    settings = [asdict(grid), RATES, DECAYS, EXAMPLES, {name: task.fingerprint for name, task in tasks.items()}]
    identity = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    rows: Rows = {name: [] for name in tasks}
    done = set()
    for line in whole_lines(kept):
        found = json.loads(line)
        if found["identity"] != identity:
            raise SystemExit(f"{kept}: holds another study (grid, settings or data differ). Delete it to begin anew")
        rows[found["task"]] += found["rows"]
        done.add((found["task"], found["stack"]))
    jobs = [(place, name, stack) for place, stack in enumerate(grid.stacks()) for name in tasks]
    for place, name, stack in jobs:
        if (name, place) in done:
            continue
        started = time.process_time()
        found = measure(tasks[name], train(tasks[name], stack, grid.steps).converged())
        seconds = time.process_time() - started
        rows[name] += found
        done.add((name, place))
        if kept is not None:
            line = {"identity": identity, "task": name, "stack": place, "seconds": seconds, "rows": found}
            with kept.open("a") as file:
                file.write(json.dumps(line) + "\n")
        tell(f"{len(done)} of {len(jobs)}: {len(found)} networks on {name}, {seconds:.1f} s")
    return rows


def whole_lines(kept: Path | None) -> list[str]:
    """The lines of the file; half a line at its end, from a run that was killed, is cut off."""
    if kept is None or not kept.exists():
        return []
    text = kept.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        kept.write_text(whole)
    return whole.splitlines()
