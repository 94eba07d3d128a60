"""Small checkpoints on disk, for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def small_model(seed: int = 0) -> dict[str, torch.Tensor]:
    """A toy transformer's state dict: an embedding, attention, an MLP, a convolution, vectors and an index."""
    g = torch.Generator().manual_seed(seed)
    d = 24
    tensors = {"embed_tokens.weight": torch.randn(40, d, generator=g)}
    for layer in range(3):
        p = f"layers.{layer}."
        tensors[p + "attn.qkv.weight"] = torch.randn(3 * d, d, generator=g) / d**0.5
        tensors[p + "attn.out_proj.weight"] = torch.randn(d, d, generator=g) / d**0.5
        tensors[p + "mlp.up.weight"] = torch.randn(4 * d, d, generator=g) / d**0.5
        tensors[p + "mlp.up.bias"] = torch.randn(4 * d, generator=g)
        tensors[p + "mlp.down.weight"] = torch.randn(d, 4 * d, generator=g) / d**0.5
    tensors["conv.weight"] = torch.randn(8, 4, 3, 3, generator=g)
    tensors["position_ids"] = torch.arange(40)
    return tensors


def write_single(path: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    save_file(tensors or small_model(), path)
    return path


def write_sharded(folder: Path, tensors: dict[str, torch.Tensor] | None = None, shards: int = 3) -> Path:
    tensors = tensors or small_model()
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[shard::shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "toy", "num_attention_heads": 4}))
    return folder
