"""Predictions along a layer's own error: exact where the model is linear, and right where tokens cancel."""

import pytest
import torch
from torch import nn

from netspectra.verbs.compress.along import losses_along
from netspectra.verbs.compress.checked import shrunk
from netspectra.verbs.compress.objective import Objective, as_objective
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.planning import compress
from netspectra.verbs.quantize.options import QuantizeOptions
from netspectra.verbs.quantize.planning import quantize


class Pooled(nn.Module):
    """A layer over tokens, their mean, and another layer."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.each, self.last = nn.Linear(16, 24), nn.Linear(24, 8, bias=False)

    def forward(self, x):
        return self.last(self.each(x).mean(1))


def noisy(layer: nn.Linear, size: float = 0.1) -> nn.Linear:
    new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    new.load_state_dict(layer.state_dict())
    with torch.no_grad():
        new.weight += size * torch.randn(new.weight.shape, generator=torch.Generator().manual_seed(1))
    return new


def batches(count: int = 8, cancel: bool = False) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    found = [torch.randn(64, 6, 16, generator=g) for _ in range(count)]
    return [x - x.mean(1, keepdim=True) for x in found] if cancel else found


def cost(model, name, new, data) -> float:
    """What it really costs a sample: squared differences of the output."""
    with torch.no_grad():
        before = torch.cat([model(x) for x in data])
        old = model.get_submodule(name)
        model.set_submodule(name, new)
        after = torch.cat([model(x) for x in data])
        model.set_submodule(name, old)
    return float((after - before).square().sum(1).mean())


@pytest.mark.parametrize("name", ["each", "last"])
def test_of_a_linear_model_it_is_the_loss_itself(name):
    model, data = Pooled(), batches()
    new = noisy(model.get_submodule(name))
    objective = as_objective(None, model, data[0])
    [[found]] = losses_along(model, data, objective, {name: [new]}, samples=512).values()
    assert 0 < found.error < 0.2 * found.loss
    assert abs(found.loss - cost(model, name, new, data)) < 4 * found.error


def test_all_layers_at_once_are_each_on_their_own():
    model, data = Pooled(), batches()
    changed = {name: [noisy(model.get_submodule(name))] for name in ("each", "last")}
    objective = as_objective(None, model, data[0])
    together = losses_along(model, data, objective, changed, samples=512)
    for name, new in changed.items():
        assert together[name] == losses_along(model, data, objective, {name: new}, samples=512)[name]
    assert all(p.requires_grad for p in model.parameters()) and not model.each._forward_hooks


def test_what_tokens_cancel_costs_nothing():
    model, data = Pooled(), batches(cancel=True)
    objective = as_objective(None, model, data[0])
    [[found]] = losses_along(model, data, objective, {"each": [noisy(model.each)]}, samples=512).values()
    assert found.loss < 1e-12
    plan, shop = quantize(model, QuantizeOptions(bits=6.0, group=8), data)
    assert any("checked along" in note for note in plan.notes)
    first = {c.form: c.loss for c in next(iter(shop.choices.values())) if not c.size}
    [site] = [s for s in shop.sites.found if s.name == "each"]
    moments = {c.form: c.loss for c in shop.choices[id(site)] if not c.size}
    assert moments["int3"] < 1e-6 and first["int3"] >= 0


def test_shared_layers_add_up_before_they_are_squared():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Pooled().each

        def forward(self, x):
            return self.layer(x[:, 0]) - self.layer(x[:, 1])

    model, data = Twice(), [torch.randn(64, 1, 16).expand(64, 2, 16).contiguous()]
    objective = Objective("output", lambda out, batch: out)
    [[found]] = losses_along(model, data, objective, {"layer": [noisy(model.layer)]}, samples=64).values()
    assert found.loss < 1e-12


def test_ratios_that_are_all_noise_become_one():
    drawn = torch.randn(20, generator=torch.Generator().manual_seed(0)).mul(0.3).exp().tolist()
    found = shrunk({i: (r, 0.4) for i, r in enumerate(drawn)})
    assert len({round(r, 9) for r in found.values()}) == 1
    far = shrunk({0: (8.0, 0.1), 1: (0.125, 0.1), 2: (1.0, 0.1)})
    assert far[0] > 7.5 and far[1] < 0.14 and shrunk({}) == {}


def test_a_plan_spares_what_costs_and_not_what_cancels():
    """Both layers are of one shape; the errors of one cancel over the tokens."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.cancels, self.adds = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

        def forward(self, x):
            return self.cancels(x[:, :, 0]).mean(1) + self.adds(x[:, :, 1]).mean(1)

    model, g = Two(), torch.Generator().manual_seed(3)
    x = torch.randn(256, 6, 2, 16, generator=g)
    x[:, :, 0] -= x[:, :, 0].mean(1, keepdim=True)
    x[:, :, 1] = x[:, :1, 1]
    data = list(x.split(64))
    sizes = {}
    for checked in (0, 192):
        plan, _ = compress(model, CompressOptions(keep=0.5, checked=checked, forms=("pivoted",)), data)
        assert any("along" in note for note in plan.notes) == bool(checked)
        sizes[checked] = {decision.site: decision.after.parameters for decision in plan}
    assert sizes[0]["cancels"] > 32  # to the moments it matters
    assert sizes[192]["cancels"] < sizes[0]["cancels"] and sizes[192]["adds"] > sizes[0]["adds"]
