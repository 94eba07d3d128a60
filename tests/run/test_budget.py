"""How much is in work at a time: the promise for a few workers, what the machine has for many."""

import pytest
import torch

import netspectra as ns
from netspectra.run import local
from netspectra.run.cost import UNKNOWN, working_set


def test_many_workers_may_fill_half_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = ns.open({"w": torch.ones(64, 64)}).weights
    promised = working_set(weights[0]) + weights[0].nbytes + local.SLACK
    monkeypatch.setattr(local, "memory", lambda: 64 << 30)
    assert local._budget(list(weights), 4) == promised
    assert local._budget(list(weights), 64) == 32 << 30
    monkeypatch.setattr(local, "memory", lambda: UNKNOWN)
    assert local._budget(list(weights), 64) == promised
