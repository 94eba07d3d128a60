"""Adapters from spectra: against Eckart-Young, and loaded by PEFT itself."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.verbs.lora import LoraOptions, pissa


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.norm = nn.LayerNorm(24)
        self.fc = nn.Linear(24, 32)
        self.block = nn.ModuleDict({"fc": nn.Linear(32, 28, bias=False)})
        self.conv = nn.Conv1d(28, 20, 3, padding=1)

    def forward(self, ids):
        x = self.block["fc"](torch.tanh(self.fc(self.norm(self.embed(ids)))))
        return self.conv(x.mT)


def pair():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = Net()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for i, p in enumerate(tuned.parameters()):
            p += 0.05 * randn(*p.shape, seed=i)
    return base, tuned


def ids():
    return torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(1))


@given(m=st.integers(2, 30), n=st.integers(2, 30), k=st.integers(1, 8), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None)
def test_what_is_missed_is_the_tail(tmp_path_factory, m, n, k, seed):
    W, D = randn(m, n, seed=seed), 0.1 * randn(m, n, seed=seed + 500)
    found = ns.compare({"w.weight": W}, {"w.weight": W + D}).extract_lora(tmp_path_factory.mktemp("a") / "a", rank=k)
    s = torch.linalg.svdvals((W + D).double() - W.double())
    (one,) = found.weights
    assert one.rank == min(k, m, n)
    tail = float(s[k:].square().sum().sqrt())
    assert one.predicted == pytest.approx(tail, rel=1e-5, abs=1e-6)
    assert one.left == pytest.approx(tail, rel=1e-4, abs=1e-5)  # the factors are stored in float32
    assert one.energy_left == pytest.approx((tail / float(s.norm())) ** 2, rel=1e-3, abs=1e-8)


@given(energy=st.floats(0.05, 1.0), seed=st.integers(0, 20))
@settings(max_examples=6, deadline=None)
def test_an_energy_is_held_with_the_fewest_directions(tmp_path_factory, energy, seed):
    W, D = randn(20, 16, seed=seed), randn(20, 16, seed=seed + 500)
    found = ns.compare({"w.weight": W}, {"w.weight": W + D}).extract_lora(
        tmp_path_factory.mktemp("a") / "a", energy=energy
    )
    e = torch.linalg.svdvals((W + D).double() - W.double()).square()
    assert found.energy_left <= 1 - energy + 1e-6
    assert found.weights[0].rank == 1 or float(e[found.weights[0].rank - 1 :].sum() / e.sum()) > 1 - energy - 1e-9


def test_peft_loads_it_and_gives_the_tuned_model(tmp_path):
    peft = pytest.importorskip("peft")
    base, tuned = pair()
    whole = ns.compare(base, tuned).extract_lora(tmp_path / "whole", energy=1.0)
    assert not whole.missed and {"norm.weight", "fc.base_layer.bias"} <= set(whole.carried)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "whole")
    assert torch.allclose(loaded(ids()), tuned(ids()), atol=1e-5)
    part = ns.compare(base, tuned).extract_lora(tmp_path / "part", rank=5)
    merged = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "part").merge_and_unload()
    held = {w.name: w for w in part.weights}
    assert set(held) == {"embed.weight", "fc.weight", "block.fc.weight", "conv.weight"}
    for name, parameter in tuned.named_parameters():
        error = (merged.get_parameter(name).double() - parameter.double()).detach()
        if name in held:
            assert float(error.norm()) == pytest.approx(held[name].left, rel=1e-3)
            assert float(error.abs().max()) == pytest.approx(held[name].largest, rel=1e-2)
        else:
            assert float(error.abs().max()) < 1e-7, name
    total = math.sqrt(sum(w.left**2 for w in part.weights) / sum(w.weight**2 for w in part.weights))
    assert part.relative_error == pytest.approx(total)


def test_factors_alone_and_what_they_leave(tmp_path):
    base, tuned = pair()
    found = ns.compare(base, tuned).extract_lora(tmp_path / "a", rank=2, vectors=False)
    assert not found.carried and {name for name, _ in found.missed} == {
        "norm.weight", "norm.bias", "fc.bias", "conv.bias"}  # fmt: skip
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["bias"] == "none" and config["modules_to_save"] is None and config["r"] == 2
    again = ns.compare(base, tmp_path / "a")
    assert again["fc.weight"].rank == 2  # read back by this package too


def test_different_ranks_stand_in_patterns_and_a_path_that_ends_another_gets_its_own(tmp_path):
    peft = pytest.importorskip("peft")
    base, tuned = pair()
    found = ns.compare(base, tuned).extract_lora(tmp_path / "a", energy=0.6)
    ranks = {w.name: w.rank for w in found.weights}
    assert len(set(ranks.values())) > 1
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "a")
    inner = loaded.base_model.model
    assert inner.fc.r["default"] == ranks["fc.weight"] and inner.block["fc"].r["default"] == ranks["block.fc.weight"]


def test_pissa_base_and_adapter_are_the_checkpoint(tmp_path):
    peft = pytest.importorskip("peft")
    base, _ = pair()
    found = pissa(ns.open(base), tmp_path / "p", LoraOptions(rank=6))
    assert {w.name for w in found.weights} == {"fc.weight", "block.fc.weight"}
    rest = Net()
    from safetensors.torch import load_file

    rest.load_state_dict(load_file(tmp_path / "p" / "base" / "model.safetensors"))
    assert float(torch.linalg.matrix_norm(rest.fc.weight.detach(), 2)) == pytest.approx(
        float(torch.linalg.svdvals(base.fc.weight.detach())[6]), rel=1e-4
    )
    loaded = peft.PeftModel.from_pretrained(rest, tmp_path / "p" / "adapter")
    assert torch.allclose(loaded(ids()), base(ids()), atol=1e-5)


def test_advice_is_the_directions_beyond_the_noise(tmp_path):
    W = randn(80, 60)
    D = 0.3 * randn(80, 3, seed=1) @ randn(3, 60, seed=2) + 0.02 * randn(80, 60, seed=3)
    found = ns.compare({"w.weight": W}, {"w.weight": W + D})
    assert found.advise_lora(energy=0.9999) == {"w.weight": 3}


def test_an_adapter_begins_at_the_advised_ranks(tmp_path):
    W = {name: randn(80, 60, seed=seed) for seed, name in enumerate(("a.weight", "b.weight", "c.weight"))}
    D = {"a.weight": 0.1 * randn(80, 3, seed=7) @ randn(3, 60, seed=8), "b.weight": randn(80, 1) @ randn(1, 60)}
    found = ns.compare(W, {name: w + D.get(name, 0.0) for name, w in W.items()})
    ranks = found.advise_lora()
    assert set(ranks) == {"a.weight", "b.weight"} and found.to_dict()["lora_ranks"] == ranks
    begun = pissa(ns.open(W), tmp_path / "p", LoraOptions(ranks=ranks))
    assert {w.name: w.rank for w in begun.weights} == ranks
    base = ns.open(tmp_path / "p" / "base")
    kept = {w.name: w.part.load() for w in base}
    assert torch.equal(kept["c.weight"], W["c.weight"])
    assert ns.svdvals(W["a.weight"] - kept["a.weight"]).values[ranks["a.weight"]] < 1e-5


def test_weights_stored_inputs_first_get_their_factors_turned(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=64, n_positions=16,
                                     bos_token_id=0, eos_token_id=0)  # fmt: skip
    base = transformers.GPT2Model(config).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for layer in (tuned.h[0].attn.c_proj, tuned.h[0].mlp.c_fc, tuned.h[0].mlp.c_proj):
            layer.weight += 0.05 * randn(*layer.weight.shape)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    found = ns.compare(tmp_path / "base", tmp_path / "tuned").extract_lora(tmp_path / "a", energy=1.0)
    assert len(found.weights) == 3 and not found.missed
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        want, got = tuned(tokens).last_hidden_state, loaded(tokens).last_hidden_state
    assert torch.allclose(got, want, atol=1e-4)


def test_refusals(tmp_path):
    base, tuned = pair()
    found = ns.compare(base, tuned)
    for wrong in ({}, {"rank": 2, "energy": 0.5}, {"rank": 0}, {"energy": 1.5}, {"rank": 1, "dtype": "int8"}):
        with pytest.raises(InputRefused):
            found.extract_lora(tmp_path / "x", **wrong)
    found.extract_lora(tmp_path / "a", rank=1)
    with pytest.raises(InputRefused, match="adapter already"):
        ns.compare(base, tmp_path / "a").extract_lora(tmp_path / "b", rank=1)
