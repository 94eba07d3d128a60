"""A weight on its way: of every format it travels as names and places, and arrives as the same numbers."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import netspectra as ns
from netspectra.run import parcel
from netspectra.run.parcel import pack, unpack
from tests.attacks.seeds import SEEDS, plant

FILES = [(form, way) for form, ways in SEEDS.items() for way in ways]


@pytest.fixture(autouse=True)
def forgotten():
    """Sizes of files are looked up once; tests change files."""
    parcel._sizes.clear()


@pytest.mark.parametrize(("form", "way"), FILES, ids=["-".join(names) for names in FILES])
def test_every_format_travels_without_its_numbers(form, way, tmp_path):
    path, _ = plant(tmp_path, form, SEEDS[form][way]())
    weights = ns.open(path).weights
    assert weights
    for weight in weights:
        arrived = unpack(pack(weight))
        assert arrived.name == weight.name
        assert torch.equal(arrived.operator().dense(), weight.operator().dense())


def test_a_parcel_is_small_whatever_the_weight(tmp_path):
    sizes = []
    for i, n in enumerate((8, 800)):
        save_file({f"layers.{j}.weight": torch.ones(n, n) for j in range(30)}, tmp_path / f"{i}.safetensors")
        sizes.append(len(pack(ns.open(tmp_path / f"{i}.safetensors").weights[0])))
    assert max(sizes) < 1500
    assert sizes[1] - sizes[0] < 32


def test_relative_paths_arrive_absolute(tmp_path, monkeypatch):
    save_file({"w": torch.ones(3, 2)}, tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)
    packed = pack(ns.open("m.safetensors").weights[0])
    monkeypatch.chdir("/")
    assert unpack(packed).part.load().shape == (3, 2)


def test_tensors_in_memory_do_not_travel():
    with pytest.raises(ns.InputRefused, match=r"'fc.weight' is in this process's memory.*save the model"):
        pack(ns.open({"fc.weight": torch.ones(3, 2)}).weights[0])
    with pytest.raises(ns.InputRefused, match="save the model"):
        pack(ns.open(torch.nn.Linear(2, 3)).weights[0])


def test_a_machine_without_the_file_or_with_another_says_so(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(3, 2)}, path)
    packed = pack(ns.open(path).weights[0])
    save_file({"w": torch.ones(3, 2), "v": torch.ones(3)}, path)
    with pytest.raises(ns.EnvironmentFailure, match=r"bytes, not the driver's \d+, on .*shared file system"):
        unpack(packed)
    path.unlink()
    with pytest.raises(ns.EnvironmentFailure, match=r"is not there on .*at this path on every machine"):
        unpack(packed)


def test_what_is_no_weight_of_a_file_keeps_its_kind(tmp_path):
    """Paths come back as paths: nothing else of a weight is touched."""
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(3, 2)}, path)
    weight = ns.open(path).weights[0]
    assert pickle.dumps(unpack(pack(weight))) == pickle.dumps(weight)
    assert isinstance(weight.part.ref.load.path, Path)  # pyright: ignore[reportAttributeAccessIssue]
