"""Quantize on models that take no time: budgets, what stands in the model then, plans, folders, every kind of layer."""

import copy

import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.forms import FORMS
from netspectra.forms.coded import CodedModule
from netspectra.forms.codes import BITS, Coding
from netspectra.forms.place import placed
from netspectra.forms.rounded import bits_of
from netspectra.plan import Plan
from netspectra.report.plan_page import render_plan
from netspectra.verbs.compress.allocate import Budget, allocate
from netspectra.verbs.compress.calibrate import calibrate, layers
from netspectra.verbs.compress.objective import as_objective
from netspectra.verbs.compress.sites import find_sites
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import quantize
from netspectra.weight import Selection


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perceptron(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 16)).eval()


def batches(count: int = 3, rows: int = 128, n: int = 64) -> list[torch.Tensor]:
    mix = torch.randn(n, n, generator=generator(9)) * torch.linspace(0.1, 2, n)
    return [torch.randn(rows, n, generator=generator(i)) @ mix / 8 for i in range(count)]


class Mixed(nn.Module):
    """Tokens, a grouped and a plain convolution, a linear layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(120, 48, padding_idx=0)
        self.grouped = nn.Conv1d(48, 48, 3, padding=1, groups=2)
        self.plain = nn.Conv1d(48, 40, 3, padding=1)
        self.head = nn.Linear(40, 24, bias=False)

    def forward(self, tokens):
        x = self.table(tokens).mT
        return self.head(torch.relu(self.plain(torch.relu(self.grouped(x)))).mean(-1))


def mixed() -> Mixed:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Mixed().eval()


def tokens(seed: int = 0, rows: int = 64) -> torch.Tensor:
    return torch.randint(0, 120, (rows, 12), generator=generator(seed))


def stored(model: nn.Module, names) -> int:
    modules = [model.get_submodule(name) for name in names]
    return sum(t.numel() * t.element_size() for m in modules for t in m.state_dict().values())


@pytest.mark.parametrize("bits", [2.5, 3.3, 4.25, 6.0])
def test_budgets_hold_and_bytes_are_those_predicted(bits):
    model = perceptron()
    plan = ns.quantize(model, bits=bits, calibration=batches())
    names = [d.modules[0] for d in plan]
    weights = sum(model.get_submodule(name).weight.numel() for name in names)
    biases = 4 * sum(model.get_submodule(name).bias.numel() for name in names)
    after = plan.totals["selected_after"].bytes
    assert after <= bits / 8 * weights + biases
    assert after >= 0.93 * (bits / 8 * weights + biases)
    plan.apply(model)
    assert stored(model, names) == after
    assert plan.verb == "quantize" and set(plan.held_out["candidates"]) >= {"allocated", "uniform"}


def test_the_model_is_untouched_until_the_plan_is_applied():
    model = perceptron()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    plan = ns.quantize(model, bits=3, calibration=batches())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    plan.apply(model)
    assert all(isinstance(model[i], CodedModule) for i in (0, 2, 4))


def test_predicted_loss_is_near_the_measured_one():
    model, data = perceptron(), batches(4, 256)
    plan = ns.quantize(model, bits=4.5, calibration=data)
    predicted = sum(d.loss for d in plan)
    assert plan.held_out["candidates"]["allocated"]["loss"] == pytest.approx(predicted, rel=0.5)


def test_more_bits_lose_less_and_corrections_help_for_every_kind_of_layer():
    model, data = mixed(), [tokens(i) for i in range(4)]
    objective = as_objective(None, model, data[0])
    found = calibrate(model, data, layers(model), objective)
    sites = find_sites(model, found, Selection(), method="two_sided", coding=Coding(group=16, ranks=(0, 2, 8)))
    singles = [site for site in sites.found if site.kind in ("linear", "convolution", "embedding")]
    assert {site.name for site in singles} == {"table", "grouped", "plain", "head"}
    for site in singles:
        curves = [FORMS[f"int{bits}"].curve(site) for bits in sorted(BITS)]
        none = [float(curve.losses[0]) for curve in curves]
        assert none == sorted(none, reverse=True)
        for curve in curves:
            assert list(curve.losses) == sorted(curve.losses, reverse=True)
        assert len(curves[0].sizes) == (1 if site.name == "grouped" else 3)


def test_predictions_are_what_the_error_costs():
    model, data = mixed(), [tokens(i) for i in range(4)]
    found = calibrate(model, data, layers(model), as_objective(None, model, data[0]))
    sites = find_sites(model, found, Selection(), method="two_sided", coding=Coding(group=16, ranks=(0, 4)))
    for site in sites.found:
        if site.name not in ("table", "plain", "head"):
            continue
        for size in (0, 4):
            made = FORMS["int3"].fit(site, size)[site.name]
            weight = made.weight.detach().double()
            W = weight.mT if site.kind == "embedding" else weight.flatten(1)
            curve = FORMS["int3"].curve(site)
            predicted = float(curve.losses[list(curve.sizes).index(size)])
            assert site.member.loss(W) == pytest.approx(predicted, rel=1e-2)


def test_saved_and_loaded_it_computes_the_same():
    model, data = mixed(), [tokens(i) for i in range(4)]
    plan = ns.quantize(model, bits=6.5, calibration=data, group=16, ranks=(0, 4), levels=(16, 4, 3))
    plan.apply(model)
    wanted = model(tokens(99))
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        ns.save(model, f"{folder}/m")
        again = ns.load(f"{folder}/m", mixed())
    assert torch.equal(again(tokens(99)), wanted)
    assert {p.form for p in placed(model)} <= {"half", "int4", "int3"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_keep_their_dtype(dtype):
    model = perceptron().to(dtype)
    data = [batch.to(dtype) for batch in batches()]
    plan = ns.quantize(model, bits=4.5, calibration=data)
    plan.apply(model)
    answer = model(data[0])
    assert answer.dtype == dtype and bool(answer.isfinite().all())
    assert model[0].weight.dtype == dtype
    assert all(d.form != "half" for d in plan)


def test_a_plan_can_be_edited_and_replayed(tmp_path):
    model, data = perceptron(), batches()
    plan = ns.quantize(model, bits=3.5, calibration=data)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    again = ns.quantize(model, bits=3.5, calibration=data, plan=tmp_path / "plan.json")
    assert [(d.form, d.size) for d in again] == [(d.form, d.size) for d in plan]
    first = plan.decisions[0]
    (tmp_path / "plan.json").write_text(text.replace(f'"form": "{first.form}"', '"form": "int8"', 1))
    edited = ns.quantize(model, bits=3.5, calibration=data, plan=Plan.load(tmp_path / "plan.json"))
    assert edited.decisions[0].form == "int8"
    edited.apply(model)
    assert model[0].bits == 8


def test_a_plan_is_replayed_on_its_own_grid(tmp_path):
    """Groups, zero points, rounding and ranks are the plan's, unless others are asked for."""
    model, data = perceptron(), batches()
    path = tmp_path / "plan.json"
    first = ns.quantize(model, bits=4.5, calibration=data, group=32, symmetric=True, rounding="nearest", ranks=(0, 4))
    first.save(path)
    again = ns.quantize(perceptron(), calibration=data, plan=path)
    assert again.options["coding"] == first.options["coding"]
    assert [d.after.bytes for d in again] == [d.after.bytes for d in first]
    assert ns.quantize(perceptron(), calibration=data, plan=path, group=16).options["coding"]["group"] == 16
    assert QuantizeOptions().following({"coding": {"group": "x", "ranks": 3}}) == QuantizeOptions()


def test_what_cannot_be_rounded_does_not_eat_the_budget_of_the_rest():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 48, 3, padding=1, padding_mode="reflect"), nn.Flatten()
        ).eval()
    plan = ns.quantize(model, bits=4.5, calibration=[torch.randn(32, 3, 6, 6, generator=generator())])
    assert plan["2"].form == "dense" and "padding of mode reflect" in plan["2"].reason
    assert plan["0"].form.startswith("int") and plan["0"].after.bytes <= 4.5 / 8 * 48 * 27 + 4 * 48


def test_without_data_bits_are_the_same_everywhere_and_it_says_why():
    model = perceptron()
    plan = ns.quantize(model, bits=4.5)
    assert len({d.form for d in plan}) == 1
    assert any("own spectrum does not say" in note for note in plan.notes)
    plan.apply(model)


def test_weights_only_is_labelled_weak():
    plan = ns.quantize(perceptron(), bits=3.5, calibration=batches(), weigh="weights")
    assert any(note.startswith("weak") for note in plan.notes)
    with pytest.raises(InputRefused, match="needs data"):
        ns.quantize(perceptron(), bits=3.5, weigh="measured")


def test_measured_losses_scale_the_predicted_ones():
    model, data = perceptron(), batches(4)
    plan, shop = quantize(model, QuantizeOptions(bits=3.5, weigh="measured"), data)
    assert any("measured" in note for note in plan.notes)
    for found in shop.choices.values():
        three = {c.size: c.loss for c in found if c.form == "int3"}
        assert all(loss >= 0 for loss in three.values())
        assert len(three) < 2 or three[0] > three[max(three)]


def test_joint_plans_may_shrink_and_quantize():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)
            with torch.no_grad():
                self.up.weight[64:] = self.up.weight[:64]
                self.up.bias[64:] = self.up.bias[:64]

        def forward(self, x):
            return x + self.down(torch.relu(self.up(x)))

    torch.manual_seed(0)
    model = Block()
    data = [torch.randn(256, 32, generator=generator(i)) for i in range(3)]
    plan, shop = quantize(model, QuantizeOptions(bits=18, levels=(16, 8), forms=("neurons",)), data)
    kinds = {c.form for found in shop.choices.values() for c in found}
    assert "neurons" in kinds and "int8" in kinds
    assert plan.totals["selected_after"].bytes <= 18 / 8 * 2 * 32 * 128 + 4 * 160


def test_compress_never_takes_codes_unless_they_are_named():
    from netspectra.verbs.compress.options import CompressOptions
    from netspectra.verbs.compress.planning import compress

    model, data = perceptron(), batches()
    plan, _ = compress(model, CompressOptions(bytes=20_000), data)
    assert all(not bits_of(d.form) for d in plan)
    plan, _ = compress(model, CompressOptions(bytes=20_000, forms=("factors", "int8", "int4")), data)
    assert {d.form for d in plan} & {"int8", "int4"}


def test_a_loss_budget_gives_few_bytes():
    model, data = perceptron(), batches()
    rough = ns.quantize(model, calibration=data, loss=1.0)
    fine = ns.quantize(model, calibration=data, loss=0.01)
    assert sum(d.loss for d in rough) <= 1.0 and sum(d.loss for d in fine) <= 0.01
    assert fine.totals["selected_after"].bytes > rough.totals["selected_after"].bytes


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 3, "loss": 1.0}, {"bits": 0}, {"bits": 40}, {"levels": (7,)}, {"levels": ()}, {"ranks": (8,)},
        {"group": 3}, {"rounding": "up"}, {"weigh": "guess"}, {"forms": ("int4",)}, {"forms": ("nonsense",)},
    ],
)  # fmt: skip
def test_contradictions_are_refused_before_any_work(wrong):
    with pytest.raises(InputRefused):
        QuantizeOptions(**wrong)


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(InputRefused, match="raise it"):
        ns.quantize(perceptron(), bits=1.5, calibration=batches())


def test_means_are_folded_into_biases():
    model = perceptron()
    data = [batch + 3 for batch in batches(4)]
    plan = ns.quantize(model, bits=2.6, calibration=data, include=("0.*",), ranks=(0,))
    before = copy.deepcopy(model)
    plan.apply(model)
    x = torch.cat(data)
    off = (model[0](x) - before[0](x)).mean(0).detach()
    shift = (model[0].bias - before[0].bias).detach()
    assert float(shift.abs().max()) > 0
    assert float(off.norm()) < 0.2 * float((off - shift).norm())


def test_bits_drawn_at_random_stand_beside_the_plan():
    plan, shop = quantize(perceptron(), QuantizeOptions(bits=4.5, ranks=(0,)), batches(4))
    beside = plan.held_out["drawn"]
    assert beside["loss"] > 0 and beside["bytes"] <= shop.options.bytes
    again, _ = quantize(perceptron(), QuantizeOptions(bits=4.5, ranks=(0,)), batches(4))
    assert again.held_out["drawn"] == beside


@pytest.mark.parametrize("weigh", ["predicted", "measured"])
def test_ways_to_spend_the_same_bytes_are_measured_for_the_picture(weigh):
    plan, _ = quantize(perceptron(), QuantizeOptions(bits=4.5, weigh=weigh, levels=(8, 4, 3)), batches(4))
    points = plan.held_out["frontier"]
    assert [point["bits"] for point in points] == [4, 3]  # as 2 is none of the levels
    for point in points:
        assert set(point["losses"]) == {"uniform", "random", weigh} and min(point["losses"].values()) > 0
    assert points[0]["bytes"] > points[1]["bytes"] and points[0]["samples"] <= 64
    page = render_plan(plan.to_dict())
    assert "Ways to spend the same bytes" in page
    assert ("--weigh measured" in page) == (weigh == "predicted")


def test_the_best_of_few_layers_is_found_at_the_bytes_of_the_same_bits_everywhere():
    """The same bits everywhere are one way to spend them, so the plan is predicted to lose no more."""
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
    _, shop = quantize(model, QuantizeOptions(bits=4.5, ranks=(0,)), batches(4))
    singles = [some for some in shop.choices.values() if len(some[0].site.members) == 1]
    even = [next(c for c in some if c.form == "int3") for some in singles]
    found = allocate(shop.parts, Budget("bytes", sum(c.cost.bytes for c in even)))
    assert sum(o.loss for o in found) <= sum(c.loss for c in even) * (1 + 1e-12)
