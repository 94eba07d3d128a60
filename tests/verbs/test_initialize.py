"""Fresh weights: what each parameter gets, scales by the Jacobian, nothing else touched."""

import copy

import pytest
import torch
from torch import nn

import netspectra as ns
from tests.live.networks import First, Residual, network, plain, tiny_gpt
from tests.verbs.test_trainability import state


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize("depth", [6, 24])
def test_plain_networks_are_brought_to_the_target(activation, depth):
    model, x = plain(depth, 24, activation, 12), torch.randn(16, 12)
    found = ns.initialize_(model, x, seed=3)
    assert found.after.passes and (depth == 6 or not found.before.passes)
    assert found.after.rms == pytest.approx(1, rel=0.06)
    assert all(abs(block.decades) < 0.03 for block in found.after.blocks)


def test_the_target_can_be_another():
    assert ns.initialize_(plain(5, 12, nn.Tanh), torch.randn(8, 12), target=0.3).after.rms == pytest.approx(
        0.3, rel=0.06
    )


def test_matrices_are_orthogonal_and_the_rest_sensible():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))
    found = ns.initialize_(model, torch.randn(16, 8), rescale=False)
    assert torch.allclose(torch.linalg.svdvals(model[0].weight), torch.ones(8), atol=1e-5)
    assert model[1].weight.tolist() == [1] * 8 and not model[0].bias.any() and not model[3].bias.any()
    assert {c.scheme for c in found.changes} == {"orthogonal", "ones", "zeros"} and found.rounds == 0


def test_convolutions_are_isometries_where_they_can_be():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 8, 2, 2), nn.Conv2d(8, 8, 3, groups=8))
    found = ns.initialize_(model, torch.randn(4, 4, 8, 8), rescale=False)
    assert found.changes[0].scheme == "delta-orthogonal" and found.changes[4].scheme == "orthogonal, 8 groups"
    assert ns.operator_norm(model[0], (8, 8)).value == pytest.approx(1, abs=1e-4)
    assert torch.allclose(torch.linalg.svdvals(model[1].weight.flatten(1)), torch.ones(8), atol=1e-5)
    assert torch.allclose(model[2].weight.flatten(1).norm(dim=1), torch.ones(8), atol=1e-5)
    after = ns.initialize_(model, torch.randn(4, 4, 8, 8)).after
    assert all(abs(block.decades) < 0.03 for block in after.blocks)


def test_recurrent_gates_are_orthogonal_each_and_forget_gates_open():
    model = First(nn.LSTM(4, 6, batch_first=True))
    ns.initialize_(model, torch.randn(3, 5, 4), rescale=False)
    lstm = model.inner
    for gate in lstm.weight_hh_l0.chunk(4):
        assert torch.allclose(gate @ gate.mT, torch.eye(6), atol=1e-5)
    assert lstm.bias_ih_l0.tolist() == [0] * 6 + [1] * 6 + [0] * 12 and not lstm.bias_hh_l0.any()
    assert ns.initialize_(model, torch.randn(3, 5, 4)).after.rms == pytest.approx(1, rel=0.25)  # by few probes


@pytest.mark.parametrize("name", ["attention", "residual"])
def test_residual_branches_share_what_the_stream_can_carry(name):
    model, x = network(name, samples=6)
    found = ns.initialize_(model, x)
    branches = [block for block in found.after.blocks if block.residual]
    assert all(c.scale != 1 for c in found.changes if c.name in ENDS[name])
    assert found.rounds < 20
    silent = ns.initialize_(model, x, branch=1e-3)
    assert all(block.gain == pytest.approx(1, abs=0.004) for block in silent.after.blocks if block.residual)
    assert len(branches) == len(ENDS[name])


ENDS = {
    "attention": [f"layers.{i}.{end}.weight" for i in range(2) for end in ("self_attn.out_proj", "linear2")],
    "residual": [f"{i}.linear.weight" for i in range(3)],
}


def test_a_deep_residual_network_no_longer_explodes():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(Residual(16) for _ in range(40)), nn.Linear(16, 3))
    for block in list(model)[:-1]:
        nn.init.orthogonal_(block.linear.weight)
    found = ns.initialize_(model, torch.randn(8, 16))
    assert found.before.rms > 10 and 0.7 < found.after.rms < 2.5


def test_norms_after_a_branch_are_what_is_scaled():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

        def forward(self, x):
            return x + self.norm(self.conv(x))

    model = nn.Sequential(Block(), Block(), Block(), Block())
    found = ns.initialize_(model, torch.randn(8, 3, 6, 6))
    scaled = {c.name for c in found.changes if c.scale != 1}
    assert scaled == {f"{i}.norm.weight" for i in range(4)}
    assert found.rounds < 12 and all(0.6 < block.gain < 1.6 for block in found.after.blocks)


def test_embeddings_and_tied_heads_are_left_alone():
    model = tiny_gpt()
    table = model.transformer.wte.weight.detach().clone()
    found = ns.initialize_(model, {"input_ids": torch.randint(40, (3, 6))})
    assert torch.equal(model.lm_head.weight, table) and model.lm_head.weight is model.transformer.wte.weight
    left = {c.name: c.reason for c in found.changes if c.left}
    assert set(left) == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert found.after.passes and "left alone, embedding" in str(found)
    assert torch.allclose(torch.linalg.svdvals(model.transformer.h[0].mlp.c_fc.weight), torch.ones(16), atol=1e-4)


def test_the_spectral_condition():
    model, x = plain(5, 24, nn.Tanh, 12), torch.randn(8, 12)
    found = ns.initialize_(model, x, method="spectral")
    for layer in model[::2]:
        out, into = layer.weight.shape
        assert float(torch.linalg.svdvals(layer.weight)[0]) == pytest.approx((out / into) ** 0.5, rel=1e-4)
    assert found.rounds == 0 and all("spectral norm" in c.scheme for c in found.changes if len(c.shape) == 2)
    conv = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1))
    ns.initialize_(conv, torch.randn(2, 2, 7, 5), method="spectral")
    assert ns.operator_norm(conv[0], (7, 5)).value == pytest.approx(2, rel=1e-2)


def test_other_draws():
    model, x = plain(12, 32, nn.ReLU), torch.randn(8, 32)
    kept = [layer.weight.detach().clone() for layer in model[::2]]
    found = ns.initialize_(model, x, method="keep")
    assert found.after.rms == pytest.approx(1, rel=0.06)
    for layer, old in zip(model[::2], kept, strict=True):
        assert float(nn.functional.cosine_similarity(layer.weight.flatten(), old.flatten(), dim=0)) > 0.99999
    found = ns.initialize_(model, x, method="gaussian")
    assert found.after.rms == pytest.approx(1, rel=0.06) and "1 / 32" in found.changes[0].scheme
    with pytest.raises(ns.InputRefused, match="method 'magic'"):
        ns.initialize_(model, x, method="magic")
    with pytest.raises(ns.InputRefused, match="positive"):
        ns.initialize_(model, x, target=-1)


def test_seeds_decide_and_the_global_generator_rests():
    x = torch.randn(4, 12)
    models = [plain(4, 12, nn.Tanh) for _ in range(3)]
    generator = torch.get_rng_state()
    for model, seed in zip(models, (1, 1, 2), strict=True):
        ns.initialize_(model, x, seed=seed)
    assert torch.equal(torch.get_rng_state(), generator)
    one, two, three = (model[0].weight for model in models)
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_names_can_be_chosen():
    model, x = plain(6, 12, nn.Tanh), torch.randn(4, 12)
    first, last = model[0].weight.detach().clone(), model[10].weight.detach().clone()
    found = ns.initialize_(model, x, exclude="10.*", include=["0.*", "2.*", "10.*"])
    assert torch.equal(model[10].weight, last) and not torch.equal(model[0].weight, first)
    assert {c.name for c in found.changes if not c.left} == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_only_numbers_change():
    model, x = network("tanh")
    model.train()
    model[0].weight.requires_grad_(False)
    before = state(model)
    ns.initialize_(model, x)
    after = state(model)
    assert before[1:] == after[1:] and all(after[0][n][0] == pointer for n, (pointer, _, _) in before[0].items())


def test_a_failure_changes_nothing():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.calls = nn.Linear(3, 3), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 2:
                raise ValueError("no more")
            return self.linear(x)

    model = Fails()
    old = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="no more"):
        ns.initialize_(model, torch.randn(2, 3))
    assert all(torch.equal(old[name], value) for name, value in model.state_dict().items())


def test_half_precision_is_initialised_through_a_wide_copy():
    model = plain(8, 16, nn.Tanh).to(torch.bfloat16)
    found = ns.initialize_(model, torch.randn(8, 16, dtype=torch.bfloat16))
    assert next(model.parameters()).dtype == torch.bfloat16 and found.after.rms == pytest.approx(1, rel=0.1)


def test_unknown_and_lazy_modules():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.scale = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x @ self.table * self.scale

    found = ns.initialize_(Odd(), torch.randn(2, 3))
    assert [c.reason for c in found.changes] == ["how Odd uses it is not known", "a vector of its own"]
    with pytest.raises(ns.InputRefused, match="lazy"):
        ns.initialize_(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 3))


def test_faces_of_the_result(tmp_path):
    model, x = network("tanh")
    found = ns.initialize_(model, x)
    assert "before" in str(found) and "rms" in repr(found) and "<table>" in found._repr_html_()
    assert found.to_dict()["parameters"][0]["scheme"] == "orthogonal"
    found.save(tmp_path / "a.html")
    found.save(tmp_path / "a.json")
    assert "before" in (tmp_path / "a.html").read_text() and len(found.plot().data) > 6
