"""Penalties against their definitions."""

import copy

import pytest
import torch
from torch import nn

from netspectra.live.layers import linear_layers
from netspectra.live.penalties import OrthogonalityPenalty, SpectralPenalty
from netspectra.weight import Selection


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(48, 5, bias=False))


BATCH = torch.zeros(1, 2, 4, 4)


def test_spectral_penalty_is_its_formula(model):
    conv, linear = (linear(module.weight.detach()) for _, module, linear in linear_layers(model, BATCH, Selection())[0])
    norms = [torch.linalg.matrix_norm(A.dense().double(), 2).item() for A in (conv, linear)]
    penalty = SpectralPenalty(model, BATCH, target=0.3)
    expected = sum(max(0, norm - 0.3) ** 2 for norm in norms)
    assert penalty().item() == pytest.approx(expected, rel=1e-3)
    penalty().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_descent_reaches_the_target(model):
    penalty = SpectralPenalty(model, BATCH, target=0.3)
    before = penalty().item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    assert penalty.eval()().item() < 0.02 * before


def test_orthogonality_penalty(model):
    penalty = OrthogonalityPenalty(model, scale=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    for _ in range(300):
        optimizer.zero_grad()
        loss = penalty()
        loss.backward()
        optimizer.step()
    W = model[2].weight
    assert torch.allclose(W @ W.mT, 4 * torch.eye(5), atol=0.05)


def test_penalty_adds_no_parameters(model):
    before = copy.deepcopy(model.state_dict())
    penalty = SpectralPenalty(model, BATCH)
    penalty()
    assert not list(penalty.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
