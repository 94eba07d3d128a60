"""Whether signals pass: numbers against exact Jacobians, places, verdicts, odd models, no trace left."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.verbs.train.rules import RULES, THRESHOLDS, score
from tests.live.networks import NETWORKS, network, plain, tiny_gpt


def state(model):
    tensors = {name: (t.data_ptr(), t._version, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    return tensors, [m.training for m in model.modules()], [(p.requires_grad, p.grad) for p in model.parameters()]


def same(before, after):
    for name, (pointer, _, value) in before[0].items():
        assert after[0][name][0] == pointer and torch.equal(after[0][name][2], value), name
    return before[1:] == after[1:]


def exact_values(model, x):
    """Singular values of each sample's Jacobian, by torch alone."""
    model = copy.deepcopy(model).eval()
    found = []
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        for sample in x:
            J = torch.autograd.functional.jacobian(lambda v: model(v[None].clone())[0], sample)
            found.append(torch.linalg.svdvals(J.reshape(-1, sample.numel()).double()).numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "convolutions"])
def test_numbers_are_those_of_the_exact_jacobian(name):
    model, x = network(name)
    found = ns.trainability(model, x)
    j, exact = found.jacobian, exact_values(model, x)[:, : found.jacobian.count]
    assert j.how == "exact" and found.samples == 3
    top = exact.max()
    assert np.allclose(j.values, exact, atol=1e-5 * top)
    assert j.rms == pytest.approx(np.sqrt(np.square(exact).mean()), rel=1e-4)
    assert j.max == pytest.approx(top, rel=1e-5)
    assert j.share == pytest.approx(np.mean((exact >= 0.1) & (exact <= 10)), abs=0.06)
    total = sum(block.decades for block in found.blocks)
    assert total == pytest.approx(np.log10(found.blocks[0].backward * found.blocks[0].gain), abs=1e-6)


@pytest.mark.parametrize("name", ["tanh", "attention", "residual"])
def test_estimates_come_close(name):
    model, x = network(name, samples=8)
    exact = exact_values(model, x)
    found = ns.trainability(model, x, exact=0, probes=32, steps=12)
    j = found.jacobian
    assert j.how == "estimated" and not j.condition_number.known
    assert j.rms == pytest.approx(np.sqrt(np.square(exact).mean()), abs=5 * j.rms.error)
    assert exact.max() * 0.97 <= j.max <= exact.max() * (1 + 1e-5)
    assert j.lost == pytest.approx(np.clip(-np.log10(exact), 0, 8).mean(), abs=0.25)
    assert j.share == pytest.approx(np.mean((exact >= 0.1) & (exact <= 10)), abs=0.15)


def test_condition_numbers_only_where_every_value_is_known():
    model, x = network("tanh")
    exact = exact_values(model, x)
    known = ns.trainability(model, x).jacobian.condition_number
    assert known == pytest.approx(np.median(exact[:, 0] / exact[:, -1]), rel=1e-3)
    unknown = ns.trainability(model, x, exact=0).jacobian.condition_number
    assert not unknown.known and "estimate" in unknown.note


def test_the_place_of_a_loss_is_found():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(12, 12, bias=False) for _ in range(6)))
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    with torch.no_grad():
        model[3].weight.mul_(1e-5)
    found = ns.trainability(model, torch.randn(4, 12))
    assert not found.passes and found.verdicts[0].rule == "signal-lost"
    assert found.verdicts[0].evidence["block"] == "3" and "3" in found.verdicts[0].message
    assert found.rms == pytest.approx(1e-5, rel=1e-4)
    assert [round(block.decades, 4) for block in found.blocks] == [0, 0, 0, -5, 0, 0]
    assert [round(float(np.log10(block.backward)), 4) for block in found.blocks] == [-5, -5, -5, 0, 0, 0]
    assert [round(float(np.log10(block.forward)), 1) for block in found.blocks] == [0, 0, 0, -5, -5, -5]
    with torch.no_grad():
        model[3].weight.mul_(1e9)
    found = ns.trainability(model, torch.randn(4, 12))
    assert {v.rule for v in found.verdicts} >= {"signal-explodes", "one-block"}


def test_an_even_loss_is_told_as_such():
    model = plain(20, 16, nn.Tanh)
    found = ns.trainability(model, torch.randn(8, 16))
    (verdict,) = [v for v in found.verdicts if v.rule == "signal-lost"]
    assert verdict.level == "warn" and "in each of" in verdict.message
    assert 0.3 < verdict.evidence["factor"] < 0.8 and verdict.evidence["standing"] == "heuristic"


def test_an_isometry_scores_nothing():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)))
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    found = ns.trainability(model, torch.randn(4, 8))
    assert found.score < 1e-3 and found.share == 1 and found.rms == pytest.approx(1, abs=1e-4)
    assert found.passes and found.verdicts[-1].rule == "signal-passes"


def test_score_counts_both_ways():
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([1e-2, 1e-2, 1e-2, 1e-2])))
    assert ns.trainability(model, torch.randn(2, 4)).score == pytest.approx(2, abs=1e-4)
    with torch.no_grad():
        model.weight.mul_(1e4)
    assert ns.trainability(model, torch.randn(2, 4)).score == pytest.approx(2 * THRESHOLDS["gain weight"], abs=1e-4)
    total, lost, gained = score(ns.trainability(model, torch.randn(2, 4)).jacobian)
    assert lost == 0 and gained == total


def test_a_narrow_place_does_not_count_as_loss():
    """An autoencoder through two numbers passes two directions on, and cannot pass more."""
    model = nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8))
    for layer in model:
        nn.init.orthogonal_(layer.weight)
    found = ns.trainability(model, torch.randn(4, 8))
    assert found.jacobian.count == 2 and found.rms == pytest.approx(1, abs=1e-4) and found.score < 1e-3


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("train", [True, False])
def test_models_come_back_untouched(name, train):
    model, x = network(name)
    model.train(train)
    for parameter in list(model.parameters())[:1]:
        parameter.requires_grad_(False)
    before, generator, value = state(model), torch.get_rng_state(), x.clone()
    with torch.no_grad():
        found = ns.trainability(model, x)
    assert same(before, state(model)) and torch.equal(torch.get_rng_state(), generator) and torch.equal(x, value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert any("eval mode" in note for note in found.notes) == train


def test_dropout_is_off_and_results_repeat():
    model, x = network("dropout")
    first, second = ns.trainability(model.train(), x), ns.trainability(model.eval(), x)
    assert first.to_dict()["jacobian"] == second.to_dict()["jacobian"]
    big, y = network("attention")
    assert ns.trainability(big, y, exact=0).to_json() == ns.trainability(big, y, exact=0).to_json()


def test_fresh_batch_norms_use_the_batch():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    x = torch.randn(32, 6)
    found = ns.trainability(model, x)
    assert found.passes and any("never saw data" in note for note in found.notes)
    assert model[1].num_batches_tracked == 0 and model[1].running_var.tolist() == [1] * 6 and model[1].momentum == 0.1
    model.train()(x)
    seen = ns.trainability(model, x)
    assert not any("never saw" in note for note in seen.notes)


def test_integers_and_mappings():
    model = tiny_gpt()
    batch = {"input_ids": torch.randint(40, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.long)}
    found = ns.trainability(model, batch)
    assert found.origin == "output of transformer.wte" and found.samples == 3 and found.input_rms is None
    assert found.jacobian.shape == (6 * 40, 6 * 16) and found.passes
    e = model.transformer.wte(batch["input_ids"][:1]).detach()
    unit = float(model.transformer.wte(batch["input_ids"]).detach().square().mean().sqrt())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        J = torch.autograd.functional.jacobian(lambda v: model.eval()(inputs_embeds=unit * v).logits, e / unit)
    exact = torch.linalg.svdvals(J.reshape(240, 96).double()).numpy()
    assert np.allclose(found.jacobian.values[0], exact, atol=1e-4 * exact[0])


def test_half_precision():
    model, x = network("tanh")
    half = copy.deepcopy(model).half()
    found, wide = ns.trainability(half, x.half()), ns.trainability(model, x)
    assert found.rms == pytest.approx(wide.rms, rel=0.02) and any("float16" in note for note in found.notes)
    assert next(half.parameters()).dtype == torch.float16


def test_broken_numbers_are_named():
    model = plain(4, 6, nn.ReLU)
    with torch.no_grad():
        model[2].weight[0, 0] = float("inf")
    found = ns.trainability(model, torch.randn(4, 6))
    assert found.verdicts[0].rule == "not-finite" and found.verdicts[0].evidence["block"] == "2"
    assert not found.rms.known and not found.passes and "not finite" in str(found)
    json.loads(found.to_json())


def test_dead_units_and_alike_features_are_noted():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].bias[:6] = -100.0
    found = ns.trainability(model, torch.randn(16, 6))
    assert "dead-units" in {v.rule for v in found.verdicts}
    assert found.blocks[0].dead == pytest.approx(0.75, abs=0.13)
    with torch.no_grad():
        model[0].bias.fill_(100.0)
    assert "features-alike" in {v.rule for v in ns.trainability(model, torch.randn(16, 6)).verdicts}


def test_inputs_of_odd_size_are_noted():
    rules = {v.rule for v in ns.trainability(nn.Linear(4, 4), 200 * torch.rand(4, 4)).verdicts}
    assert "input-scale" in rules


def test_kernels_that_cannot_be_differentiated_twice():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.sin()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return ctx.saved_tensors[0].cos() * g

    class Sine(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    model, x = nn.Sequential(nn.Linear(9, 9), Sine(), nn.Linear(9, 7)), torch.randn(4, 9)
    exact = exact_values(nn.Sequential(model[0], Sine2(), model[2]), x)
    found = ns.trainability(model, x)  # rows are backward passes: exact all the same
    assert np.allclose(found.jacobian.values, exact, atol=1e-5)
    assert not found.blocks[-1].forward.known and any("no forward profile" in note for note in found.notes)
    found = ns.trainability(model, x, exact=0)
    assert "differences" in found.jacobian.max.note
    assert found.max == pytest.approx(exact.max(), rel=0.03)
    assert not found.blocks[0].max.known and found.blocks[0].rms.known


class Sine2(nn.Module):
    def forward(self, x):
        return x.sin()


@pytest.mark.parametrize("steps, probes, exact", [(0, 8, 1), (8, 1, 1), (8, 8, -1)])
def test_senseless_options_are_refused(steps, probes, exact):
    with pytest.raises(ns.InputRefused):
        ns.trainability(nn.Linear(2, 2), torch.zeros(1, 2), steps=steps, probes=probes, exact=exact)


def test_faces_of_the_result(tmp_path):
    model, x = network("tanh")
    found = ns.trainability(model, x)
    text = str(found)
    assert "Linear + Tanh" in text and "end-to-end Jacobian 5 x 7 (exact)" in text and "Sequential" in repr(found)
    data = json.loads(found.to_json())
    assert data["schema"] == 1 and data["jacobian"]["how"] == "exact" and len(data["blocks"]) == 4
    assert data["score"] == float(found.score) and data["blocks"][0]["name"] == "0"
    found.save(tmp_path / "a.json")
    found.save(tmp_path / "a.html")
    assert json.loads((tmp_path / "a.json").read_text()) == data
    page = (tmp_path / "a.html").read_text()
    assert "default-src 'none'" in page and "Linear + Tanh" in page
    with pytest.raises(ns.InputRefused, match=r"\.json and \.html"):
        found.save(tmp_path / "a.csv")
    assert len(found.plot().data) >= 5 and "<table" in found._repr_html_()
    hostile = nn.Sequential()
    hostile.add_module("<script>alert(1)</script>", nn.Linear(2, 2))
    assert "<script>alert" not in ns.trainability(hostile, torch.randn(2, 2)).to_html().replace("&lt;", "")


def test_every_rule_says_what_to_do():
    for rule in RULES:
        assert rule.advice and rule.reference and rule.standing in ("established", "heuristic", "hypothesis")
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_a_dead_network_is_told_and_where():
    model = plain(4, 8, nn.ReLU)
    model[2].bias.data.fill_(-100.0)
    found = ns.trainability(model, torch.randn(4, 8))
    assert found.verdicts[0].rule == "signal-lost" and "all of it in" in str(found)
    assert found.to_json()
