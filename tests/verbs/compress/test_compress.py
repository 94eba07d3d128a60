"""Compress, on models that take no time: budgets, masks, plans, refitting, healing, and what is left untouched."""

import copy

import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.forms.place import placed
from netspectra.plan import Plan
from netspectra.verbs.compress.calibrate import Calibration, calibrate, layers, rows
from netspectra.verbs.compress.objective import as_objective
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.compress.workshop import split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Block(nn.Module):
    """An MLP block with a residual connection, hidden neurons that repeat one another."""

    def __init__(self, d: int = 32, h: int = 128, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(d, h), act(), nn.Linear(h, d)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(24, 32), Block(), Block(), nn.Linear(32, 10)).eval()
        with torch.no_grad():  # so that there is something to be found: correlated inputs and repeated neurons
            for block in (model[1], model[2]):
                block.up.weight[64:] = block.up.weight[:64] + 0.05 * torch.randn(64, 32)
    return model


def batches(count: int = 4, size: int = 32, n: int = 24):
    mix = torch.randn(n, n, generator=generator(5)) * torch.logspace(0, -2, n)
    return [torch.randn(size, n, generator=generator(i)) @ mix for i in range(count)]


@pytest.fixture(scope="module")
def planned():
    model = network()
    plan, shop = compress(model, CompressOptions(keep=0.5), batches())
    return model, plan, shop


@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7, 0.9])
def test_budget_is_met_and_used(keep):
    model = network()
    plan = ns.compress(model, keep=keep, calibration=batches())
    before = sum(p.numel() for p in model.parameters())
    plan.apply(model)
    after = sum(p.numel() for p in model.parameters())
    assert after == plan.totals["model_after"].parameters
    assert after <= keep * before
    if plan.held_out["kept"] == "allocated":
        assert after >= (keep - 0.01) * before


def test_never_worse_than_uniform_and_better_than_plain(planned):
    _, plan, _ = planned
    measured = plan.held_out["candidates"]
    assert measured[plan.held_out["kept"]]["loss"] == min(found["loss"] for found in measured.values())
    plain = ns.compress(network(), keep=0.5, calibration=batches(), method="plain")
    assert min(f["loss"] for f in measured.values()) < min(f["loss"] for f in plain.held_out["candidates"].values())
    assert "allocated" not in plain.held_out["candidates"]  # plain energies are no loss units


def test_planning_touches_nothing():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules, state = list(model.modules()), torch.random.get_rng_state()
    ns.compress(model, keep=0.5, calibration=batches())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert list(model.modules()) == modules and model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_neurons_are_found_by_what_blocks_compute(planned):
    _, _, shop = planned
    found = [(b.up, b.down, b.activation) for b in shop.calibration.structure.blocks]
    assert found == [("1.up", "1.down", "gelu"), ("2.up", "2.down", "gelu")]


def test_same_plan_every_time():
    first, second = (ns.compress(network(), keep=0.5, calibration=batches()).to_json() for _ in range(2))
    assert first == second


def test_plan_replays_from_its_file_and_can_be_edited(tmp_path, planned):
    model, plan, _ = planned
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.to_dict() == plan.to_dict()
    with pytest.raises(InputRefused, match="read from a file"):
        again.apply(network())
    replayed = ns.compress(network(), calibration=batches(), plan=tmp_path / "plan.json")
    one, two = plan.apply(copy.deepcopy(model)), replayed.apply(network())
    x = batches(1)[0]
    assert torch.allclose(one(x), two(x), atol=1e-5)
    data = again.to_dict()
    changed = next(d for d in data["decisions"] if d["form"] != "dense")
    changed["size"] = 10**6
    with pytest.raises(InputRefused, match="cannot stand here"):
        ns.compress(network(), calibration=batches(), plan=Plan.from_dict(data))
    changed["form"] = "dense"
    edited = ns.compress(network(), calibration=batches(), plan=Plan.from_dict(data))
    assert edited[changed["site"]].form == "dense"


def test_plan_of_another_model_is_refused(planned):
    _, plan, _ = planned
    with pytest.raises(InputRefused, match="not the one"):
        plan.apply(nn.Sequential(nn.Linear(3, 3)))


def test_replacements_know_themselves(planned):
    model, plan, _ = planned
    changed = plan.apply(copy.deepcopy(model))
    named = {m for d in plan if d.form != "dense" for m in d.modules}
    assert {one.module for one in placed(changed)} == named


def test_padding_does_not_count():
    """Moments of a padded batch are those of its tokens alone; q, k, v share theirs."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(20, 8)
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, input_ids, attention_mask):
            x = self.embed(input_ids)
            return (self.query(x) + self.key(x) + self.value(x)) * attention_mask[..., None]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Attention()
    ids = torch.randint(1, 20, (3, 6), generator=generator())
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 2 + [0] * 4])
    batch = {"input_ids": ids, "attention_mask": mask}
    objective = as_objective("hidden", model, batch)
    found = calibrate(model, [batch], layers(model), objective)
    assert found.owner["key"] == found.owner["value"] == "query"
    tokens = model.embed(ids)[mask.bool()].detach().double()
    assert torch.allclose(found.inputs["query"].total, tokens.T @ tokens)
    assert found.inputs["embed"].count == found.outputs["key"].count == 11
    assert found.inputs["embed"].total[ids[mask.bool()]].min() >= 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 1), dilation=2, groups=2, padding="same"),
        nn.Conv1d(2, 3, 4, padding=2, padding_mode="circular"),
    ],
)
def test_patches_are_what_the_convolution_multiplies(layer):
    dims = layer.weight.dim() - 2
    x = torch.randn(2, layer.in_channels, *[9, 8][:dims], generator=generator())
    (patches,) = rows(layer, x)
    W = layer.weight.detach().reshape(layer.groups, layer.out_channels // layer.groups, -1)
    patches = patches if layer.groups > 1 else patches[None]
    y = (patches @ W.mT).permute(1, 0, 2).reshape(-1, layer.out_channels) + layer.bias.detach()
    assert torch.allclose(y, layer(x).detach().movedim(1, -1).reshape(-1, layer.out_channels), atol=1e-5)


def test_moments_can_be_saved_and_used_again(tmp_path, planned):
    _, plan, shop = planned
    shop.calibration.save(tmp_path / "moments.safetensors")
    known = Calibration.load(tmp_path / "moments.safetensors")
    again, _ = compress(network(), CompressOptions(keep=0.5), batches(), calibration=known)
    assert [(d.site, d.form, d.size) for d in again] == [(d.site, d.form, d.size) for d in plan]
    without, _ = compress(network(), CompressOptions(keep=0.5), calibration=known)
    assert not without.held_out and without.totals["selected_after"].parameters > 0


def test_refit_and_heal_help_or_are_dropped():
    model = network()
    plan = ns.compress(model, keep=0.4, calibration=batches(), refit=1, heal=30, heal_rate=1e-3, seed=1)
    plan.apply(model)
    start = plan.held_out["candidates"][plan.held_out["kept"]]["loss"]
    assert plan.finish["final"]["loss"] <= start * (1 + 1e-6)
    assert plan.finish["heal"]["after"] <= plan.finish["heal"]["before"]
    assert all(p.grad is None for p in model.parameters())


def test_without_data_plain_truncation_and_a_note():
    model = network()
    plan = ns.compress(model, keep=0.6)
    plan.apply(model)
    assert "no calibration data" in plan.notes[0]
    assert sum(p.numel() for p in model.parameters()) <= 0.6 * sum(p.numel() for p in network().parameters())


def test_budgets_of_other_kinds():
    model = network()
    whole = ns.compress(model, keep=1.0, calibration=batches()).totals["selected_before"]
    for name in ("bytes", "flops"):
        plan = ns.compress(model, calibration=batches(), **{name: 0.6 * getattr(whole, name)})
        assert getattr(plan.totals["selected_after"], name) <= 0.6 * getattr(whole, name)
    small = ns.compress(model, calibration=batches(), loss=1e-2)
    assert sum(d.loss for d in small) <= 1e-2
    assert small.totals["selected_after"].parameters < whole.parameters


def test_what_is_refused():
    with pytest.raises(InputRefused, match="one budget"):
        CompressOptions(keep=0.5, bytes=10)
    with pytest.raises(InputRefused, match="between 0 and 1"):
        CompressOptions(keep=1.5)
    with pytest.raises(InputRefused, match="no layer is selected"):
        ns.compress(network(), keep=0.5, calibration=batches(), include=("nothing",))
    with pytest.raises(InputRefused, match="cannot be met"):
        ns.compress(network(), parameters=3, calibration=batches())
    with pytest.raises(InputRefused, match="at least one"):
        ns.compress(network(), keep=0.5, calibration=[])
    with pytest.raises(InputRefused, match="method"):
        CompressOptions(method="magic")


def test_labels_are_left_out_and_functions_and_loaders_are_taken():
    data = torch.utils.data.TensorDataset(torch.cat(batches()), torch.zeros(128, dtype=torch.long))
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    assert ns.compress(network(), keep=0.5, calibration=loader).totals
    assert ns.compress(network(), keep=0.5, calibration=lambda: batches()).totals


def test_held_out_samples_are_taken_from_every_batch():
    kept, held = split([{"x": torch.arange(16), "flag": True}], 0.125)
    assert held[0]["x"].tolist() == [7, 15] and len(kept[0]["x"]) == 14 and held[0]["flag"]


def test_tied_and_unused_layers_are_left_with_reasons():

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.spare = (nn.Linear(16, 16) for _ in range(4))
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.c(torch.relu(self.b(torch.tanh(self.a(x)))))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tied = Tied()
    plan = ns.compress(tied, keep=0.6, calibration=[torch.randn(64, 16, generator=generator())])
    assert plan["a"].reason.startswith("tied to") and plan["spare"].reason == "never ran on the calibration data"


def test_report_is_inert_and_shows_the_plan(planned):
    _, plan, _ = planned
    page = plan.to_html()
    assert "default-src 'none'" in page and "1.<wbr>down" in page and "int8" in page
    assert "<table" in plan._repr_html_() and "->" in str(plan)
