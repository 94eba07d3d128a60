"""Interpretation: planted directions are found, random weights say nothing, rounding's turns are as expected."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from netspectra.errors import InputRefused
from netspectra.linalg.discovery import discovered, discovered_in, empirical_p, simes
from netspectra.linalg.orthogonal import semi_orthogonal
from netspectra.linalg.product import product_svd
from netspectra.linalg.turning import expected_turns
from netspectra.sources import open as open_source
from netspectra.verbs.interpret.anatomy import anatomy
from netspectra.verbs.interpret.circuits import circuits
from netspectra.verbs.interpret.effect import removed
from netspectra.verbs.interpret.reading import Reader

D, V, HEADS, LAYERS, TOPICS, SIZE = 64, 4000, 4, 6, 8, 12


def topical(seed=0):
    """A table in which 8 times 12 of 4000 tokens share a topic; and the topics' directions."""
    draw = torch.Generator().manual_seed(seed)
    topics = torch.randn(TOPICS, D, generator=draw)
    table = torch.randn(V, D, generator=draw)
    table[: TOPICS * SIZE] = 0.6 * table[: TOPICS * SIZE] + 0.8 * topics.repeat_interleave(SIZE, 0)
    return table, topics / topics.norm(dim=1, keepdim=True)


def weights(table, seed=1, planted=0, topics=None):
    """A decoder's weights of noise; in some value-output circuits one topic is read and another is written."""
    draw = torch.Generator().manual_seed(seed)
    found, where = {"model.embed_tokens.weight": table}, []
    for layer in range(LAYERS):
        own = {name: torch.randn(D, D, generator=draw) / D**0.5 for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        if topics is not None:
            for head in torch.randperm(HEADS, generator=draw)[:planted].tolist():
                read, write = torch.randperm(TOPICS, generator=draw)[:2].tolist()
                rows = slice(head * D // HEADS, (head + 1) * D // HEADS)
                inner = torch.randn(D // HEADS, generator=draw)
                inner = inner / inner.norm()
                own["v_proj"][rows] += 4 * torch.outer(inner, topics[read])
                own["o_proj"][:, rows] += 4 * torch.outer(topics[write], inner)
                where.append((layer, head, read, write))
        found |= {f"model.layers.{layer}.self_attn.{name}.weight": W for name, W in own.items()}
        up, down = torch.randn(4 * D, D, generator=draw), torch.randn(D, 4 * D, generator=draw)
        found[f"model.layers.{layer}.mlp.up_proj.weight"] = up / D**0.5
        found[f"model.layers.{layer}.mlp.down_proj.weight"] = down / D**0.5
    return found, where


def test_planted_directions_are_found_and_little_else():
    table, topics = topical()
    found, where = weights(table, planted=2, topics=topics)
    read = ns.interpret(found, heads=HEADS)
    planted = {(layer, head) for layer, head, _, _ in where}
    flagged = [(d.number, d.head) if d.kind == "ov" and d.index == 0 else None for d in read.coherent]
    assert sum(one in planted for one in flagged) >= 0.95 * len(flagged)
    assert len(planted & set(flagged)) >= 0.9 * len(planted)
    layer, head, source, target = where[0]
    top = read.select(layer=layer, head=head, kind="ov")[0]
    ends = {one.side: one for one in top.lists if one.coherent}
    for side, topic in (("right", source), ("left", target)):
        tokens = [t for one in top.lists if one.side == side and one.coherent for t in one.tokens]
        assert sum(t // SIZE == topic for t in tokens) >= 8, ends


def test_random_weights_are_hardly_ever_coherent():
    table, _ = topical()
    shares = []
    for seed in range(10, 14):
        read = ns.interpret(weights(table, seed=seed)[0], heads=HEADS, null=2000)
        shares.append(len(read.coherent) / len(read))
        p = [one.p_likeness for d in read for one in d.lists]
        assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.08
    assert np.mean(shares) <= 0.05


def test_rotating_the_weights_turns_directions_uniformly():
    """The null: rotated weights give what uniformly random directions give."""
    table, topics = topical()
    reader = Reader(table, words=10, null=4000, seed=0)
    draw = torch.Generator().manual_seed(5)
    weight = 5 * torch.outer(topics[0], topics[1]).double() + torch.randn(D, D, generator=draw).double() / D**0.5
    turned = []
    for _ in range(60):
        P, Q = (semi_orthogonal(D, D, draw) for _ in range(2))
        turned.append(torch.linalg.svd(P @ weight @ Q)[0][:, :4].mT)
    p = reader.p_values(reader.read(torch.cat(turned)))[0]
    assert abs(np.mean(p <= 0.1) - 0.1) < 0.05


@pytest.mark.parametrize("kind", ["ov", "qk"])
def test_head_circuits_are_the_products(kind):
    table, _ = topical()
    found, _ = weights(table)
    found["model.layers.0.input_layernorm.weight"] = torch.linspace(0.5, 2.0, D)
    seen = anatomy(open_source(found), heads=HEADS)
    circuit = next(c for c in circuits(seen, seen.layers[0], top=D) if c.kind == kind and c.head == 2)
    rows = slice(2 * D // HEADS, 3 * D // HEADS)
    get = {n: found[f"model.layers.0.self_attn.{n}_proj.weight"].double() for n in "qkvo"}
    gain = torch.linspace(0.5, 2.0, D).double()
    dense = get["o"][:, rows] @ get["v"][rows] * gain
    if kind == "qk":
        dense = gain[:, None] * get["q"][rows].mT @ get["k"][rows] * gain
    values = torch.linalg.svdvals(dense)[: D // HEADS]
    assert torch.allclose(circuit.values, values, rtol=1e-9)
    assert torch.allclose(circuit.svd.dense(), dense, atol=1e-9)


def test_expected_turns_match_what_noise_does():
    draw = torch.Generator().manual_seed(0)
    B, A = torch.randn(40, 6, generator=draw).double(), torch.randn(6, 30, generator=draw).double()
    eB, eA = 0.004, 0.002
    before = product_svd(B, A)
    sines = []
    for _ in range(200):
        after = product_svd(
            B + eB * torch.randn(B.shape, generator=draw), A + eA * torch.randn(A.shape, generator=draw)
        )
        left = 1 - (before.U * after.U).sum(0).square()
        right = 1 - (before.Vh * after.Vh).sum(1).square()
        sines.append(torch.stack([left, right]))
    measured = torch.stack(sines).mean(0).sqrt()
    expected = torch.stack(expected_turns(before, B, A, eB, eA))
    assert torch.allclose(measured, expected, rtol=0.25)


def test_equal_values_are_not_separable():
    B, A = torch.eye(4, 2).double(), torch.eye(2, 4).double()
    assert expected_turns(product_svd(B, A), B, A, 1e-8, 1e-8)[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kind", ["ov", "qk", "mlp_in", "mlp_out"])
def test_removal_takes_the_triplet_and_gives_it_back(kind):
    table, _ = topical()
    found, _ = weights(table)
    found["model.layers.0.input_layernorm.weight"] = torch.linspace(0.5, 2.0, D)
    found["model.layers.0.post_attention_layernorm.weight"] = torch.linspace(2.0, 0.5, D)
    before = {name: W.clone() for name, W in found.items()}
    seen = anatomy(open_source(found), heads=HEADS)
    layer = seen.layers[0]

    def decomposed():
        return next(c for c in circuits(seen, layer, top=D) if c.kind == kind and c.head in (None, 1))

    circuit = decomposed()
    with removed(layer, seen, circuit, 1):
        after = decomposed().values
    left = torch.cat([circuit.values[:1], circuit.values[2:]])
    assert torch.allclose(after[: len(left)], left, rtol=1e-4)
    assert all(torch.equal(W, before[name]) for name, W in found.items())


class Tiny(torch.nn.Module):
    """A decoder without attention, enough to be run."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(V, D)
        layer = torch.nn.ModuleDict({"fc1": torch.nn.Linear(D, 2 * D), "fc2": torch.nn.Linear(2 * D, D)})
        self.layers = torch.nn.ModuleList([layer])
        self.lm_head = torch.nn.Linear(D, V, bias=False)

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = x + layer["fc2"](torch.relu(layer["fc1"](x)))
        return {"logits": self.lm_head(x)}


def test_effects_are_measured_and_the_model_comes_back():
    torch.manual_seed(0)
    model = Tiny()
    before = {name: W.clone() for name, W in model.state_dict().items()}
    state = torch.get_rng_state()
    read = ns.interpret(model, data=[torch.arange(64).reshape(4, 16)], null=500, removals=5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(W, before[name]) for name, W in model.state_dict().items())
    effects = [d.effect for d in read if d.effect is not None]
    assert len(effects) == 5 and all(e > 0 for e in effects) and "KL" in read.effect_unit


def test_result_is_plain_deterministic_and_saved(tmp_path):
    table, topics = topical()
    found, _ = weights(table, planted=1, topics=topics)
    words = [f"</script><b>{t}" for t in range(V)]
    one = ns.interpret(found, heads=HEADS, null=500, tokens=words, layers=(0, 2), kinds=("ov",), top=2)
    two = ns.interpret(found, heads=HEADS, null=500, tokens=words, layers=(0, 2), kinds=("ov",), top=2)
    assert one.to_json() == two.to_json() and len(one) == 2 * HEADS * 2
    for suffix in ("json", "csv", "html"):
        one.save(tmp_path / f"x.{suffix}")
    assert json.loads((tmp_path / "x.json").read_text())["counts"]["ov"]["directions"] == len(one)
    assert "</script><b>" not in (tmp_path / "x.html").read_text()
    with pytest.raises(InputRefused):
        one.save(tmp_path / "x.txt")
    assert "ov" in str(one) and one._repr_html_()


def test_what_cannot_be_read_is_refused():
    with pytest.raises(InputRefused, match="no token embedding"):
        ns.interpret({"layers.0.fc1.weight": torch.randn(8, 8)})
    table, _ = topical()
    with pytest.raises(InputRefused, match="no attention or MLP"):
        ns.interpret({"embed_tokens.weight": table, "odd.weight": torch.randn(8, 8)})
    with pytest.raises(InputRefused, match="kinds"):
        ns.interpret({"embed_tokens.weight": table}, kinds=("vo",))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40), st.floats(0.01, 0.5))
@settings(deadline=None, max_examples=60)
def test_discoveries_are_the_smallest_p_values(p, rate):
    p = np.array(p)
    found = discovered(p, rate)
    k = int(found.sum())
    assert not k or p[found].max() <= min(1.0, rate * k / len(p)) + 1e-12
    assert not k or k == len(p) or p[found].max() <= p[~found].min()


def test_p_values_are_uniform_under_the_null():
    draw = np.random.default_rng(0)
    p = empirical_p(draw.normal(size=4000), draw.normal(size=4000))
    assert abs(np.mean(p <= 0.05) - 0.05) < 0.02 and p.min() >= 1 / 4001


@given(st.lists(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4), min_size=1, max_size=12), st.floats(0.01, 0.5))
@settings(max_examples=100, deadline=None)
def test_a_family_is_believed_exactly_if_something_in_it_is(families, rate):
    p = np.array([value for some in families for value in some])
    family = np.repeat(np.arange(len(families)), [len(some) for some in families])
    believed, inside = discovered_in(p, family, rate)
    assert [bool(inside[family == i].any()) for i in range(len(families))] == believed.tolist()
    assert believed.tolist() == discovered(np.array([simes(np.array(some)) for some in families]), rate).tolist()


def test_simes_is_uniform_for_independent_hypotheses():
    p = np.random.default_rng(0).uniform(size=(4000, 4))
    together = np.array([simes(row) for row in p])
    assert all(abs(np.mean(together <= level) - level) < 3 * (level / 4000) ** 0.5 for level in (0.01, 0.05, 0.2))


def test_both_is_calibrated_and_needs_both():
    """Of random directions it is uniform; it is ordered as the larger of the two p-values."""
    table, _ = topical()
    reader = Reader(table, words=10, null=4000, seed=0)
    drawn = reader.read(torch.randn(2000, D, generator=torch.Generator().manual_seed(9)))
    like, sharp, both = reader.p_values(drawn)
    for level in (0.01, 0.05, 0.2):
        assert abs(np.mean(both <= level) - level) < 4 * (level / 4000) ** 0.5
    order = np.argsort(np.maximum(like, sharp), kind="stable")
    assert np.all(np.diff(both[order]) >= 0) and np.all(both <= np.maximum(like, sharp) + 1.5 / 4001)
