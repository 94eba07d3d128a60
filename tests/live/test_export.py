"""One file that runs without this package."""

import subprocess
import sys

import pytest
import torch
from benchmarks.compress.architectures import ARCHITECTURES, made
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from tests.live.test_coverage import answer, factored_

TORCH_ALONE = """
import sys
sys.modules["netspectra"] = sys.modules["transformers"] = None   # importing either would raise
import torch
data = torch.load(sys.argv[2], weights_only=True)
model = torch.export.load(sys.argv[1]).module()
for batch, answer in data:
    found = model(**batch) if isinstance(batch, dict) else model(batch)
    torch.testing.assert_close(found, answer, atol=1e-5, rtol=1e-4)
print("same", len(data))
"""


def longer(name):
    """More samples, and for text other lengths, than the example had."""
    batches = [ARCHITECTURES[name].batch(5, 3)]
    if name in ("bert", "llama"):
        batches.append({key: torch.cat([value, value[:, :5]], 1) for key, value in batches[0].items()})
    return batches


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("bert", "llama", "vit", "resnet")]


@pytest.mark.parametrize("name", ["perceptron", *OTHERS])
def test_pt2_runs_with_torch_alone(name, tmp_path):
    model = factored_(made(name))
    ns.save(model, tmp_path / "m.pt2", example=ARCHITECTURES[name].batch(0, 2))
    torch.save([(batch, answer(model, batch)) for batch in longer(name)], tmp_path / "data.pt")
    ran = subprocess.run([sys.executable, "-c", TORCH_ALONE, tmp_path / "m.pt2", tmp_path / "data.pt"],
                         capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 0 and ran.stdout.startswith("same"), ran.stderr


@pytest.mark.parametrize("name", ["perceptron", *OTHERS])
def test_onnx_runs_with_onnxruntime(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = factored_(made(name))
    ns.save(model, tmp_path / "m.onnx", example=ARCHITECTURES[name].batch(0, 2))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for batch in longer(name):
        named = batch if isinstance(batch, dict) else {"input_0": batch}
        (found,) = session.run(None, {key: value.numpy() for key, value in named.items()})
        torch.testing.assert_close(torch.from_numpy(found), answer(model, batch), atol=1e-5, rtol=1e-4)


def test_the_model_is_not_changed(tmp_path):
    model = made("perceptron").train()
    pointers = [p.data_ptr() for p in model.parameters()]
    ns.save(model, tmp_path / "m.pt2", example=torch.ones(1, 48))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_what_cannot_be_recorded(tmp_path):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(InputRefused, match="Odd cannot be recorded"):
        ns.save(Odd(), tmp_path / "m.pt2", example=torch.ones(2, 3))
    with pytest.raises(InputRefused, match="example="):
        ns.save(made("perceptron"), tmp_path / "m.pt2")
    with pytest.raises(InputRefused, match="does not exist"):
        ns.save(made("perceptron"), tmp_path / "no" / "m.pt2", example=torch.ones(2, 48))
    assert list(tmp_path.iterdir()) == []
