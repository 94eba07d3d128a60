"""A quantized model as a compressed-tensors checkpoint ("pack-quantized"), as transformers, vLLM and SGLang read it.

Layout: compressed-tensors' documentation of the format: codes offset by 2^(bits - 1), dense in int32 words along the
inputs (along the outputs for zero points), scales in the model's dtype, one ``config_groups`` entry for each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.forms.coded import CodedLinear, CodedModule
from netspectra.linalg.packing import pack
from netspectra.live.runtimes import coded_modules, decoded
from netspectra.live.runtimes.adapter import FOLDER, write_adapter
from netspectra.live.saved import Saved, save_config, save_tensors, state
from netspectra.live.stock import is_transformers
from netspectra.weight import InMemory, Source, TensorRef

__all__ = ["compressed_config", "write_compressed"]

KERNELS = (4, 8)  # bits for which vLLM and SGLang have kernels


def refuses(module: CodedModule) -> str:
    """Why a layer stays in the model's dtype; empty where it is packed."""
    if module.bits == 16:
        return "16 bits: stays in the model's dtype"
    if not isinstance(module, CodedLinear) or module.turned:
        return "compressed-tensors packs layers of type Linear only; stays in the model's dtype, decoded"
    return ""


def compressed_config(model: nn.Module) -> dict[str, Any]:
    """The ``quantization_config`` entry: a group of layers for each number of bits, group size and kind of grid."""
    groups: dict[tuple[int, int, bool], list[str]] = {}
    modules = coded_modules(model)
    for name, module in modules.items():
        if not refuses(module) and module.scale is not None:
            size = 0 if module.scale.shape[1] == 1 else module.columns // module.scale.shape[1]
            groups.setdefault((module.bits, size, module.zero is None), []).append(name)
    packed = {name for names in groups.values() for name in names}
    others = [name for name, module in decoded(model).named_modules() if type(module) is nn.Linear]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [name for name in others if name not in packed],
        "config_groups": {
            f"group_{i}": {
                "targets": names,
                "format": "pack-quantized",
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": symmetric,
                    "strategy": "group" if size else "channel",
                    "group_size": size or None,
                },
            }
            for i, ((bits, size, symmetric), names) in enumerate(sorted(groups.items()))
        },
    }


def write_compressed(
    model: nn.Module, to: str | Path, *, source: Source | None, beside: Callable[[Path], None] = lambda folder: None
) -> Saved:
    """Write the folder; layers that the format cannot hold are decoded.

    Raises:
        InputRefused: nothing is quantized, or the folder holds something else.
    """
    modules = coded_modules(model)
    packed = {name: module for name, module in modules.items() if not refuses(module)}
    dense = decoded(model, corrected=False)
    config = compressed_config(model)
    refs, tied = state(dense)
    kept = [ref for ref in refs if ref.name.removesuffix(".weight") not in packed or not ref.name.endswith(".weight")]
    for name, module in packed.items():
        kept += [_ref(f"{name}.{key}", value) for key, value in _packed(module).items()]

    def describe(folder: Path) -> None:
        if is_transformers(dense):
            save_config(cast(Any, dense), folder)
        path = folder / "config.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**found, "quantization_config": config}, indent=2) + "\n", encoding="utf-8")

    def more(folder: Path) -> None:
        beside(folder)
        write_adapter(model, folder / FOLDER)

    saved = save_tensors(kept, [], to, source=source, tied=tied, describe=describe, beside=more, stock=True)
    return Saved(saved.path, saved.bytes, True, 0, (*saved.notes, *_notes(modules)))


def _notes(modules: dict[str, CodedModule]) -> list[str]:
    notes = [f"{name}: {reason}" for name, module in modules.items() if (reason := refuses(module))]
    widths = sorted({module.bits for module in modules.values() if not refuses(module)} - set(KERNELS))
    if widths:
        bits = ", ".join(map(str, widths))
        notes.append(f"{bits} bits: the library decodes them; vLLM's and SGLang's kernels take 4 and 8 only")
    if any(module.zero is not None for module in modules.values() if not refuses(module)):
        notes.append("zero points: transformers 5.24 does not load packed ones; quantize with --symmetric for it")
    corrected = sum(module.rank > 0 for module in modules.values())
    if corrected:
        notes.append(f"corrections of {corrected} layers: {FOLDER}/, to be loaded with PEFT")
    return notes


def _packed(module: CodedModule) -> dict[str, Tensor]:
    coded = module.coded()
    found = {
        "weight_packed": _words(coded.codes, module.bits),
        "weight_scale": coded.scale.to(module.dtype),
        "weight_shape": torch.tensor(module.shape, dtype=torch.int64),
    }
    if module.zero is not None:
        found["weight_zero_point"] = _words(coded.zero.mT.contiguous(), module.bits).mT.contiguous()
    return found


def _words(codes: Tensor, bits: int) -> Tensor:
    """Dense 32-bit words, little end first."""
    packed = pack(codes, bits)
    return F.pad(packed, (0, -packed.shape[1] % 4)).contiguous().view(torch.int32)


def _ref(name: str, value: Tensor) -> TensorRef:
    return TensorRef(name, tuple(value.shape), str(value.dtype).removeprefix("torch."), InMemory(value.detach().cpu()))
