"""Normalization by the operator norm, and every trap that the usual one falls into."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.live.maps import linear_map
from netspectra.live.norm import operator_norm
from netspectra.live.spectral import OperatorNorm, OperatorNormalization
from netspectra.verbs.train.normalize import normalize_, spectral_norm

LAYERS = [
    ("linear", lambda: nn.Linear(30, 20), ()),
    ("wide", lambda: nn.Linear(5, 200), ()),
    ("embedding", lambda: nn.Embedding(50, 8), ()),
    ("conv1d", lambda: nn.Conv1d(6, 4, 5, padding=2, dilation=2), (20,)),
    ("conv2d", lambda: nn.Conv2d(8, 16, 3, padding=1), (9, 8)),
    ("strided", lambda: nn.Conv2d(4, 6, 4, stride=2, padding=1), (10, 10)),
    ("grouped", lambda: nn.Conv2d(8, 8, 3, padding="same", groups=4), (8, 8)),
    ("depthwise", lambda: nn.Conv2d(6, 6, 5, padding=2, groups=6, padding_mode="circular"), (8, 8)),
    ("reflect", lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), (8, 8)),
    ("conv3d", lambda: nn.Conv3d(2, 3, 3, padding=1), (5, 4, 5)),
    ("transposed", lambda: nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1, output_padding=1), (6, 6)),
]


def dense_norm(layer: nn.Module, grid: tuple[int, ...]) -> float:
    """Oracle: the whole matrix in float64, by running the layer on unit vectors."""
    twin = copy.deepcopy(layer).eval()
    twin = twin.double()
    if isinstance(twin, nn.Embedding):
        return float(torch.linalg.matrix_norm(twin.weight.detach(), 2))
    if getattr(twin, "bias", None) is not None:
        nn.init.zeros_(twin.bias)
    channels = twin.in_features if isinstance(twin, nn.Linear) else twin.in_channels
    shape = (channels, *grid)
    size = int(torch.tensor(shape).prod())
    with torch.no_grad():
        columns = twin(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).reshape(size, -1)
    return float(torch.linalg.matrix_norm(columns, 2))


@pytest.mark.parametrize(("make", "grid"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_true_norm_after_training_and_in_eval(make, grid):
    torch.manual_seed(1)
    layer = spectral_norm(make(), input_shape=grid, target=1.5)
    assert dense_norm(layer, grid) == pytest.approx(1.5, rel=1e-3)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(30):
        loss = (layer.weight * torch.randn_like(layer.weight)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    in_training = layer.weight.detach().clone()
    layer.eval()
    assert dense_norm(layer, grid) == pytest.approx(1.5, rel=1e-3)
    assert torch.linalg.vector_norm(in_training) == pytest.approx(
        torch.linalg.vector_norm(layer.weight).item(), rel=0.02
    )


def test_gradient_is_that_of_the_quotient():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, dtype=torch.float64)
    normalization = OperatorNormalization(OperatorNorm(linear_map(layer), layer.weight, tolerance=1e-12), 2.0)
    weight = layer.weight.detach().clone().requires_grad_()
    cost = torch.randn(4, 6, dtype=torch.float64)
    (normalization(weight) * cost).sum().backward()
    twin = weight.detach().clone().requires_grad_()
    (2 * twin / torch.linalg.matrix_norm(twin, 2) * cost).sum().backward()
    assert torch.allclose(weight.grad, twin.grad, atol=1e-9)


@pytest.mark.parametrize(("make", "grid"), [row[1:] for row in LAYERS[::3]], ids=[row[0] for row in LAYERS[::3]])
def test_gradient_numerically(make, grid):
    torch.manual_seed(0)
    layer = make().double()
    norm = OperatorNorm(linear_map(layer, grid), layer.weight, tolerance=1e-10).eval()
    torch.autograd.gradcheck(norm, layer.weight.detach().clone().requires_grad_(), atol=1e-5, fast_mode=True)


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 12), n=st.integers(1, 12), power=st.integers(-12, 12), seed=st.integers(0, 99))
def test_scaling_and_transposition(m, n, power, seed):
    W = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 10.0**power
    layer = nn.Linear(n, m, dtype=torch.float64)
    norm = OperatorNorm(linear_map(layer), W, tolerance=1e-9)
    assert float(norm(W)) == pytest.approx(float(torch.linalg.matrix_norm(W, 2)), rel=1e-6)
    flipped = OperatorNorm(linear_map(nn.Linear(m, n)), W.mT, tolerance=1e-9)
    assert float(flipped(W.mT)) == pytest.approx(float(norm(W)), rel=1e-6)


def held(target: float = 1.0) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 4))
    normalize_(model, torch.zeros(1, 2, 5, 5), target=target)
    return model


def norms(model: nn.Module) -> list[float]:
    return [dense_norm(model[0], (5, 5)), dense_norm(model[3], ())]


def test_eval_comes_first():
    model = held()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original"):
                parameter.copy_(torch.randn_like(parameter) * 7)
    model.eval()
    assert norms(model) == pytest.approx([1, 1], rel=1e-3)


def test_average_of_buffers_is_harmless():
    model = held()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.tanh(model(torch.randn(4, 2, 5, 5))).sum().backward()
        optimizer.step()
        for norm in (module for module in model.modules() if isinstance(module, OperatorNorm)):
            norm.left.neg_(), norm.rows.neg_()  # a pair may change its sign: its average is nothing
        average.update_parameters(model)
    average.eval()
    assert norms(average.module) == pytest.approx([1, 1], rel=1e-3)


def test_ranks_that_lost_each_other_agree():
    model = held()
    other = copy.deepcopy(model)
    for norm in (module for module in other.modules() if isinstance(module, OperatorNorm)):
        norm.rows.copy_(torch.randn_like(norm.rows))
    batch = torch.randn(3, 2, 5, 5)
    for mode in (True, False):
        assert torch.allclose(model.train(mode)(batch), other.train(mode)(batch), rtol=0.01, atol=1e-3)


def test_state_dict_round_trip_and_torchs_own_checkpoint():
    model, fresh = held(), held()
    with torch.no_grad():
        model[3].parametrizations.weight.original.mul_(3).add_(0.1)
    assert not [name for name in model.state_dict() if "left" in name or "rows" in name]
    fresh.load_state_dict(model.state_dict())
    batch = torch.randn(3, 2, 5, 5)
    assert torch.allclose(model.eval()(batch), fresh.eval()(batch), atol=1e-4)
    theirs = parametrizations.spectral_norm(nn.Linear(7, 5))
    ours = spectral_norm(nn.Linear(7, 5))
    ours.load_state_dict(theirs.state_dict())
    assert dense_norm(ours, ()) == pytest.approx(1, rel=1e-3)
    theirs.load_state_dict(theirs.state_dict())  # theirs was not emptied


def test_deepcopy_after_a_backward():
    model = held()
    model(torch.randn(2, 2, 5, 5)).sum().backward()
    twin = copy.deepcopy(model)
    batch = torch.randn(2, 2, 5, 5)
    assert torch.allclose(model.eval()(batch), twin.eval()(batch), atol=1e-5)
    twin[3].parametrizations.weight.original.data.mul_(-2)
    assert norms(model) == pytest.approx([1, 1], rel=1e-3)


def test_two_forwards_before_one_backward():
    model = held()
    (model(torch.randn(2, 2, 5, 5)).sum() - model(torch.randn(2, 2, 5, 5)).sum()).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compiles_without_a_break():
    model = held()
    batch = torch.randn(3, 2, 5, 5)
    for mode in (False, True):
        model.train(mode)
        expected = model(batch)
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(batch)
        assert torch.allclose(found, expected, atol=1e-3)


def test_function_transforms():
    model = held()
    batch = torch.randn(3, 2, 5, 5)
    grads = torch.func.grad(lambda p: torch.func.functional_call(model, p, (batch,)).sum())(
        dict(model.named_parameters())
    )
    model(batch).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(grads[name], parameter.grad, rtol=1e-2, atol=1e-3), name


def test_remove_bakes_the_exact_weight_in():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2))
    result = normalize_(model, budget=9.0)
    assert result.target == pytest.approx(3.0)
    assert result.budget == pytest.approx(9.0, rel=1e-3)
    result.remove_()
    assert not parametrize.is_parametrized(model[0])
    assert dense_norm(model[0], ()) == pytest.approx(3, rel=1e-3)


def test_removing_from_a_copy_leaves_the_original():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6))
    result = normalize_(model)
    twin, other = copy.deepcopy((model, result))
    other.remove_()
    assert not parametrize.is_parametrized(twin[0]) and parametrize.is_parametrized(model[0])
    assert torch.allclose(twin[0].weight, model.eval()[0].weight, atol=1e-5)


def test_clip_cuts_and_nothing_else():
    layer = nn.Linear(8, 6, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    target = float(S[2])
    normalize_(nn.Sequential(layer), method="clip", target=target)
    assert torch.allclose(layer.weight, U @ torch.diag(S.clamp_max(target)) @ Vh, atol=1e-12)
    before = layer.weight.detach().clone()
    normalize_(nn.Sequential(layer), method="clip", target=10.0)
    assert torch.equal(layer.weight, before)


def test_at_most_leaves_small_layers_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.copy_(0.1 * torch.eye(4))
        model[1].weight.copy_(5 * torch.eye(4))
    normalize_(model, method="at most", target=2.0)
    assert [dense_norm(layer, ()) for layer in model.eval()] == pytest.approx([0.1, 2.0], rel=1e-3)


def test_orthogonal_is_orthogonal_times_target():
    model = nn.Sequential(nn.Linear(5, 9), nn.Conv1d(2, 2, 3))
    result = normalize_(model, method="orthogonal", target=2.0)
    assert torch.allclose(model[0].weight.mT @ model[0].weight, 4 * torch.eye(5), atol=1e-5)
    assert [name for name, _ in result.skipped] == ["1"]


def test_gain_is_learned():
    model = nn.Sequential(nn.Linear(5, 5))
    normalize_(model, gain=True)
    names = [name for name, _ in model.named_parameters()]
    assert "0.parametrizations.weight.0.gain" in names
    model(torch.randn(3, 5)).sum().backward()
    assert model[0].parametrizations.weight[0].gain.grad is not None


def test_what_is_left_alone_is_told():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(9, 4)
            self.head = nn.Linear(4, 9)
            self.head.weight = self.embedding.weight
            self.rnn = nn.LSTM(4, 4)
            self.done = parametrizations.spectral_norm(nn.Linear(4, 4))
            self.zero = nn.Linear(4, 4)
            nn.init.zeros_(self.zero.weight)
            self.conv = nn.Conv1d(1, 1, 3)
            self.plain = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)

        def forward(self, x):
            return self.head(self.plain(self.embedding(x)))

    result = normalize_(Net(), torch.tensor([[1, 2]]))
    assert [layer.name for layer in result.layers] == ["plain"]
    told = dict(result.skipped)
    assert set(told) == {"embedding", "head", "rnn", "done", "zero", "conv"}
    assert "tied" in told["head"] and "already" in told["done"] and "reach" in told["conv"]
    assert "left alone: rnn" in str(result) and "rnn" in result._repr_html_()


def test_model_comes_back_as_it_was_but_for_the_weights():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    state = torch.get_rng_state()
    normalize_(model, torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model[1].num_batches_tracked == 0
    assert not model[0]._forward_pre_hooks


@pytest.mark.parametrize(
    "wrong",
    [{"target": 0}, {"budget": -1}, {"target": float("nan")}, {"method": "half"}, {"method": "clip", "gain": True}],
)
def test_refuses(wrong):
    with pytest.raises(InputRefused):
        normalize_(nn.Linear(2, 2), **wrong)


def test_half_precision_and_shared_settings():
    layer = spectral_norm(nn.Linear(40, 30).bfloat16())
    assert layer.weight.dtype == torch.bfloat16
    assert dense_norm(layer, ()) == pytest.approx(1, rel=0.01)
    with pytest.raises(InputRefused):
        spectral_norm(nn.LSTM(2, 2), "weight_hh_l0")
    with pytest.raises(InputRefused, match="nothing to normalize"):
        normalize_(nn.ReLU())
    assert ns.operator_norm(layer.eval()).value == pytest.approx(1, rel=0.01)


def test_reshaped_kernels_mislead():
    """What torch calls the spectral norm of a convolution is not the norm of the convolution."""
    ratios = []
    for seed, size in itertools.product(range(3), (3, 5)):
        torch.manual_seed(seed)
        conv = parametrizations.spectral_norm(nn.Conv2d(8, 8, size, padding=size // 2), n_power_iterations=50).eval()
        ratios.append(operator_norm(conv, (12, 12)).value)
    assert min(ratios) > 1.2
