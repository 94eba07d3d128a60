"""Each row of the table: the parts reassemble to the tensor, and act as the layer does."""

import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.views import RULES, Context, view
from netspectra.weight import InMemory, Layout, TensorRef


def ref(name, tensor, **facts):
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorRef(name, tuple(tensor.shape), dtype, InMemory(tensor), facts)


def viewed(name, tensor, context=Context(), others=(), **facts):
    weights, skipped = view([ref(name, tensor, **facts), *others], context)
    return [w for w in weights if w.name.startswith(name)], skipped


def matrix(weight):
    return weight.operator().dense()


def test_plain_matrix_and_embedding():
    w = torch.randn(6, 4)
    [linear], _ = viewed("layers.0.mlp.up_proj.weight", w)
    [table], _ = viewed("model.embed_tokens.weight", w)
    assert (linear.kind, linear.shape, table.kind) == ("linear", (6, 4), "embedding")
    assert torch.equal(matrix(linear), w)


@pytest.mark.parametrize("name", ["attn.in_proj_weight", "blocks.0.attn.qkv.weight", "self_attn.qkv_proj.weight"])
def test_fused_qkv_reassembles(name):
    w = torch.randn(12, 4)
    weights, _ = viewed(name, w)
    assert [x.name for x in weights] == [f"{name}[{c}]" for c in "qkv"]
    assert torch.equal(torch.cat([matrix(x) for x in weights]), w)


def test_fused_qkv_with_grouped_queries_needs_the_config():
    w = torch.randn((8 + 2 * 2) * 4, 32)
    config = Context(config={"num_attention_heads": 8, "num_key_value_heads": 2})
    weights, _ = viewed("self_attn.qkv_proj.weight", w, config)
    assert [x.shape[0] for x in weights] == [32, 8, 8]
    assert torch.equal(torch.cat([matrix(x) for x in weights]), w)
    [whole], _ = viewed("self_attn.qkv_proj.weight", w)
    assert whole.shape == (48, 32) and "kept whole" in whole.notes[0]


def test_gpt2_conv1d_is_outputs_by_inputs():
    w = torch.randn(4, 12)
    weights, _ = viewed("h.0.attn.c_attn.weight", w)
    assert [x.shape for x in weights] == [(4, 4)] * 3
    assert torch.equal(torch.cat([matrix(x) for x in weights]).T, w)
    [fc], _ = viewed("h.0.mlp.c_fc.weight", w, Context(config={"model_type": "gpt2"}))
    assert torch.equal(matrix(fc), w.T)


def test_qkv_interleaved_by_head():
    heads, size, d = 2, 3, 5
    w = torch.randn(heads * 3 * size, d)
    context = Context(config={"model_type": "bloom", "n_head": heads})
    weights, _ = viewed("h.0.self_attention.query_key_value.weight", w, context)
    q, k, v = (matrix(x).reshape(heads, size, d) for x in weights)
    assert torch.equal(torch.stack([q, k, v], dim=1).reshape(w.shape), w)
    [whole], _ = viewed("h.0.self_attention.query_key_value.weight", w)
    assert "kept whole" in whole.notes[0]


def test_gate_and_up():
    w = torch.randn(10, 3)
    weights, _ = viewed("mlp.gate_up_proj.weight", w)
    assert [x.name[-6:] for x in weights] == ["[gate]", "ht[up]"]
    assert torch.equal(torch.cat([matrix(x) for x in weights]), w)


@pytest.mark.parametrize("cell,letters", [(nn.LSTM, "ifgo"), (nn.GRU, "rzn"), (nn.RNN, "")])
def test_recurrent_gates(cell, letters):
    module = cell(5, 4, bidirectional=True)
    for origin in (module, dict(module.state_dict())):
        source = ns.open(origin)
        names = [w.name for w in source]
        expected = [f"weight_ih_l0[{c}]" for c in letters] or ["weight_ih_l0"]
        assert names[: len(expected)] == expected
        parts = [matrix(w) for w in source if w.name.startswith("weight_ih_l0_reverse")]
        assert torch.equal(torch.cat(parts), module.weight_ih_l0_reverse.detach())


def test_lstm_with_projection():
    module = nn.LSTM(5, 4, proj_size=2)
    names = [w.name for w in ns.open(module)]
    assert names == [f"weight_{x}_l0[{c}]" for x in ("ih", "hh") for c in "ifgo"] + ["weight_hr_l0"]


@pytest.mark.parametrize("shape,first,count", [((2, 12, 5), False, 2), ((1, 12, 5), False, 1), ((5, 12), True, 1)])
def test_gates_that_the_source_tells(shape, first, count):
    w = torch.randn(shape)
    weights, _ = viewed("cell", w, gates=("z", "r", "n"), input_first=first)
    ways = ("[forward]", "[reverse]") if count == 2 else ("",)
    assert [x.name for x in weights] == [f"cell{way}[{c}]" for way in ways for c in "zrn"]
    whole = torch.cat([matrix(x) for x in weights])
    assert torch.equal(whole.T if first else whole.reshape(shape), w)


def test_recurrent_names_of_arrays():
    w, u = torch.randn(12, 5), torch.randn(12, 4)
    weights, _ = viewed("enc_w_ih", w, others=[ref("enc_w_hh", u)])
    assert [x.name for x in weights] == [f"enc_w_ih[{c}]" for c in "rzn"]
    assert torch.equal(torch.cat([matrix(x) for x in weights]), w)


@pytest.mark.parametrize("first", [False, True])
def test_query_key_value_that_the_source_tells(first):
    w = torch.randn(4, 9) if first else torch.randn(9, 4)
    weights, _ = viewed("fused", w, qkv=(2, 3, 4), input_first=first)
    assert [x.shape for x in weights] == [(2, 4), (3, 4), (4, 4)]
    whole = torch.cat([matrix(x) for x in weights])
    assert torch.equal(whole.T if first else whole, w)


def test_what_only_accompanies_weights_is_routine():
    for facts in ({"scale": True}, {"bias": True}):
        weights, [skipped] = viewed("x", torch.randn(3, 4), **facts)
        assert not weights and skipped.routine


def test_experts_stacked_fused_and_transposed():
    e, d, ff = 3, 4, 6
    down, up = torch.randn(e, d, ff), torch.randn(e, 2 * ff, d)
    weights, _ = viewed("mlp.experts.down_proj", down)
    assert [w.name for w in weights] == [f"mlp.experts.down_proj[expert {i}]" for i in range(e)]
    assert torch.equal(torch.stack([matrix(w) for w in weights]), down)
    weights, _ = viewed("mlp.experts.gate_up_proj", up, Context(config={"hidden_size": d}))
    assert len(weights) == 2 * e and weights[1].name.endswith("[expert 0][up]")
    assert torch.equal(torch.cat([matrix(w) for w in weights]).reshape(up.shape), up)
    turned = up.mT.contiguous()
    weights, _ = viewed("mlp.experts.gate_up_proj", turned, Context(config={"hidden_size": d}))
    assert torch.equal(torch.cat([matrix(w) for w in weights]).reshape(up.shape), up)
    oss = Context(config={"hidden_size": d, "model_type": "gpt_oss"})
    gate, rise = viewed("mlp.experts.gate_up_proj", turned, oss)[0][:2]
    assert torch.equal(matrix(gate), turned[0, :, ::2].T) and torch.equal(matrix(rise), turned[0, :, 1::2].T)


def dense_of(module, shape):
    """Matrix of a linear module by its action on unit inputs, and the inputs' number."""
    n = torch.Size(shape).numel()
    basis = torch.eye(n).reshape(n, *shape)
    return module(basis).reshape(n, -1).T


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_unfold_to_their_action_at_one_place(dims, transposed, groups):
    """A kernel-sized input (a single pixel when transposed) sees exactly the unfolded matrix."""
    name = f"Conv{'Transpose' if transposed else ''}{dims}d"
    module = getattr(nn, name)(4, 8, 2, groups=groups, bias=False)
    [weight] = list(ns.open(module))
    assert weight.kind == f"conv{'_transpose' if transposed else ''}{dims}d"
    m = matrix(weight)
    assert m.shape == weight.shape and weight.parameters == module.weight.numel()
    places = 2**dims
    if not transposed:
        want = dense_of(module, (4, *[2] * dims)).detach()
        assert torch.equal(m, want)
        return
    want = dense_of(module, (4, *[1] * dims)).detach()  # rows (out, place), columns in
    assert torch.equal(m.reshape(8, 4, places).mT.reshape(8 * places, 4), want)


@pytest.mark.parametrize("rows,groups", [((0,), 1), ((1,), 1), ((0, 1), 1), ((0,), 2), ((1,), 2)])
def test_layouts_can_be_undone(rows, groups):
    t = torch.randn(4, 6, 2)
    layout = Layout(rows, groups)
    blocks = layout.blocks(t)
    assert (blocks.shape[0] * blocks.shape[1], blocks.shape[0] * blocks.shape[2]) == layout.shape(t.shape)
    assert torch.equal(layout.tensor(blocks, tuple(t.shape)), t)


def test_position_tables_and_bilinear():
    [table], _ = viewed("vit.pos_embed", torch.randn(1, 7, 4))
    assert (table.kind, table.shape) == ("embedding", (7, 4))
    bilinear = nn.Bilinear(3, 4, 5)
    weights = list(ns.open(bilinear))
    assert torch.equal(torch.stack([matrix(w) for w in weights]), bilinear.weight.detach())


def test_tied_weights_count_once():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    source = ns.open(model)
    [weight] = list(source)
    assert weight.name == "embed.weight" and weight.aliases == ("head.weight",) and source.parameters == 36


@pytest.mark.parametrize(
    "tensor,reason,routine",
    [
        (torch.zeros(3), "vector", True),
        (torch.zeros(()), "single number", True),
        (torch.zeros(1, 1, 5), "vector in the shape", True),
        (torch.zeros(0, 4), "empty", True),
        (torch.zeros(2, 3, dtype=torch.int64), "int64", True),
        (torch.zeros(2, 3, dtype=torch.uint8), "uint8", False),
        (torch.zeros(2, 2, 2, 2, 2, 2), "no rule", False),
    ],
)
def test_what_no_rule_claims_is_listed_with_the_reason(tensor, reason, routine):
    weights, [skipped] = viewed("x", tensor)
    assert not weights and reason in skipped.reason and skipped.routine is routine


def test_every_tensor_is_either_viewed_or_skipped():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    source = ns.open(model)
    seen = {w.part.ref.name for w in source} | {s.name for s in source.skipped}
    assert seen == {name for name, _ in model.named_parameters()}
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_parts_partition_the_parameters():
    model = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    source = ns.open(model)
    assert sum(w.parameters for w in source) == sum(p.numel() for p in model.parameters() if p.dim() == 2)
