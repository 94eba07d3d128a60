"""Matrices that are stored in several tensors: composed as the library that wrote them would."""

import json
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

import netspectra as ns
from netspectra.composed.codes import nibbles, unpacked
from netspectra.linalg.packing import pack
from netspectra.views import Context, view
from netspectra.weight import InMemory, TensorRef


def opened(tensors, config=None):
    refs = [TensorRef(name, tuple(t.shape), str(t.dtype).removeprefix("torch."), InMemory(t))
            for name, t in tensors.items()]  # fmt: skip
    return view(refs, Context(config=config or {}))


def one(tensors, config=None):
    weights, skipped = opened(tensors, config)
    assert len(weights) == 1, (weights, skipped)
    [weight] = weights
    if not any(t.dtype.itemsize == 1 and t.is_floating_point() for t in tensors.values()):  # torch cannot pickle these
        assert torch.equal(pickle.loads(pickle.dumps(weight)).part.load(), weight.part.load())
    whole = weight.part.load()
    assert whole.shape == weight.part.ref.shape
    for index in ((slice(1, 3),), (0,), (slice(None), slice(0, 2))):
        assert torch.equal(weight.part.ref.load(index), whole[index])
    return weight, whole


def refused(tensors, config=None):
    weights, skipped = opened(tensors, config)
    assert not weights
    [reason] = [s.reason for s in skipped if not s.routine]
    return reason


def saved(folder, tensors, **configs):
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    return ns.open(folder)


# ---- norms and masks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("make", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm(make, dim):
    torch.manual_seed(0)
    for layer in (nn.Linear(5, 4), nn.Conv2d(3, 4, 2)):
        module = make(nn.Sequential(layer)[0], dim=dim)
        if dim is not None:
            getattr(module, "weight_g", None) is not None and module.weight_g.data.mul_(3)
        module(torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(1, 3, 4, 4))
        weight, whole = one(dict(module.state_dict()))
        assert weight.name == "weight" and weight.dtype == "float32 with weight norm"
        assert torch.allclose(whole, module.weight, atol=1e-6)


@pytest.mark.parametrize("make", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(3, 4, 2)])
def test_spectral_norm(make, layer):
    torch.manual_seed(0)
    module = make(type(layer)(*((5, 4) if isinstance(layer, nn.Linear) else (3, 4, 2)))).eval()
    module(torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(1, 3, 4, 4))
    _, whole = one(dict(module.state_dict()))
    assert torch.allclose(whole, module.weight, atol=1e-6)
    state = {name: t for name, t in module.state_dict().items() if not name.endswith("_v")}
    if make is nn.utils.spectral_norm:
        _, guess = one(state)
        assert (guess / whole).std() < 1e-4


def test_live_modules_with_hooks_are_composed_too():
    module = nn.utils.spectral_norm(nn.ConvTranspose2d(4, 4, 2)).eval()
    module(torch.randn(1, 4, 3, 3))
    [weight] = ns.open(module)
    assert weight.name == "weight" and weight.kind == "conv_transpose2d"
    assert torch.allclose(weight.part.load(), module.weight, atol=1e-6)


def test_pruned():
    module = prune.random_unstructured(nn.Linear(5, 4), "weight", 0.5)
    _, whole = one(dict(module.state_dict()))
    assert torch.equal(whole, module.weight)


def test_parametrizations_that_are_not_understood():
    module = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    assert "open the live module" in refused(dict(module.state_dict()))
    v = torch.randn(4, 5)
    assert "do not fit" in refused({"parametrizations.weight.original0": torch.ones(4, 5),
                                    "parametrizations.weight.original1": v})  # fmt: skip
    assert "do not fit" in refused({"a_orig": v, "a_u": torch.ones(7), "a_v": torch.ones(5)})
    assert "mask" in refused({"a_orig": v, "a_mask": torch.ones(5, 4)})
    weights, _ = opened({"weight_g": torch.ones(3, 3), "weight_v": v})
    assert [w.name for w in weights] == ["weight_g", "weight_v"]
    weights, skipped = opened({"weight_g": torch.ones(4, 1), "weight_v": v, "weight": v})
    assert [w.name for w in weights] == ["weight"] and "stored whole" in skipped[0].reason


def test_zero_norm_is_not_a_number():
    found = ns.analyze({"weight_g": torch.ones(2, 1), "weight_v": torch.zeros(2, 3)})
    assert not list(found) and "NaN" in found.skipped[0].reason


# ---- 8 bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(), (1,), (6,), (6, 1), (1, 8), (6, 2), (2, 3)])
def test_scaled_8_bit(scale):
    g = torch.Generator().manual_seed(0)
    s = torch.rand(scale, generator=g) + 0.5
    config = {"quantization_config": {"weight_block_size": [4, 3]}}
    rows, columns = {(6, 2): (1, 4), (2, 3): (4, 3)}.get(scale, (1, 1))
    grid = s.reshape(6, 1) if scale == (6,) else s
    if scale in ((6, 2), (2, 3)):
        grid = s.repeat_interleave(rows, 0)[:6].repeat_interleave(columns, 1)[:, :8]
    for codes in (
        torch.randn(6, 8, generator=g).to(torch.float8_e4m3fn),
        torch.randint(-128, 128, (6, 8), generator=g, dtype=torch.int8),
    ):
        for name in ("weight_scale", "weight_scale_inv"):
            weight, whole = one({"a.weight": codes, f"a.{name}": s}, config)
            assert weight.name == "a.weight" and weight.dtype.endswith("with scales")
            assert torch.equal(whole, codes.float() * grid)


def test_usual_block_and_stacks():
    codes = torch.randn(3, 130, 260).to(torch.float8_e4m3fn)
    s = torch.rand(3, 2, 3)
    want = codes.float() * s.repeat_interleave(128, 1)[:, :130].repeat_interleave(128, 2)[:, :, :260]
    _, whole = one({"w.weight": codes[0], "w.weight_scale_inv": s[0]})
    assert torch.equal(whole, want[0])
    weights, _ = opened({"mlp.experts.down_proj": codes, "mlp.experts.down_proj_scale_inv": s})
    assert [w.name for w in weights] == [f"mlp.experts.down_proj[expert {i}]" for i in range(3)]
    assert torch.equal(torch.stack([w.part.load() for w in weights]), want)
    exponents = torch.tensor([[1.0, 2, 4]] * 2).to(torch.float8_e8m0fnu)
    assert torch.equal(one({"w.weight": codes[0], "w.weight_scale_inv": exponents})[1][0, 0], codes[0, 0, 0].float())


def test_from_a_file_it_travels(tmp_path):
    codes, s = torch.randn(6, 8).to(torch.float8_e4m3fn), torch.rand(6, 1)
    save_file({"a.weight": codes, "a.weight_scale": s}, tmp_path / "model.safetensors")
    [weight] = ns.open(tmp_path)
    again = pickle.loads(pickle.dumps(weight))
    assert torch.equal(again.part.load(), codes.float() * s)
    [record] = ns.analyze(tmp_path)
    assert record.dtype == "float8_e4m3fn with scales" and not ns.open(tmp_path).skipped


def test_zero_points_of_8_bit():
    codes, zero = torch.randint(-128, 128, (6, 8), dtype=torch.int8), torch.randint(-9, 9, (6, 1), dtype=torch.int8)
    s = torch.rand(6, 1)
    _, whole = one({"weight": codes, "weight_scale": s, "weight_zero_point": zero})
    assert torch.allclose(whole, (codes.float() - zero) * s)


def test_scales_that_do_not_fit():
    codes = torch.zeros(6, 8, dtype=torch.int8)
    assert "do not fit" in refused({"weight": codes, "weight_scale": torch.ones(5)})
    assert "not floating" in refused({"weight": codes, "weight_scale": torch.ones(6, dtype=torch.int64)})
    assert "not read" in refused({"weight": codes.to(torch.uint8), "weight_scale": torch.ones(6, 1)})
    assert "zero points" in refused({"weight": codes, "weight_scale": torch.ones(6), "weight_zero_point": codes})
    hostile = {"quantization_config": {"weight_block_size": [0, "x"]}}
    assert "block size" in refused({"weight": codes, "weight_scale": torch.ones(5, 2)}, hostile)
    assert len(opened({"weight": torch.zeros(6, 8), "weight_scale": torch.ones(6)})[0]) == 1


def test_row_scales_of_bitsandbytes():
    codes, s = torch.randint(-127, 128, (6, 8), dtype=torch.int8), torch.rand(6)
    row, tiled = torch.tensor(0, dtype=torch.uint8), torch.tensor(2, dtype=torch.uint8)
    weight, whole = one({"a.weight": codes, "a.SCB": s, "a.weight_format": row})
    assert weight.name == "a.weight" and torch.allclose(whole, codes.float() * s[:, None] / 127)
    assert "single" in refused({"a.weight": codes, "a.SCB": s, "a.weight_format": torch.tensor(float("nan"))})
    assert "tile order" in refused({"a.weight": codes, "a.SCB": s, "a.weight_format": tiled})
    assert "row scales" in refused({"a.weight": codes, "a.SCB": s[:5]})


# ---- packed words ----------------------------------------------------------------------------------------------


def packed(codes, bits, axis, order=None):
    """Pack unsigned codes as documented, independently of the reader: by arithmetic on whole Python numbers."""
    array = np.moveaxis(codes.numpy().astype(object), axis, 1)
    factor = 32 // bits
    words = np.zeros((array.shape[0], -(-array.shape[1] // factor)), dtype=object)
    for i, row in enumerate(array):
        for j, code in enumerate(row):
            place = order.index(j % factor) if order else j % factor
            words[i, j // factor] += int(code) << (bits * place)
    signed = np.where(words >= 2**31, words - 2**32, words).astype(np.int64)
    return torch.from_numpy(np.moveaxis(signed, 1, axis).astype(np.int32).copy())


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([2, 4, 8]), st.integers(1, 5), st.integers(1, 37), st.integers(0, 1), st.integers(0, 99))
def test_words_round_trip(bits, rows, columns, axis, seed):
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns) if axis else (columns, rows), generator=g)
    assert torch.equal(unpacked(packed(codes, bits, axis), bits, axis, columns).long(), codes)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=33))
def test_nibbles_round_trip(codes):
    padded = codes + [0] * (len(codes) % 2)
    packed_bytes = torch.tensor([a * 16 + b for a, b in zip(padded[::2], padded[1::2], strict=True)], dtype=torch.uint8)
    assert nibbles(packed_bytes, len(codes)).tolist() == codes


def dense(codes, bits, axis):
    """Words with no bits between the codes, by arithmetic on whole Python numbers: a row is one large number."""
    array = np.moveaxis(codes.numpy().astype(object), axis, 1)
    count = -(-array.shape[1] * bits // 32)
    rows = [sum(int(code) << (bits * j) for j, code in enumerate(row)) for row in array]
    words = [[(row >> (32 * k)) & (2**32 - 1) for k in range(count)] for row in rows]
    signed = np.array([[word - 2**32 if word >= 2**31 else word for word in row] for row in words], dtype=np.int64)
    return torch.from_numpy(np.moveaxis(signed, 1, axis).astype(np.int32).copy())


def compressed_config(bits, symmetric=True, **more):
    weights = {"num_bits": bits, "symmetric": symmetric, "type": "int", **more}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("zero", [False, True])
def test_pack_quantized(bits, groups, zero):
    m, n, middle = 10, 20, 2 ** (bits - 1)
    codes = torch.randint(0, 2**bits, (m, n))
    scale, zeros = torch.rand(m, groups), torch.randint(0, 2**bits, (m, groups))
    tensors = {"a.weight_packed": packed(codes, bits, 1), "a.weight_scale": scale,
               "a.weight_shape": torch.tensor([m, n])}  # fmt: skip
    if zero:
        tensors["a.weight_zero_point"] = packed(zeros, bits, 0)
    offset = zeros if zero else torch.full((m, groups), middle)
    want = (codes - offset.repeat_interleave(n // groups, 1)) * scale.repeat_interleave(n // groups, 1)
    weight, whole = one(tensors, compressed_config(bits, not zero))
    assert (weight.name, weight.dtype) == ("a.weight", f"int{bits} with scales")
    assert torch.allclose(whole, want)
    order = torch.randperm(n) % groups
    _, whole = one({**tensors, "a.weight_g_idx": order.int()}, compressed_config(bits, not zero))
    assert torch.allclose(whole, (codes - offset[:, order]) * scale[:, order])
    _, whole = one({**tensors, "a.weight_g_idx": torch.full((n,), -1).int()}, compressed_config(bits, not zero))
    assert torch.allclose(whole, want)


@pytest.mark.parametrize("bits,symmetric,group", [(4, True, 8), (4, False, 8), (8, True, None), (8, False, None)])
def test_pack_quantized_as_the_library_writes_it(bits, symmetric, group):
    # a module of the library that cannot be imported (a dependency of its own) counts as absent
    pytest.importorskip("compressed_tensors", exc_type=ImportError)
    module = pytest.importorskip("compressed_tensors.compressors.pack_quantized", exc_type=ImportError)
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    arguments = QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    w = torch.randn(12, 24)
    shape = (12, 24 // group if group else 1)
    state = {"weight": w, "weight_scale": torch.rand(shape) * 0.2 + 0.1}
    if not symmetric:
        state["weight_zero_point"] = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).to(torch.int8)
    compressor = module.PackedQuantizationCompressor
    stored = compressor.compress(state, scheme)
    want = compressor.decompress(dict(stored), scheme)["weight"]
    _, whole = one(stored, compressed_config(bits, symmetric))
    assert torch.allclose(whole, want.float(), atol=1e-6)


def test_zero_points_of_a_single_word_a_column():
    codes, zeros, scale = torch.randint(0, 16, (6, 20)), torch.randint(0, 16, (6, 2)), torch.rand(6, 2)
    tensors = {"a.weight_packed": packed(codes, 4, 1), "a.weight_scale": scale,
               "a.weight_zero_point": packed(zeros, 4, 0), "a.weight_shape": torch.tensor([6, 20])}  # fmt: skip
    _, whole = one(tensors, compressed_config(4, False))
    assert torch.allclose(whole, (codes - zeros.repeat_interleave(10, 1)) * scale.repeat_interleave(10, 1))


def test_pack_quantized_refusals():
    words, scale = torch.zeros(4, 2, dtype=torch.int32), torch.ones(4, 1)
    base = {"weight_packed": words, "weight_scale": scale}
    config = compressed_config(4)
    assert "config.json" in refused(base)
    for shape in ([4, 10**15], [5, 16], [-1, 16], [4, 17]):
        assert "fit words" in refused({**base, "weight_shape": torch.tensor(shape)}, config)
    assert "fit words" in refused(base, compressed_config(3))
    assert "weight_shape" in refused({**base, "weight_shape": torch.tensor(3)}, config)
    assert "scales" in refused({"weight_packed": words}, config)
    assert "do not fit" in refused({**base, "weight_scale": torch.ones(4, 5)}, config)
    assert "asymmetric" in refused(base, compressed_config(4, symmetric=False))
    assert "zero points" in refused({**base, "weight_zero_point": torch.zeros(3, 3, dtype=torch.int32)}, config)
    assert "packed into uint8" in refused({**base, "weight_packed": words.to(torch.uint8)}, config)
    for wrong in ([1], {"a": 3}, {"a": {"weights": {"num_bits": "4"}}}):
        assert refused(base, {"quantization_config": {"config_groups": wrong}})


@pytest.mark.parametrize("named", [["b", "a"], ["re:.*a$"], ["re:^a$", "Linear"]])
def test_the_number_of_bits_is_that_of_the_groups_that_names_the_module(named):
    codes, scale = torch.randint(0, 16, (3, 6)), torch.rand(3, 1)  # 6 codes of 4 or of 5 bits fill one word alike
    tensors = {"a.weight_packed": dense(codes, 4, 1), "a.weight_scale": scale, "a.weight_shape": torch.tensor([3, 6])}
    weights = [{"num_bits": bits, "symmetric": True, "type": "int"} for bits in (4, 5)]
    groups = {"g": {"targets": named, "weights": weights[0]}, "h": {"targets": ["c"], "weights": weights[1]}}
    weight, whole = one(tensors, {"quantization_config": {"config_groups": groups}})
    assert weight.dtype == "int4 with scales" and torch.allclose(whole, (codes - 8) * scale)
    groups["g"]["targets"] = ["re:(a+)+", 3, "re:("]
    assert "2 of the config" in refused(tensors, {"quantization_config": {"config_groups": groups}})


# ---- a byte a number, or netspectra's own -----------------------------------------------------------------------


def own(bits=3, group=4, rows=6, groups=3, rank=0, **spec):
    g = torch.Generator().manual_seed(bits)
    codes = torch.randint(0, 2**bits, (rows, groups * group), generator=g).to(torch.uint8)
    zero = torch.randint(0, 2**bits, (rows, groups), generator=g).to(torch.uint8)
    scale = torch.rand(rows, groups, generator=g).half()
    tensors = {"a.codes": pack(codes, bits), "a.scale": scale, "a.zero": pack(zero, bits)}
    want = (codes.float() - zero.float().repeat_interleave(group, 1)) * scale.float().repeat_interleave(group, 1)
    if rank:
        left, right = torch.randn(rows, rank).half(), torch.randn(rank, groups * group).half()
        tensors |= {"a.left": left, "a.right": right}
        want = want + left.float() @ right.float()
    told = {"bits": bits, "group": group, "symmetric": False, "scale": "float16", "rank": rank, **spec}
    return tensors, {"netspectra": {"a": told}}, want


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("rank", [0, 2])
def test_our_own_codes(bits, rank):
    tensors, config, want = own(bits, rank=rank)
    weight, whole = one(tensors, config)
    assert weight.name == "a.weight" and weight.dtype.startswith(f"int{bits} in groups of 4")
    assert torch.equal(whole, want)


def test_our_own_kernels_turned_layers_and_halves():
    tensors, config, want = own(kernel=[3, 2, 2])
    weight, whole = one(tensors, config)
    assert weight.kind == "conv2d" and torch.equal(whole, want.reshape(6, 3, 2, 2))
    assert torch.equal(one(*own(turned=True)[:2])[1], want.mT)
    half = torch.randn(6, 8).bfloat16()
    weight, whole = one({"a.codes": half}, {"netspectra": {"a": {"bits": 16, "dtype": "bfloat16"}}})
    assert weight.name == "a.weight" and torch.equal(whole, half.float())


@pytest.mark.parametrize(
    "wrong",
    [{"bits": 9}, {"bits": "3"}, {"bits": 4}, {"group": 0}, {"group": 5}, {"group": 2**60}, {"kernel": [3, 3]},
     {"kernel": "x"}, {"kernel": [-3, -4]}, {"kernel": [True, 12]}],
)  # fmt: skip
def test_our_own_manifest_that_lies(wrong):
    tensors, config, _ = own(**wrong) if "bits" not in wrong and "group" not in wrong else own()
    config["netspectra"]["a"] |= wrong
    assert refused(tensors, config)


def test_our_own_pieces_that_do_not_fit():
    tensors, config, _ = own(rank=2)
    for name in ("a.scale", "a.left", "a.right"):
        assert refused({key: value for key, value in tensors.items() if key != name}, config)
    for name, value in (("a.left", torch.ones(6, 3)), ("a.zero", torch.ones(6, 3)), ("a.scale", torch.ones(5, 3))):
        assert refused({**tensors, name: value}, config)
    weights, _ = opened({"a.codes": torch.rand(4, 4), "a.scale": torch.rand(4, 4)}, {"netspectra": {"b": {}}})
    assert [w.name for w in weights] == ["a.codes", "a.scale"]  # of somebody else


@pytest.mark.parametrize("shape,scale", [((6, 8), (6, 2)), ((6, 8), (6, 1)), ((6, 8), ()), ((6, 8), (3, 2)),
                                         ((6, 4, 3, 3), (6, 2, 1, 1)), ((6, 4, 3, 3), (6, 1, 1, 1))])  # fmt: skip
def test_torchaos_bytes(shape, scale):
    codes, s = torch.randint(-8, 8, shape, dtype=torch.int8), torch.rand(scale)
    zero = torch.randint(-8, 8, scale, dtype=torch.int8)
    tensors = {"a._weight_qdata": codes, "a._weight_scale": s, "a._weight_zero_point": zero}

    def wide(x):
        rows, columns = (x.shape[0], x.shape[1]) if x.dim() else (1, 1)
        grid = x.reshape(rows, columns, *(1 for _ in shape[2:]))
        return grid.repeat_interleave(shape[0] // rows, 0).repeat_interleave(shape[1] // columns, 1)

    weight, whole = one(tensors)
    assert (weight.name, weight.dtype) == ("a.weight", "int8 with scales")
    assert torch.allclose(whole, (codes.float() - wide(zero).float()) * wide(s))
    told = {"fqn_to_config": {"a": {"_data": {"weight_dtype": {"_data": "int4"}}}}}
    config = {"quantization_config": {"quant_type": {"default": {"_data": told}}}}
    assert one(tensors, config)[0].dtype == "int4 with scales"


def test_torchaos_layouts_that_are_not_read():
    codes, s = torch.zeros(6, 8, dtype=torch.int8), torch.ones(6, 1)
    base = {"a._weight_qdata": codes, "a._weight_scale": s}
    assert one(base)
    assert "read are those" in refused({**base, "a._weight_qdata": codes.to(torch.uint8)})
    assert "read are those" in refused({**base, "a._weight_act_pre_scale": s})
    assert "read are those" in refused({**base, "a._weight_scale": s.to(torch.float8_e8m0fnu)})
    assert "missing" in refused({"a._weight_qdata": codes})
    assert "for codes of" in refused({**base, "a._weight_scale": torch.ones(6, 3)})
    assert "for codes of" in refused({**base, "a._weight_zero_point": torch.zeros(5, 1, dtype=torch.int8)})


def test_group_numbers_out_of_range_are_refused_when_read():
    tensors = {"weight_packed": torch.zeros(4, 2, dtype=torch.int32), "weight_scale": torch.ones(4, 2),
               "weight_g_idx": torch.full((16,), 9).int()}  # fmt: skip
    weights, _ = opened(tensors, compressed_config(4))
    from netspectra.verbs.analyze import AnalyzeOptions, measure

    assert "group numbers" in measure(weights[0], AnalyzeOptions()).reason


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form,offset", [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize("ordered", [False, True])
def test_gptq(bits, form, offset, ordered):
    n, m, groups = 32, 32 if bits == 3 else 16, 4
    codes, zeros = torch.randint(0, 2**bits, (n, m)), torch.randint(offset, 2**bits, (groups, m))
    scales = torch.rand(groups, m).half()
    order = torch.randperm(n) % groups if ordered else torch.arange(n) // (n // groups)
    tensors = {"a.qweight": dense(codes, bits, 0), "a.qzeros": dense(zeros - offset, bits, 1), "a.scales": scales}
    if ordered:
        tensors["a.g_idx"] = order.int()
    config = {"quantization_config": {"quant_method": "gptq", "bits": bits, "checkpoint_format": form}}
    weight, whole = one(tensors, config)
    assert (weight.name, weight.shape) == ("a.weight", (m, n))
    assert torch.allclose(whole, ((codes - zeros[order]) * scales.float()[order]).T)


def test_awq():
    n, m, groups = 32, 16, 4
    codes, zeros, scales = torch.randint(0, 16, (n, m)), torch.randint(0, 16, (groups, m)), torch.rand(groups, m)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {"a.qweight": packed(codes, 4, 1, order), "a.qzeros": packed(zeros, 4, 1, order), "a.scales": scales}
    config = {"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}
    _, whole = one(tensors, config)
    each = torch.arange(n) // (n // groups)
    assert torch.allclose(whole, ((codes - zeros[each]) * scales[each]).T)
    config["quantization_config"]["version"] = "gemv"
    assert "not read" in refused(tensors, config)


def test_gptq_refusals():
    tensors = {"qweight": torch.zeros(4, 16).int(), "qzeros": torch.zeros(4, 2).int(), "scales": torch.ones(4, 16)}
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert one(tensors, config)
    assert "config.json" in refused(tensors)
    assert "says 3 bits" in refused(tensors, {"quantization_config": {"quant_method": "gptq", "bits": 3}})
    assert "missing" in refused({"qweight": tensors["qweight"]}, config)
    assert "fit no width" in refused({**tensors, "qzeros": torch.zeros(4, 3).int()}, config)
    assert "group numbers" in refused({**tensors, "g_idx": torch.zeros(5).int()}, config)
    config["quantization_config"]["checkpoint_format"] = "marlin"
    assert "marlin" in refused(tensors, config)


# ---- bitsandbytes ----------------------------------------------------------------------------------------------


def four_bit(shape=(6, 8), nested=False, **state):
    blocksize = 4
    g = torch.Generator().manual_seed(0)
    count = math.prod(shape)
    codes = torch.randint(0, 16, (count + count % 2,), generator=g)
    table = torch.linspace(-1, 1, 16)
    blocks = -(-count // blocksize)
    told = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "float16", "shape": list(shape)}
    tensors = {"a.weight": (codes[::2] * 16 + codes[1::2]).to(torch.uint8)[:, None], "a.weight.quant_map": table}
    absmax = torch.rand(blocks, generator=g)
    if nested:
        outer, inner = torch.rand(-(-blocks // 2), generator=g), torch.linspace(-1, 1, 256)
        stored = torch.randint(0, 256, (blocks,), generator=g)
        absmax = inner[stored] * outer.repeat_interleave(2)[:blocks] + 0.25
        tensors |= {"a.weight.nested_absmax": outer, "a.weight.nested_quant_map": inner}
        told = {"nested_blocksize": 2, "nested_offset": 0.25, **told}
    told |= state.get("told", {})
    tensors["a.weight.absmax"] = stored.to(torch.uint8) if nested else absmax
    tensors["a.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
    want = table[codes[:count]] * absmax.repeat_interleave(blocksize)[:count]
    return tensors, want.reshape(shape)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(6, 8), (5, 7)])
def test_four_bit(nested, shape):
    tensors, want = four_bit(shape, nested=nested)
    weight, whole = one(tensors)
    assert (weight.name, weight.dtype) == ("a.weight", "nf4 with scales") and torch.allclose(whole, want)


@pytest.mark.parametrize(
    "wrong",
    [{"shape": [6, 9]}, {"shape": [10**30, 1]}, {"shape": "x"}, {"shape": []}, {"shape": [-6, -8]}, {"blocksize": 0},
     {"blocksize": 3}, {"quant_type": "fp4"}, {"quant_type": []}, {"nested_offset": "NaN"}, {"nested_blocksize": None}],
)  # fmt: skip
def test_four_bit_with_a_wrong_state(wrong):
    assert refused(four_bit(nested=True, told=wrong)[0])


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 60_000, b"9" * 9_000, b" " * 70_000])
def test_four_bit_with_a_hostile_state(text):
    tensors, _ = four_bit()
    tensors["a.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    assert "quant state" in refused(tensors)


def test_four_bit_with_pieces_missing():
    tensors, _ = four_bit(nested=True)
    for name in ("a.weight.nested_absmax", "a.weight.quant_map", "a.weight.absmax"):
        assert refused({key: value for key, value in tensors.items() if key != name})


# ---- adapters --------------------------------------------------------------------------------------------------

PATH = "base_model.model.layers.0.self_attn.q_proj"


def pair(path=PATH, m=12, r=4, n=10, middle=""):
    g = torch.Generator().manual_seed(1)
    return {f"{path}.lora_A{middle}.weight": torch.randn(r, n, generator=g),
            f"{path}.lora_B{middle}.weight": torch.randn(m, r, generator=g)}  # fmt: skip


def product(tensors):
    A, B = tensors.values()
    return (B.flatten(1) @ A.flatten(1)).double()


@pytest.mark.parametrize(
    "config,scale",
    [
        ({"r": 4, "lora_alpha": 8}, 2.0),
        ({"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        ({"r": 9, "lora_alpha": 8, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"self_attn.q_proj": 16}}, 4.0),
        ({"r": 4, "lora_alpha": 8, "alpha_pattern": {"k_proj": 1, r"layers\.\d+\.self_attn\.(q|v)_proj": 2}}, 0.5),
    ],
)
def test_adapter_folder(tmp_path, config, scale, monkeypatch):
    tensors = pair()
    source = saved(tmp_path, tensors, adapter_config={"peft_type": "LORA", **config})
    [weight] = source
    assert (weight.name, weight.kind, weight.shape) == (f"{PATH}.weight[lora]", "lora", (12, 10))
    assert weight.parameters == 4 * 22 and weight.dtype == "float32"
    monkeypatch.setattr("netspectra.composed.lora.Multiplied.__call__", lambda *a: pytest.fail("multiplied out"))
    [record] = ns.analyze(source)
    want = np.linalg.svd(scale * product(tensors).numpy(), compute_uv=False)
    assert np.allclose(record.spectrum.values, want[:4], rtol=1e-6) and record.spectrum.how == "exact"
    assert "rank at most 4 by construction" in record.notes[0] and len(record.notes) == 1
    assert np.allclose(record.svd(2).S.numpy(), want[:2], rtol=1e-6)


def test_adapter_of_a_live_model_embedding_and_convolution():
    tensors = pair(middle=".default") | {
        "embed.lora_embedding_A.other": torch.randn(3, 20), "embed.lora_embedding_B.other": torch.randn(6, 3),
    }  # fmt: skip
    q, embed = opened(tensors)[0]
    assert (q.name, embed.name) == (f"{PATH}.weight[lora]", "embed.weight[lora other]")
    assert embed.shape == (20, 6) and "taken as 1" in q.notes[1]
    want = tensors["embed.lora_embedding_B.other"] @ tensors["embed.lora_embedding_A.other"]
    assert torch.allclose(embed.operator().dense(), want.T, atol=1e-5)
    kernel = {"c.lora_A.weight": torch.randn(2, 3, 3, 3), "c.lora_B.weight": torch.randn(5, 2, 1, 1)}
    [conv] = opened(kernel)[0]
    assert conv.shape == (5, 27) and torch.allclose(conv.operator().dense().double(), product(kernel), atol=1e-5)
    assert torch.allclose(conv.part.load().double(), product(kernel), atol=1e-5)
    assert ns.analyze(tensors)["embed.weight[lora other]"].svd().rank == 3


def test_adapter_as_peft_writes_it(tmp_path):
    peft = pytest.importorskip("peft", exc_type=ImportError)
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.Embedding(9, 6))
    config = peft.LoraConfig(
        r=3, lora_alpha=12, target_modules=["0", "2", "3"], rank_pattern={"2": 2}, use_rslora=True,
        init_lora_weights=False,
    )  # fmt: skip
    model = peft.get_peft_model(base, config)
    model.save_pretrained(tmp_path)
    source = ns.open(tmp_path)
    layers = {w.name.split(".")[-2]: w for w in source}
    assert sorted(layers) == ["0", "2", "3"]
    for key, weight in layers.items():
        delta = model.base_model.model[int(key)].get_delta_weight("default").detach()
        assert torch.allclose(weight.operator().dense(), delta, atol=1e-5)


def test_adapter_refusals():
    tensors = pair()
    names = list(tensors)
    assert "lora_B is missing" in refused({names[0]: tensors[names[0]]})
    assert "do not fit" in refused({**tensors, names[1]: torch.ones(12, 5)})
    assert "AdaLoRA" in refused({**tensors, f"{PATH}.lora_E": torch.ones(4, 1)})
    for config in (
        {"r": 5, "lora_alpha": 1}, {"r": 4}, {"r": 4, "lora_alpha": "x"},
        {"r": 4, "lora_alpha": 1, "rank_pattern": [1]},
        {"peft_type": "ADALORA"}, {"r": 4, "lora_alpha": 1, "alpha_pattern": {"(a+)+": 1}},
        {"r": 4, "lora_alpha": 1, "alpha_pattern": {"(": 1}}, {"r": 4, "lora_alpha": float("nan")},
    ):  # fmt: skip
        assert refused(tensors, {"peft": config})


def test_odd_names_of_adapters_stay_exact():
    tensors = pair("a\0default") | pair("a", middle=".default")
    assert sorted(w.name for w in opened(tensors)[0]) == ["a\0default.weight[lora]", "a.weight[lora]"]


def test_dora_is_told():
    tensors = pair() | {f"{PATH}.lora_magnitude_vector": torch.ones(12)}
    [weight] = opened(tensors)[0]
    assert any("DoRA" in note for note in weight.notes)


def test_config_belongs_to_the_fingerprint(tmp_path):
    first = saved(tmp_path, pair(), adapter_config={"r": 4, "lora_alpha": 8}).fingerprint
    assert first != saved(tmp_path, pair(), adapter_config={"r": 4, "lora_alpha": 9}).fingerprint


def test_unreadable_members_make_one_line():
    refs = [TensorRef("weight", (6, 8), "int8", InMemory(torch.zeros(6, 8).char()), problem="on the moon"),
            TensorRef("weight_scale", (6,), "float32", InMemory(torch.ones(6)))]  # fmt: skip
    weights, skipped = view(refs, Context())
    assert not weights and len(skipped) == 1 and "on the moon" in skipped[0].reason


def test_numbers_that_do_not_fit_are_refused_with_the_file(tmp_path):
    """That group numbers lie beyond the scales shows only when they are loaded."""
    words, zeros = torch.zeros(2, 8, dtype=torch.int32), torch.zeros(2, 1, dtype=torch.int32)
    stored = {"w.qweight": words, "w.qzeros": zeros, "w.scales": torch.ones(2, 8),
              "w.g_idx": torch.full((16,), 7, dtype=torch.int32)}  # fmt: skip
    save_file(stored, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    [weight] = ns.open(tmp_path).weights
    with pytest.raises(ns.InputRefused, match="group numbers 7 to 7 for 2 groups") as refusal:
        weight.part.ref.load()
    assert str(refusal.value).startswith(f"{tmp_path}: group")
