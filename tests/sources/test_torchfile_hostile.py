"""Hostile and damaged torch files: nothing in them is ever run, and each ends in one line."""

import argparse
import io
import os
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from netspectra.sources.guard import GUARD
from tests.sources.test_torchfile import refs, same, save, saved

__all__ = ["save"]  # a fixture


# ---- nothing runs --------------------------------------------------------------------------------------------------


class Payload:
    """Reduces to any call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def payloads(marker):
    code = f"open({str(marker)!r}, 'w').write('x')"
    return {
        "os.system": Payload(os.system, (f"touch {marker}",)),
        "eval": Payload(eval, (code,)),
        "exec": Payload(exec, (code,)),
        "open": Payload(open, (str(marker), "w")),
        "import": Payload(__import__, ("antigravity",)),
        "getattr": Payload(getattr, ("x", "upper")),
        "state": Payload(argparse.Namespace, (), {"a": Payload(os.system, (f"touch {marker}",))}),
        "items": Payload(list, (), None, iter([Payload(eval, (code,))])),
        "pairs": Payload(OrderedDict, (), None, None, iter([("k", Payload(eval, (code,)))])),
        "size": Payload(torch.Size, ([Payload(eval, (code,))],)),
    }


FROM_TYPE = b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n"
RAW = {
    "global": b"cos\nsystem\n(S'touch MARKER'\ntR.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0ctouch MARKER\x85R.",
    "inst": b"\x80\x02(S'touch MARKER'\nios\nsystem\n.",
    "obj": b"\x80\x02(cos\nsystem\nS'touch MARKER'\no.",
    "newobj": b"\x80\x02csubprocess\nPopen\nS'touch MARKER'\n\x85\x81.",
    "newobj_ex": b"\x80\x04csubprocess\nPopen\n)}\x92.",
    "build": b"\x80\x02cbuiltins\nobject\n)\x81}S'__setstate__'\ncos\nsystem\nsbS'touch MARKER'\nb.",
    "extension": b"\x80\x02\x82\x01)R.",
    "unknown module": b"\x80\x02cantigravity\nfly\n)R.",
    "rebuild": FROM_TYPE + b"(cos\nsystem\nctorch\nTensor\n(S'touch MARKER'\nt}tR.",
    "rebuild of rebuild": FROM_TYPE + b"q\x00(h\x00ctorch\nTensor\n(h\x00h\x00)}t}tR.",
}

WATCHED = ("import", "exec", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess", "socket",
           "pickle.find_class", "marshal", "ctypes", "os.remove", "os.mkdir", "os.rename", "shutil")  # fmt: skip
EVENTS: list[str] | None = None


def watch(event, args):
    if EVENTS is None:
        return
    writing = event == "open" and (not isinstance(args[1], str | None) or set(args[1] or "r") & set("wax+"))
    if writing or event.startswith(WATCHED):
        EVENTS.append(f"{event} {args!r:.200}")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Open and load a file while every import, execution, write and connection is recorded."""
    warm = saved(tmp_path_factory.mktemp("warm") / "w.pt", {"a": torch.eye(3)})
    sys.addaudithook(watch)

    def run(path):
        global EVENTS
        EVENTS = []
        try:
            return read_all(path), EVENTS
        finally:
            EVENTS = None

    for _ in range(2):
        run(warm)
    return run


def read_all(path):
    """Everything a file gives, or the refusal; any other exception fails the test."""
    try:
        source = ns.open(path)
    except ns.InputRefused as refusal:
        text = str(refusal)
        assert path.name in text and "\n" not in text and len(text) < 700 and text.isprintable()
        return text
    found = {}
    for ref in source.tensors:
        if ref.problem:
            continue
        try:
            found[ref.name] = ref.load()
        except ns.InputRefused as refusal:
            assert path.name in str(refusal) and "\n" not in str(refusal)
    return found


@pytest.mark.parametrize("name", payloads("x"))
def test_payloads_beside_weights_stay_inert(tmp_path, save, audited, name):
    marker = tmp_path / "marker"
    path = save(tmp_path / "evil.pt", {"state_dict": {"w": torch.eye(3)}, "evil": payloads(marker)[name]})
    found, events = audited(path)
    assert events == [] and not marker.exists() and same(found["w"], torch.eye(3))


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("container", ["raw", "zip", "legacy"])
def test_hostile_pickles_are_refused(tmp_path, audited, name, container):
    marker = tmp_path / "M"
    text = RAW[name].replace(b"\x0ctouch MARKER", bytes([6 + len(str(marker))]) + f"touch {marker}".encode())
    text = text.replace(b"MARKER", str(marker).encode())
    path = tmp_path / "evil.pt"
    if container == "raw":
        path.write_bytes(text)
    elif container == "zip":
        path.write_bytes(zipped(text))
    else:
        head = io.BytesIO()
        torch.save({}, head, _use_new_zipfile_serialization=False)
        start = head.getvalue().index(b"}q\x00.\x80\x02]")
        path.write_bytes(head.getvalue()[: start - 2] + text + b"\x80\x02]q\x00.")
    found, events = audited(path)
    assert (isinstance(found, str) or not found) and events == [] and not marker.exists()


def zipped(pickled, **records):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"m/{name.replace('_', '/')}", content)
    return held.getvalue()


# ---- bombs ---------------------------------------------------------------------------------------------------------

LIMIT = GUARD.pickle_steps + 10_000
BOMBS = {
    "deep lists": b"]" * 1_000_000 + b"a" * 999_999,
    "deep tuples": b")" + b"\x85" * 1_000_000,
    "deep tuples as keys": b"})" + b"\x85" * 500_000 + b"Ns",
    "wide shared tuples as keys": b"}N" + b"2\x86" * 60 + b"Ns",
    "stack": b"]" * LIMIT,
    "memo": b"]" + b"\x94" * LIMIT,
    "marks": b"(" * LIMIT,
    "memo place": b"Nr\xff\xff\xff\xff",
    "memo place in digits": b"Np" + b"9" * 4000 + b"\n",
    "LONG4": b"\x8b\xff\xff\xff\x7f" + b"1",
    "negative LONG4": b"\x8b\xff\xff\xff\xff" + b"1",
    "LONG in digits": b"L" + b"9" * 100_000 + b"L\n",
    "BINUNICODE": b"X\xff\xff\xff\xff" + b"a",
    "BINUNICODE8": b"\x8d" + b"\xff" * 8 + b"a",
    "BINBYTES8": b"\x8e" + b"\xff" * 7 + b"\x00" + b"a",
    "BYTEARRAY8": b"\x96" + b"\xff" * 8,
    "BINSTRING of negative length": b"T\xff\xff\xff\xff",
    "endless line": b"c" + b"a" * 100_000,
    "not UTF-8": b"X\x01\x00\x00\x00\xff",
    "unknown opcode": b"\xff",
    "NEXT_BUFFER": b"\x97",
    "protocol 77": b"\x80\x4d",
    "underflow": b"R",
    "pop of nothing": b"0",
    "append to a dict": b"}Na",
    "setitem on a list": b"]NNs",
    "odd pairs": b"(Nd",
    "itself": b"]2a",
    "a ring of dicts": b"}q\x00]q\x01h\x00ah\x00K\x01h\x01s",
    "laughs": b"]q\x00" + b"".join(b"](h\x00" + b"h\x00" * 9 + b"eq\x00" for _ in range(60)),
    "dicts that laugh": b"}q\x00" + b"".join(b"}(K\x00h\x00K\x01h\x00K\x02h\x00uq\x00" for _ in range(40)),
    "repeated OrderedDict": b"(" + b"NN\x86" * 1000 + b"lq\x00" + b"ccollections\nOrderedDict\nq\x01"
    + b"h\x01h\x00\x85R" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_seconds(tmp_path, name):
    path = tmp_path / "bomb.pt"
    path.write_bytes(zipped(b"\x80\x02" + BOMBS[name] + b"."))
    assert isinstance(read_all(path), str)


def view(shape=(2, 3), stride=(3, 1), offset=0, count=6, storage="FloatStorage", key="0"):
    """A pickle of one tensor over one storage, as torch.save writes it, with any numbers."""
    numbers = [pickle.dumps(value, 2)[2:-1] for value in (offset, tuple(shape), tuple(stride))]
    tensor = b"".join(numbers).replace(b"q\x00", b"").replace(b"q\x01", b"")
    pid = b"(X\x07\x00\x00\x00storagectorch\n" + storage.encode() + b"\nX\x01\x00\x00\x00" + key.encode()
    pid += b"X\x03\x00\x00\x00cpu" + pickle.dumps(count, 2)[2:-1] + b"tQ"
    return b"\x80\x02}X\x01\x00\x00\x00w" + b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + tensor + b"\x89)tRs."


def test_the_hand_made_pickle_is_right(tmp_path):
    path = tmp_path / "v.pt"
    path.write_bytes(zipped(view(), data_0=bytes(torch.arange(6.0).numpy())))
    assert same(read_all(path)["w"], torch.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "pickled,records,expected",
    [
        (view(count=6), {"data_0": b"\0" * 20}, "has 20 bytes"),
        (view(count=6), {}, "no such record"),
        (view(shape=(3, 3)), {"data_0": b"\0" * 24}, "reaches"),
        (view(offset=1), {"data_0": b"\0" * 24}, "reaches"),
        (view(stride=(2**40, 1)), {"data_0": b"\0" * 24}, "reaches"),
        (view(offset=-1), {"data_0": b"\0" * 24}, "offset"),
        (view(stride=(-3, 1)), {"data_0": b"\0" * 24}, "shape or stride"),
        (view(stride=(3,)), {"data_0": b"\0" * 24}, "different length"),
        (view(shape=(2.0, 3)), {"data_0": b"\0" * 24}, "shape or stride"),
        (view(shape=(2**60, 2**60), stride=(0, 0)), {"data_0": b"\0" * 24}, "shape or stride"),
        (view(shape=(2**40, 2**40), stride=(0, 0)), {"data_0": b"\0" * 24}, "numbers"),
        (view(shape=(1,) * 20, stride=(1,) * 20), {"data_0": b"\0" * 24}, "shape or stride"),
        (view(count=-1), {"data_0": b"\0" * 24}, "unknown way"),
        (view(key="/"), {"data_0": b"\0" * 24}, "no such record"),
    ],
)
def test_views_that_lie_are_refused(tmp_path, pickled, records, expected):
    path = tmp_path / "v.pt"
    path.write_bytes(zipped(pickled, **records))
    with pytest.raises(ns.InputRefused, match=expected):
        ns.open(path)


def test_four_tebibytes_of_stride_zero_are_a_row_with_a_reason(tmp_path):
    path = tmp_path / "v.pt"
    path.write_bytes(zipped(view(shape=(2**20, 2**20), stride=(0, 0), count=1), data_0=b"\0" * 4))
    [ref] = ns.open(path).tensors
    assert "stride 0" in ref.problem
    path.write_bytes(zipped(view(storage="StrangeStorage"), data_0=b"\0" * 24))
    assert "Strange" in ns.open(path).tensors[0].problem


# ---- damaged containers --------------------------------------------------------------------------------------------


def small(path, **options):
    return saved(path, {"w": torch.arange(6.0).reshape(2, 3), "n": 1}, **options)


@pytest.mark.parametrize("new", [True, False])
def test_truncated_at_every_byte(tmp_path, new):
    whole = small(tmp_path / "w.pt", _use_new_zipfile_serialization=new).read_bytes()
    path = tmp_path / "cut.pt"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert isinstance(read_all(path), str), end


@given(place=st.floats(0, 1), bit=st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_flipped_bits_in_a_zip_are_seen_or_harmless(tmp_path_factory, place, bit):
    base = tmp_path_factory.getbasetemp()
    whole = bytearray(small(base / "flip0.pt").read_bytes())
    whole[int(place * (len(whole) - 1))] ^= 1 << bit
    path = base / "flip.pt"
    path.write_bytes(whole)
    found = read_all(path)
    if not isinstance(found, str):
        assert found.keys() <= {"w"} and all(same(t, torch.arange(6.0).reshape(2, 3)) for t in found.values())


@given(places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4))
@settings(max_examples=300, deadline=None)
def test_changed_bytes_in_a_legacy_file_never_crash(tmp_path_factory, places):
    base = tmp_path_factory.getbasetemp()
    whole = bytearray(small(base / "flip1.pt", _use_new_zipfile_serialization=False).read_bytes())
    for place, byte in places:
        whole[int(place * (len(whole) - 1))] = byte
    path = base / "flip.pt"
    path.write_bytes(whole)
    read_all(path)


@given(st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_random_pickles_never_crash(tmp_path_factory, pickled):
    path = tmp_path_factory.getbasetemp() / "random.pt"
    path.write_bytes(zipped(b"\x80\x02" + pickled + b"."))
    read_all(path)


OPCODES = [bytes([code]) for code in b"()]}\x85\x86\x87tlduseabRQ20N\x88"]
OPCODES += [b"h\x00", b"q\x00", b"K\x01", b"X\x07\x00\x00\x00storage", b"ccollections\nOrderedDict\n"]
OPCODES += [f"ctorch\n{name}\n".encode() for name in ("Size", "float32", "FloatStorage")]
OPCODES += [
    f"ctorch._utils\n_rebuild_{name}\n".encode()
    for name in ("tensor", "tensor_v2", "tensor_v3", "parameter", "sparse_tensor", "qtensor", "wrapper_subclass", "new")
]


@given(st.lists(st.sampled_from(OPCODES), max_size=60))
@settings(max_examples=500, deadline=None)
def test_random_programs_never_crash(tmp_path_factory, opcodes):
    path = tmp_path_factory.getbasetemp() / "random.pt"
    path.write_bytes(zipped(b"\x80\x02" + b"".join(opcodes) + b"."))
    read_all(path)


def test_archives_that_lie(tmp_path):
    pickled, data = view(), bytes(24)
    path = tmp_path / "a.pt"

    def refused(content, expected):
        path.write_bytes(content)
        with pytest.raises(ns.InputRefused, match=expected):
            ns.open(path)

    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name, content in (("m/data.pkl", pickled), ("m/data/0", data), ("m/data/0", data)):
            archive.writestr(name, content)
    refused(held.getvalue(), "two records")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/data/0", b"\0" * 24, zipfile.ZIP_DEFLATED)
    refused(held.getvalue(), "packed")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", view() + b"\0" * 10_000_000)
    refused(held.getvalue(), "packed")
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("n/data.pkl", pickled)
    refused(held.getvalue(), "2 data.pkl")
    whole = zipped(pickled, data_0=data)
    refused(b"junk" + whole, "begins with b'junk")
    refused(whole + b"junk", "directory")
    encrypted = bytearray(whole)
    encrypted[whole.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(encrypted), "encrypted")
    counted = bytearray(whole)
    counted[-14:-10] = b"\xff\xff\xff\xff"
    refused(bytes(counted), "directory|records")
    refused(whole.replace(pickled, pickled.replace(b"_v2", b"_v1")), "checksum")


def test_data_that_does_not_match_its_checksum(tmp_path):
    whole = small(tmp_path / "w.pt").read_bytes()
    path = tmp_path / "bad.pt"
    path.write_bytes(whole.replace(bytes(torch.arange(6.0).numpy()), bytes(torch.arange(1.0, 7.0).numpy())))
    [ref] = ns.open(path).tensors
    with pytest.raises(ns.InputRefused, match="checksum"):
        ref.load()


def test_big_endian_files_are_listed_not_misread(tmp_path):
    path = tmp_path / "big.pt"
    path.write_bytes(zipped(view(), byteorder=b"big", data_0=bytes(24)))
    assert "big-endian" in ns.open(path).tensors[0].problem
    path.write_bytes(zipped(view(), byteorder=b"huh", data_0=bytes(24)))
    with pytest.raises(ns.InputRefused, match="byteorder"):
        ns.open(path)


def test_legacy_streams_that_lie(tmp_path):
    whole = small(tmp_path / "w.pt", _use_new_zipfile_serialization=False).read_bytes()
    path = tmp_path / "bad.pt"
    for content, expected in [
        (whole + b"more", "after the last storage"),
        (whole[:-32] + b"\xff" * 8 + whole[-24:], "truncated"),
        (whole.replace(b"M\xe9\x03.", b"M\xe8\x03."), "protocol number"),
        (whole.replace(b"little_endian", b"middle_endian"), "order of its bytes"),
        (pickle.dumps({"w": [1, 2]}), "none of torch.save"),
        (pickle.dumps({"w": torch.eye(2)}), "none of torch.save"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ns.InputRefused, match=expected):
            ns.open(path)
    path.write_bytes(whole.replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"))
    assert "big-endian" in ns.open(path).tensors[0].problem


def test_the_oldest_files_are_tar_files(tmp_path):
    path = tmp_path / "old.pt"
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    with pytest.raises(ns.InputRefused, match=r"tar file.*save it again"):
        ns.open(path)


def test_a_file_cut_while_read(tmp_path):
    [ref] = ns.open(small(tmp_path / "w.pt")).tensors
    os.truncate(tmp_path / "w.pt", ref.load.base + 3)
    with pytest.raises(ns.InputRefused, match="bytes early"):
        ref.load()


def test_odd_names_and_too_many_of_them(tmp_path):
    odd = {"": torch.eye(2), "\x1b[31m": torch.eye(2), "../x": torch.eye(2), "<script>": torch.eye(2), 7: torch.eye(2)}
    assert list(refs(saved(tmp_path / "odd.pt", odd))) == ["", "\x1b[31m", "../x", "<script>", "7"]
    for held, expected in [
        ({"\ud800": torch.eye(2)}, "Unicode"),
        ({"x" * 70_000: torch.eye(2)}, "bytes"),
        ({7: torch.eye(2), "a": {"b": torch.eye(2)}, "a.b": torch.eye(2)}, "two tensors"),
    ]:
        with pytest.raises(ns.InputRefused, match=expected):
            ns.open(saved(tmp_path / "bad.pt", held))


def test_listing_a_sparse_giant_reads_its_pickle_only(tmp_path):
    rows = 25_000_000
    whole = small(tmp_path / "s.pt", _use_new_zipfile_serialization=False).read_bytes()
    long = whole.replace(b"K\x06N", b"\x8a\x05" + (rows * 1000).to_bytes(5, "little") + b"N")
    long = long.replace(b"K\x02K\x03\x86", b"J" + rows.to_bytes(4, "little") + b"M\xe8\x03\x86")
    long = long.replace(b"K\x03K\x01\x86", b"M\xe8\x03K\x01\x86")[:-32] + (rows * 1000).to_bytes(8, "little")
    path = tmp_path / "giant.pt"
    path.write_bytes(long)
    os.truncate(path, len(long) + rows * 4000)
    [ref] = ns.open(path).tensors
    assert ref.shape == (rows, 1000) and ref.load((slice(rows - 2, rows),)).shape == (2, 1000)
