"""Folders of torch.distributed.checkpoint: put together from chunks, and nothing in them is run."""

import os
import pickle
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as parts
from torch.distributed.checkpoint.filesystem import _StorageInfo

import netspectra as ns
from tests.checkpoints import small_model
from tests.sources.test_torchfile import refs, same

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def saved(folder, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(value, checkpoint_id=folder, no_dist=True)
    return folder


def test_a_state_dict_bit_for_bit(tmp_path):
    tensors = small_model()
    folder = saved(tmp_path / "ck", tensors)
    for path in (folder, folder / ".metadata"):
        source = ns.open(path)
        assert source.format == "torch-distributed" and {ref.name for ref in source.tensors} == set(tensors)
        assert all(same(ref.load(), tensors[ref.name]) for ref in source.tensors)
    assert len(source.fingerprint) == 64


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "complex64", "int64", "bool"]
)
def test_dtypes_and_odd_shapes(tmp_path, dtype):
    tensor = (torch.randn(5, 3) * 3).to(getattr(torch, dtype))
    held = {"a": tensor, "zero_d": tensor[0, 0].clone(), "none": tensor[:0].clone(), "t": tensor.T}
    found = refs(saved(tmp_path / "ck", held))
    assert all(same(found[name].load(), value) for name, value in held.items())


def test_what_a_training_run_saves(tmp_path):
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "note": "x"}
    source = ns.open(saved(tmp_path / "ck", state))
    assert [ref.name for ref in source.tensors] == ["weight", "bias", "optimizer"]
    assert "training state" in source.tensors[2].problem and all(skipped.routine for skipped in source.skipped)
    assert same(source.tensors[0].load(), model.weight.detach())


def chunked(folder, tensor, cuts, name="w", spoil=lambda metadata: None):
    """A checkpoint of one tensor, cut into a grid, as many ranks write it."""
    folder.mkdir()
    boxes, storage = [], {}
    starts = [[0, *cut] for cut in cuts]
    stops = [[*cut, size] for cut, size in zip(cuts, tensor.shape, strict=True)]
    corners = torch.cartesian_prod(*(torch.arange(len(s)) for s in starts)).reshape(-1, tensor.dim()).tolist()
    for rank, corner in enumerate(corners):
        offsets = torch.Size(starts[axis][place] for axis, place in enumerate(corner))
        ends = [stops[axis][place] for axis, place in enumerate(corner)]
        sizes = torch.Size(end - start for start, end in zip(offsets, ends, strict=True))
        boxes.append(parts.ChunkStorageMetadata(offsets, sizes))
        piece = tensor[tuple(slice(*run) for run in zip(offsets, ends, strict=True))].clone()
        file = folder / f"__{rank % 3}_0.distcp"
        with file.open("ab") as stream:
            start = stream.tell()
            torch.save(piece, stream)
            end = stream.tell()
        storage[parts.MetadataIndex(name, offsets)] = _StorageInfo(file.name, start, end - start)
    properties = parts.TensorProperties(dtype=tensor.dtype)
    held = {name: parts.TensorStorageMetadata(properties, tensor.size(), boxes)}
    metadata = parts.Metadata(held, {name: (name,)}, storage)
    spoil(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    return folder


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_slices_over_chunks_read_what_indexing_gives(tmp_path_factory, data):
    tensor = torch.arange(7 * 6 * 4, dtype=torch.float32).reshape(7, 6, 4)
    cuts = [sorted(data.draw(st.sets(st.integers(1, size - 1), max_size=2))) for size in tensor.shape]
    folder = tmp_path_factory.mktemp("chunks") / "ck"
    [ref] = ns.open(chunked(folder, tensor, cuts)).tensors
    assert same(ref.load(), tensor)
    ends = st.one_of(st.none(), st.integers(-4, 7))
    cut = st.one_of(st.integers(-3, 3), st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, 3])))
    index = tuple(data.draw(st.lists(cut, max_size=3)))
    assert same(ref.load(index), tensor[index])
    assert same(pickle.loads(pickle.dumps(ref.load))(), tensor)
    shutil.rmtree(folder)


def test_only_the_shards_of_a_slice_are_read(tmp_path):
    tensor = torch.arange(60.0).reshape(12, 5)
    folder = chunked(tmp_path / "ck", tensor, [[4, 8], []])
    [ref] = ns.open(folder).tensors
    (folder / "__2_0.distcp").unlink()
    assert same(ref.load((slice(2, 7),)), tensor[2:7])
    with pytest.raises(ns.InputRefused, match="no such file"):
        ref.load()


def first(metadata):
    return next(iter(metadata.storage_data.values()))


def box(metadata):
    return metadata.state_dict_metadata["w"].chunks[0]


def edit(target, **values):
    for name, value in values.items():
        object.__setattr__(target, name, value)


LIES = {
    "escape": (lambda m: edit(first(m), relative_path="../secret"), "plain file names"),
    "absolute": (lambda m: edit(first(m), relative_path="/etc/passwd"), "plain file names"),
    "missing": (lambda m: edit(first(m), relative_path="__9_9.distcp"), "missing"),
    "beyond": (lambda m: edit(first(m), length=10**9), "truncated"),
    "negative": (lambda m: edit(first(m), offset=-1), "offset of a file"),
    "packed": (lambda m: edit(first(m), transform_descriptors=["zstd"]), "packed"),
    "nowhere": (lambda m: m.storage_data.clear(), "nowhere"),
    "no storage": (lambda m: edit(m, storage_data=None), "where the tensors are stored"),
    "no tensors": (lambda m: m.state_dict_metadata.clear(), "no tensor"),
    "outside": (lambda m: edit(box(m), offsets=torch.Size([9, 0])), "outside"),
    "hole": (lambda m: m.state_dict_metadata["w"].chunks.pop(), "cover"),
    "overlap": (lambda m: m.state_dict_metadata["w"].chunks.append(box(m)), "cover"),
    "negative size": (lambda m: edit(box(m), sizes=(-1, 5)), "offsets and sizes"),
    "axes": (lambda m: edit(box(m), sizes=torch.Size([4])), "offsets and sizes"),
    "huge": (lambda m: edit(m.state_dict_metadata["w"], size=(2**40, 2**40)), "numbers"),
    "no shape": (lambda m: edit(m.state_dict_metadata["w"], size="x"), "shape"),
    "another object": (lambda m: edit(m, state_dict_metadata=[1]), "no metadata"),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lies_is_refused(tmp_path, lie):
    spoil, expected = LIES[lie]
    with pytest.raises(ns.InputRefused, match=expected) as refusal:
        ns.open(chunked(tmp_path / "ck", torch.arange(60.0).reshape(12, 5), [[4], [2]], spoil=spoil))
    assert "\n" not in str(refusal.value) and "ck" in str(refusal.value)


def test_chunks_that_lie_are_refused_when_they_are_read(tmp_path):
    def wrong(metadata):
        infos = list(metadata.storage_data.values())
        infos[0].relative_path, infos[0].offset, infos[0].length = (
            infos[1].relative_path, infos[1].offset, infos[1].length,
        )  # fmt: skip

    [ref] = ns.open(chunked(tmp_path / "a", torch.arange(60.0).reshape(12, 5), [[4], []], spoil=wrong)).tensors
    with pytest.raises(ns.InputRefused, match="says float32"):
        ref.load()
    folder = chunked(tmp_path / "b", torch.arange(60.0).reshape(12, 5), [[4], []])
    [ref] = ns.open(folder).tensors
    for shard in folder.glob("*.distcp"):
        shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(ns.InputRefused, match="zip"):
        ref.load()


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_payloads_in_the_metadata_stay_inert(tmp_path):
    marker = tmp_path / "marker"

    def spoil(metadata):
        metadata.planner_data = {"w": ("w",), "evil": Payload(marker)}
        metadata.storage_meta = Payload(marker)

    [ref] = ns.open(chunked(tmp_path / "a", torch.eye(4), [[2], []], spoil=spoil)).tensors
    assert same(ref.load(), torch.eye(4)) and not marker.exists()
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(ns.InputRefused, match="no metadata"):
        ns.open(tmp_path / "a")
    assert not marker.exists()


def test_truncated_or_changed_metadata_never_crashes(tmp_path):
    folder = saved(tmp_path / "ck", {"w": torch.eye(3)})
    whole = (folder / ".metadata").read_bytes()
    for place in range(len(whole)):
        for content in (whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]):
            (folder / ".metadata").write_bytes(content)
            try:
                for ref in ns.open(folder).tensors:
                    if not ref.problem:
                        ref.load()
            except ns.InputRefused as refusal:
                assert "\n" not in str(refusal)
