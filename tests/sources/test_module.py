"""Live models and mappings: the effective weight, and nothing touched."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import netspectra as ns


def state(model):
    """All that could be changed by looking: storages, versions, values, mode, attributes, hooks, random state."""
    tensors = {
        name: (t.data_ptr(), t._version, None if t.is_meta else t.detach().clone())
        for name, t in (*model.named_parameters(), *model.named_buffers())
        if not isinstance(t, nn.parameter.UninitializedParameter)
    }
    modules = {
        name: (m.training, sorted(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    }
    return tensors, modules, torch.get_rng_state(), torch.get_num_threads(), torch.is_grad_enabled()


def same(one, two):
    assert one[0].keys() == two[0].keys()
    for name in one[0]:
        assert one[0][name][:2] == two[0][name][:2], name
        assert one[0][name][2] is None or torch.equal(one[0][name][2], two[0][name][2])
    assert one[1] == two[1] and torch.equal(one[2], two[2]) and one[3:] == two[3:]


MODELS = {
    "sequential": lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, 2)),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5))),
    "weight norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(6, 5)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(6, 5)),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "lstm": lambda: nn.LSTM(4, 3),
    "embedding bag": lambda: nn.EmbeddingBag(9, 4),
    "bilinear": lambda: nn.Bilinear(3, 4, 2),
    "grouped": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "half": lambda: nn.Linear(6, 5).bfloat16(),
    "frozen, training": lambda: nn.Linear(6, 5).requires_grad_(False).train(),
    "data parallel": lambda: nn.DataParallel(nn.Linear(6, 5)),
    "scripted": lambda: torch.jit.script(nn.Sequential(nn.Linear(6, 5))),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_model_comes_back_untouched(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    before = state(model)
    analysis = ns.analyze(model)
    analysis.to_dict()
    assert len(analysis) >= 1
    same(before, state(model))


def test_parametrized_weights_are_the_effective_ones():
    torch.manual_seed(0)
    layer = parametrizations.spectral_norm(nn.Linear(30, 20), n_power_iterations=30)
    layer(torch.randn(2, 30))
    layer.eval()
    [record] = ns.analyze(layer)
    assert record.name == "weight"
    assert record.spectrum.sigma_max == pytest.approx(float(torch.linalg.svdvals(layer.weight.detach())[0]), rel=1e-6)
    assert record.spectrum.sigma_max == pytest.approx(1, abs=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_older_norms_give_the_effective_weight(norm):
    torch.manual_seed(0)
    layer = norm(nn.Linear(30, 20)).eval()
    layer(torch.randn(1, 30))
    [record] = ns.analyze(layer)
    assert record.name == "weight"
    assert record.spectrum.sigma_max == pytest.approx(float(torch.linalg.svdvals(layer.weight.detach())[0]), rel=1e-5)


def test_lazy_meta_and_quantized_are_told():
    model = nn.ModuleDict({"lazy": nn.LazyLinear(3), "meta": nn.Linear(3, 2, device="meta")})
    reasons = {s.name: s.reason for s in ns.open(model).skipped}
    assert "lazy" in reasons["lazy.weight"] and "meta" in reasons["meta.weight"]


def test_a_module_whose_repr_raises_is_no_obstacle():
    class Shy(nn.Linear):
        def __repr__(self):
            raise RuntimeError("no")

    assert len(ns.analyze(Shy(4, 3))) == 1


def test_gradients_and_state_dicts_are_mappings():
    layer = nn.Linear(6, 5)
    layer(torch.randn(3, 6)).sum().backward()
    analysis = ns.analyze({name: p.grad for name, p in layer.named_parameters()})
    assert analysis["weight"].metrics["numerical_rank"] == 1
    assert len(ns.analyze(layer.state_dict())) == 1


def test_what_is_no_model_is_refused():
    with pytest.raises(ns.InputRefused, match="list"):
        ns.open([1, 2])
    with pytest.raises(ns.InputRefused, match="neither tensor"):
        ns.open({"a": object()})


def test_nan_becomes_a_row_with_a_reason_and_the_rest_goes_on():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    analysis = ns.analyze(model)
    assert [r.name for r in analysis] == ["1.weight"]
    assert [(s.name, s.routine) for s in analysis.skipped if not s.routine] == [("0.weight", False)]
    assert "NaN" in next(s.reason for s in analysis.skipped if s.name == "0.weight")


def test_factors_of_a_record():
    layer = nn.Linear(12, 9)
    [record] = ns.analyze(layer)
    factors = record.svd(3)
    full = torch.linalg.svd(layer.weight.detach().double())
    best = (full.U[:, :3] * full.S[:3]) @ full.Vh[:3]
    assert torch.allclose(factors.dense().double(), best, atol=1e-6)


def test_a_deepcopied_model_gives_the_same():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    assert ns.analyze(model).to_json() == ns.analyze(copy.deepcopy(model)).to_json()
