"""Mirrored pairs: which weights get them, and that the network begins linear where they do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import netspectra as ns
from netspectra.verbs.train.mirrored import Mirror
from tests.live.networks import plain


def mirrored(found):
    return [c.name for c in found.changes if "mirrored" in c.scheme]


def is_odd(model, x):
    with torch.no_grad():
        at, opposite = model(x), model(-x)
    return torch.allclose(at, -opposite, atol=1e-4 * float(at.abs().max()))


@given(
    st.integers(2, 9),
    st.integers(2, 13),
    st.sampled_from([nn.ReLU, nn.GELU, nn.SiLU, nn.Softplus, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.ELU, nn.Sigmoid]),
    st.integers(0, 99),
)
@settings(max_examples=12, deadline=None)
def test_a_plain_network_begins_odd(depth, width, activation, seed):
    generator = torch.Generator().manual_seed(seed)
    model, x = plain(depth, width, activation, 7), torch.randn(5, 7, generator=generator)
    found = ns.initialize_(model, x, seed=seed, rescale=False)
    assert mirrored(found) == [f"{2 * i}.weight" for i in range(depth)]
    assert is_odd(model, x)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
def test_at_any_depth_it_begins_as_an_isometry_and_keeps_inputs_apart(activation):
    model, x = plain(40, 24, activation, 12, 5), torch.randn(16, 12)
    found = ns.initialize_(model, x)
    assert found.rounds <= 3 and found.after.rms == pytest.approx(1, abs=1e-3)
    assert found.after.share == 1 and found.after.max == pytest.approx(1, abs=1e-3)
    assert found.after.blocks[-2].cosine < 0.6 and found.after.passes


def test_without_pairs_inputs_become_alike():
    found = ns.initialize_(plain(40, 24, nn.ReLU, 12, 5), torch.randn(16, 12), mirror=False)
    assert found.after.rms == pytest.approx(1, rel=0.06) and found.after.blocks[-2].cosine > 0.9


class Functional(nn.Module):
    """A network that calls functions, pools and flattens."""

    def __init__(self, flatten=lambda x: x.flatten(1)):
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 2, 2)
        self.conv = nn.Conv2d(6, 8, 3, padding=1)
        self.one, self.two = nn.Linear(8 * 16, 11), nn.Linear(11, 4)
        self.flatten = flatten

    def forward(self, x):
        x = F.relu(self.up(x), inplace=True)
        x = F.avg_pool2d(F.gelu(self.conv(x)), 2)
        return self.two(F.silu(self.one(self.flatten(x))))


def test_functions_pooling_flattening_and_transposed_convolutions():
    model, x = Functional(), torch.randn(4, 3, 4, 4)
    found = ns.initialize_(model, x)
    assert mirrored(found) == ["up.weight", "conv.weight", "one.weight", "two.weight"]
    assert is_odd(model, x) and all(abs(b.decades) < 0.03 for b in found.after.blocks if b.weighted)
    up, conv, one = (layer.weight.detach() for layer in (model.up, model.conv, model.one))
    assert torch.equal(up[:, :3], -up[:, 3:]) and torch.equal(conv[:, :3], -conv[:, 3:])
    assert torch.equal(one[:, :64], -one[:, 64:])


def test_the_unit_without_a_twin_still_learns():
    model, x = plain(4, 7, nn.ReLU, 7), torch.randn(9, 7)
    ns.initialize_(model, x)
    assert not model[2].weight[:, 6].any() and model[0].weight[6].any()
    model(x).square().sum().backward()
    assert model[2].weight.grad[:, 6].abs().max() > 0


class Around(nn.Module):
    """Hidden units reach the output by two ways."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.c, self.join = nn.Linear(12 if join == "cat" else 6, 3), join

    def forward(self, x):
        h = F.relu(self.a(x))
        y = F.relu(self.b(h))
        return self.c(torch.cat([h, y], 1) if self.join == "cat" else h + y)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x):
        return self.a(F.relu(self.a(x)))


def between(function):
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(function(self.a(x)))

    return Between()


LEFT = {
    "nothing between": lambda: between(lambda z: z),
    "odd": lambda: between(torch.tanh),
    "even": lambda: between(torch.square),
    "units meet": lambda: between(lambda z: z.softmax(-1)),
    "halves differ": lambda: between(lambda z: torch.cat([z[:, :3].relu(), z[:, 3:].tanh()], 1)),
    "units are shuffled": lambda: between(lambda z: z.relu()[:, [0, 3, 1, 4, 2, 5]]),
    "norm": lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    "added": lambda: Around("add"),
    "tied": Tied,
}


@pytest.mark.parametrize("name", LEFT)
def test_other_networks_are_drawn_whole(name):
    model = LEFT[name]()
    assert mirrored(ns.initialize_(model, torch.randn(5, 6), rescale=False)) == []


def test_a_way_around_keeps_what_it_passes_whole():
    assert mirrored(ns.initialize_(Around("cat"), torch.randn(5, 6), rescale=False)) == []


def test_weights_that_may_not_be_drawn_have_no_mirrored_neighbours():
    model, x = plain(4, 8, nn.ReLU), torch.randn(5, 8)
    assert mirrored(ns.initialize_(model, x, exclude="2.*")) == ["4.weight", "6.weight"]
    assert mirrored(ns.initialize_(model, x, method="gaussian")) == []
    channels_last = Functional(lambda x: x.permute(0, 2, 3, 1).flatten(1))
    ns.initialize_(channels_last, torch.randn(2, 3, 4, 4))
    conv, one = channels_last.conv.weight.detach(), channels_last.one.weight.detach()
    assert torch.equal(conv[:, :3], -conv[:, 3:]) and not torch.equal(conv[:4], -conv[4:])
    assert torch.equal(one[:5], -one[5:10]) and not torch.equal(one[:, :64], -one[:, 64:])


def test_a_drawn_block():
    ones = lambda shape, generator: torch.ones(*shape)  # noqa: E731
    drawn = Mirror(rows=True, columns=2).draw(ones, (5, 5), torch.Generator())
    assert drawn[:2].tolist() == [[1, 1, -1, -1, 0]] * 2 and torch.equal(drawn[2:4], -drawn[:2])
    assert drawn[4].tolist() == [1, 1, -1, -1, 0]
