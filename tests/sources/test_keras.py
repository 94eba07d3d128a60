"""The Keras reader: arrays as h5py reads them, kernels that act as Keras computes, links and lies refused."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from tests.sources.hostile import cut, flipped, refused, survives

h5py = pytest.importorskip("h5py", reason="needs h5py, as an oracle")


def saved(path, arrays, base=None, **options):
    with h5py.File(path, "w", **options) as file:
        for name, array in arrays.items():
            file[name] = array
        for key, value in (base or {}).items():
            file.attrs[key] = value
    return path


def refs(path):
    return {ref.name: ref for ref in ns.open(path).tensors}


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
def test_every_dtype_order_and_layout(tmp_path, dtype, order, libver):
    array = (np.arange(6).reshape(2, 3) % 2).astype(np.dtype(dtype).newbyteorder(order))
    path = saved(tmp_path / "a", {"g/x": array, "one": array[0, 0], "none": array[:0]}, libver=libver)
    found = refs(path)
    assert found["g/x"].shape == (2, 3) and found["none"].shape == (0, 3)
    for name, want in (("g/x", array), ("one", array[0, 0]), ("none", array[:0])):
        got = pickle.loads(pickle.dumps(found[name].load))()
        assert np.array_equal(got.numpy(), want) and str(got.dtype) == f"torch.{found[name].dtype}"


def test_many_members_and_deep_groups(tmp_path):
    arrays = {f"g{i % 7}/h/x{i}": np.full((2, 2), i, np.float32) for i in range(400)}
    found = refs(saved(tmp_path / "a.h5", arrays))
    assert set(found) == set(arrays)
    assert all(np.array_equal(found[name].load().numpy(), arrays[name]) for name in arrays)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["kernel", "x"])
def test_slices_read_what_indexing_gives(tmp_path_factory, data, name):
    path = tmp_path_factory.getbasetemp() / f"slices-{name}.h5"
    if not path.exists():
        saved(path, {name: np.arange(7 * 5 * 3, dtype=">f4").reshape(7, 5, 3)})
    ref = refs(path)[name]
    cuts = st.builds(slice, st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 1, 2]))
    index = tuple(data.draw(st.lists(st.one_of(st.integers(-3, 2), cuts), max_size=3)))
    assert torch.equal(ref.load(index), ref.load()[index])


def test_what_is_not_read_becomes_a_reason(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("packed", data=np.ones((8, 8)), chunks=(4, 4), compression="gzip")
        file.create_dataset("unwritten", (4, 4), "f4")
        file.create_dataset("outer", (4, 4), "f4", external=[("/etc/passwd", 0, 64)])
        file["texts"] = np.array([["a", "b"]], dtype=h5py.string_dtype())
        file["records"] = np.zeros((2, 2), [("a", "f4")])
        file["fixed"] = np.array([b"ab"])
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("b.h5", "x", (4,))
        file.create_virtual_dataset("view", layout)
    source = ns.open(tmp_path / "a.h5")
    reasons = {skipped.name: skipped.reason for skipped in source.skipped}
    expected = {
        "packed": "chunks", "unwritten": "never written", "outer": "another file", "texts": "lists",
        "records": "records", "fixed": "texts", "view": "old layout",
    }  # fmt: skip
    assert not source.weights and set(reasons) == set(expected)
    assert all(word in reasons[name] or name == "view" for name, word in expected.items()), reasons


def test_links_are_not_followed(tmp_path):
    for link in (h5py.SoftLink("/x"), h5py.ExternalLink("/etc/passwd", "/x")):
        for libver in ("earliest", "v110"):
            path = saved(tmp_path / "m.h5", {"x": np.eye(2)}, libver=libver)
            with h5py.File(path, "a", libver=libver) as file:
                file["g/link"] = link
            refused(path, path.read_bytes(), "not followed")
    with h5py.File(path, "w") as file:
        file["a/x"] = np.eye(2)
        file["a/again"] = file["a"]
    refused(path, path.read_bytes(), "two places")


def test_newest_groups_are_named(tmp_path):
    path = saved(tmp_path / "m.h5", {f"x{i}": np.eye(2) for i in range(20)}, libver="latest")
    refused(path, path.read_bytes(), "libver='latest'")


def test_layouts_that_names_tell(tmp_path):
    chance = np.random.default_rng(0)
    shapes = {
        "dense/dense/kernel:0": (5, 3), "emb/emb/embeddings:0": (9, 4), "conv/conv/kernel:0": (3, 2, 4, 6),
        "lstm/lstm/lstm_cell/kernel:0": (5, 8), "gru/gru_cell/recurrent_kernel:0": (4, 12),
        "gru/gru_cell/bias:0": (2, 12), "mha/query/kernel:0": (6, 2, 3), "optimizer_weights/Adam/m:0": (5, 3),
    }  # fmt: skip
    arrays = {name: chance.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    source = ns.open(saved(tmp_path / "m.h5", arrays))
    found = {w.name: w for w in source}
    assert np.array_equal(found["dense/dense/kernel:0"].operator().dense().numpy(), arrays["dense/dense/kernel:0"].T)
    assert found["emb/emb/embeddings:0"].kind == "embedding"
    assert found["conv/conv/kernel:0"].part.ref.shape == (6, 4, 3, 2)
    gates = [found[f"lstm/lstm/lstm_cell/kernel:0[{c}]"].operator().dense() for c in "ifgo"]
    assert np.array_equal(torch.cat(gates).T.numpy(), arrays["lstm/lstm/lstm_cell/kernel:0"])
    gates = [found[f"gru/gru_cell/recurrent_kernel:0[{c}]"].operator().dense() for c in "zrn"]
    assert np.array_equal(torch.cat(gates).T.numpy(), arrays["gru/gru_cell/recurrent_kernel:0"])
    query = found["mha/query/kernel:0"].operator().dense().numpy()
    assert np.array_equal(query.T.reshape(6, 2, 3), arrays["mha/query/kernel:0"])
    assert {s.name: s.routine for s in source.skipped} == {
        "gru/gru_cell/bias:0": True, "optimizer_weights/Adam/m:0": True,
    }  # fmt: skip


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return pytest.importorskip("keras", reason="needs keras, as an oracle")


FORMS = ["m.keras", "m.weights.h5", "m.h5"]


def written(keras, tmp_path, form, layer, shape):
    entry = keras.Input(shape)
    made = keras.Model(entry, layer(entry))
    path = tmp_path / form
    (made.save_weights if form == "m.weights.h5" else made.save)(path)
    return made, path


CONVOLUTIONS = {
    "Conv2D": ({"filters": 6, "kernel_size": (3, 2), "groups": 2, "strides": 2, "dilation_rate": 1}, (8, 9, 4)),
    "Conv1D": ({"filters": 6, "kernel_size": 3, "dilation_rate": 2}, (9, 4)),
    "Conv3D": ({"filters": 2, "kernel_size": 2}, (4, 4, 4, 3)),
    "DepthwiseConv2D": ({"kernel_size": 3, "depth_multiplier": 2}, (7, 7, 3)),
    "Conv2DTranspose": ({"filters": 6, "kernel_size": 3, "strides": 2}, (5, 5, 4)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_kernels_act_in_torch_as_in_keras(keras, tmp_path, form, name):
    options, shape = CONVOLUTIONS[name]
    layer = getattr(keras.layers, name)(use_bias=False, name="my_own_name", **options)
    made, path = written(keras, tmp_path, form, layer, shape)
    [weight] = ns.open(path)
    facts, kernel = weight.part.ref.facts, weight.part.ref.load()
    x = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    want = np.moveaxis(np.asarray(made(x).detach().cpu()), -1, 1)
    stride = options.get("strides", 1)
    if form != "m.weights.h5":
        assert facts["stride"] == (stride,) * (len(shape) - 1) and facts["transposed"] == ("Transpose" in name)
    elif options.get("groups", 1) > 1:
        return  # weights alone do not tell the groups
    function = getattr(torch.nn.functional, f"conv{'_transpose' if 'Transpose' in name else ''}{len(shape) - 1}d")
    more = {"stride": stride, "dilation": options.get("dilation_rate", 1), "groups": facts.get("groups", 1)}
    got = function(torch.from_numpy(np.moveaxis(x, -1, 1).copy()), kernel, **more)
    assert np.allclose(got.numpy(), want, atol=1e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_gates_are_those_of_torch(keras, tmp_path, form, cell):
    layer = getattr(keras.layers, cell)(4, return_sequences=True, name="own", use_bias=False)
    made, path = written(keras, tmp_path, form, layer, (3, 5))
    module = getattr(torch.nn, cell)(5, 4, batch_first=True, bias=False)
    letters = "ifgo" if cell == "LSTM" else "rzn"
    found = {w.name: w.operator().dense() for w in ns.open(path)}
    kernels = list(dict.fromkeys(name[:-3] for name in found))
    assert len(kernels) == 2 and len(found) == 2 * len(letters)
    with torch.no_grad():
        for use, name in zip(("ih", "hh"), kernels, strict=True):
            getattr(module, f"weight_{use}_l0").copy_(torch.cat([found[f"{name}[{c}]"] for c in letters]))
        x = np.random.default_rng(0).standard_normal((1, 3, 5), dtype=np.float32)
        assert np.allclose(np.asarray(made(x).cpu()), module(torch.from_numpy(x))[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_matrices_and_attention(keras, tmp_path, form):
    entry = keras.Input((3, 6))
    attended = keras.layers.MultiHeadAttention(2, 4, name="att", use_bias=False)(entry, entry)
    made = keras.Model(entry, keras.layers.Dense(5, name="head", use_bias=False)(attended))
    path = tmp_path / form
    (made.save_weights if form == "m.weights.h5" else made.save)(path)
    source = ns.open(path)
    shapes = {w.name: w.shape for w in source}
    assert sorted(shapes.values()) == [(5, 6), (6, 8), (8, 6), (8, 6), (8, 6)]
    head = next(w for w in source if w.shape == (5, 6))
    x = torch.eye(6).reshape(1, 6, 6)
    want = made.get_layer("head")(x).detach().cpu()
    assert torch.allclose(head.operator().dense(), want[0].T, atol=1e-6)


def small(libver="earliest", config=True):
    file = io.BytesIO()
    layer = {"class_name": "Conv2D", "config": {"name": "c", "groups": 1, "strides": [1, 1]}}
    base = {"model_config": json.dumps({"config": {"layers": [layer]}})} if config else None
    saved(file, {"c/kernel": np.ones((1, 1, 2, 2), "f4"), "d/kernel": np.eye(2)}, base, libver=libver)
    return file.getvalue()


def archived(method=zipfile.ZIP_STORED, name="model.weights.h5"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr("metadata.json", "{}")
        members.writestr("config.json", json.dumps({"config": {}}))
        members.writestr(name, small(config=False))
    return file.getvalue()


def test_archives_that_cannot_be_read(tmp_path):
    assert survives(tmp_path / "m.keras", archived()) == ""
    refused(tmp_path / "m.keras", archived(zipfile.ZIP_DEFLATED), "deflated")
    refused(tmp_path / "m.keras", archived(name="other.h5"), "without model.weights.h5")
    broken = archived().replace(b'{"config": {}}', b'{"config": {{}')
    refused(tmp_path / "m.keras", broken, "checksum")


CONTENTS = {"earliest": small(), "latest": small("latest"), "archive": archived()}


@pytest.mark.parametrize("kind", CONTENTS)
def test_truncations_are_refused(tmp_path, kind):
    assert survives(tmp_path / "m.h5", CONTENTS[kind]) == ""
    step = max(1, len(CONTENTS[kind]) // 1500)
    assert all(survives(tmp_path / "m.h5", content) for content in cut(CONTENTS[kind], step))


@pytest.mark.parametrize("kind", CONTENTS)
def test_bit_flips_never_crash(tmp_path, kind):
    for content in flipped(CONTENTS[kind], 1500):
        survives(tmp_path / "m.h5", content)


def test_every_byte_changed_never_crashes(tmp_path):
    """The headers of a small file, each byte set to its extremes in turn."""
    content = small(config=False)
    used = [place for place, byte in enumerate(content) if byte]
    for place in used:
        for byte in (0, 1, 255):
            survives(tmp_path / "m.h5", content[:place] + bytes([byte]) + content[place + 1 :])


def changed(content, place, value, size=8):
    return content[:place] + value.to_bytes(size, "little") + content[place + size :]


def test_headers_that_lie(tmp_path):
    path, content = tmp_path / "m.h5", small(config=False)
    refused(path, changed(content, 40, 2**40), "truncated")
    refused(path, changed(content, 64, 2**62), "truncated")
    refused(path, changed(content, 8, 9, 1), "version 9")
    refused(path, changed(content, 13, 4, 1), "32-bit")
    refused(path, changed(content, 24, 512), "block before")
    tree = content.index(b"TREE")
    refused(path, changed(content, tree + 6, 60_000, 2), "truncated or broken")
    refused(path, changed(content, tree + 32, tree), "two places")
    heap = content.index(b"HEAP")
    refused(path, changed(content, heap + 8, 2**50), "bytes of names")
