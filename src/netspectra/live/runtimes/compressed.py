"""A quantized model as a compressed-tensors checkpoint ("pack-quantized"), as transformers, vLLM and SGLang read it.

Layout: compressed-tensors' documentation of the format: codes offset by 2^(bits - 1), dense in int32 words along the
inputs (along the outputs for zero points), scales in the model's dtype, one ``config_groups`` entry for each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms import Spec
from netspectra.forms.coded import CodedLinear, CodedModule, stock
from netspectra.forms.place import placed
from netspectra.linalg.packing import pack
from netspectra.live.runtimes import coded_modules, decoded
from netspectra.live.runtimes.adapter import FOLDER, write_adapter
from netspectra.live.saved import Saved, save_config, save_tensors, state
from netspectra.live.stock import is_transformers
from netspectra.weight import InMemory, Source, TensorRef

__all__ = [
    "HOLDS",
    "LINEAR_ONLY",
    "NOTHING",
    "against",
    "compressed_config",
    "compressed_state",
    "kind_of",
    "notes_on",
    "with_config",
    "write_compressed",
]

KERNELS = (4, 8)  # bits for which vLLM and SGLang have kernels
HOLDS = "compressed-tensors holds codes only: plan without --form, or write the format netspectra"
LINEAR_ONLY = "compressed-tensors packs layers of type Linear only"
NOTHING = (
    "compressed-tensors packs layers of type Linear below 16 bits only, and the plan has none; write the format "
    "netspectra, or ask for fewer bits"
)
Kind = tuple[int, int, bool]
"""Bits, group size (0: rows), whether there are no zero points."""


def refuses(module: CodedModule) -> str:
    """Why a layer stays in the model's dtype; empty where it is packed."""
    return against(module.bits, isinstance(module, CodedLinear) and not module.turned)


def against(bits: int, linear: bool) -> str:
    """The same by its bits, and whether it is of type Linear."""
    if bits == 16:
        return "16 bits: stays in the model's dtype"
    return "" if linear else f"{LINEAR_ONLY}; stays in the model's dtype, decoded"


def compressed_config(packed: Mapping[str, Kind], linears: Iterable[str]) -> dict[str, Any]:
    """The ``quantization_config`` entry: a group of layers for each number of bits, group size and kind of grid.

    Args:
        packed: what `kind_of` gives, by layer.
        linears: names of all Linear layers of the model: those that are not packed are to be left alone.
    """
    groups: dict[Kind, list[str]] = {}
    for name, kind in packed.items():
        groups.setdefault(kind, []).append(name)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": [name for name in linears if name not in packed],
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


def kind_of(spec: Spec, columns: int) -> Kind:
    """What the config says of a packed layer.

    Args:
        spec: of the layer of codes.
        columns: how many numbers a row of it has.

    >>> kind_of({"bits": 4, "group": 64, "symmetric": True}, 128)
    (4, 64, True)
    >>> kind_of({"bits": 8, "group": 96, "symmetric": True}, 96)
    (8, 0, True)
    """
    return spec["bits"], 0 if spec["group"] == columns else spec["group"], spec["symmetric"]


def compressed_state(module: CodedModule) -> dict[str, Tensor]:
    """The tensors of one layer: packed, or decoded where the format cannot hold it; the correction left out."""
    if refuses(module):
        return {key: value.detach() for key, value in stock(module, corrected=False).state_dict().items()}
    return _packed(module) | ({} if module.bias is None else {"bias": module.bias.detach()})


def with_config(config: Mapping[str, Any], describe: Callable[[Path], None] | None) -> Callable[[Path], None]:
    """Writes ``config.json`` as ``describe`` does, with the ``quantization_config`` entry."""

    def write(folder: Path) -> None:
        if describe is not None:
            describe(folder)
        path = folder / "config.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**found, "quantization_config": config}, indent=2) + "\n", encoding="utf-8")

    return write


def write_compressed(
    model: nn.Module, to: str | Path, *, source: Source | None, beside: Callable[[Path], None] = lambda folder: None
) -> Saved:
    """Write the folder; layers that the format cannot hold are decoded.

    Raises:
        InputRefused: nothing is quantized, or the folder holds something else.
    """
    modules, records = coded_modules(model), placed(model)
    packed = {name: module for name, module in modules.items() if not refuses(module)}
    if others := [one.module for one in records if one.module not in modules]:
        raise InputRefused(f"{others[0]}: {HOLDS}")
    if not packed:
        raise InputRefused(NOTHING)
    dense = decoded(model, corrected=False)
    linears = [name for name, module in dense.named_modules() if type(module) is nn.Linear]
    kinds = {one.module: kind_of(one.spec, packed[one.module].columns) for one in records if one.module in packed}
    config = compressed_config(kinds, linears)
    refs, tied = state(dense)
    kept = [ref for ref in refs if ref.name.removesuffix(".weight") not in packed or not ref.name.endswith(".weight")]
    for name, module in packed.items():
        kept += [_ref(f"{name}.{key}", value) for key, value in _packed(module).items()]
    describe = with_config(config, partial(save_config, cast(Any, dense)) if is_transformers(dense) else None)

    def more(folder: Path) -> None:
        write_adapter(model, folder / FOLDER)
        beside(folder)

    saved = save_tensors(kept, [], to, source=source, tied=tied, describe=describe, beside=more, stock=True)
    left = {name: reason for name, module in modules.items() if (reason := refuses(module))}
    notes = notes_on(kinds.values(), left, sum(module.rank > 0 for module in modules.values()))
    return Saved(saved.path, saved.bytes, True, 0, (*saved.notes, *notes))


def notes_on(kinds: Iterable[Kind], left: Mapping[str, str], corrections: int) -> list[str]:
    """What a reader of the folder should know.

    Args:
        kinds: of the packed layers.
        left: layers that are not packed, and why.
        corrections: how many layers have one.
    """
    kinds = list(kinds)
    notes = []
    for reason in dict.fromkeys(left.values()):
        names = [name for name, other in left.items() if other == reason]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        notes.append(f"{', '.join(names[:3])}{more}: {reason}")
    widths = sorted({bits for bits, _, _ in kinds} - set(KERNELS))
    if widths:
        bits = ", ".join(map(str, widths))
        notes.append(f"{bits} bits: the library decodes them; vLLM's and SGLang's kernels take 4 and 8 only")
    if not all(symmetric for _, _, symmetric in kinds):
        notes.append("zero points: transformers 5.24 does not load packed ones; quantize with --symmetric for it")
    if corrections:
        notes.append(f"corrections of {corrections} layers: {FOLDER}/, to be loaded with PEFT")
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
