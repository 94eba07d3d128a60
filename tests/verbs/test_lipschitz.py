"""The Lipschitz meter against exact Jacobians, and certificates against everything that can be tried."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netspectra.errors import InputRefused
from netspectra.live.constants import SLOPES, certify, layer_constant
from netspectra.verbs.train.lipschitz import lipschitz
from netspectra.verbs.train.normalize import normalize_


def jacobian_norm(model, x):
    J = torch.autograd.functional.jacobian(lambda v: model(v[None])[0], x)
    return float(torch.linalg.matrix_norm(J.reshape(-1, x.numel()), 2))


def convnet():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 4)
    ).eval()


def test_used_is_the_largest_exact_jacobian():
    model = convnet()
    x = torch.randn(5, 2, 6, 6)
    norms = [jacobian_norm(model, sample) for sample in x]
    meter = lipschitz(model, x)
    assert meter.used == pytest.approx(max(norms), rel=1e-3)
    assert meter.sample == norms.index(max(norms))
    assert meter.used <= meter.bound
    assert meter.share == pytest.approx(meter.used / meter.bound)
    assert all(0 <= layer.attenuation <= 1 + 1e-3 for layer in meter.layers)


def test_stretches_of_a_chain_multiply_to_what_is_used():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 3))
    meter = lipschitz(model, torch.randn(4, 5))
    assert math.prod(layer.stretch for layer in meter.layers) == pytest.approx(meter.used, rel=1e-3)
    assert meter.bound == pytest.approx(meter.budget, rel=1e-6)
    assert "certified bound" in str(meter) and "budget" in meter._repr_html_()


def test_residual_networks_and_functions_are_traced():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = x + 0.5 * F.relu(self.a(x))
            return torch.cat([x, self.b(x).tanh() / 2], dim=-1)

    torch.manual_seed(0)
    model = Residual()
    a, b = (float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)) for layer in (model.a, model.b))
    inner = 1 + 0.5 * a
    assert certify(model, {}).bound == pytest.approx(math.hypot(inner, inner * b / 2), rel=1e-5)
    meter = lipschitz(model, torch.randn(8, 4))
    assert meter.used <= meter.bound


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), width=st.integers(1, 9), depth=st.integers(1, 4))
def test_no_pair_of_inputs_beats_the_bound(seed, width, depth):
    torch.manual_seed(seed)
    kinds = [nn.ReLU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardswish, nn.SELU, nn.Sigmoid]
    parts = [layer for i in range(depth) for layer in (nn.Linear(width, width), kinds[(seed + i) % len(kinds)]())]
    model = nn.Sequential(*parts).double()
    bound = certify(model, {}).bound
    x, y = (torch.randn(200, width, dtype=torch.float64) * 10 ** float(torch.randn(())) for _ in range(2))
    ratio = (model(x) - model(y)).norm(dim=1) / (x - y).norm(dim=1)
    assert float(ratio.max()) <= bound * (1 + 1e-9)


@pytest.mark.parametrize("kind", [k for k in SLOPES if k.__module__.endswith("activation") and k is not nn.Softmax])
def test_slopes_of_functions(kind):
    x = torch.linspace(-30, 30, 600_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(kind()(x).sum(), x)
    assert 0 < float(slope.abs().max()) <= SLOPES[kind] + 1e-12
    if SLOPES[kind] > 1:
        assert float(slope.abs().max()) > SLOPES[kind] - 2e-3  # rounded up, not more


POOLS = [
    (nn.MaxPool2d(3, 2, 1), (1, 1, 8, 8)),
    (nn.MaxPool1d(2), (1, 2, 9)),
    (nn.AvgPool2d(3, 1), (1, 1, 7, 7)),
    (nn.AvgPool2d(2), (1, 1, 8, 8)),
    (nn.AdaptiveAvgPool2d(3), (1, 1, 8, 7)),
    (nn.AdaptiveAvgPool2d(1), (1, 2, 5, 5)),
    (nn.LayerNorm(6), (1, 6)),
    (nn.GroupNorm(2, 4), (1, 4, 3)),
    (nn.LeakyReLU(3.0), (1, 4)),
    (nn.PReLU(init=-2.0), (1, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), POOLS, ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "")
def test_constants_are_never_below_a_jacobian(layer, shape):
    torch.manual_seed(0)
    constant = layer_constant(layer, shape)
    for scale in (1e-4, 1.0, 10.0):
        x = scale * torch.randn(shape[1:], dtype=torch.float64)
        assert jacobian_norm(layer.double(), x) <= constant * (1 + 1e-9)


def test_what_has_no_bound_says_why():
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    meter = lipschitz(attention, torch.randn(2, 3, 8))
    assert meter.bound == math.inf and meter.reasons and meter.share is None
    assert meter.used > 0

    class Gate(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    assert "product of two signals" in certify(Gate(), {}).reasons[0]
    with pytest.raises(InputRefused, match="floating"):
        lipschitz(nn.Embedding(3, 2), torch.tensor([1]))


def test_normalized_networks_keep_their_budget():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1))
    x = torch.randn(10, 1, 4, 4)
    normalize_(model, x, budget=5.0)
    meter = lipschitz(model, x)
    assert meter.budget == pytest.approx(5, rel=1e-3)
    assert meter.used <= meter.bound
    assert 5 <= meter.bound < 5.5  # the rigorous bound of a padded convolution lies above its norm on so small a grid
    assert model.training
