"""How much is in work at a time: the promise for a few workers, what the machine has for many."""

from pathlib import Path

import pytest
import torch

import netspectra as ns
from netspectra.run import local
from netspectra.run.cost import memory, working_set


def machine(root: Path, available: int, limit: str = "max", used: int = 0) -> Path:
    for name, text in (
        ("proc/meminfo", f"MemTotal: 999 kB\nMemAvailable:  {available >> 10} kB\n"),
        ("sys/fs/cgroup/memory.max", limit),
        ("sys/fs/cgroup/memory.current", str(used)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_memory_is_the_systems_or_the_groups(tmp_path: Path) -> None:
    assert memory(tmp_path) == 0
    assert memory(machine(tmp_path, 64 << 30)) == 64 << 30
    assert memory(machine(tmp_path, 64 << 30, str(8 << 30), 3 << 30)) == 5 << 30
    assert memory(machine(tmp_path, 64 << 30, str(1 << 30), 3 << 30)) == 0


def test_many_workers_may_fill_half_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ns.open({"w": torch.ones(64, 64)}).weights
    promised = working_set(weights[0]) + weights[0].nbytes + local.SLACK
    monkeypatch.setattr(local, "memory", lambda: 64 << 30)
    assert local._budget(list(weights), 4) == promised
    assert local._budget(list(weights), 64) == 32 << 30
    monkeypatch.setattr(local, "memory", lambda: 0)
    assert local._budget(list(weights), 64) == promised
