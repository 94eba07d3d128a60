"""Series of checkpoints: false alarms, where a change is, run files, exports."""

import json

import numpy as np
import pytest
import torch

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.findings import META
from netspectra.runfile import RunFile
from tests.faces.test_cli import run


def checkpoints(count, seed=0, change=None, walk=False):
    """Two weights, noisy in size; ``change`` alters one of them at a checkpoint."""
    g = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(20, 12, generator=g) for name in ("a.weight", "b.weight")}
    scale = dict.fromkeys(base, 0.0)
    found = []
    for i in range(count):
        noise = {name: 0.02 * float(torch.randn((), generator=g)) for name in base}
        scale = {name: (scale[name] if walk else 0.0) + noise[name] for name in base}
        factors = {name: np.exp(scale[name]) * (change(i, name) if change else 1.0) for name in base}
        shape = {name: 1 + 0.01 * torch.randn(20, 12, generator=g) for name in base}
        found.append({name: W * shape[name] * float(factors[name]) for name, W in base.items()})
    return found


def test_quiet_series_seldom_change():
    alarms = [
        bool(ns.change_points(*checkpoints(8, seed, walk=walk), kind=kind, permutations=59, seed=seed).changes)
        for seed in range(14)
        for kind, walk in (("independent", False), ("training", True))
    ]
    assert np.mean(alarms) < 0.25  # two tests of 5 % each


def test_a_level_is_found_with_its_weight():
    made = checkpoints(18, change=lambda i, name: 1.3 if i >= 9 and name == "b.weight" else 1.0)
    found = ns.change_points(*made, kind="independent")
    (change,) = found.changes
    assert (change.kind, change.at) == ("level", "9") and change.p <= 0.01
    assert int(change.low) <= 9 <= int(change.high)
    assert {one.weight for one in change.weights[:2]} == {"b.weight"}
    first = change.weights[0]
    assert first.ratio == pytest.approx(1.3, rel=0.05) and first.p <= 0.05


def test_a_pace_and_a_jump_of_a_training():
    faster = checkpoints(18, walk=True, change=lambda i, name: np.exp(0.1 * max(0, i - 9)))
    found = ns.change_points(*faster)
    assert [(c.kind, abs(int(c.at) - 10) <= 1) for c in found.changes] == [("rate", True)]
    jumping = checkpoints(18, walk=True, change=lambda i, name: 2.0 if i >= 7 else 1.0)
    jumps = [c for c in ns.change_points(*jumping).changes if c.kind == "jump"]
    assert [c.at for c in jumps] == ["7"] and jumps[0].weights[0].ratio == pytest.approx(2.0, rel=0.15)


def test_steps_of_a_run_file(tmp_path):
    path, made = tmp_path / "job.run", checkpoints(14, change=lambda i, name: 1.5 if i >= 7 else 1.0)
    source = {"path": "model", "format": "module", "fingerprint": "x", "parameters": 1, "tensors": 2}
    meta = {"source": source, "options": {}, "weights": 2, "skipped": []}
    assert META(meta)
    with_steps = RunFile.create_or_resume(path, meta)
    from dataclasses import replace

    for step, state in enumerate(made):
        for place, record in enumerate(ns.analyze(state)):
            with_steps.add(place, replace(record, step=100 * step))
    with_steps.finish()
    found = ns.change_points(path, kind="independent")
    assert [c.at for c in found.changes] == ["700"] and len(found.names) == 14


def test_refusals_and_what_is_left_out():
    made = checkpoints(8)
    with pytest.raises(InputRefused, match="give 6 at least"):
        ns.change_points(*made[:5])
    with pytest.raises(InputRefused, match="share no weight"):
        ns.change_points(*made[:7], {"other": torch.ones(3, 3)})
    del made[3]["b.weight"]
    assert "1 weights are not in every checkpoint" in ns.change_points(*made).notes[0]
    same = [made[0]] * 8
    assert not ns.change_points(*same).changes


def test_command_and_exports(tmp_path):
    from safetensors.torch import save_file

    made = checkpoints(16, change=lambda i, name: 1.4 if i >= 8 else 1.0)
    paths = [tmp_path / f"night{i:02}.safetensors" for i in range(16)]
    for path, state in zip(paths, made, strict=True):
        save_file(state, path)
    page, data = tmp_path / "s.html", tmp_path / "s.json"
    done = run("drift", "--series", *paths, "--independent", "--fail-on", "drift", "--html", page, "--json", data)
    assert done.returncode == 3 and "the level changed at" in done.stdout and "night08" in done.stdout
    assert json.loads(data.read_text())["changes"][0]["at"].endswith("night08.safetensors")
    text = page.read_text()
    assert "<script" not in text and "default-src 'none'" in text and "polyline" in text
    wrong = run("drift", "--series", *paths, "--sequential")
    assert wrong.returncode == 2 and "--series looks at weights" in wrong.stderr
