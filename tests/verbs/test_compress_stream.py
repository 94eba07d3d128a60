"""From checkpoint to checkpoint without a live model: what it writes loads, and is what the live way gives."""

import json
import subprocess
import sys

import pytest
import torch
from benchmarks.compress.architectures import ARCHITECTURES, made
from safetensors.torch import load_file, save_file

import netspectra as ns
from netspectra.checkpoint import MANIFEST
from netspectra.errors import InputRefused
from netspectra.linalg.moments import Moments
from netspectra.live import build
from netspectra.plan import Plan
from netspectra.verbs.compress.calibrate import Calibration
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.streamed import compress_stream
from tests.live.test_coverage import answer


def folder(tmp_path, name, largest="60KB"):
    pytest.importorskip("transformers")
    made(name).save_pretrained(tmp_path / "in", max_shard_size=largest)
    return ns.open(tmp_path / "in")


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "qwen2", "t5", "whisper", "mamba"])
def test_streams_load_and_approach_the_original(name, tmp_path):
    source, batch = folder(tmp_path, name), ARCHITECTURES[name].batch(0, 2)
    dense = answer(made(name), batch)
    errors = []
    for keep in (0.3, 0.6, 0.9):
        plan, saved = compress_stream(source, tmp_path / "out", CompressOptions(keep=keep), largest=50_000)
        found = answer(ns.load(tmp_path / "out"), batch)
        errors.append(float((found - dense).norm() / dense.norm()))
        decided = [decision for decision in plan if decision.kind != "left"]
        after = sum(decision.after.parameters for decision in decided)
        assert after <= keep * sum(decision.before.parameters for decision in decided)
        header = saved.bytes - plan.totals["model_after"].bytes
        assert 0 < header < 200 * len(source.tensors) + 2000  # what the tables of names take
    assert errors[0] > errors[1] > errors[2]


def test_untouched_tensors_keep_their_bytes(tmp_path):
    source = folder(tmp_path, "bert")
    options = CompressOptions(keep=0.5, include=("*intermediate*",))
    compress_stream(source, tmp_path / "out", options)
    found = load_file(tmp_path / "out" / "netspectra.safetensors")
    before = {ref.name: ref.load() for ref in source.tensors}
    same = [name for name in found if name in before]
    assert len(same) == len(before) - 4 and all(torch.equal(found[name], before[name]) for name in same)
    assert (tmp_path / "out" / "config.json").exists()


def test_without_a_config_the_module_is_given(tmp_path):
    save_file(made("perceptron").state_dict(), tmp_path / "m.safetensors")
    plan, saved = compress_stream(ns.open(tmp_path / "m.safetensors"), tmp_path / "out", CompressOptions(keep=0.5))
    assert saved.replacements == len([d for d in plan if d.form == "factors"]) == 3
    back = ns.load(tmp_path / "out", made("perceptron", seed=4))
    W = made("perceptron")[2].weight.double()
    U, S, Vh = torch.linalg.svd(W)
    rank = plan["2"].size
    assert torch.allclose(back[2].weight.double(), U[:, :rank] * S[:rank] @ Vh[:rank], atol=1e-5)


def test_saved_moments_weigh_the_layers(tmp_path):
    """A layer whose inputs are tiny gives up its rank for the others, within the same budget."""
    model = made("perceptron")
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    source = ns.open(tmp_path / "m.safetensors")
    inputs, outputs, g = {}, {}, torch.Generator().manual_seed(0)
    for name, scale in (("0", 1.0), ("2", 1e-3), ("4", 1.0)):
        m, n = model.get_submodule(name).weight.shape
        inputs[name] = Moments.zeros(n).add_(scale * torch.randn(400, n, generator=g))
        outputs[name] = Moments.zeros(m).add_(torch.randn(400, m, generator=g))
    calibration = Calibration(inputs, {n: n for n in inputs}, outputs, samples=400, shapes={}, calls={})
    options = CompressOptions(keep=0.5)
    plan, _ = compress_stream(source, None, options, calibration=calibration)
    plain, _ = compress_stream(source, None, options)
    before = sum(decision.before.parameters for decision in plan)
    assert 0.47 * before <= sum(decision.after.parameters for decision in plan) <= 0.5 * before
    assert plan["2"].size < plain["2"].size and plan["0"].after.parameters > plain["0"].after.parameters
    assert plan.options["method"] == "two_sided" and "saved moments" in plan.notes[0]


def test_a_plan_from_a_file_is_followed(tmp_path):
    save_file(made("perceptron").state_dict(), tmp_path / "m.safetensors")
    source, options = ns.open(tmp_path / "m.safetensors"), CompressOptions(keep=0.5)
    plan, _ = compress_stream(source, None, options)
    data = plan.to_dict()
    data["decisions"][1]["size"] = 3
    compress_stream(source, tmp_path / "out", options, plan=Plan.from_dict(data))
    sizes = {
        one["module"]: one["spec"]["rank"]
        for one in json.loads((tmp_path / "out" / MANIFEST).read_text())["replacements"]
    }
    assert sizes["2"] == 3 and sizes["0"] == plan["0"].size
    data["decisions"][1]["form"] = "neurons"
    with pytest.raises(InputRefused, match="neurons needs a live model"):
        compress_stream(source, tmp_path / "out", options, plan=Plan.from_dict(data))


def test_what_a_stream_cannot_do(tmp_path):
    save_file(
        {"a.weight": torch.ones(8, 8, dtype=torch.int8), "a.weight_scale": torch.ones(8)}, tmp_path / "q.safetensors"
    )
    with pytest.raises(InputRefused, match="packed"):
        compress_stream(ns.open(tmp_path / "q.safetensors"), tmp_path / "out", CompressOptions(keep=0.5))
    with pytest.raises(InputRefused, match="called otherwise"):
        compress_stream(folder(tmp_path, "vit"), tmp_path / "out", CompressOptions(keep=0.5))


MEMORY = """
import resource, sys
from netspectra.sources import open as open_source
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.streamed import compress_stream
import torch, netspectra.forms.factors, netspectra.methods.plain
source = open_source(sys.argv[1])
for keep, out in ((0.5, sys.argv[2]),):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    compress_stream(source, out, CompressOptions(keep=keep, include=("small*",)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """400 MB that nobody touches pass through in pieces of 64 MB."""
    big = {f"big.{i}": torch.zeros(50, 1_000_000) for i in range(2)}
    save_file({**big, "small.weight": torch.randn(64, 64)}, tmp_path / "m.safetensors")
    del big
    ran = subprocess.run([sys.executable, "-c", MEMORY, tmp_path / "m.safetensors", tmp_path / "out"],
                         capture_output=True, text=True)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(ran.stdout) * unit < 230e6


@pytest.mark.parametrize("name", ["t5", "whisper"])
def test_what_is_left_alone_is_listed_as_the_live_way_does(name, tmp_path):
    plan, _ = compress_stream(folder(tmp_path, name), None, CompressOptions(keep=0.5))
    live, _ = compress(made(name), CompressOptions(keep=0.5, forms=("factors",)))
    assert {d.site for d in plan} == {d.site for d in live} and plan.fingerprint == live.fingerprint
    tied = [d for d in live if "tied to" in d.reason]
    assert len(tied) > 1 and all(plan[d.site] == d for d in tied)
    for decision in plan:
        ours, theirs = decision.before, live[decision.site].before
        assert (ours.parameters, ours.bytes) == (theirs.parameters, theirs.bytes), decision.site
        assert bool(decision.reason) or decision.form != "dense"


def test_what_is_left_alone_without_a_config(tmp_path):
    shared = torch.randn(12, 8)
    torch.save({"a.weight": shared, "b.weight": shared, "c.weight": torch.randn(9, 8), "d.weight": torch.randn(9, 8),
                "e.weight": torch.randn(4, 4, 3, 3)}, tmp_path / "m.pt")  # fmt: skip
    plan, _ = compress_stream(ns.open(tmp_path / "m.pt"), None, CompressOptions(keep=0.5, exclude=("d*",)))
    reasons = {d.site: d.reason for d in plan if d.kind == "left"}
    assert set(reasons) == {"a", "d", "e"} and plan["c"].form == "factors"
    assert "tied to b.weight" in reasons["a"] and reasons["d"] == "not selected" and "convolution" in reasons["e"]


def test_without_transformers_it_is_said_what_a_stream_needs_it_for(tmp_path, monkeypatch):
    source = folder(tmp_path, "bert")
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    with pytest.raises(InputRefused, match=r"names and kinds .* needs transformers: pip install") as refusal:
        compress_stream(source, tmp_path / "out", CompressOptions(keep=0.5))
    assert "building a live model" not in str(refusal.value)


def test_an_architecture_that_is_not_known_needs_a_live_model(tmp_path):
    source = folder(tmp_path, "bert")
    config = json.loads((tmp_path / "in" / "config.json").read_text())
    (tmp_path / "in" / "config.json").write_text(json.dumps({**config, "model_type": "mine"}))
    with pytest.raises(InputRefused, match=r"'mine' is not known .*leave --stream out"):
        compress_stream(ns.open(source.path), tmp_path / "out", CompressOptions(keep=0.5))
