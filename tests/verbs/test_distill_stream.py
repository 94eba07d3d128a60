"""A narrower residual stream: turned it is the same function, cut it keeps what is used, and others are refused."""

import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.verbs.distill import stream
from netspectra.verbs.distill.stream import narrower, stream_of

D = 24


class Layer(nn.Module):
    def __init__(self, norm, d=D):
        super().__init__()
        self.norm, self.up, self.down = norm(d), nn.Linear(d, 40), nn.Linear(40, d)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Decoder(nn.Module):
    """Pre-norm, with a head that has no bias; LayerNorms with gains and biases of their own."""

    def __init__(self, norm, d=D, behind=False):
        super().__init__()
        self.embed, self.behind = nn.Embedding(30, d), behind
        self.layers = nn.ModuleList([Layer(norm, d) for _ in range(3)])
        self.last, self.head = norm(d), nn.Linear(d, 30, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x if self.behind else self.head(self.last(x))


def made(norm, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Decoder(norm, **options).eval()
        for name, parameter in model.named_parameters():
            if "norm" in name or "last" in name:
                nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return model


def batches(n=4, tokens=30):
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, tokens, (16, 12), generator=draw) for _ in range(n)]


def error(student, model):
    with torch.no_grad():
        return float((student(batches()[0]) - model(batches()[0])).norm() / model(batches()[0]).norm())


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_turned_stream_is_the_same_function(norm):
    model = made(norm)
    before = {name: p.clone() for name, p in model.named_parameters()}
    found = stream_of(model, batches()[0])
    assert found.width == D and found.centred == (norm is nn.LayerNorm)
    assert set(found.writers) == {"embed", *(f"layers.{i}.down" for i in range(3))}
    assert found.readers["last"] == ("head",) and found.readers["layers.1.norm"] == ("layers.1.up",)
    turned = narrower(model, batches(), D, refit=False)
    assert error(turned, model) < 1e-4
    assert not torch.allclose(turned.embed.weight, model.embed.weight, atol=0.1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_directions_that_nothing_writes_cost_nothing(norm):
    model = made(norm)
    used = torch.linalg.qr(torch.randn(D, 10, generator=torch.Generator().manual_seed(2)))[0]
    P = used @ used.mT
    with torch.no_grad():
        model.embed.weight.copy_(model.embed.weight @ P)
        for layer in model.layers:
            layer.down.weight.copy_(P @ layer.down.weight)
            layer.down.bias.copy_(P @ layer.down.bias)
    wide = 12 if norm is nn.LayerNorm else 10  # centring adds a direction at most, and the mean needs one
    student = narrower(model, batches(), wide)
    assert student.embed.weight.shape == (30, wide) and student.layers[0].norm.weight.shape == (wide,)
    assert student.layers[0].norm.normalized_shape == (wide,)
    assert error(student, model) < min(0.01, 0.2 * error(narrower(model, batches(), wide, select="random"), model))


def test_fitting_again_helps():
    model = made(nn.RMSNorm)
    refitted, plain, random = (
        error(narrower(model, batches(), 16, **options), model)
        for options in ({}, {"refit": False}, {"select": "random"})
    )
    assert refitted < plain and refitted < random


def test_less_memory_means_more_passes_and_the_same_student(monkeypatch):
    model, calls = made(nn.RMSNorm), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(stream, "WAVES", 4)
    wide = narrower(model, batches(), 16)
    many = len(calls)
    monkeypatch.setattr(stream, "LARGEST", 1)  # a norm at a time
    small = narrower(model, batches(), 16)
    assert len(calls) - many > many
    for mine, other in zip(wide.parameters(), small.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_a_forward_that_counts_on_its_width_is_refused():
    model = made(nn.RMSNorm)
    model.embed.register_forward_hook(lambda module, args, y: y.reshape(len(y), 12, D))
    with pytest.raises(InputRefused, match="does not run"):
        narrower(model, batches(), 16)


def test_what_cannot_be_turned_is_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=24)  # fmt: skip
    bert = transformers.BertForMaskedLM(config).eval()
    with pytest.raises(InputRefused, match="norms before the layers"):
        narrower(bert, [{"input_ids": torch.randint(0, 50, (2, 6))}], 8)
    with pytest.raises(InputRefused, match="cannot be rotated"):
        narrower(made(nn.RMSNorm, behind=True), batches(), 16)
    with pytest.raises(InputRefused, match="no LayerNorm"):
        narrower(nn.Sequential(nn.Linear(4, 4)), [torch.randn(4, 4)], 2)
    with pytest.raises(InputRefused, match="24 dimensions"):
        narrower(made(nn.RMSNorm), batches(), 25)


def test_a_llama_of_a_smaller_config(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.LlamaConfig(**sizes, hidden_size=32, intermediate_size=48, num_attention_heads=4,
                                      tie_word_embeddings=True)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = transformers.LlamaForCausalLM(config).eval()
    data = [{"input_ids": ids} for ids in batches(tokens=40)]
    found = ns.distill(teacher, data)
    student = found.student({"model.layers.0.mlp.up_proj": 40, "model.layers.1.mlp.up_proj": 40}, stream=24)
    assert student.config.hidden_size == 24 and not student.config.tie_word_embeddings
    saved = ns.save(student, str(tmp_path / "student"))
    assert saved.stock
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    with torch.no_grad():
        assert torch.allclose(again(**data[0]).logits, student(**data[0]).logits, atol=1e-5)

    options = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4}
    mine = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **options, tie_word_embeddings=False)).eval()
    mine.load_state_dict(found.state_dict(mine))
    with torch.no_grad():
        assert torch.allclose(mine(**data[0]).logits, student(**data[0]).logits, atol=1e-4)
    tied = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **options, tie_word_embeddings=True))
    with pytest.raises(InputRefused, match="untie"):
        found.state_dict(tied)
