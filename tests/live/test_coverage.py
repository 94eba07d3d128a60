"""Thirteen architectures: compress, save, load, the same forward."""

import pytest
import torch
from benchmarks.compress.architectures import ARCHITECTURES, made
from torch import nn

import netspectra as ns
from netspectra.forms import FORMS, Member, Site
from netspectra.forms.place import place_, placed
from netspectra.live.batches import call, main_output

pytest.importorskip("transformers")


def factored_(model, keep=0.5):
    """Every Linear, Conv1D and Embedding by plain factors: what needs no data."""
    form = FORMS["factors"]
    for name, module in list(model.named_modules()):
        embedding = type(module) is nn.Embedding
        if not (type(module) is nn.Linear or embedding or type(module).__name__ == "Conv1D"):
            continue
        W = module.weight.detach().double()
        W = W if isinstance(module, nn.Linear) else W.mT
        site = Site(name, "embedding" if embedding else "linear", {"weight": Member(name, module, W)}, method="plain")
        if not form.refuses(site):
            rank = max(1, int(keep * W.numel() / sum(W.shape)))
            for place, new in form.fit(site, rank).items():
                place_(model, place, new, "factors", form.specs(site, rank)[place])
    return model


def answer(model, batch):
    with torch.no_grad():
        return main_output(call(model, batch))


def fresh(name, path):
    """As a user loads it: a transformers model from its folder alone, another into its own class."""
    return ns.load(path) if (path / "config.json").exists() else ns.load(path, made(name, seed=7))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untouched_models_come_back(name, tmp_path):
    model, batch = made(name), ARCHITECTURES[name].batch(1, 2)
    saved = ns.save(model, tmp_path / "out")
    assert saved.stock and saved.replacements == 0
    assert torch.equal(answer(fresh(name, tmp_path / "out"), batch), answer(model, batch))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_factored_models_come_back(name, tmp_path):
    model, batch = made(name), ARCHITECTURES[name].batch(1, 2)
    before = answer(model, batch)
    factored_(model)
    if placed(model):
        assert not torch.allclose(answer(model, batch), before, atol=1e-6)
    saved = ns.save(model, tmp_path / "out")
    assert saved.replacements == len(placed(model))
    back = fresh(name, tmp_path / "out")
    assert torch.equal(answer(back, batch), answer(model, batch))
    assert placed(back) == placed(model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_compressed_models_come_back(name, tmp_path):
    """With the forms that a plan chooses: factors, pivoted, neurons, heads, convolutions in a row."""
    architecture, model = ARCHITECTURES[name], made(name)
    batch = architecture.batch(99, 3)
    plan = ns.compress(model, keep=0.5, calibration=[architecture.batch(seed, 8) for seed in range(4)])
    plan.apply(model)
    assert placed(model), "nothing was compressed"
    assert all(decision.reason for decision in plan if decision.form == "dense"), "left alone without a reason"
    saved = ns.save(model, tmp_path / "out")
    back = fresh(name, tmp_path / "out")
    assert torch.equal(answer(back, batch), answer(model, batch))
    assert saved.stock or placed(back) == placed(model)


@pytest.mark.parametrize("name", ["bert", "gpt2", "perceptron", "resnet"])
def test_portable_plans_are_of_stock_modules(name, tmp_path):
    architecture, model = ARCHITECTURES[name], made(name)
    calibration = [architecture.batch(seed, 8) for seed in range(4)]
    ns.compress(model, keep=0.5, calibration=calibration, portable=True).apply(model)
    assert placed(model)
    for one in placed(model):
        module = model.get_submodule(one.module)
        parts = list(module) if isinstance(module, nn.Sequential) else [module]
        assert all(type(part).__module__.startswith(("torch.nn.", "transformers.pytorch_utils")) for part in parts)
