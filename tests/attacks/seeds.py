"""One small honest file of every registered format, to be spoilt: a new reader without one fails a test."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

__all__ = ["SEEDS", "plant"]

# What a seed gives: files by name, of which the first is the one to be spoilt.
Seed = dict[str, bytes]


def tensors() -> dict[str, torch.Tensor]:
    """A matrix, a fused one, experts, a kernel, a vector, whole numbers: what the rules look at."""
    return {
        "layers.0.attn.qkv.weight": torch.arange(24.0).reshape(6, 4)[:, :2].contiguous() + 1,
        "experts.gate_up_proj": torch.ones(2, 4, 3),
        "conv.weight": torch.ones(2, 2, 1, 3),
        "norm.bias": torch.ones(3),
        "position_ids": torch.arange(4),
    }


def torch_bytes(value: object, **options: bool) -> bytes:
    held = io.BytesIO()
    torch.save(value, held, **options)  # type: ignore[arg-type]
    return held.getvalue()


def safetensors() -> Seed:
    from safetensors.torch import save

    return {"m.safetensors": save(tensors())}


def safetensors_index() -> Seed:
    index = {"weight_map": dict.fromkeys(tensors(), "a.safetensors")}
    return {"m.safetensors.index.json": json.dumps(index).encode(), "a.safetensors": safetensors()["m.safetensors"]}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf() -> Seed:
    pytest.importorskip("gguf", reason="needs the gguf extra")
    pairs = [
        text("general.architecture") + struct.pack("<I", 8) + text("llama"),
        text("llama.block_count") + struct.pack("<II", 4, 2),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bb"),
        text("llama.rope") + struct.pack("<IIQff", 9, 6, 2, 1.0, 2.0),
    ]
    entries = [
        text("token_embd.weight") + struct.pack("<IQQIQ", 2, 32, 2, 0, 0),
        text("blk.0.attn_q.weight") + struct.pack("<IQQIQ", 2, 32, 4, 2, 256),
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs)) + b"".join(pairs) + b"".join(entries)
    return {"m.gguf": head + bytes(-len(head) % 32) + bytes(256 + 96)}


def torch_zip() -> Seed:
    return {"m.pt": torch_bytes({"state_dict": tensors(), "optimizer": {"state": {}, "param_groups": []}, "epoch": 3})}


def torch_stream() -> Seed:
    return {"m.pth": torch_bytes({"model": tensors()}, _use_new_zipfile_serialization=False)}


def distributed() -> Seed:
    import tempfile

    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": tensors()}, checkpoint_id=folder, no_dist=True)
        found = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
    return {".metadata": found.pop(".metadata"), **found}


def numpy_file() -> Seed:
    held = io.BytesIO()
    np.save(held, np.ones((3, 4), np.float32))
    return {"m.npy": held.getvalue()}


def numpy_archive() -> Seed:
    held = io.BytesIO()
    np.savez_compressed(held, **{"a.weight": np.ones((3, 4), np.float32), "b": np.zeros(5)})
    return {"m.npz": held.getvalue()}


def onnx() -> Seed:
    library = pytest.importorskip("onnx", reason="needs the onnx library to write a seed")
    make = library.helper
    numbers = {"w": np.ones((4, 3), np.float32), "q": np.ones((3, 4), np.int8), "s": np.float32([0.5])}
    held = [library.numpy_helper.from_array(array, name) for name, array in numbers.items()]
    nodes = [
        make.make_node("MatMul", ["x", "w"], ["h"], name="/layer.0/query/MatMul"),
        make.make_node("DequantizeLinear", ["q", "s"], ["d"], axis=0),
        make.make_node("MatMul", ["h", "d"], ["y"]),
    ]
    value = make.make_tensor_value_info("x", library.TensorProto.FLOAT, None)
    graph = make.make_graph(nodes, "g", [value], [make.make_tensor_value_info("y", 1, None)], held)
    return {"m.onnx": make.make_model(graph).SerializeToString()}


def keras() -> Seed:
    h5py = pytest.importorskip("h5py", reason="needs h5py to write a seed")
    held = io.BytesIO()
    with h5py.File(held, "w") as file:
        file["layers/dense/vars/0"] = np.ones((3, 4), np.float32)
        file["layers/lstm/vars/1"] = np.ones((3, 8), np.float32)
        file["layers/dense"].attrs["name"] = "dense"
    return {"m.h5": held.getvalue()}


def exported() -> Seed:
    sizes = [{"as_int": 2}, {"as_int": 3}], [{"as_int": 3}, {"as_int": 1}]
    meta = {"dtype": 7, "layout": 7, "storage_offset": {"as_int": 0}, "sizes": sizes[0], "strides": sizes[1]}
    entry = {"path_name": "weight_0", "is_param": True, "use_pickle": False, "tensor_meta": meta}
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": {"w": entry}}))
        file.writestr("m/data/weights/weight_0", bytes(24))
    return {"m.pt2": held.getvalue()}


def diffusers() -> Seed:
    index = {"unet": ["diffusers", "UNet"], "scheduler": ["diffusers", "S"]}
    return {"model_index.json": json.dumps(index).encode(), "unet/model.safetensors": safetensors()["m.safetensors"]}


SEEDS: dict[str, dict[str, Callable[[], Seed]]] = {
    "safetensors": {"file": safetensors, "index": safetensors_index},
    "gguf": {"file": gguf},
    "torch": {"zip": torch_zip, "stream": torch_stream},
    "torch-distributed": {"folder": distributed},
    "torch-export": {"file": exported},
    "numpy": {"npy": numpy_file, "npz": numpy_archive},
    "onnx": {"file": onnx},
    "keras": {"h5": keras},
    "diffusers": {"folder": diffusers},
}
FOLDERS = ("torch-distributed", "diffusers")


def plant(folder: Path, name: str, seed: Seed) -> tuple[Path, Path]:
    """Write a seed; give what is to be opened, and the file to be spoilt."""
    for file, content in seed.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    target = folder / next(iter(seed))
    return (folder if name in FOLDERS else target), target
