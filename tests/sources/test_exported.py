"""Archives of torch.export.save: the weights by their table."""

import io
import json
import zipfile

import pytest
import torch

import netspectra as ns


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4, dtype=torch.bfloat16)
        self.conv = torch.nn.Conv2d(1, 2, 3)
        self.register_buffer("scale", torch.ones(2, dtype=torch.float64))
        self.tied = torch.nn.Parameter(self.conv.weight.detach()[0].clone())

    def forward(self, x):
        return self.linear(x).sum() + self.conv.weight.sum() + self.scale.sum() + self.tied.sum()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = Model()
    path = tmp_path_factory.mktemp("export") / "m.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, dtype=torch.bfloat16),)), path)
    return model, path


def test_every_weight_bit_for_bit(exported):
    model, path = exported
    source = ns.open(path)
    assert source.format == "torch-export" and len(source.fingerprint) == 64
    wanted = model.state_dict()
    assert {ref.name for ref in source.tensors} == set(wanted)
    for ref in source.tensors:
        assert ref.dtype == str(wanted[ref.name].dtype)[6:] and torch.equal(ref.load(), wanted[ref.name])


def archive(entry, data=bytes(24)):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": {"w": entry}}))
        file.writestr("m/data/weights/weight_0", data)
    return held.getvalue()


def entry(**changes):
    numbers = {"sizes": [{"as_int": 2}, {"as_int": 3}], "strides": [{"as_int": 3}, {"as_int": 1}]}
    meta = {"dtype": 7, "layout": 7, "storage_offset": {"as_int": 0}, **numbers}
    meta |= {name: value for name, value in changes.items() if name in meta}
    held = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta}
    return held | {name: value for name, value in changes.items() if name not in meta}


@pytest.mark.parametrize(
    "held,expected",
    [
        (entry(path_name="../x"), "no such record"),
        (entry(path_name=3), "record"),
        (entry(sizes=[{"as_int": 2**40}, {"as_int": 2**40}]), "numbers"),
        (entry(sizes=[{"as_expr": "s0"}, {"as_int": 1}]), "size"),
        (entry(sizes=3), "shape"),
        (entry(strides=[{"as_int": -1}, {"as_int": 1}]), "strides"),
        (entry(strides=None), "strides"),
        (entry(storage_offset={"as_int": 1}), "reaches"),
        (entry(storage_offset=None), "offset"),
        (7, "record"),
    ],
)
def test_entries_that_lie_are_refused(tmp_path, held, expected):
    path = tmp_path / "bad.pt2"
    path.write_bytes(archive(held))
    with pytest.raises(ns.InputRefused, match=expected):
        ns.open(path)


@pytest.mark.parametrize(
    "held,expected",
    [
        (entry(use_pickle=True), "pickle"),
        (entry(tensor_meta=None), "object"),
        (entry(layout=1), "sparse"),
        (entry(dtype=9), "number 9"),
        (entry(strides=[{"as_int": 0}, {"as_int": 1}]), "stride 0"),
    ],
)
def test_what_cannot_be_read_is_listed(tmp_path, held, expected):
    path = tmp_path / "odd.pt2"
    path.write_bytes(archive(held))
    assert expected in ns.open(path).tensors[0].problem


def test_truncated_anywhere_is_refused(tmp_path, exported):
    whole = exported[1].read_bytes()
    path = tmp_path / "cut.pt2"
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(ns.InputRefused):
            ns.open(path)
