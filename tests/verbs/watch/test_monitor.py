"""The monitor: what it finds is right, what it watches is not changed, what it writes survives and stays small."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.analysis import Analysis
from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.history import History, Look
from netspectra.runfile import RunFile
from netspectra.timeline import Timeline
from netspectra.verbs.watch import book
from netspectra.verbs.watch.budget import LOAN, Lane
from netspectra.verbs.watch.options import MonitorOptions
from tests.verbs.watch.trainings import convolutional, plain, train

ALL = {"budget": None, "updates": True, "gradients": True, "spectrum_every": 20}


@pytest.mark.parametrize("make", [plain, convolutional])
@pytest.mark.parametrize("options", [{}, ALL], ids=["default", "everything"])
def test_the_training_is_the_same_bit_for_bit(make, options, tmp_path):
    alone = make()
    losses = train(alone, 60)
    state = torch.random.get_rng_state()
    watched = make()
    with ns.Monitor(watched[0], tmp_path / "a.run", optimizer=watched[1], **options) as monitor:
        assert train(watched, 60) == losses
    assert monitor.steps == 60
    assert torch.equal(torch.random.get_rng_state(), state)
    for (name, a), (_, b) in zip(alone[0].state_dict().items(), watched[0].state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert not any(module._forward_hooks or module._backward_hooks for module in watched[0].modules())
    assert not watched[1]._optimizer_step_post_hooks


def test_the_numbers_are_those_of_the_weights(tmp_path):
    net = plain()
    seen: list[dict[str, torch.Tensor]] = []
    with ns.Monitor(net[0], tmp_path / "a.run", budget=None, leading_every=10, every=10, updates=True) as monitor:
        for step in range(1, 61):
            train(net, 1, first=step)
            before = seen[-1] if seen else None
            seen.append({name: p.detach().clone() for name, p in net[0].named_parameters()})
            gradients = {name: p.grad.clone() for name, p in net[0].named_parameters()}
            monitor.step()
        assert before is not None
    found = Timeline.read(tmp_path / "a.run")
    assert found.steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    for name in found.names:
        exact = torch.linalg.svdvals(seen[-1][name].double()).numpy()
        value = found.curve(name)[1][-1]
        assert exact[0] * 0.99 < value <= exact[0] * (1 + 1e-5)
        assert found.curve(name, "frobenius_norm")[1][-1] == pytest.approx(np.sqrt((exact**2).sum()), rel=1e-5)
        assert found.curve(name, "gradient_norm")[1][-1] == pytest.approx(float(gradients[name].norm()), rel=1e-5)
        change = float((seen[-1][name] - before[name]).norm())
        assert found.curve(name, "update_norm")[1][-1] == pytest.approx(change, rel=1e-3)
        leading = found.leading[-1, found.names.index(name)]
        assert (leading <= exact[:8] * (1 + 1e-5)).all()
        assert (leading[:3] > 0.9 * exact[:3]).all()
        last = found.spectra[name][-1]
        assert last.step == 60
        np.testing.assert_allclose(last.spectrum.values, exact, rtol=1e-5)
        assert float(last.metrics["spectral_norm"]) == pytest.approx(exact[0], rel=1e-6)


def test_full_spectra_of_gradients_and_updates(tmp_path):
    net = plain()
    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], **ALL):
        train(net, 50)
    found = Timeline.read(tmp_path / "a.run")
    name = found.names[1]
    gradient = found.spectra[f"{name} (gradient)"][-1]
    np.testing.assert_allclose(
        gradient.spectrum.values, torch.linalg.svdvals(net[0].get_parameter(name).grad.double()).numpy(), atol=1e-8
    )
    assert len(found.spectra[f"{name} (update)"]) >= 2
    assert found.spectra[f"{name} (update)"][-1].spectrum.sigma_max > 0
    analysis = Analysis.from_run(RunFile.read(tmp_path / "a.run"))
    assert [record.name for record in analysis] == found.names  # the weights themselves, their newest spectrum


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
        self.old = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.embedding = nn.Embedding(32, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight
        self.depthwise = nn.Conv1d(16, 16, 3, groups=16, padding=1)
        self.narrow = nn.Linear(16, 16).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.old(self.norm(self.embedding(x)))
        x = self.attention(x, x, x)[0]
        x = self.depthwise(x.mT).mT
        return self.head(self.narrow(x.bfloat16()).float())


def test_odd_modules_are_watched_by_their_effective_weights(tmp_path):
    torch.manual_seed(0)
    model = Odd()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with ns.Monitor(model, tmp_path / "a.run", optimizer=optimizer, every=5, budget=None, leading_every=5) as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            model(torch.randint(0, 32, (4, 8))).square().mean().backward()
            optimizer.step()
    assert monitor.alarms == []
    found = Timeline.read(tmp_path / "a.run")
    assert {"attention.in_proj_weight[q]", "norm.weight", "old.weight", "depthwise.weight"} <= set(found.names)
    assert sum("embedding" in name or "head" in name for name in found.names) == 1
    effective = torch.linalg.svdvals(model.old.weight.detach())[0]
    assert found.curve("old.weight")[1][-1] == pytest.approx(float(effective), rel=0.02)
    blocks = model.depthwise.weight.detach().reshape(16, 3).norm(dim=1)
    assert found.curve("depthwise.weight")[1][-1] == pytest.approx(float(blocks.max()), rel=0.02)
    for name in found.names:
        assert np.isfinite(found.curve(name)[1]).all()
        assert found.curve(name, "gradient_norm")[1][-1] > 0


def test_only_selected_weights_are_watched_and_none_is_refused():
    net = plain()
    monitor = ns.Monitor(net[0], include="re:^[02]", exclude="2.*")
    assert [held.name for held in monitor._watched] == ["0.weight"]
    with pytest.raises(InputRefused, match="no weight to watch"):
        ns.Monitor(net[0], include="nothing")
    with pytest.raises(InputRefused, match="give a whole number"):
        ns.Monitor(net[0], every=0)
    with pytest.raises(InputRefused, match="there are not-finite"):
        MonitorOptions(raise_on=("explosion",))


def test_notes_and_explicit_steps(tmp_path):
    net = plain()
    with ns.Monitor(net[0], tmp_path / "a.run", budget=None) as monitor:
        for step in range(1, 31):
            loss = train(net, 1)[0]
            monitor.step(step, loss=torch.tensor(loss, requires_grad=True))
    steps, values = Timeline.read(tmp_path / "a.run").notes["loss"]
    assert steps == [10, 20, 30]
    assert values[-1] == pytest.approx(loss)
    with pytest.raises(InputRefused, match="not running"):
        monitor.step()
    with pytest.raises(InputRefused, match="one training"):
        monitor.start()


def test_a_new_run_is_not_written_over_an_old_one(tmp_path):
    run, net = tmp_path / "a.run", plain()
    with ns.Monitor(net[0], run, optimizer=net[1], budget=None):
        train(net, 40)
    with pytest.raises(InputRefused, match="resume=True"):
        ns.Monitor(net[0], run).start()
    with ns.Monitor(net[0], run, optimizer=net[1], budget=None, resume=True) as monitor:
        train(net, 20)
    assert monitor.steps == 60
    assert Timeline.read(run).steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    again = ns.Monitor(net[0], run, budget=None, resume=True)
    again.start(20)  # the training went back to its checkpoint at step 20
    again.finish()
    assert Timeline.read(run).steps.tolist() == [0, 10, 20]
    with pytest.raises(InputRefused, match="belongs to another job"):
        ns.Monitor(net[0], run, every=7, budget=None, resume=True).start()


KILLED = """
import sys
sys.path[:0] = sys.argv[2:]
import netspectra as ns
from tests.verbs.watch.trainings import plain, train
net = plain()
with ns.Monitor(net[0], sys.argv[1], optimizer=net[1], budget=None) as monitor:
    print("begun", flush=True)
    train(net, 1_000_000, after=lambda loss: monitor.note(loss=loss))
"""


def test_a_killed_training_leaves_a_readable_run(tmp_path):
    run = tmp_path / "a.run"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run), *sys.path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        until = time.monotonic() + 60
        while time.monotonic() < until and len(Timeline.read(run).steps) < 20:  # it can be read meanwhile
            time.sleep(0.2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    found = Timeline.read(run)
    assert len(found.steps) >= 20
    assert found.state is not None
    assert not found.state["ended"]
    assert np.isfinite(found.signals["sigma_1"]).all()
    assert "running or killed" in str(found)
    net = plain()
    with ns.Monitor(net[0], run, optimizer=net[1], budget=None, resume=True):  # nor does its lock stay
        train(net, 10)


def test_the_history_is_bounded_and_thinned_evenly(tmp_path):
    run = RunFile.create_or_resume(tmp_path / "a.run", {"verb": "monitor"}, history=True)
    history = History(run, most=400)
    for look in range(20_000):
        history.add(Look(10 * look, "cheap", np.full((3, 2), look, dtype="f4"), {"loss": 1.0}))
        if look % 25 == 0:
            history.flush({})
    history.flush({})
    looks = history.looks("cheap", (3, 2))
    steps = np.array([look.step for look in looks])
    assert len(steps) <= 425
    assert steps[0] == 0
    assert (np.diff(steps[-150:]) == 10).all()  # the newest are all there
    older = np.diff(steps[: len(steps) - 230])
    assert older.max() <= 4 * older.min()
    assert all(look.numbers[0, 0] * 10 == look.step for look in looks)
    run.close()
    assert os.path.getsize(tmp_path / "a.run") < 300_000


def test_full_spectra_are_bounded(tmp_path):
    net = plain()
    few = {"budget": None, "spectrum_every": 5, "megabytes": 0.05, "leading_every": 50}
    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], **few):
        train(net, 200)
    found = Timeline.read(tmp_path / "a.run")
    kept = [record for records in found.spectra.values() for record in records]
    assert sum(2 * record.spectrum.values.nbytes for record in kept) <= 50_000
    steps = [record.step for record in found.spectra[found.names[0]]]
    assert steps[0] == 0
    assert steps[-1] == 200


def test_the_budget_is_kept(tmp_path):
    net = plain(width=96)
    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], every=1, leading_every=1) as monitor:
        train(net, 800)
        share = monitor.overhead
    lanes = Timeline.read(tmp_path / "a.run").state["lanes"]
    assert share < 0.03  # 1 % and what a step itself takes; other processes disturb the clock
    assert 2 <= lanes["cheap"]["looks"] < 700  # spaced out


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    net = plain()
    monitor = ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], budget=None)

    def full(self, state):
        raise EnvironmentFailure("disk full")

    with monitor:
        train(net, 20)
        monkeypatch.setattr(History, "flush", full)
        monkeypatch.setattr(book, "FLUSH", 0.0)
        with pytest.warns(RuntimeWarning, match="stops recording"):
            train(net, 20)
        assert len(train(net, 20)) == 20


def test_a_broken_sink_is_dropped():
    net, told, calls = plain(), [], []

    def broken(step, numbers):
        calls.append(step)
        raise OSError("no network")

    monitor = ns.Monitor(net[0], optimizer=net[1], budget=None, sinks=[broken, lambda s, n: told.append((s, n))])
    with pytest.warns(RuntimeWarning, match="drops a sink"):
        monitor.start()
    train(net, 20)
    monitor.finish()
    assert [step for step, _ in told] == [0, 10, 20]
    assert told[-1][1]["sigma_1/0.weight"] > 0
    assert told[-1][1]["alarms"] == 0
    assert calls == [0], "a broken sink is called once"


def test_a_table_json_and_csv_come_from_the_run(tmp_path):
    net = plain()
    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], budget=None):
        train(net, 20)
    found = Timeline.read(tmp_path / "a.run")
    assert "0.weight" in str(found)
    for suffix in ("json", "csv", "html"):
        found.save(tmp_path / f"a.{suffix}")
        assert (tmp_path / f"a.{suffix}").stat().st_size > 500
    with pytest.raises(InputRefused, match="cannot tell"):
        found.save(tmp_path / "a.txt")
    run = tmp_path / "analysis.run"
    ns.analyze({"w": torch.eye(3)}, runfile=run)
    with pytest.raises(InputRefused, match="of an analysis"):
        Timeline.read(run)


def test_damaged_histories_are_refused(tmp_path):
    import sqlite3

    net = plain()
    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], budget=None):
        train(net, 20)
    for statement in (
        "UPDATE looks SET numbers = x'00'",
        'UPDATE looks SET notes = \'{"loss": "x"}\'',
        "INSERT INTO events VALUES (0, '{}')",
        "UPDATE meta SET value = '3' WHERE key = 'state'",
        "UPDATE meta SET value = '[{\"name\": 1}]' WHERE key = 'watched'",
    ):
        copy = tmp_path / "b.run"
        copy.write_bytes((tmp_path / "a.run").read_bytes())
        with sqlite3.connect(copy) as db:
            db.execute(statement)
        db.close()
        with pytest.raises(InputRefused, match="damaged"):
            Timeline.read(copy)


def test_sharded_parameters_are_refused(tmp_path):
    script = textwrap.dedent(
        """
        import torch, torch.distributed as dist, netspectra as ns, sys
        from torch.distributed.fsdp import fully_shard
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
        model = torch.nn.Linear(8, 8)
        fully_shard(model)
        try:
            ns.Monitor(model)
        except ns.InputRefused as wrong:
            print(wrong)
        dist.destroy_process_group()
        """
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "meet")], capture_output=True, text=True, timeout=120, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert "sharded over processes" in told.stdout


def test_something_that_falls_is_looked_at_on_credit():
    lane = Lane(10, 0.01, due=10, cost=1.0)
    assert not lane.wants(10) and lane.missing(1.0) == 100
    lane.urgent = True
    assert not lane.wants(9)
    looks = 0
    for step in range(10, 1000, 10):
        if lane.wants(step):
            lane.looked(step, 1.0)
            looks += 1
    assert looks == LOAN  # and then it is paid back first
    lane.earn(100 * (LOAN + 1))
    assert lane.wants(1000)
