"""Odd live modules: the effective weight is used, and the module comes back as it was, to the last version counter."""

import copy
import importlib.util
import random
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import netspectra as ns


class Rude(nn.Linear):
    def __repr__(self):
        raise RuntimeError("no repr")

    __str__ = __repr__


class Drawing(nn.Module):
    """A parametrization that draws random numbers and counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, w):
        self.calls += 1
        return w + torch.rand(()) * 0


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts_gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))


def parametrized(module, make, name="weight"):
    parametrize.register_parametrization(module, name, make)
    return module


def lora():
    if importlib.util.find_spec("peft") is None:
        pytest.skip("peft is not installed")
    from peft import LoraConfig, get_peft_model

    return get_peft_model(nn.Sequential(nn.Linear(6, 5)), LoraConfig(r=2, target_modules=["0"]))


def used(module):
    module(torch.randn(3, 6))
    return module


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(6, 5), nn.Conv2d(2, 4, 3)))


# name -> (how to make it, kinds of weight, or None where there is nothing to analyse)
MODULES = {
    "linear": (lambda: nn.Linear(6, 5), {"linear"}),
    "parametrized": (lambda: parametrized(nn.Linear(6, 5), Drawing()), {"linear"}),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 5)), {"linear"}),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 5)), {"linear"}),
    "weight_norm, hooks": (lambda: used(old(nn.utils.weight_norm, nn.Linear(6, 5))), {"linear"}),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), {"linear"}),
    "spectral_norm, hooks": (lambda: used(old(nn.utils.spectral_norm, nn.Linear(6, 5))), {"linear"}),
    "pruned": (lambda: prune.random_unstructured(nn.Linear(6, 5), "weight", 0.5), {"linear"}),
    "lazy": (lambda: nn.LazyLinear(5), None),
    "DataParallel": (lambda: nn.DataParallel(nn.Linear(6, 5)), {"linear"}),
    "compiled": (lambda: torch.compile(nn.Linear(6, 5)), {"linear"}),
    "3-D experts": (Experts, {"expert"}),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), {"conv1d"}),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), {"conv2d"}),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), {"conv3d"}),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), {"conv2d"}),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), {"conv2d"}),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), {"conv_transpose2d"}),
    "attention": (lambda: nn.MultiheadAttention(8, 2), {"linear"}),
    "attention of three sizes": (lambda: nn.MultiheadAttention(8, 2, kdim=4, vdim=6), {"linear"}),
    "lstm": (lambda: nn.LSTM(4, 3, 2, bidirectional=True, proj_size=2), {"lstm", "rnn"}),
    "gru": (lambda: nn.GRU(4, 3), {"gru"}),
    "rnn": (lambda: nn.RNN(4, 3), {"rnn"}),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(7, 4), {"embedding"}),
    "Bilinear": (lambda: nn.Bilinear(3, 4, 2), {"bilinear"}),
    "LoRA": (lora, {"linear", "lora"}),
    "scripted": (scripted, {"linear", "conv2d"}),
    "a repr that raises": (lambda: nn.Sequential(Rude(6, 5)), {"linear"}),
    "batch norm": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout()), {"linear"}),
    "meta": (lambda: nn.Linear(6, 5, device="meta"), None),
    "no weights": (nn.ReLU, None),
    "bfloat16": (lambda: nn.Linear(6, 5).bfloat16(), {"linear"}),
    "complex": (lambda: nn.Linear(6, 5, dtype=torch.complex64), {"linear"}),
    "frozen": (lambda: nn.Linear(6, 5).requires_grad_(False), {"linear"}),
    "expanded": (lambda: holding(nn.Parameter(torch.randn(1, 6).expand(5, 6))), {"linear"}),
    "a view": (lambda: holding(nn.Parameter(torch.randn(9, 9)[::2, 1:7])), {"linear"}),
    "subnormal and huge": (lambda: holding(nn.Parameter(torch.tensor([[1e-40, 0.0], [0.0, 1e38]]))), {"linear"}),
    "surprising names": (lambda: holding(nn.Parameter(torch.randn(4, 3)), "\x1b[31m<b>\u202e"), {"linear"}),
}


def old(function, module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(module)


def holding(parameter, name="weight"):
    module = nn.Module()
    module.register_parameter(name, parameter)
    return module


def portrait(module):
    """Everything that could be seen to have changed."""
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    facts = []
    for name, tensor in tensors:
        lazy = isinstance(tensor, nn.parameter.UninitializedParameter)
        place = None if lazy or tensor.is_meta else (tensor.data_ptr(), tensor.stride(), tensor.detach().clone())
        facts.append((name, id(tensor), tensor._version, tensor.requires_grad, tensor.grad, place))
    held = []
    for name, child in module.named_modules():
        try:
            attributes = sorted((key, id(value)) for key, value in vars(child).items())
            hooks = [len(getattr(child, key)) for key in vars(child) if key.endswith("_hooks")]
        except TypeError:
            attributes, hooks = [], []
        held.append((name, id(child), type(child), child.training, attributes, hooks))
    return facts, held


def same(one, other):
    (facts, held), (later, held_later) = one, other
    assert held == held_later and len(facts) == len(later)
    for before, after in zip(facts, later, strict=True):
        assert before[:5] == after[:5], before[0]
        if before[5] is not None:
            assert before[5][:2] == after[5][:2] and torch.equal(before[5][2], after[5][2]), before[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_comes_back_as_it_was(name):
    make, kinds = MODULES[name]
    torch.manual_seed(0)
    module = make()
    draws = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    grad, threads, default = torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype()
    before = portrait(module)
    if kinds is None:
        with pytest.raises(ns.InputRefused, match="nothing to analyse"):
            ns.analyze(module)
    else:
        analysis = ns.analyze(module)
        assert {record.kind for record in analysis} == kinds
        assert all(np.isfinite(record.spectrum.values).all() for record in analysis)
        analysis.to_json(), analysis.to_html(), analysis._repr_html_(), repr(analysis), repr(ns.open(module))
    same(before, portrait(module))
    assert torch.equal(draws[0], torch.get_rng_state()) and draws[1] == random.getstate()
    assert np.array_equal(draws[2], np.random.get_state()[1])  # noqa: NPY002
    assert (grad, threads, default) == (torch.is_grad_enabled(), torch.get_num_threads(), torch.get_default_dtype())


@pytest.mark.parametrize(
    "name", ["orthogonal", "weight_norm", "weight_norm, hooks", "spectral_norm", "spectral_norm, hooks", "pruned"]
)
def test_the_effective_weight_is_used(name):
    """What the module multiplies by, not what it keeps."""
    torch.manual_seed(0)
    module = MODULES[name][0]().eval()
    twin = copy.deepcopy(module).eval() if "hooks" not in name and name != "pruned" else module
    [record] = ns.analyze(module)
    bias = twin(torch.zeros(1, 6))
    acts = (twin(torch.eye(6)) - bias).detach().double()
    assert np.allclose(record.spectrum.values, torch.linalg.svdvals(acts).numpy(), atol=1e-5)


def test_names_that_are_no_text_are_refused():
    with pytest.raises(ns.InputRefused, match="Unicode"):
        ns.analyze({"\ud800": torch.eye(3)})


def test_wrapped_models_say_the_names_of_their_own_state_dict():
    for wrap in (nn.DataParallel, torch.compile):
        model = wrap(nn.Sequential(nn.Linear(6, 5)))
        assert {record.name for record in ns.analyze(model)} <= set(model.state_dict())
