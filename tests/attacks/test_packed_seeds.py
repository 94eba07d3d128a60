"""The seeds of packed layouts are honest: every one of them is read, so that what is spoilt is what is looked at."""

import pytest

import netspectra as ns
from tests.attacks.seeds import SEEDS, plant

PACKED = [("safetensors", kind) for kind in ("packed", "config", "manifest", "gptq3", "gptq4", "awq")]


@pytest.mark.parametrize("name,kind", [*PACKED, ("gguf", "types"), ("onnx", "packed")])
def test_every_packed_weight_of_a_seed_is_decoded(tmp_path, name, kind):
    path, _ = plant(tmp_path, name, SEEDS[name][kind]())
    source = ns.open(path)
    unread = [one.reason for one in source.skipped if not one.routine]
    expected = ("library cannot decode", "codes, indices or flags") if name == "gguf" else ()
    assert all(any(words in reason for words in expected) for reason in unread), unread
    for weight in source:
        assert weight.part.load().shape == weight.part.shape
    if name == "safetensors":
        told = {weight.name: weight.dtype for weight in source}
        expected = {"a.weight": "int4", "b.weight": "int3", "c.weight": "int8", "d.weight": "float8",
                    "e.weight": "int8", "f.weight": "nf4", "g.weight": "int8", "own.weight": "int3",
                    "kernel.weight": "int5", "half.weight": "float16"}  # fmt: skip
        expected = expected if len(told) > 1 else {"a.weight": f"int{kind[4:] or 4}"}
        assert set(told) == set(expected) and all(told[key].startswith(kind) for key, kind in expected.items())
    if name == "onnx":
        assert [weight.dtype for weight in source] == ["4 bits with scales", "8 bits with scales", "int4 with scales",
                                                       "uint4 with scales"]  # fmt: skip
