"""Two processes that train together: one writes, layers are shared, and nobody waits for the dead."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from netspectra.timeline import Timeline

ROOT = Path(__file__).parents[3]
TRAINING = """
import os, sys, time
sys.path[:0] = sys.argv[4:]
import torch, torch.distributed as dist
import netspectra as ns
from tests.verbs.watch.trainings import batch, plain
folder, rank, dies = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "dies"
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
model, _ = plain()
net = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
with ns.Monitor(model, f"{folder}/a.run", optimizer=optimizer, budget=None, spectrum_every=20, every=5) as monitor:
    print(len(monitor._places), flush=True)
    for step in range(400 if dies else 60):
        alone = dies and step >= 60
        if alone and rank == 1:
            os._exit(9)                        # no farewell
        x, y = batch(2 * step + rank)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy((model if alone else net)(x), y)
        loss.backward()
        optimizer.step()
    told = len(monitor._places)
if not dies:
    total = sum(float(p.detach().double().sum()) for p in model.parameters())
    print(repr(total), told, flush=True)
    dist.barrier()
    dist.destroy_process_group()
else:
    print("done", told, flush=True)
    os._exit(0)
"""


def together(folder: Path, dies: bool) -> list[tuple[int, list[str], str]]:
    """Exit code, lines and complaints of the two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    script = ["-c", TRAINING, str(folder)]
    processes = [
        subprocess.Popen(
            [sys.executable, *script, str(rank), "dies" if dies else "lives", *sys.path], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    found = []
    until = time.monotonic() + 120
    for process in processes:
        try:
            out, errors = process.communicate(timeout=max(1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            for each in processes:
                each.kill()
            pytest.fail("the processes wait for each other")
        found.append((process.returncode, out.split(), errors))
    return found


def test_one_writes_and_layers_are_shared(tmp_path):
    first, second = together(tmp_path, dies=False)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert (first[1][0], second[1][0]) == ("2", "2")  # of four weights, two each
    assert first[1][1] == second[1][1]  # both have the same weights still
    assert sorted(path.name for path in tmp_path.glob("*.run*")) == ["a.run"]
    found = Timeline.read(tmp_path / "a.run")
    assert len(found.steps) >= 12
    for name in found.names:  # what the second process found has arrived
        assert len(found.curve(name)[0]) >= 8
        assert len(found.spectra[name]) >= 2
    assert found.alarms == ()


def test_nobody_waits_for_the_dead(tmp_path):
    first, second = together(tmp_path, dies=True)
    assert second[0] == 9
    assert first[0] == 0, first[2]
    assert first[1] == ["2", "done", "4"]  # its layers were taken over
    found = Timeline.read(tmp_path / "a.run")
    assert found.state is not None
    assert found.state["ended"]
    assert all(found.curve(name)[0][-1] >= 390 for name in found.names)
