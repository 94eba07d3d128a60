"""The corrections of a quantized model as a PEFT adapter (LoRA) for the same model without them.

Layout: PEFT's documentation of its checkpoint format: the update of ``PATH.weight`` is ``lora_B lora_A alpha / r``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from netspectra.checkpoint import write_safetensors
from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedConvolution, CodedEmbedding, CodedModule
from netspectra.live.runtimes import coded_modules
from netspectra.weight import InMemory, TensorRef

__all__ = ["ADAPTED", "FOLDER", "correction", "write_adapter", "write_corrections"]

ADAPTED = "base_model.model."  # what PEFT puts before the name of a layer
FOLDER = "correction"  # beside the model


def write_adapter(
    model: nn.Module, folder: Path, taken: Callable[[CodedModule], bool] = lambda module: True
) -> list[str]:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for every layer that has a correction.

    Args:
        model: with a plan applied.
        folder: made; nothing is written where no layer has a correction.
        taken: which of them, where others have theirs in their weight.

    Returns:
        Names of the layers whose corrections are in it.
    """
    modules = {name: module for name, module in coded_modules(model).items() if module.rank and taken(module)}
    turned = any(getattr(module, "turned", False) for module in modules.values())
    refs = {name: [_ref(*pair) for pair in correction(module, name).items()] for name, module in modules.items()}
    write_corrections(folder, {name: module.rank for name, module in modules.items()}, refs, turned)
    return sorted(modules)


def write_corrections(
    folder: Path, ranks: Mapping[str, int], refs: Mapping[str, Iterable[TensorRef]], turned: bool
) -> None:
    """The same from tensors that may lie anywhere; nothing where there are none.

    Args:
        folder: made.
        ranks: by layer.
        refs: by layer, what `correction` gives.
        turned: whether layers of the model store inputs first.
    """
    if not ranks:
        return
    usual = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "target_modules": sorted(ranks),
        "rank_pattern": {name: rank for name, rank in ranks.items() if rank != usual},
        "alpha_pattern": {name: rank for name, rank in ranks.items() if rank != usual},
    }
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    named = [replace(ref, name=f"{ADAPTED}{name}.{ref.name}") for name, some in refs.items() for ref in some]
    write_safetensors(folder / "adapter_model.safetensors", named)


def correction(module: CodedModule, name: str = "a layer") -> dict[str, Tensor]:
    """The factors of one layer in float32, which PEFT computes with; nothing where it has no correction.

    Raises:
        InputRefused: of a convolution.
    """
    if not module.rank:
        return {}
    return {key: value.detach().to("cpu", torch.float32) for key, value in _factors(name, module).items()}


def _factors(name: str, module: CodedModule) -> dict[str, Tensor]:
    assert module.left is not None and module.right is not None
    if isinstance(module, CodedConvolution):
        raise InputRefused(
            f"{name}: PEFT has no adapter for the correction of a convolution that reads alike everywhere; ask for "
            "ranks=(0,) (--rank 0), or for the format netspectra or dequantized"
        )
    if isinstance(module, CodedEmbedding):
        return {"lora_embedding_A": module.left.mT.contiguous(), "lora_embedding_B": module.right.mT.contiguous()}
    return {"lora_A.weight": module.right, "lora_B.weight": module.left}


def _ref(name: str, value: Tensor) -> TensorRef:
    return TensorRef(name, tuple(value.shape), "float32", InMemory(value))
