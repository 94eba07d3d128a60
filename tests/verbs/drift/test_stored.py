"""Files of references and states come from strangers."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

import netspectra as ns
from netspectra.doors.drift import is_reference, load_state, save_state
from netspectra.errors import InputRefused, NetspectraError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    reference = ns.drift(None, np.random.default_rng(0).standard_normal((60, 4)), directions=2)
    reference.save(folder / "reference.safetensors")
    stream = reference.sequential()
    stream.test(np.zeros((3, 4)))
    save_state(stream, folder / "state.safetensors")
    return reference, folder


def about(path):
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["netspectra"])


def written(path, arrays, text):
    path.write_bytes(save(arrays, metadata={"netspectra": json.dumps(text)}))
    return path


CHANGES = {
    "schema": lambda a, t: t.update(schema=2),
    "kind": lambda a, t: t.update(kind="drift state"),
    "more": lambda a, t: t.update(extra=1),
    "rows": lambda a, t: t.update(rows=-1),
    "options": lambda a, t: t["options"].update(most=0),
    "option": lambda a, t: t["options"].update(nonsense=0),
    "layers": lambda a, t: t.update(layers=[]),
    "name": lambda a, t: t["layers"][0].update(name=3),
    "total": lambda a, t: t["layers"][0].update(total=-1.0),
    "columns": lambda a, t: t["layers"][0].update(columns=["a"]),
    "missing": lambda a, t: a.pop("0|V"),
    "shape": lambda a, t: a.update({"0|centre": np.zeros(9)}),
    "finite": lambda a, t: a.update({"0|along": np.full_like(a["0|along"], np.nan)}),
    "scale": lambda a, t: a.update({"0|scale": np.zeros_like(a["0|scale"])}),
    "whole": lambda a, t: a.update({"0|V": a["0|V"].astype(np.int32)}),
    "beside": lambda a, t: a.update({"0|beside": np.zeros(0, np.float32)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_reference_that_is_not_as_it_was_written_is_refused(made, tmp_path, change):
    path = made[1] / "reference.safetensors"
    arrays, text = load_file(path), about(path)
    ns.DriftReference.load(written(tmp_path / "same", dict(arrays), text))
    CHANGES[change](arrays, text)
    with pytest.raises(InputRefused):
        ns.DriftReference.load(written(tmp_path / "changed", arrays, text))


STATES = {
    "counts": lambda a, t: a["rows|counts"].__isub__(1),
    "shares": lambda a, t: a["blocks|shares"].__imul__(2),
    "log": lambda a, t: a["rows|log"].__iadd__(np.nan),
    "waiting": lambda a, t: a.update(waiting=np.zeros((16, 2))),
    "windows": lambda a, t: t.update(windows="x"),
    "rows": lambda a, t: t.update(rows=7),
    "seen": lambda a, t: t["blocks team"].update(seen=1),
    "random": lambda a, t: t["rows team"].update(random="{}"),
    "random state": lambda a, t: t["rows team"].update(
        random='{"bit_generator": "PCG64", "state": {"state": -1, "inc": 1}}'
    ),
    "reference": lambda a, t: t.update(reference=""),
    "schema": lambda a, t: t.update(schema=2),
}


@pytest.mark.parametrize("change", STATES)
def test_a_state_that_is_not_as_it_was_written_is_refused(made, tmp_path, change):
    reference, folder = made
    arrays, text = load_file(folder / "state.safetensors"), about(folder / "state.safetensors")
    arrays = {name: array.copy() for name, array in arrays.items()}
    STATES[change](arrays, text)
    with pytest.raises(InputRefused):
        load_state(reference.sequential(), written(tmp_path / "changed", arrays, text))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_spoilt_bytes_are_refused_or_read_never_more(made, tmp_path_factory, data):
    reference, folder = made
    name = data.draw(st.sampled_from(["reference.safetensors", "state.safetensors"]))
    honest = bytearray((folder / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        honest[data.draw(st.integers(0, min(len(honest) - 1, 3000)))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("spoilt") / name
    path.write_bytes(bytes(honest[: data.draw(st.sampled_from([len(honest), len(honest) // 2]))]))
    try:
        if name.startswith("reference"):
            ns.DriftReference.load(path).test(np.zeros((3, 4)), permutations=19)
        else:
            load_state(reference.sequential(), path).test(np.zeros((3, 4)))
    except NetspectraError:
        pass


def test_other_files_are_told_apart(made, tmp_path):
    assert is_reference(made[1] / "reference.safetensors") and not is_reference(made[1] / "state.safetensors")
    np.savez(tmp_path / "rows.npz", np.zeros((40, 3)))
    assert not is_reference(tmp_path / "rows.npz")
    with pytest.raises(InputRefused, match="not a safetensors file"):
        ns.DriftReference.load(tmp_path / "rows.npz")
    with pytest.raises(InputRefused, match="no such file"):
        ns.DriftReference.load(tmp_path / "nothing")
