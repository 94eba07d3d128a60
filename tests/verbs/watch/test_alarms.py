"""Alarms: each fault is told soon and with its evidence, and a healthy training is left in peace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.timeline import Timeline
from netspectra.verbs.watch.alarms import RULES
from netspectra.verbs.watch.recent import Recent, pairs
from tests.verbs.watch.trainings import convolutional, plain, train

AT = 60  # the step at which the fault begins


def blow_up(step, model, optimizer):
    if step == AT:
        optimizer.param_groups[0]["lr"] *= 200


def collapse(step, model, optimizer):
    if step >= AT:
        with torch.no_grad():
            U, S, Vh = torch.linalg.svd(model[2].weight)
            S[2:] *= 0.7
            model[2].weight.copy_(U @ torch.diag(S) @ Vh)


def die(step, model, optimizer):
    if step == AT:
        with torch.no_grad():
            model[2].bias.fill_(-100.0)


def nan(step, model, optimizer):
    if step == AT:
        with torch.no_grad():
            model[2].weight[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("fault", "rules"),
    [
        (blow_up, {"blow-up", "not-finite"}), (collapse, {"rank-collapse"}), (die, {"dead-layer"}),
        (nan, {"not-finite"}),
    ],
)  # fmt: skip
def test_a_fault_is_told_within_fifty_steps(fault, rules, tmp_path):
    net, heard = plain(seed=3), []
    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], budget=None, on_alarm=heard.append) as monitor:
        train(net, AT + 50, before=fault)
    assert heard == monitor.alarms
    first = heard[0]
    assert first.verdict.rule in rules
    assert AT < first.step <= AT + 50
    assert {"advice", "reference", "standing"} <= set(first.verdict.evidence)
    kept = Timeline.read(tmp_path / "a.run").alarms
    assert (kept[0]["rule"], kept[0]["step"]) == (first.verdict.rule, first.step)


@pytest.mark.parametrize("make", [plain, convolutional])
def test_a_healthy_training_is_left_in_peace(make):
    net = make(seed=5)
    with ns.Monitor(net[0], optimizer=net[1], budget=None) as monitor:
        losses = train(net, 250)
    assert losses[-1] < losses[0]
    assert monitor.alarms == []


def test_an_alarm_ends_the_training_on_request(tmp_path):
    net = plain(seed=3)
    with (
        pytest.raises(ns.AlarmRaised, match=r"blow-up: .*smaller learning rate") as raised,
        ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], budget=None, raise_on="error"),
    ):
        train(net, 200, before=blow_up)
    assert raised.value.alarm.step <= AT + 50
    assert Timeline.read(tmp_path / "a.run").alarms[0]["rule"] == "blow-up"  # kept, though the block was left in haste


def test_an_alarm_ends_when_its_cause_does(tmp_path):
    net = plain(seed=3)

    def passing(step, model, optimizer):
        if step in (AT, AT + 30):
            with torch.no_grad():
                model[2].bias.fill_(-100.0 if step == AT else 0.1)

    with ns.Monitor(net[0], tmp_path / "a.run", optimizer=net[1], budget=None):
        train(net, 200, before=passing)
    dead = [alarm for alarm in Timeline.read(tmp_path / "a.run").alarms if alarm["rule"] == "dead-layer"]
    assert dead
    assert all(alarm["until"] is not None and alarm["until"] <= AT + 40 for alarm in dead)


def test_a_lost_signal_is_told():
    torch.manual_seed(0)
    layers = [layer for _ in range(24) for layer in (nn.Linear(32, 32), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(32, 8))
    for layer in layers[::2]:
        nn.init.orthogonal_(layer.weight, 0.4)
    net = model, torch.optim.SGD(model.parameters(), lr=0.01)
    with ns.Monitor(model, optimizer=net[1], budget=None) as monitor:
        train(net, 60)
    assert {alarm.verdict.rule for alarm in monitor.alarms} == {"signal-lost"}
    assert monitor.alarms[0].name == "0.weight"


def test_statistics_that_do_not_move_are_told():
    net = convolutional()
    net[0].eval()  # forgotten after a validation
    with ns.Monitor(net[0], optimizer=net[1], budget=None) as monitor:
        train(net, 160)
    stale = [alarm for alarm in monitor.alarms if alarm.verdict.rule == "stale-statistics"]
    assert {alarm.name for alarm in stale} == {"2", "5"}
    assert stale[0].verdict.evidence["mode"] == "eval"


def test_growing_attention_logits_are_told():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with ns.Monitor(model, optimizer=optimizer, budget=None) as monitor:
        for step in range(240):
            optimizer.zero_grad()
            model(torch.randn(4, 6, 32)).square().mean().backward()
            optimizer.step()
            if step >= 100:
                with torch.no_grad():
                    model.self_attn.in_proj_weight[:64] *= 1.012
    assert "attention-logits" in {alarm.verdict.rule for alarm in monitor.alarms}


def test_names_tell_queries_and_keys():
    assert pairs(["a.query.weight", "a.key.weight", "b.to_q.weight", "b.to_k.weight", "q_norm", "c.wq", "c.wk"]) == [
        (0, 1), (2, 3), (5, 6),
    ]  # fmt: skip


def test_no_rule_speaks_of_what_was_never_looked_at():
    recent = Recent(["a", "b"], ["linear", "linear"], np.array([64, 64]))
    nothing = np.full(2, np.nan)
    for step in range(0, 200, 10):
        recent.add(step, np.array([1.0, 2.0]), nothing, nothing)
        for rule in RULES:
            assert list(rule.spoken(recent)) == []
