"""Convolutions as chains: predicted losses, parameters, and everything a convolution can be told kept right."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from netspectra.forms import FORMS, Site
from netspectra.forms.place import place_, placed, rebuild_
from tests.forms.conftest import member

KINDS = {
    "plain": (2, {"kernel_size": 3, "padding": 1}),
    "strided": (2, {"kernel_size": (3, 5), "stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)}),
    "same": (2, {"kernel_size": (2, 3), "padding": "same", "dilation": 2}),
    "reflect": (2, {"kernel_size": 3, "padding": 2, "padding_mode": "reflect"}),
    "grouped": (2, {"kernel_size": 3, "groups": 2, "bias": False}),
    "pointwise": (2, {"kernel_size": 1, "stride": 2}),
    "one": (1, {"kernel_size": 5, "stride": 2, "padding": 2}),
    "three": (3, {"kernel_size": (2, 3, 2), "padding": (1, 1, 0), "stride": (1, 2, 1)}),
}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@pytest.fixture(autouse=True)
def own_random_numbers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def built(kind):
    dims, options = KINDS[kind]
    conv = CONV[dims](6, 8, **options).double()
    x = torch.randn(4, 6, *(9,) * dims).double().cumsum(-1) / 3 + 0.5
    return conv, x


def error_of(site, conv, new, x):
    error = (conv(x) - new(x)).movedim(1, -1).reshape(-1, conv.out_channels).detach()
    G = site.member.G
    if conv.groups > 1:
        half = len(G) // conv.groups
        G = torch.block_diag(*(G[g * half : (g + 1) * half, g * half : (g + 1) * half] for g in range(conv.groups)))
    return float((error @ G * error).sum()) / len(x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["channel", "spatial", "tucker"])
def test_chain_is_what_the_curve_promises(kind, name):
    conv, x = built(kind)
    site, form = Site("conv", "convolution", {"weight": member("conv", conv, x)}), FORMS[name]
    if (name == "spatial" and kind in ("pointwise", "one")) or (name == "tucker" and kind == "pointwise"):
        assert "channel form" in form.refuses(site)
        return
    assert not form.refuses(site)
    curve = form.curve(site)
    bias = 0 if conv.bias is None else conv.out_channels
    assert len(curve.sizes) and (curve.parameters < conv.weight.numel() + bias).all()
    for place in sorted({0, len(curve.sizes) // 2, len(curve.sizes) - 1}):
        size = int(curve.sizes[place])
        new = form.fit(site, size)["conv"]
        assert isinstance(new, nn.Sequential) and all(type(stage) is type(conv) for stage in new)
        assert sum(p.numel() for p in new.parameters()) == curve.parameters[place]
        assert new(x).shape == conv(x).shape and new.weight.shape == conv.weight.shape
        assert error_of(site, conv, new, x) == pytest.approx(curve.losses[place], rel=1e-5, abs=1e-8)
        again = form.empty(conv, form.specs(site, size)["conv"])
        again.load_state_dict(new.state_dict())
        assert torch.equal(again(x), new(x))


@pytest.mark.parametrize("name", ["channel", "spatial", "tucker"])
def test_flops_are_multiplications_a_sample(name):
    conv, x = built("strided")
    x = torch.randn(2, 6, 40, 60).double()  # large enough that the borders hardly count
    site, form = Site("conv", "convolution", {"weight": member("conv", conv, x)}), FORMS[name]
    curve = form.curve(site)
    new = form.fit(site, int(curve.sizes[-1]))["conv"]
    counted, places = 0, []
    for stage in new:
        stage.register_forward_hook(lambda module, args, out: places.append(out[0, 0].numel() * module.weight.numel()))
    new(x)
    counted = sum(places)
    assert counted == pytest.approx(curve.flops[-1], rel=0.15)


@pytest.mark.parametrize("name", ["channel", "spatial", "tucker"])
def test_batch_normalization_is_folded(name):
    conv, x = built("plain")
    model = nn.Sequential(conv, nn.BatchNorm2d(8).double(), nn.ReLU())
    for _ in range(20):
        model(x)
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    model.eval()
    facts = {"batch_norm": ("1", model[1])}
    site, form = Site("0", "convolution", {"weight": member("0", conv, x)}, facts), FORMS[name]
    bare = Site("0", "convolution", {"weight": member("0", conv, x)})
    size = int(form.curve(site).sizes[-1])
    new, half = copy.deepcopy(model), copy.deepcopy(model)
    specs = form.specs(site, size)
    for target, module in form.fit(site, size).items():
        place_(new, target, module, name, specs[target])
    place_(half, "0", form.fit(bare, size)["0"], name, form.specs(bare, size)["0"])
    assert type(new[1]) is nn.Identity
    torch.testing.assert_close(new(x), half(x))
    again = rebuild_(copy.deepcopy(model), placed(new)).eval()
    again.load_state_dict(new.state_dict())
    assert torch.equal(again(x), new(x))


def test_data_make_a_better_chain_than_the_kernel_alone():
    conv, x = built("plain")
    weighed = member("conv", conv, x)
    for name in ("channel", "spatial", "tucker"):
        losses = {}
        for method in ("plain", "two_sided"):
            site = Site("conv", "convolution", {"weight": weighed}, method=method)
            new = FORMS[name].fit(site, 4)["conv"]
            losses[method] = error_of(site, conv, new, x)
        assert losses["two_sided"] < losses["plain"]


def test_spatial_without_data_is_jaderbergs_optimum():
    conv, x = built("plain")
    site = Site("conv", "convolution", {"weight": member("conv", conv, x)}, method="plain")
    curve = FORMS["spatial"].curve(site)
    matrix = conv.weight.detach().permute(0, 3, 1, 2).reshape(8 * 3, 6 * 3).numpy()
    energy = np.square(np.linalg.svd(matrix, compute_uv=False))
    for size, loss in zip(curve.sizes, curve.losses, strict=True):
        assert loss / site.member.positions == pytest.approx(energy[size:].sum(), rel=1e-6, abs=1e-9)


def test_depthwise_is_left_alone_and_says_why():
    conv, x = nn.Conv2d(6, 6, 3, groups=6).double(), torch.randn(2, 6, 8, 8).double()
    site = Site("conv", "convolution", {"weight": member("conv", conv, x)})
    for name in ("channel", "spatial", "tucker"):
        assert "depthwise" in FORMS[name].refuses(site)


def test_chains_compile_and_export():
    conv, x = built("strided")
    site = Site("conv", "convolution", {"weight": member("conv", conv, x)})
    for name in ("channel", "spatial", "tucker"):
        new = FORMS[name].fit(site, 3)["conv"]
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(new, fullgraph=True, backend="aot_eager")(x), new(x))
            torch.testing.assert_close(torch.export.export(new, (x,)).module()(x), new(x))
