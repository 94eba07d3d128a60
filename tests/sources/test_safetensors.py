"""The safetensors reader: what it reads is right, what is wrong is refused in one line."""

import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import netspectra as ns
from netspectra.sources.guard import GUARD
from tests.checkpoints import small_model, write_sharded, write_single

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool", "int64"]


def test_single_file_gives_every_tensor_bit_for_bit(tmp_path):
    tensors = small_model()
    source = ns.open(write_single(tmp_path / "m.safetensors", tensors))
    assert source.format == "safetensors" and len(source.tensors) == len(tensors)
    for ref in source.tensors:
        assert torch.equal(ref.load(), tensors[ref.name])
        assert ref.shape == tuple(tensors[ref.name].shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, dtype):
    tensor = (torch.randn(5, 3) * 3).to(getattr(torch, dtype))
    path = tmp_path / "one.safetensors"
    save_file({"a": tensor, "zero_d": tensor[0, 0].clone(), "none": tensor[:0].clone()}, path)
    refs = {ref.name: ref for ref in ns.open(path).tensors}
    assert refs["a"].dtype == dtype
    assert torch.equal(refs["a"].load().view(torch.uint8), tensor.view(torch.uint8))
    assert refs["none"].load().shape == (0, 3) and refs["zero_d"].load().shape == ()


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_slices_read_what_indexing_gives(tmp_path_factory, data):
    tensor = torch.arange(7 * 5 * 3, dtype=torch.float32).reshape(7, 5, 3)
    path = tmp_path_factory.mktemp("slices") / "t.safetensors"
    save_file({"t": tensor}, path)
    [ref] = ns.open(path).tensors
    cut = st.one_of(
        st.integers(0, 2), st.builds(slice, st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 1, 2]))
    )
    index = tuple(data.draw(st.lists(cut, max_size=3)))
    assert torch.equal(ref.load(index), tensor[index])


def test_sharded_folder_index_and_shard(tmp_path):
    tensors = small_model()
    folder = write_sharded(tmp_path / "ckpt", tensors)
    for path in (folder, folder / "model.safetensors.index.json"):
        source = ns.open(path)
        assert {ref.name for ref in source.tensors} == set(tensors)
    assert len(ns.open(folder / "model-00001-of-00003.safetensors").tensors) < len(tensors)


def test_wrong_suffix_is_no_obstacle(tmp_path):
    assert ns.open(write_single(tmp_path / "weights.bin")).format == "safetensors"


def test_fingerprint_follows_content_not_place(tmp_path):
    one, two = write_single(tmp_path / "a.safetensors"), write_single(tmp_path / "b.safetensors")
    assert ns.open(one).fingerprint == ns.open(two).fingerprint
    changed = small_model()
    changed["conv.weight"] = changed["conv.weight"] * 1.01
    three = write_single(tmp_path / "c.safetensors", changed)
    assert ns.open(three).fingerprint != ns.open(one).fingerprint


def raw(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype="F32", shape=(1, 1), offsets=(0, 4)):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


DAMAGED = {
    "truncated": (raw(one(), b"\0\0"), "truncated"),
    "too long": (raw(one(), b"\0" * 9), "too long"),
    "header beyond the file": (raw(one(), b"\0" * 4, length=10**7), "truncated"),
    "absurd header length": (raw(one(), b"\0" * 4, length=2**62), "allowed are"),
    "broken JSON": (raw(b'{"a": {"dtype"'), "broken"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "UTF-8"),
    "not an object inside": (raw({"a": 3}), "header entry"),
    "duplicate key": (raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}', b"\0" * 4), "twice"),
    "deep JSON": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "deep"),
    "NaN in JSON": (raw(b'{"a": NaN}'), "NaN"),
    "overflowing shape": (raw(one(shape=(2**40, 2**40)), b"\0" * 4), "numbers"),
    "negative size": (raw(one(shape=(-1, 4)), b"\0" * 4), "size"),
    "bool as size": (raw(one(shape=(True, 1)), b"\0" * 4), "size"),
    "huge integer": (raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'), "broken"),
    "size and bytes disagree": (raw(one(shape=(2, 2)), b"\0" * 4), "bytes"),
    "reversed offsets": (raw(one(offsets=(4, 0)), b"\0" * 4), "bytes"),
    "overlap": (raw({**one(), "b": one()["a"]}, b"\0" * 4), "overlap"),
    "hole": (raw(one(offsets=(4, 8)), b"\0" * 8), "overlap or hole"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}, **one()}, b"\0" * 4), "__metadata__"),
    "too many axes": (raw(one(shape=(1,) * 20), b"\0" * 4), "shape"),
    "surrogate in a name": (raw(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4), "Unicode"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_in_one_line(tmp_path, name):
    content, expected = DAMAGED[name]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ns.InputRefused) as refusal:
        ns.open(path)
    text = str(refusal.value)
    assert expected in text and "bad.safetensors" in text and "\n" not in text and len(text) < 600


@given(st.binary(max_size=200), st.binary(max_size=40))
@settings(max_examples=150, deadline=None)
def test_random_headers_never_crash(tmp_path_factory, header, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(raw(b"{" + header, data))
    try:
        for ref in ns.open(path).tensors:
            ref.load()
    except ns.InputRefused:
        pass


@pytest.mark.parametrize(
    "content,expected",
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"PK\x03\x04....", "zip"),
        (b"\x80\x02pickle", "pickle"),
        (b"plain text, not weights", "no known format"),
    ],
)
def test_other_files_are_recognised(tmp_path, content, expected):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ns.InputRefused, match=expected):
        ns.open(path)


def test_indices_that_lie(tmp_path):
    def index(weight_map):
        folder = write_sharded(tmp_path / f"c{len(list(tmp_path.iterdir()))}")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return folder

    first = "model-00001-of-00003.safetensors"
    for weight_map, expected in [
        ({"a": "../secret.safetensors"}, "plain file names"),
        ({"a": "/etc/passwd"}, "plain file names"),
        ({"a": "missing.safetensors"}, "missing"),
        ({"not there": first}, "does not hold"),
        ({"a": 7}, "plain file names"),
        ({}, "weight_map"),
    ]:
        with pytest.raises(ns.InputRefused, match=expected):
            ns.open(index(weight_map))


def test_links_out_of_the_folder_are_refused_but_the_hub_cache_is_not(tmp_path):
    outside = write_single(tmp_path / "outside.safetensors")
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / "model-1.safetensors").symlink_to(outside)
    weight_map = dict.fromkeys(small_model(), "model-1.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ns.InputRefused, match="link"):
        ns.open(folder)

    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "rev"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    os.replace(outside, blobs / "abc")
    (snapshot / "model-1.safetensors").symlink_to(blobs / "abc")
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert len(ns.open(snapshot).tensors) == len(weight_map)


def test_special_files_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ns.InputRefused, match="regular"):
            ns.open(path)


def test_folder_with_several_checkpoints_asks_which(tmp_path):
    write_single(tmp_path / "a.safetensors")
    write_single(tmp_path / "b.safetensors")
    with pytest.raises(ns.InputRefused, match="several"):
        ns.open(tmp_path)


def test_listing_a_sparse_giant_reads_its_header_only(tmp_path):
    rows = 25_000_000
    header = {"a": {"dtype": "F32", "shape": [rows, 1000], "data_offsets": [0, rows * 4000]}}
    path = tmp_path / "giant.safetensors"
    path.write_bytes(raw(header))
    os.truncate(path, path.stat().st_size + rows * 4000)
    source = ns.open(path)
    assert source.tensors[0].shape == (rows, 1000)
    assert source.tensors[0].load((slice(rows - 2, rows),)).shape == (2, 1000)


def test_a_file_cut_while_read_becomes_a_row_with_a_reason(tmp_path):
    source = ns.open(write_single(tmp_path / "m.safetensors"))
    last = source.tensors[-1].load
    os.truncate(tmp_path / "m.safetensors", last.offset)
    with pytest.raises(ns.InputRefused, match="bytes early"):
        last()
    assert GUARD.header_bytes >= 10**8
