"""``netspectra compress``: from folder to folder, what is refused before work, streams and exports."""

import json

import numpy as np
import pytest
import torch
from benchmarks.compress.architectures import made
from safetensors.torch import load_file, save_file

import netspectra as ns
from netspectra.checkpoint import MANIFEST
from tests.faces.test_cli import run

MAKE = "benchmarks.compress.architectures:perceptron"


@pytest.fixture
def files(tmp_path):
    """A checkpoint without a config, and inputs to calibrate on."""
    save_file(made("perceptron").state_dict(), tmp_path / "m.safetensors")
    np.savez(tmp_path / "x.npz", np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32))
    return tmp_path


def test_a_checkpoint_without_config_by_the_users_callable(files):
    done = run("compress", files / "m.safetensors", "--model", MAKE, "--keep", 0.5, "--calibration", files / "x.npz",
               "-o", files / "out", "--export", files / "m.pt2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{files / 'out'}: " in done.stderr and "m.pt2: " in done.stderr
    x = torch.randn(3, 48)
    model = ns.load(files / "out", made("perceptron", seed=3))
    torch.testing.assert_close(torch.export.load(files / "m.pt2").module()(x), model(x))
    assert sum(p.numel() for p in model.parameters()) <= 0.5 * sum(p.numel() for p in made("perceptron").parameters())


def test_a_stream_and_its_plan(files):
    plan = files / "plan.json"
    done = run("compress", files / "m.safetensors", "--keep", 0.5, "--stream", "--plan", plan, "--plan-only", "-q")
    assert done.returncode == 0 and not done.stdout, done.stderr
    data = json.loads(plan.read_text())
    data["decisions"][0]["size"] = 5
    plan.write_text(json.dumps(data))
    done = run("compress", files / "m.safetensors", "--stream", "--plan", plan, "-o", files / "out")
    assert done.returncode == 0, done.stderr
    assert json.loads((files / "out" / MANIFEST).read_text())["replacements"][0]["spec"] == {"rank": 5}
    assert load_file(files / "out" / "model.safetensors")["0.0.weight"].shape == (5, 48)
    assert "no live model" in " ".join(done.stdout.split()) or "without a live model" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["-o", "."], "name a new folder"),
        (["-o", "new", "--stream", "--calibration", "x.npz"], "--stream runs no model"),
        (["-o", "new", "--stream", "--moments", "none.safetensors"], "no such file"),
        (["-o", "new", "--export", "m.onnx"], "first batch of --calibration"),
        (["-o", "new"], "--model"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(files, options, match):
    before = sorted(files.iterdir())
    done = run("compress", "m.safetensors", "--keep", 0.5, *options, cwd=files)
    assert done.returncode == 2 and match in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert sorted(files.iterdir()) == before
