"""The .npy and .npz reader: bit for bit what NumPy reads, and nothing that only a pickle or a bomb could give."""

import importlib.util
import io
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from tests.sources.hostile import cut, flipped, refused, survives

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8", "c16", "?"]


def bytes_of(array, **options):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), **options)
    return file.getvalue()


def raw(header, data=b"", version=(1, 0), length=None):
    text = header.encode("latin-1")
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", size) + text + data


def head(shape="(1, 1)", descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def archive(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("layout", "CF")
def test_every_dtype_order_and_layout(tmp_path, dtype, order, layout):
    array = np.asarray(np.random.default_rng(0).integers(0, 2, (3, 4, 2)) * 1.5).astype(dtype)
    array = array.astype(array.dtype.newbyteorder(order), order=layout)
    path = tmp_path / "weights.data"
    path.write_bytes(bytes_of(array))
    [ref] = ns.open(path).tensors
    got = ref.load()
    assert ref.name == "weights" and ref.shape == (3, 4, 2) and str(got.dtype) == f"torch.{ref.dtype}"
    assert np.array_equal(got.numpy(), array)
    assert np.array_equal(pickle.loads(pickle.dumps(ref.load))((1, slice(1, 3))).numpy(), array[1, 1:3])


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_and_empty_shapes(tmp_path, version):
    for array in (np.float32(3), np.zeros((0, 3)), np.zeros((3, 0), order="F"), np.ones(2)):
        path = tmp_path / "a.npy"
        path.write_bytes(bytes_of(array, version=version))
        [ref] = ns.open(path).tensors
        assert np.array_equal(ref.load().numpy(), array) and ref.shape == np.shape(array)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_give_what_numpy_gives(tmp_path, save):
    chance = np.random.default_rng(0)
    arrays = {
        "layer.0.weight": chance.standard_normal((300, 500), dtype=np.float32),
        "turned": np.asfortranarray(chance.standard_normal((6, 5))),
        "zeros": np.zeros((2000, 2000)),
        "one": np.float16(2),
        "a/b": chance.integers(0, 9, (2, 3)),
    }
    save(tmp_path / "m.npz", **arrays)
    source = ns.open(tmp_path / "m.npz")
    assert source.format == "numpy" and [ref.name for ref in source.tensors] == list(arrays)
    for ref in source.tensors:
        assert np.array_equal(ref.load().numpy(), arrays[ref.name]), ref.name
    assert [w.name for w in source] == ["layer.0.weight", "turned", "zeros"]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["npy", "fortran", "stored", "deflated"])
def test_slices_read_what_indexing_gives(tmp_path_factory, data, kind):
    array = np.arange(7 * 5 * 3, dtype=">f4").reshape(7, 5, 3)
    path = tmp_path_factory.getbasetemp() / f"slices-{kind}"
    if kind in ("npy", "fortran"):
        path.write_bytes(bytes_of(np.asfortranarray(array) if kind == "fortran" else array))
    else:
        archive(path, [("a.npy", bytes_of(array))], zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)
    [ref] = ns.open(path).tensors
    cuts = st.builds(slice, st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 1, 2]))
    index = tuple(data.draw(st.lists(st.one_of(st.integers(-3, 2), cuts), max_size=3)))
    assert torch.equal(ref.load(index), torch.from_numpy(array.astype("<f4"))[index])


@pytest.mark.parametrize(
    "descr,reason",
    [
        ("'|O'", "objects"), ("'<U4'", "texts"), ("'|S4'", "texts"), ("'|V2'", "raw bytes"), ("'<M8[s]'", "dates"),
        ("[('a', '<f4'), ('b', '<i4', (2,))]", "records"), ("'<f16'", "cannot hold"), ("'nonsense'", "unknown"),
    ],
)  # fmt: skip
def test_what_is_no_number_becomes_a_reason(tmp_path, descr, reason):
    path = tmp_path / "a.npy"
    path.write_bytes(raw(head(descr=descr), b"\x80\x04."))
    source = ns.open(path)
    assert not source.weights and reason in source.skipped[0].reason and not source.skipped[0].routine


def test_objects_are_never_unpickled(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, ok=np.eye(2), bad=np.array([{"a": 1}, None], dtype=object))
    source = ns.open(path)
    assert [w.name for w in source] == ["ok"] and "objects" in source.skipped[0].reason


def test_members_that_are_no_arrays_are_listed(tmp_path):
    path = archive(tmp_path / "a.npz", [("a.npy", bytes_of(np.eye(2))), ("notes.txt", b"hello")])
    assert [(s.name, s.reason) for s in ns.open(path).skipped] == [("notes.txt", "not an array (.npy)")]


DAMAGED = {
    "no header": (b"\x93NUMPY\1\0", "truncated"),
    "version": (raw(head(), version=(9, 0)), "version 9.0"),
    "absurd header": (raw(head(), version=(2, 0), length=2**31), "allowed"),
    "header beyond the file": (raw(head(), length=60_000), "truncated"),
    "data cut": (raw(head(), b"\0" * 3), "truncated"),
    "more data": (raw(head(), b"\0" * 9), "more than one"),
    "code as header": (raw("__import__('os').system('true')" + " " * 20), "broken header"),
    "call in the header": (raw("{'descr': open('x'), 'fortran_order': False, 'shape': (1,)}"), "broken header"),
    "deep header": (raw("(" * 30_000), "broken header"),
    "missing key": (raw("{'descr': '<f4', 'shape': (1,), }", b"\0" * 4), "broken header"),
    "unknown key": (raw("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}"), "broken header"),
    "key twice": (raw("{'shape': (1,), 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}"), "twice"),
    "wrong value": (raw("{'descr': True, 'fortran_order': False, 'shape': (1,)}"), "broken header"),
    "negative size": (raw(head("(-1, 2)")), "broken header"),
    "huge number": (raw(head(f"({'9' * 5000},)")), "broken header"),
    "empty size": (raw(head("(1,,2)")), "broken header"),
    "overflowing shape": (raw(head(f"({2**40}, {2**40})")), "numbers"),
    "too many axes": (raw(head("(1," * 1 + "1," * 40 + ")"), b"\0" * 4), "shape"),
    "not UTF-8": (raw("{'\xff': 1}", version=(3, 0)), "UTF-8"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_refused_in_one_line(tmp_path, name):
    refused(tmp_path / "bad.npy", *DAMAGED[name])
    packed = archive(tmp_path / "m.npz", [("ok.npy", bytes_of(np.eye(2))), ("bad.npy", DAMAGED[name][0])])
    refused(tmp_path / "bad.npz", packed.read_bytes(), DAMAGED[name][1])


def test_keys_in_any_order(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(raw("""{"shape":(2L,),"fortran_order":False,"descr":"<f4"}""", b"\0" * 8))
    assert ns.open(path).tensors[0].shape == (2,)


def test_bombs_are_refused_before_they_are_inflated(tmp_path):
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = raw(head(f"({2**17}, {2**9})"))
    packed = packer.compress(content) + b"".join(packer.compress(bytes(2**20)) for _ in range(256)) + packer.flush()
    refused(tmp_path / "bomb.npz", patched(packed, len(content) + 2**28), "bomb")
    said = survives(tmp_path / "bomb.npz", patched(packed, len(content)))
    assert "more than" in said


def patched(packed, size, method=8, crc=0):
    """A zip archive by hand, of one member that claims ``size``."""
    name = b"a.npy"
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, method, 0, 0, crc, len(packed), size, len(name), 0) + name
    table = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, method, 0, 0, crc, len(packed), size, len(name),
                        0, 0, 0, 0, 0, 0) + name  # fmt: skip
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(table), len(local) + len(packed), 0)
    return local + packed + table + end


def test_members_that_lie_about_themselves(tmp_path):
    content = bytes_of(np.eye(2))
    packed = zlib.compress(content, wbits=-15)
    path, crc = tmp_path / "m.npz", zlib.crc32(content)
    assert survives(path, patched(packed, len(content), crc=crc)) == ""
    refused(path, patched(packed, len(content), crc=crc ^ 1), "checksum")
    refused(path, patched(packed, len(content) - 1, crc=crc), "more than")
    refused(path, patched(packed, len(content) + 1, crc=crc), "ends after")
    refused(path, patched(packed[:-4], len(content), crc=crc), "ends after")
    refused(path, patched(b"\xff" * 9, len(content), crc=crc), "inflated")
    refused(path, patched(content, len(content) + 1, method=0, crc=crc), "stored in")
    refused(path, patched(packed, len(content), method=12), "method 12")


def test_checksums_of_large_members_are_checked_when_read(tmp_path):
    np.savez(tmp_path / "m.npz", a=np.zeros((600, 600)))
    content = bytearray((tmp_path / "m.npz").read_bytes())
    content[-5000] ^= 1
    (tmp_path / "m.npz").write_bytes(content)
    [ref] = ns.open(tmp_path / "m.npz").tensors
    with pytest.raises(ns.InputRefused, match="checksum"):
        ref.load()


def test_archives_that_lie(tmp_path):
    path = tmp_path / "m.npz"
    content = archive(path, [("a.npy", bytes_of(np.eye(2))), ("b.npy", bytes_of(np.eye(2)))]).read_bytes()
    refused(path, content.replace(b"b.npy", b"a.npy"), "two records of this name")
    refused(path, content + b"behind", "zip directory")
    refused(path, b"PK\3\4" + content[4:-30], "zip directory")
    place = content.rindex(b"PK\1\2")
    refused(path, content[: place + 42] + bytes(4) + content[place + 46 :], "overlap")
    refused(path, content[: place + 8] + b"\1" + content[place + 9 :], "encrypted")
    end = content.rindex(b"PK\5\6")
    refused(path, content[: end + 12] + struct.pack("<L", 2**31) + content[end + 16 :], "allowed are")
    refused(path, content[: end + 10] + struct.pack("<H", 60_000) + content[end + 12 :], "one part of an archive")


def test_overlapping_members_are_refused(tmp_path):
    """Two names for one run of bytes, each with a header of its own inside the other's bytes."""
    inner = patched(bytes_of(np.eye(2)), len(bytes_of(np.eye(2))), 0, zlib.crc32(bytes_of(np.eye(2))))
    name = b"x.npy"
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, len(inner), len(inner), len(name), 0) + name
    table = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, size, size, len(n), 0, 0, 0, 0, 0, place) + n
        for n, place, size in [(name, 0, len(inner)), (b"a.npy", len(local), len(bytes_of(np.eye(2))))]
    )
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(table), len(local) + len(inner), 0)
    refused(tmp_path / "m.npz", local + inner + table + end, "overlap")


def small(method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as members:
        members.writestr("a.npy", bytes_of(np.eye(2)))
        members.writestr("b.npy", bytes_of(np.asfortranarray(np.ones((2, 3), ">f4"))))
    return file.getvalue()


CONTENTS = {"npy": bytes_of(np.eye(2)), "stored": small(zipfile.ZIP_STORED), "deflated": small()}


@pytest.mark.parametrize("kind", CONTENTS)
def test_every_truncation_is_refused(tmp_path, kind):
    assert survives(tmp_path / "m", CONTENTS[kind]) == ""
    assert all(survives(tmp_path / "m", content) for content in cut(CONTENTS[kind]))


@pytest.mark.parametrize("kind", CONTENTS)
def test_bit_flips_never_crash(tmp_path, kind):
    for content in flipped(CONTENTS[kind], 500):
        survives(tmp_path / "m", content)


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_random_headers_never_crash(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.npy"
    survives(path, raw("{" + data.decode("latin-1"), data))
    survives(path, raw("{'descr': '" + data.decode("latin-1") + "', 'fortran_order': False, 'shape': (2,)}", data))


def test_zip64_archives(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w") as file, file.open("a.npy", "w", force_zip64=True) as member:
        member.write(bytes_of(np.eye(3)))
    content = path.read_bytes()
    assert torch.equal(ns.open(path).tensors[0].load(), torch.eye(3, dtype=torch.float64))
    end = content.rindex(b"PK\5\6")
    count, length, start = struct.unpack_from("<H2L", content, end + 10)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    place = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 2**32 - 1, 2**32 - 1, 0)
    assert survives(path, content[:end] + record + place + last) == ""
    refused(path, content[:end] + record[:-8] + place + last, "zip64")


def test_a_real_archive_of_gru_weights():
    found = importlib.util.find_spec("g2p_en")
    if found is None or not found.submodule_search_locations:
        pytest.skip("g2p-en (a GRU in an .npz archive) is not installed")
    path = f"{found.submodule_search_locations[0]}/checkpoint20.npz"
    source = ns.open(path)
    with np.load(path) as arrays:
        assert all(np.array_equal(ref.load().numpy(), arrays[ref.name]) for ref in source.tensors)
    kinds = {w.name: w.kind for w in source}
    assert kinds["enc_emb"] == "embedding" and kinds["fc_w"] == "linear"
    assert [name for name in kinds if name.startswith("enc_w_ih")] == [f"enc_w_ih[{c}]" for c in "rzn"]
    assert len(kinds) == 3 + 4 * 3
