"""``netspectra quantize`` on a BERT of no size: plan, edit, replay, write in several formats, load."""

import json

import numpy as np
import pytest
import torch

import netspectra as ns
from tests.faces.test_cli import run
from tests.faces.test_compress_command import model  # noqa: F401 - a fixture

pytest.importorskip("transformers")
WIDTH = 64
BATCH = {"input_ids": torch.arange(2, 10)[None]}


def answer(network):
    with torch.no_grad():
        return network(**BATCH).last_hidden_state


def test_quantize_writes_a_model_that_loads(model, tmp_path):  # noqa: F811
    out, page, plan = tmp_path / "small", tmp_path / "r.html", tmp_path / "plan.json"
    done = run("quantize", model / "model", "--bits", "5", "--calibration", model / "text.txt", "-o", out,
               "--html", page, "--plan", plan, "--moments", tmp_path / "m.safetensors")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "budget: 5 bits a weight" in done.stdout and " bits " in done.stdout
    assert "bits a number" in page.read_text(encoding="utf-8")
    found = json.loads(plan.read_text())
    assert found["verb"] == "quantize" and found["frontier"]
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["measured"]["loss"] >= 0 and recipe["readers"]
    again = tmp_path / "again"
    done = run("quantize", model / "model", "--bits", "5", "--calibration", model / "text.txt", "-o", again,
               "--plan", plan, "--moments", tmp_path / "m.safetensors", "-q")  # fmt: skip
    assert done.returncode == 0 and done.stdout == "", done.stderr
    torch.testing.assert_close(answer(ns.load(out)), answer(ns.load(again)), rtol=1e-4, atol=1e-5)


def test_several_formats_go_to_folders_of_their_own(model, tmp_path):  # noqa: F811
    import transformers

    out = tmp_path / "all"
    done = run("quantize", model / "model", "--bits", "6", "--calibration", model / "text.txt", "-o", out, "-q",
               "--spread", "0.4", "--format", "dequantized", "--format", "compressed-tensors",
               "--rank", "0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    twin = transformers.AutoModel.from_pretrained(out / "dequantized").eval()
    config = json.loads((out / "compressed-tensors" / "config.json").read_text())
    assert all(g["weights"]["symmetric"] for g in config["quantization_config"]["config_groups"].values())
    packed = ns.open(out / "compressed-tensors")
    assert {weight.name for weight in packed} >= {"encoder.layer.0.attention.self.query.weight"}
    assert answer(twin).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "4"), "name a folder"),
        (("--plan-only",), "needs a place for the plan"),
        (("--format", "exl2", "-o", "x"), "there are netspectra, torchao"),
        (("--bits", "3", "--max-loss", "1", "-o", "x"), "one budget at a time"),
        (("--level", "7", "-o", "x"), "levels"),
        (("--weigh", "measured", "-o", "x"), "needs data"),
    ],
)
def test_contradictions_end_in_one_line(model, tmp_path, options, message):  # noqa: F811
    options = tuple(str(tmp_path / one) if one == "x" else one for one in options)
    done = run("quantize", model / "model", *options)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"input_ids": [[3, 4, 5], [3, 4, 5000]]}, "does not run on it: index out of range"),
        ({"inputs_embeds": [[0.5, 1.5]]}, "does not run on it: Expected tensor"),  # one alone goes by position
        ({"inputs_embeds": [[[float("nan")] * WIDTH] * 3] * 4, "attention_mask": [[1] * 3] * 4}, "answers with NaN"),
    ],
)
def test_inputs_that_are_not_the_models_end_in_one_line(model, tmp_path, arrays, message):  # noqa: F811
    path = tmp_path / "inputs.npz"
    np.savez(path, **{name: np.array(rows, np.float32 if name == "inputs_embeds" else np.int64)
                      for name, rows in arrays.items()})  # fmt: skip
    done = run("quantize", model / "model", "--calibration", path, "-o", tmp_path / "x")
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("options", [("-o", "text.txt/x"), ("-o", "x", "--moments", "nowhere/moments.safetensors")])
def test_places_that_cannot_be_written_are_told_before_the_work(model, options):  # noqa: F811
    done = run("quantize", model / "model", "--calibration", "missing.txt", *options, cwd=model)
    assert done.returncode in (2, 4) and ("no folder" in done.stderr or "does not exist" in done.stderr)
    assert not (model / "x").exists()


def test_what_gguf_cannot_hold_is_refused_before_the_work(model, tmp_path):  # noqa: F811
    pytest.importorskip("gguf")
    done = run("quantize", model / "model", "--calibration", model / "text.txt", "-o", tmp_path / "x", "--format",
               "gguf", "--moments", tmp_path / "moments.safetensors")  # fmt: skip
    assert done.returncode == 2 and "no GGUF architecture" in done.stderr
    assert not (tmp_path / "moments.safetensors").exists()


def test_a_stream_plans_edits_and_writes_what_loads(model, tmp_path):  # noqa: F811
    plan, out, moments = tmp_path / "plan.json", tmp_path / "small", tmp_path / "m.safetensors"
    done = run("calibrate", model / "model", model / "text.txt", "-o", moments, "-q")
    assert done.returncode == 0, done.stderr
    done = run("quantize", model / "model", "--stream", "--bits", "5", "--moments", moments, "--plan", plan,
               "--plan-only", "-q")  # fmt: skip
    assert done.returncode == 0 and not done.stdout, done.stderr
    data = json.loads(plan.read_text())
    decision = next(one for one in data["decisions"] if one["form"].startswith("int"))
    decision |= {"form": "int8", "size": 0}
    plan.write_text(json.dumps(data))
    done = run("quantize", model / "model", "--stream", "--moments", moments, "--plan", plan, "-o", out)
    assert done.returncode == 0 and "without a live model" in " ".join(done.stdout.split()), done.stderr
    assert json.loads((out / "recipe.json").read_text())["layers"][decision["site"]]["bits"] == 8
    assert answer(ns.load(out)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--stream", "--calibration", "text.txt", "-o", "x"), "--stream runs no model"),
        (("--stream", "--format", "gguf", "-o", "x"), "needs a live model"),
        (("--stream", "--format", "dequantized", "--format", "netspectra", "-o", "x"), "one format at a time"),
        (("--stream", "--moments", "none.safetensors", "-o", "x"), "no such file"),
        (("--engine", "ray", "-o", "x"), "goes with --stream"),
    ],
)
def test_what_a_stream_refuses(model, options, message):  # noqa: F811
    done = run("quantize", model / "model", "--bits", "5", *options, cwd=model)
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (model / "x").exists()
