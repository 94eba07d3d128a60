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


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"targets": ["a"], "weights": {"num_bits": 4, "type": "int", "symmetric": False}},
        "group_1": {"targets": ["re:^b$", "Linear"], "weights": {"num_bits": 3, "type": "int", "symmetric": True}},
    },
    "weight_block_size": [2, 4],
}
TOLD = {"format": 1, "replacements": [
    {"module": "own", "form": "int3", "spec": {"bits": 3, "group": 4, "symmetric": False, "rank": 1}},
    {"module": "kernel", "form": "int5", "spec": {"bits": 5, "group": 6, "symmetric": True, "kernel": [3, 2]}},
    {"module": "half", "form": "half", "spec": {"bits": 16, "dtype": "float16", "turned": True}},
]}  # fmt: skip


def packed() -> Seed:
    """Every layout of codes in one file but GPTQ's and AWQ's, whose names mean two things."""
    from safetensors.torch import save

    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    bytes_, ones = torch.uint8, torch.ones
    state = {"quant_type": "nf4", "blocksize": 4, "dtype": "float16", "shape": [3, 4], "nested_blocksize": 2,
             "nested_offset": 0.25}  # fmt: skip
    found = {
        "a.weight_packed": zeros(3, 2), "a.weight_scale": ones(3, 2), "a.weight_zero_point": zeros(1, 2),
        "a.weight_shape": torch.tensor([3, 16]), "a.weight_g_idx": zeros(16),
        "b.weight_packed": zeros(3, 1), "b.weight_scale": ones(3, 1), "b.weight_shape": torch.tensor([3, 10]),
        "c.weight": zeros(4, 8, dtype=torch.int8), "c.weight_scale": ones(4, 1),
        "d.weight": ones(4, 8).to(torch.float8_e4m3fn), "d.weight_scale_inv": ones(2, 2),
        "e.weight": zeros(4, 6, dtype=torch.int8), "e.SCB": ones(4), "e.weight_format": torch.tensor(0, dtype=bytes_),
        "f.weight": zeros(6, 1, dtype=bytes_), "f.weight.quant_map": ones(16),
        "f.weight.absmax": zeros(3, dtype=bytes_), "f.weight.nested_absmax": ones(2),
        "f.weight.nested_quant_map": ones(256),
        "f.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(state).encode()), dtype=bytes_),
        "g._weight_qdata": zeros(4, 6, dtype=torch.int8), "g._weight_scale": ones(4, 2),
        "g._weight_zero_point": zeros(4, 2, dtype=torch.int8),
        "own.codes": zeros(4, 3, dtype=bytes_), "own.scale": ones(4, 2).half(), "own.zero": zeros(4, 1, dtype=bytes_),
        "own.left": ones(4, 1).half(), "own.right": ones(1, 8).half(),
        "kernel.codes": zeros(4, 4, dtype=bytes_), "kernel.scale": ones(4, 1).half(), "half.codes": ones(2, 3).half(),
    }  # fmt: skip
    files = {"config.json": {"quantization_config": COMPRESSED}, "netspectra.json": TOLD}
    beside = {name: json.dumps(value).encode() for name, value in files.items()}
    return {"m.safetensors": save(found), **beside}


def packed_as(file: str) -> Callable[[], Seed]:
    """The same folder, with another of its files to be spoilt."""
    return lambda: {file: packed()[file], **packed()}


def words(method: str, bits: int) -> Callable[[], Seed]:
    """GPTQ's or AWQ's codes."""

    def make() -> Seed:
        from safetensors.torch import save

        rows, columns = (32 * bits // 32, 32) if method == "gptq" else (32, 32 * bits // 32)
        found = {
            "a.qweight": torch.zeros(rows, columns, dtype=torch.int32),
            "a.qzeros": torch.zeros(2, bits, dtype=torch.int32), "a.scales": torch.ones(2, 32),
        }  # fmt: skip
        order = {"a.g_idx": torch.arange(32, dtype=torch.int32) // 16} if method == "gptq" else {}
        config = {"quantization_config": {"quant_method": method, "bits": bits, "version": "gemm"}}
        return {"m.safetensors": save(found | order), "config.json": json.dumps(config).encode()}

    return make


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


def gguf_types() -> Seed:
    """Two rows of one block of every type that the library knows."""
    library = pytest.importorskip("gguf", reason="needs the gguf extra")
    entries, data = [], b""
    for kind, (block, size) in library.constants.GGML_QUANT_SIZES.items():
        entries.append(text(f"w.{kind.name}") + struct.pack("<IQQIQ", 2, block, 2, int(kind), len(data)))
        data += bytes(2 * size) + bytes(-2 * size % 32)
    pair = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), 1) + pair + b"".join(entries)
    return {"m.gguf": head + bytes(-len(head) % 32) + data}


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


def onnx_packed() -> Seed:
    """Four- and eight-bit numbers in blocks, half bytes with scales along an axis."""
    library = pytest.importorskip("onnx", reason="needs the onnx library to write a seed")
    make, proto, array = library.helper, library.TensorProto, library.numpy_helper.from_array
    held = [array(np.zeros((5, 3, 8), np.uint8), "w4"), array(np.ones(15, np.float32), "s4"),
            array(np.zeros(10, np.uint8), "z4"), array(np.zeros((5, 2, 16), np.uint8), "w8"),
            array(np.ones(10, np.float32), "s8"), make.make_tensor("i4", proto.INT4, (32, 3), [1] * 96),
            make.make_tensor("u4", proto.UINT4, (32, 3), [2] * 96),
            array(np.ones((2, 3), np.float32), "s")]  # fmt: skip
    blocks = {"domain": "com.microsoft", "N": 5, "block_size": 16}
    nodes = [
        make.make_node("MatMulNBits", ["x", "w4", "s4", "z4"], ["a"], K=40, bits=4, **blocks),
        make.make_node("MatMulNBits", ["x", "w8", "s8"], ["b"], K=32, bits=8, **blocks),
        make.make_node("DequantizeLinear", ["i4", "s"], ["d"], axis=0, block_size=16),
        make.make_node("MatMul", ["x", "d"], ["e"]),
        make.make_node("DequantizeLinear", ["u4", "s"], ["f"], axis=0, block_size=16),
        make.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    values = [make.make_tensor_value_info(name, 1, None) for name in "xy"]
    graph = make.make_graph(nodes, "g", values[:1], values[1:], held)
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
    "safetensors": {
        "file": safetensors, "index": safetensors_index, "packed": packed, "config": packed_as("config.json"),
        "manifest": packed_as("netspectra.json"), "gptq3": words("gptq", 3), "gptq4": words("gptq", 4),
        "awq": words("awq", 4),
    },
    "gguf": {"file": gguf, "types": gguf_types},
    "torch": {"zip": torch_zip, "stream": torch_stream},
    "torch-distributed": {"folder": distributed},
    "torch-export": {"file": exported},
    "numpy": {"npy": numpy_file, "npz": numpy_archive},
    "onnx": {"file": onnx, "packed": onnx_packed},
    "keras": {"h5": keras},
    "diffusers": {"folder": diffusers},
}  # fmt: skip
FOLDERS = ("torch-distributed", "diffusers")


def plant(folder: Path, name: str, seed: Seed) -> tuple[Path, Path]:
    """Write a seed; give what is to be opened, and the file to be spoilt."""
    for file, content in seed.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    target = folder / next(iter(seed))
    beside = target.name in ("config.json", "netspectra.json")
    return (folder if name in FOLDERS or beside else target), target
