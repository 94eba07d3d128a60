"""What belongs together is found by experiment: in every architecture, and not where something stands between."""

import pytest
import torch
import torch.nn.functional as F
from benchmarks.compress.architectures import ARCHITECTURES, made
from torch import nn

from netspectra.live.untouched import untouched
from netspectra.verbs.compress.calibrate import layers
from netspectra.verbs.compress.structure import observe

FOUND = {  # blocks, attentions, of them free to mix queries and keys, in two layers each
    "bert": (2, 2, 2),
    "gpt2": (2, 0, 0),  # query, key and value are one layer
    "llama": (2, 2, 0),
    "qwen2": (2, 2, 0),
    "t5": (4, 6, 6),
    "vit": (2, 2, 2),
    "whisper": (4, 6, 6),
    "mixtral": (0, 2, 0),  # experts are one tensor of three axes
    "mamba": (0, 0, 0),
    "multihead attention": (1, 0, 0),
    "resnet": (0, 0, 0),
    "mobilenet": (0, 0, 0),
    "perceptron": (2, 0, 0),
}


def found(model, batch):
    with untouched(model):
        return observe(model, batch, layers(model))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures(name):
    if name not in ("perceptron", "multihead attention"):
        pytest.importorskip("transformers")
    structure = found(made(name), ARCHITECTURES[name].batch(1, 2))
    free = sum(not attention.rotary for attention in structure.attentions)
    assert (len(structure.blocks), len(structure.attentions), free) == FOUND[name]
    assert type(structure).from_dict(structure.to_dict()) == structure
    if name in ("llama", "qwen2"):
        assert all((a.heads, a.kv_heads, a.head_dim) == (4, 2, 16) for a in structure.attentions)
        assert all("q_proj" in a.query and "k_proj" in a.key and "v_proj" in a.value for a in structure.attentions)
        assert all("gate" in b.gate and "up" in b.up and b.activation == "silu" for b in structure.blocks)


class Block(nn.Module):
    def __init__(self, between=None, leak=False, fused=False, names="ab"):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16 if fused else 8), nn.Linear(8, 6)
        self.between, self.leak, self.fused = between, leak, fused

    def forward(self, x):
        h = self.a(x)
        if self.fused:
            first, second = h.chunk(2, -1)
            return self.b(torch.sigmoid(first) * second)
        y = self.b(self.between(h) if self.between else F.elu(h))
        return y + h[..., :6] if self.leak else y


def blocks(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), Block(**options), nn.LayerNorm(6), nn.Linear(6, 3))
    return [b for b in found(model, torch.randn(4, 6)).blocks if b.up == "1.a"]


def test_any_activation_will_do():
    (one,) = blocks()
    assert (one.down, one.activation) == ("1.b", "")
    (one,) = blocks(fused=True)
    assert one.fused


@pytest.mark.parametrize("between", [nn.LayerNorm(8), nn.Softmax(-1), lambda h: h.roll(1, -1), lambda h: h.cumsum(-1)])
def test_neurons_that_touch_one_another_are_no_block(between):
    assert not blocks(between=between)


def test_neurons_that_are_read_elsewhere_are_no_block():
    assert not blocks(leak=True)


class Attention(nn.Module):
    def __init__(self, norm=None, leak=False):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(12, 12) for _ in range(4))
        self.norm, self.leak = norm, leak

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (3, 4)).transpose(1, 2) for f in (self.one, self.two, self.three))
        q, k = (self.norm(q), self.norm(k)) if self.norm else (q, k)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
        return self.four(y) + (v.transpose(1, 2).flatten(-2) if self.leak else 0)


def attention(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return found(nn.Sequential(nn.Linear(12, 12), Attention(**options)), torch.randn(2, 5, 12)).attentions


def test_attention_is_found_under_any_names():
    (one,) = attention()
    assert (one.value, one.output, one.heads, one.head_dim, one.rotary) == ("1.three", "1.four", 3, 4, False)
    assert {one.query, one.key} == {"1.one", "1.two"}


def test_a_norm_between_queries_and_keys_shows_even_without_a_gain():
    (one,) = attention(norm=nn.RMSNorm(4, elementwise_affine=False))
    assert one.rotary


def test_values_that_are_read_elsewhere_are_not_mixed():
    assert not attention(leak=True)


def test_no_trace_is_left():
    model = made("perceptron")
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    found(model, ARCHITECTURES["perceptron"].batch(1, 2))
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
