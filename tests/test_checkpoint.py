"""Writing: the library reads what we write; folders are whole or absent; nothing foreign is touched."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import netspectra as ns
from netspectra import checkpoint
from netspectra.checkpoint import DTYPES, MANIFEST, new_folder, write_safetensors, write_shards
from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.weight import InMemory, TensorRef

KINDS = [getattr(torch, name) for name in DTYPES.values() if "complex128" not in name]


def ref(name, tensor):
    return TensorRef(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), InMemory(tensor))


def random(dtype, shape, seed):
    raw = torch.randint(0, 255, (int(torch.tensor(shape).prod()) * dtype.itemsize if shape else dtype.itemsize,),
                        generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)  # fmt: skip
    if dtype == torch.bool:
        raw = raw % 2
    return raw.view(dtype).reshape(shape)


def raw(tensor):
    return tensor.reshape(-1).view(torch.uint8)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 5), max_size=3)), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_the_library_reads_every_dtype_bit_for_bit(tmp_path_factory, kinds, seed):
    tensors = {f"t{i}": random(dtype, shape, seed + i) for i, (dtype, shape) in enumerate(kinds)}
    path = tmp_path_factory.mktemp("w") / "a.safetensors"
    write_safetensors(path, [ref(name, tensor) for name, tensor in tensors.items()])
    for name, found in load_file(path).items():
        assert found.dtype == tensors[name].dtype and found.shape == tensors[name].shape
        assert not found.numel() or torch.equal(raw(found), raw(tensors[name]))
    assert {r.name for r in ns.open(path).tensors} == set(tensors)


def test_large_tensors_go_a_few_rows_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PIECE", 100)
    tensor, asked = torch.randn(50, 7), []

    def load(index=()):
        asked.append(index)
        return tensor[index]

    write_safetensors(tmp_path / "a", [TensorRef("a", (50, 7), "float32", load)])
    assert torch.equal(load_file(tmp_path / "a")["a"], tensor)
    assert len(asked) == 17 and () not in asked


def test_views_that_are_not_contiguous_are_written_as_they_are(tmp_path):
    tensor = torch.randn(6, 8)
    write_safetensors(tmp_path / "a", [ref("a", tensor.T), ref("b", tensor[::2])])
    found = load_file(tmp_path / "a")
    assert torch.equal(found["a"], tensor.T) and torch.equal(found["b"], tensor[::2])


def test_shards_and_their_index_open(tmp_path):
    tensors = {f"layer.{i}.weight": torch.randn(10, 10) for i in range(5)}
    files = write_shards(tmp_path, [ref(name, t) for name, t in tensors.items()], largest=900)
    assert sorted(files) == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    found = {r.name: r.load() for r in ns.open(tmp_path).tensors}
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_two_of_one_name_and_lying_loaders_are_refused(tmp_path):
    with pytest.raises(InputRefused, match="two tensors"):
        write_safetensors(tmp_path / "a", [ref("a", torch.ones(1)), ref("a", torch.ones(1))])
    with pytest.raises(InputRefused, match="was expected"):
        write_safetensors(tmp_path / "a", [TensorRef("a", (2,), "float32", InMemory(torch.ones(3)))])


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_our_folder_is_replaced_when_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(ValueError), new_folder(out) as folder:
        (folder / "two").write_text("2")
        raise ValueError
    assert sorted(p.name for p in out.iterdir()) == [MANIFEST, "one"]
    with new_folder(out) as folder:
        (folder / "two").write_text("2")
    assert sorted(p.name for p in out.iterdir()) == [MANIFEST, "two"]
    assert json.loads((out / MANIFEST).read_text())["files"] == [MANIFEST, "two"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("kind", ["file", "foreign", "ours with a stranger", "link"])
def test_what_is_not_ours_is_left_alone(tmp_path, kind):
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "link":
        (tmp_path / "there").mkdir()
        out.symlink_to(tmp_path / "there")
    else:
        if kind != "foreign":
            with new_folder(out):
                pass
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputRefused, match="name a new"), new_folder(out):
        raise AssertionError("must not get here")
    assert out.is_symlink() or (out if kind == "file" else out / "thesis.txt").read_text() == "mine"


def test_an_empty_folder_is_taken_and_missing_parents_are_made(tmp_path):
    (tmp_path / "out").mkdir()
    for target in (tmp_path / "out", tmp_path / "a" / "b"):
        with new_folder(target) as folder:
            (folder / "one").write_text("1")
        assert (target / "one").exists()


def test_a_disk_that_is_full_is_the_machines_fault(tmp_path):
    with pytest.raises(EnvironmentFailure, match="cannot be written"), new_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    tensors = {"b": torch.randn(3, 3), "a": torch.ones(2, dtype=torch.bfloat16)}
    for name in ("x", "y"):
        write_safetensors(tmp_path / name, [ref(n, t) for n, t in tensors.items()])
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    save_file(tensors, tmp_path / "z")
    assert abs((tmp_path / "x").stat().st_size - (tmp_path / "z").stat().st_size) <= 64
