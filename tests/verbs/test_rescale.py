"""Checkpoints normalized from file to file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from netspectra.errors import InputRefused
from netspectra.sources import open as open_source
from netspectra.verbs.train.normalize import NormalizeOptions
from netspectra.verbs.train.rescale import rescale


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "a.weight": torch.randn(6, 9),
        "attn.qkv_proj.weight": torch.randn(12, 4),
        "conv.weight": torch.randn(3, 2, 3, 3),
        "half.weight": torch.randn(5, 5).bfloat16(),
        "bias": torch.randn(6),
        "zero.weight": torch.zeros(3, 3),
        "bad.weight": torch.full((3, 3), float("nan")),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path, tensors


def norm(matrix):
    return torch.linalg.matrix_norm(matrix.double(), 2).item()


def test_scale_gives_every_matrix_its_norm(checkpoint, tmp_path):
    path, before = checkpoint
    result, _ = rescale(open_source(path), tmp_path / "out", NormalizeOptions(target=2.0))
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert norm(after["a.weight"]) == pytest.approx(2, rel=1e-5)
    assert torch.allclose(after["a.weight"] * norm(before["a.weight"]) / 2, before["a.weight"], atol=1e-5)
    assert norm(after["half.weight"]) == pytest.approx(2, rel=1e-2) and after["half.weight"].dtype == torch.bfloat16
    for part in after["attn.qkv_proj.weight"].split(4):
        assert norm(part) == pytest.approx(2, rel=1e-5)
    assert torch.equal(after["bias"], before["bias"]) and torch.equal(after["zero.weight"], before["zero.weight"])
    assert {name for name, _ in result.skipped} == {"zero.weight", "bad.weight"}
    conv = next(layer for layer in result.layers if layer.name == "conv.weight")
    assert conv.grid == (16, 16) and conv.before > conv.reshaped
    assert torch.allclose(after["conv.weight"] * conv.before / 2, before["conv.weight"], atol=1e-5)
    again, _ = rescale(open_source(tmp_path / "out"), None, NormalizeOptions(target=2.0))
    assert all(layer.before == pytest.approx(2, rel=1e-2) for layer in again.layers)


def test_clip_and_at_most(checkpoint, tmp_path):
    path, before = checkpoint
    options = NormalizeOptions(method="clip", target=1.5, include=("a.weight",))
    rescale(open_source(path), tmp_path / "out", options)
    after = load_file(tmp_path / "out" / "model.safetensors")
    expected = torch.linalg.svdvals(before["a.weight"].double()).clamp_max(1.5)
    assert torch.allclose(torch.linalg.svdvals(after["a.weight"].double()), expected, atol=1e-5)
    assert torch.equal(after["half.weight"], before["half.weight"])
    result, _ = rescale(open_source(path), None, NormalizeOptions(method="at most", target=1e3))
    assert all(layer.after == layer.before for layer in result.layers)


def test_budget_is_the_product(checkpoint):
    result, saved = rescale(open_source(checkpoint[0]), None, NormalizeOptions(budget=8.0))
    assert result.budget == pytest.approx(8) and saved is None
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_stock_folder_stays_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, vocab_size=20
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "in")
    rescale(open_source(tmp_path / "in"), tmp_path / "out", NormalizeOptions(target=0.5, include=("encoder*",)))
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert norm(model.encoder.layer[0].intermediate.dense.weight.detach()) == pytest.approx(0.5, rel=1e-4)


def test_refuses(checkpoint):
    with pytest.raises(InputRefused, match="once"):
        rescale(open_source(checkpoint[0]), None, NormalizeOptions(method="orthogonal"))
    with pytest.raises(InputRefused, match="nothing to normalize"):
        rescale(open_source(checkpoint[0]), None, NormalizeOptions(include=("bias",)))


def test_command(checkpoint, tmp_path, capsys, monkeypatch):
    from netspectra.faces.cli.door import run

    monkeypatch.setattr("sys.argv", ["netspectra", "normalize", str(checkpoint[0]), "-o", str(tmp_path / "out"), "-q"])
    assert run() == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    monkeypatch.setattr("sys.argv", ["netspectra", "normalize", str(checkpoint[0]), "--json", "-", "-q"])
    assert run() == 0
    assert json.loads(capsys.readouterr().out)["target"] == 1.0
