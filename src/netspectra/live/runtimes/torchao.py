"""A quantized model as torchao's tensors: a folder of safetensors, and a config by module name.

Layout: torchao's documentation of ``IntxUnpackedToInt8Tensor`` and of its safetensors support: codes in int8 whatever
their width, scales in the model's dtype, zero points in int8.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from netspectra.checkpoint import new_folder
from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedConvolution, CodedEmbedding, CodedLinear, CodedModule, stock
from netspectra.live.build import hushed, quiet_transformers
from netspectra.live.runtimes import coded_modules, decoded, lacking
from netspectra.live.runtimes.adapter import FOLDER, write_adapter
from netspectra.live.runtimes.compressed import notes_on
from netspectra.live.saved import Saved, go_along
from netspectra.live.stock import is_transformers
from netspectra.weight import Source

__all__ = ["as_torchao", "needed", "torchao_config", "write_torchao"]

CONFIG = "torchao_config.json"


def refuses(module: CodedModule) -> str:
    """Why torchao has no tensor for a layer; empty where it has."""
    if module.rank and isinstance(module, CodedEmbedding | CodedConvolution):
        return "PEFT cannot add its correction to torchao's codes (--rank 0 asks for none); stays in the model's dtype"
    if module.bits == 16:
        return "16 bits: stays in the model's dtype"
    if module.dtype == torch.float64:
        return "torchao has no scales in float64; stays in the model's dtype"
    if isinstance(module, CodedLinear) and module.turned:
        return "transformers' Conv1D multiplies in a way torchao has no kernel for; stays in the model's dtype"
    if isinstance(module, CodedConvolution):
        if len(module.shape) != 4:
            return "torchao knows convolutions over images only; stays in the model's dtype"
        if _group(module) % (module.shape[2] * module.shape[3]) and _group(module) != module.columns:
            return "its groups cut through kernels; stays in the model's dtype"
    return ""


def _separate(module: CodedModule) -> bool:
    """Whether a layer's correction goes beside the model, for PEFT; one that it cannot add is multiplied in."""
    return module.rank > 0 and isinstance(module, CodedLinear)


def _group(module: CodedModule) -> int:
    assert module.scale is not None
    return module.columns // module.scale.shape[1]


def as_torchao(model: nn.Module) -> nn.Module:
    """A copy of the model whose weights are torchao's; corrections are left out.

    Raises:
        InputRefused: torchao is not installed, or nothing is quantized.
    """
    needed()
    with hushed():
        return decoded(model, lambda name, module: _layer(module), corrected=False)


def needed() -> None:
    """Refuse where torchao is not installed."""
    if find_spec("torchao") is None:
        raise lacking("the format torchao", "torchao")


def _layer(module: CodedModule) -> nn.Module:
    from torchao.quantization import IntxUnpackedToInt8Tensor  # pyright: ignore[reportMissingImports]

    if refuses(module):
        return stock(module, corrected=not _separate(module))
    made = stock(module, corrected=False)
    coded = module.coded()
    if not torch.equal(coded.scale.to(module.dtype).to(coded.scale.dtype), coded.scale):
        raise InputRefused(
            f"scales of {coded.scale.dtype} are no numbers of {module.dtype}, in which torchao has them: quantize "
            "without the format gguf (scales=None), or write another format"
        )
    middle = 2 ** (module.bits - 1)
    group = _group(module)
    block: tuple[int, ...] = (1, group)
    shape = tuple(coded.scale.shape)
    if isinstance(module, CodedConvolution):
        taps = module.shape[2:]
        whole = module.shape[1] if group == module.columns else group // (taps[0] * taps[1])
        block, shape = (1, whole, *taps), (module.shape[0], module.shape[1] // whole, 1, 1)
    tensor = IntxUnpackedToInt8Tensor(
        qdata=(coded.codes.to(torch.int16) - middle).to(torch.int8).reshape(module.shape),
        scale=coded.scale.to(module.dtype).reshape(shape),
        zero_point=(coded.zero.to(torch.int16) - middle).to(torch.int8).reshape(shape),
        target_dtype=getattr(torch, f"int{module.bits}"),
        block_size=block,
        dtype=module.dtype,
        activation_quantization=None,
    )
    made.weight = nn.Parameter(tensor, requires_grad=False)
    return made


def torchao_config(model: nn.Module) -> Any:
    """torchao's ``FqnToConfig``: bits and groups by module name, for ``quantize_``, which then rounds to the nearest.

    Raises:
        InputRefused: torchao is not installed, or nothing is quantized.
    """
    needed()
    with hushed():
        from torchao.quantization import FqnToConfig, IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup  # pyright: ignore[reportMissingImports]

    found: OrderedDict[str, Any] = OrderedDict()
    for name, module in coded_modules(model).items():
        if refuses(module):
            continue
        group = _group(module)
        whole = group == module.columns or isinstance(module, CodedConvolution)
        found[name] = IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{module.bits}"),
            granularity=PerAxis(0) if whole else PerGroup(group),
            mapping_type=MappingType.SYMMETRIC if module.zero is None else MappingType.ASYMMETRIC,
        )
    return FqnToConfig(found)


def write_torchao(
    model: nn.Module, to: str | Path, *, source: Source | None, beside: Callable[[Path], None] = lambda folder: None
) -> Saved:
    """Write the folder: for a transformers model one that ``from_pretrained`` loads; for any, one torchao reads.

    Raises:
        InputRefused: torchao is not installed, nothing is quantized, the folder holds something else.
    """
    made, config = as_torchao(model), torchao_config(model)
    modules = coded_modules(model)
    notes = notes_on((), {name: reason for name, module in modules.items() if (reason := refuses(module))}, 0)
    if all(map(refuses, modules.values())):
        raise InputRefused(f"torchao has tensors for no layer of this model that is quantized ({notes[0]})")
    if narrow := [name for name, module in modules.items() if module.bits < 8 and not refuses(module)]:
        notes.append(f"codes of fewer than 8 bits, in {len(narrow)} layers, take 8 on disk: torchao has them in bytes")
    with new_folder(to) as folder:
        notes += go_along(folder, source)
        if corrected := write_adapter(model, folder / FOLDER, _separate):
            notes.append(f"corrections of {len(corrected)} layers: {FOLDER}/, to be loaded with PEFT")
        from torchao.core.config import config_to_dict  # pyright: ignore[reportMissingImports]

        (folder / CONFIG).write_text(json.dumps(config_to_dict(config), indent=1) + "\n", encoding="utf-8")
        if is_transformers(made):
            _by_transformers(cast(Any, made), config, folder)
        else:
            _plain(made, folder)
        beside(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return Saved(str(to), size, True, 0, tuple(notes))


def _by_transformers(model: Any, config: Any, folder: Path) -> None:
    with hushed():
        from transformers import TorchAoConfig
        from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    tables = any(isinstance(module, nn.Embedding) for name, module in model.named_modules()
                 if name in config.fqn_to_config)  # fmt: skip
    asked = TorchAoConfig(config, include_input_output_embeddings=tables)
    with quiet_transformers():
        model.config.quantization_config = asked
        model.hf_quantizer = TorchAoHfQuantizer(asked, pre_quantized=True)
        model.hf_quantizer.get_state_dict_and_metadata = lambda model: _flat(model)
        model.save_pretrained(folder)


def _plain(model: nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors, metadata = _flat(model)
    seen: set[int] = set()
    for name, value in tensors.items():  # what is tied is written under each of its names: torchao's reader wants all
        tensors[name] = value.contiguous() if value.data_ptr() not in seen else value.clone()
        seen.add(value.data_ptr())
    save_file(tensors, folder / "model.safetensors", metadata)


def _flat(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict in torchao's layout, and what its reader has to know.

    Tensors of the model's own, whose names have no dot, are plain; torchao 0.18 trips over such a name in its list and
    takes what is not in the list as it is.
    """
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict  # pyright: ignore[reportMissingImports]

    tensors, metadata = flatten_tensor_state_dict(cast(Any, model.state_dict()))
    names = [name for name in json.loads(metadata["tensor_names"]) if "." in name]
    return dict(tensors), {**metadata, "tensor_names": json.dumps(names)}
