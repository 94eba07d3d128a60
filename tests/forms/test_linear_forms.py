"""Forms of linear layers, MLP blocks and attention: what the curve promises is what stands there."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netspectra.forms import FORMS, Site
from netspectra.forms.joint import SharedFactor
from netspectra.forms.pivoted import PivotedLinear
from netspectra.forms.place import place_, placed, rebuild_
from tests.forms.conftest import member


def tokens(n, seed=0, count=300):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return torch.randn(count // 10, 10, n, generator=generator, dtype=torch.float64) @ mixing + 0.5


def linear(n, m, seed=0, bias=True):
    torch.manual_seed(seed)
    return nn.Linear(n, m, bias=bias).double()


def numbers(modules):
    seen = {id(p): p.numel() for module in modules for p in module.parameters()}
    return sum(seen.values())


@pytest.fixture(autouse=True)
def own_random_numbers():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n,m", [(12, 9), (9, 12), (10, 10), (70, 80)])
def test_pivoted_is_the_optimum_of_its_rank(n, m, bias):
    layer, x = linear(n, m, bias=bias), tokens(n, count=400)
    site = Site("layer", "linear", {"weight": member("layer", layer, x)})
    form = FORMS["pivoted"]
    curve = form.curve(site)
    assert (curve.parameters < layer.weight.numel() + m * bias).all() and len(curve.sizes)
    for place in {0, len(curve.sizes) // 2, len(curve.sizes) - 1}:
        new = form.fit(site, int(curve.sizes[place]))["layer"]
        assert numbers([new]) == curve.parameters[place]
        assert site.member.loss(new.weight) == pytest.approx(curve.losses[place], rel=1e-6, abs=1e-10)
        expected = F.linear(x, new.weight, new.bias)
        torch.testing.assert_close(new(x), expected)
        torch.testing.assert_close(new.unpivoted()(x), expected)
        difference = (layer(x) - new(x)).mean((0, 1))
        assert not bias or difference.abs().max() < 1e-9, "the mean error goes into the bias"
        again = form.empty(layer, form.specs(site, int(curve.sizes[place]))["layer"])
        again.load_state_dict(new.state_dict())
        assert torch.equal(again(x), new(x))


@pytest.mark.parametrize("rows", [True, False])
def test_pivoted_compiles_and_exports(rows):
    layer = PivotedLinear(6, 8, 3, rows=rows, bias=True)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 6)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
        exported = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        torch.testing.assert_close(exported.module()(x[:3]), layer(x[:3]))


class MLP(nn.Module):
    def __init__(self, n, width, gate=None, bias=True, fused=False):
        super().__init__()
        self.up = linear(n, 2 * width if fused else width, 1, bias)
        self.gate = linear(n, width, 2, bias) if gate else None
        self.down = linear(width, n, 3, bias)
        self.fused = fused

    def hidden(self, x):
        if self.fused:
            gate, up = self.up(x).chunk(2, -1)
            return F.silu(gate) * up
        return F.silu(self.gate(x)) * self.up(x) if self.gate else F.gelu(self.up(x))

    def forward(self, x):
        return self.down(self.hidden(x))


@pytest.mark.parametrize("gate,bias,fused", [(0, 1, 0), (0, 0, 0), (1, 1, 0), (1, 0, 0), (0, 1, 1)])
def test_neurons(gate, bias, fused):
    model, x = MLP(6, 20, gate, bool(bias), bool(fused)), tokens(6)
    roles = {"gate_up": "up"} if fused else {"up": "up", "gate": "gate"} if gate else {"up": "up"}
    hidden = model.hidden(x).detach()
    members = {role: member(name, getattr(model, name), x) for role, name in roles.items()}
    site = Site("", "mlp", members | {"down": member("down", model.down, hidden)})
    form = FORMS["neurons"]
    curve = form.curve(site)
    whole = numbers([model])
    assert site.parameters == whole and (curve.parameters < whole).all()
    for place in (0, 9, 18):
        size = int(curve.sizes[place])
        new, shrunk = form.fit(site, size), copy.deepcopy(model)
        specs = form.specs(site, size)
        for name, module in new.items():
            assert type(module) is nn.Linear
            place_(shrunk, name, module, "neurons", specs[name])
        assert numbers([shrunk]) == curve.parameters[place]
        error = (model(x) - shrunk(x)).reshape(-1, 6).detach()
        G = site.members["down"].G
        predicted = curve.losses[place] / site.members["down"].positions
        assert float((error @ G * error).sum(1).mean()) == pytest.approx(predicted, rel=1e-5, abs=1e-9)
        again = rebuild_(copy.deepcopy(model), placed(shrunk))
        again.load_state_dict(shrunk.state_dict())
        assert torch.equal(again(x), shrunk(x))


def test_neurons_beat_magnitude_and_random_choices():
    model, x = MLP(8, 40), tokens(8, count=2000)
    hidden = model.hidden(x).detach()
    down = member("down", model.down, hidden)
    site = Site("", "mlp", {"up": member("up", model.up, x), "down": down})
    from netspectra.linalg.features import on_features

    def loss(chosen):
        choice = torch.eye(40).double()[chosen]
        return on_features(down.W, down.A, choice, down.G)[1] * down.positions

    ours = float(FORMS["neurons"].curve(site).losses[19])
    size = model.up.weight.norm(dim=1) * model.down.weight.norm(dim=0)
    assert ours < loss(size.argsort(descending=True)[:20])
    assert ours < min(loss(torch.randperm(40, generator=torch.Generator().manual_seed(s))[:20]) for s in range(20))


class Attention(nn.Module):
    def __init__(self, d, heads, kv_heads, head_dim, bias=True):
        super().__init__()
        self.query = linear(d, heads * head_dim, 1, bias)
        self.key = linear(d, kv_heads * head_dim, 2, bias)
        self.value = linear(d, kv_heads * head_dim, 3, bias)
        self.output = linear(heads * head_dim, d, 4, bias)
        self.head_dim = head_dim

    def mixed(self, x):
        q, k, v = (f(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=q.shape[1] != k.shape[1])
        return y.transpose(1, 2).flatten(-2)

    def forward(self, x):
        return self.output(self.mixed(x))

    def site(self, x, kind):
        roles = {"query": x, "key": x, "value": x, "output": self.mixed(x).detach()}
        wanted = {"value_output": ("value", "output"), "query_key": ("query", "key"), "qkv": ("query", "key", "value")}
        members = {role: member(role, getattr(self, role), roles[role], seed) for seed, role in enumerate(wanted[kind])}
        heads = self.query.out_features // self.head_dim
        facts = {"heads": heads, "kv_heads": self.key.out_features // self.head_dim, "head_dim": self.head_dim}
        return Site("", kind, members, facts)


def replaced(model, site, form, size):
    new = copy.deepcopy(model)
    specs = form.specs(site, size)
    for name, module in form.fit(site, size).items():
        place_(new, name, module, form.name, specs[name])
    return new


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_outputs_through_fewer_dimensions(kv_heads, bias):
    model, x = Attention(12, 4, kv_heads, 8, bias), tokens(12) / 5
    site, form = model.site(x, "value_output"), FORMS["value_heads"]
    curve = form.curve(site)
    output = site.members["output"]
    for place in (0, 3, 6):
        size = int(curve.sizes[place])
        new = replaced(model, site, form, size)
        assert numbers([new.value, new.output]) == curve.parameters[place]
        error = (model(x) - new(x)).reshape(-1, 12).detach()
        predicted = curve.losses[place] / output.positions
        assert float((error @ output.G * error).sum(1).mean()) == pytest.approx(predicted, rel=1e-5, abs=1e-9)
        assert (curve.losses[1:] <= curve.losses[:-1] * (1 + 1e-9)).all()
        torch.testing.assert_close(new.value(x), F.linear(x, new.value.weight, new.value.bias))
        y = model.mixed(x)
        torch.testing.assert_close(new.output(y), F.linear(y, new.output.weight, new.output.bias))
        again = rebuild_(copy.deepcopy(model), placed(new))
        again.load_state_dict(new.state_dict())
        assert torch.equal(again(x), new(x))


@pytest.mark.parametrize("bias", [True, False])
def test_queries_and_keys_through_fewer_dimensions(bias):
    model, x = Attention(12, 2, 2, 8, bias), tokens(12) / 5
    low = torch.randn(2, 8, 3).double()  # each head's scores are of rank 3
    with torch.no_grad():
        for h in range(2):
            part = slice(8 * h, 8 * h + 8)
            model.query.weight[part] = low[h] @ low[h].mT @ model.query.weight[part]
            if bias:
                model.query.bias[part] = low[h] @ low[h].mT @ model.query.bias[part]
    site, form = model.site(x, "query_key"), FORMS["query_heads"]
    curve = form.curve(site)
    assert curve.losses[2] <= 1e-9 * curve.losses[0] + 1e-12 and curve.losses[1] > 0
    new = replaced(model, site, form, 3)
    assert numbers([new.query, new.key]) == curve.parameters[2]
    torch.testing.assert_close(new(x), model(x), rtol=1e-6, atol=1e-6)
    assert FORMS["query_heads"].refuses(Attention(12, 4, 2, 8).site(x, "query_key"))


def test_heads_compile_and_export():
    model, x = Attention(12, 2, 2, 8), tokens(12) / 5
    new = replaced(model, model.site(x, "value_output"), FORMS["value_heads"], 3)
    new = replaced(new, model.site(x, "query_key"), FORMS["query_heads"], 5)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(new, fullgraph=True, backend="aot_eager")(x), new(x))
        torch.testing.assert_close(torch.export.export(new, (x,)).module()(x), new(x))


def test_joint_computes_the_shared_product_once():
    model, x = Attention(24, 2, 2, 12), tokens(24) / 5
    site, form = model.site(x, "qkv"), FORMS["joint"]
    curve = form.curve(site)
    new = replaced(model, site, form, 10)
    place = list(curve.sizes).index(10)
    assert numbers([new.query, new.key, new.value]) == curve.parameters[place]
    total = sum(m.loss(getattr(new, role).weight) for role, m in site.members.items())
    assert total == pytest.approx(curve.losses[place], rel=1e-6)
    shared = new.query[0]
    assert new.key[0] is shared and new.value[0] is shared
    calls = 0
    plain = nn.Linear.forward

    def counted(self, x):
        nonlocal calls
        calls += isinstance(self, SharedFactor)
        return plain(self, x)

    before = {role: F.linear(x, getattr(new, role).weight, getattr(new, role).bias) for role in site.members}
    nn.Linear.forward = counted
    try:
        with torch.no_grad():
            for _ in range(2):
                for role, expected in before.items():
                    torch.testing.assert_close(getattr(new, role)(x), expected)
            assert calls == 2 and shared._last is None
            new.query(x)
            x += 1.0  # changed in place: what was remembered is stale
            torch.testing.assert_close(new.key(x), F.linear(x, new.key.weight, new.key.bias))
    finally:
        nn.Linear.forward = plain
    copied = copy.deepcopy(new)
    assert copied.key[0] is copied.query[0]
    again = rebuild_(copy.deepcopy(model), placed(new))
    again.load_state_dict(new.state_dict())
    assert again.key[0] is again.query[0]
    torch.testing.assert_close(again(x), new(x))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(new, fullgraph=True, backend="aot_eager")(x), new(x))
        torch.testing.assert_close(torch.export.export(new, (x,)).module()(x), new(x))


def test_joint_learns_and_two_gradients_agree():
    model, x = Attention(24, 2, 2, 12), tokens(24) / 5
    new = replaced(model, model.site(x, "qkv"), FORMS["joint"], 10)
    new(x).square().sum().backward()
    mine = new.query[0].weight.grad.clone()
    new.zero_grad()
    new.query[0].users = 1  # never remembers
    new(x).square().sum().backward()
    torch.testing.assert_close(new.query[0].weight.grad, mine)
