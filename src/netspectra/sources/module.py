"""Live modules and mappings of tensors. The model is looked at, never touched: no mode, buffer or counter changes."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from netspectra.errors import InputRefused
from netspectra.sources.guard import GUARD
from netspectra.views import Context, view
from netspectra.weight import Index, InMemory, Loader, Source, TensorRef

__all__ = ["open_mapping", "open_module"]

SAMPLE = 4096


@dataclass(frozen=True, eq=False)
class Parametrized:
    """The effective value of a parametrized tensor, computed on a copy so that no buffer of the original moves."""

    module: nn.Module
    attribute: str

    def __call__(self, index: Index = ()) -> Tensor:
        """Evaluate the parametrization in eval mode and give ``tensor[index]``."""
        chain = copy.deepcopy(getattr(self.module.parametrizations, self.attribute)).eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            found = chain().detach()
        return found[index] if index else found


@dataclass(frozen=True, eq=False)
class Hooked:
    """The value that a weight_norm or spectral_norm hook gives, with no power iteration, so that no buffer moves."""

    module: nn.Module
    hook: WeightNorm | SpectralNorm

    def __call__(self, index: Index = ()) -> Tensor:
        """Evaluate the hook and give ``tensor[index]``."""
        with torch.no_grad():
            if isinstance(self.hook, WeightNorm):
                found = self.hook.compute_weight(self.module)
            else:
                found = self.hook.compute_weight(self.module, do_power_iteration=False)
        found = found.detach()
        return found[index] if index else found


def open_module(module: nn.Module) -> Source:
    """View a live module's parameters, by effective value where they are parametrized."""
    refs: list[TensorRef] = []
    for prefix, child in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        facts = _facts(child)
        if parametrize.is_parametrized(child):
            for attribute in child.parametrizations:  # type: ignore[union-attr]
                refs.append(_effective(f"{dot}{attribute}", Parametrized(child, attribute), facts))
        if isinstance(child, parametrize.ParametrizationList) or ".parametrizations." in f".{dot}":
            continue
        hooked = _hooked(child)
        for attribute, loader in hooked.items():
            refs.append(_effective(f"{dot}{attribute}", loader, facts))
        parts = tuple(f"{attribute}_{part}" for attribute in hooked for part in ("g", "v", "orig", "u"))
        for name, parameter in child.named_parameters(recurse=False, remove_duplicate=False):
            if name not in parts:
                refs.append(_ref(f"{dot}{name}", parameter, facts))
        for name, buffer in child.named_buffers(recurse=False, remove_duplicate=False):
            if name not in parts:
                refs.append(_ref(f"{dot}{name}", buffer, {**facts, "buffer": True}))
    return _source(type(module).__name__, "module", tuple(refs))


def open_mapping(tensors: Mapping[Any, Any]) -> Source:
    """View a mapping of names to tensors or arrays: a state dict, gradients, an update."""
    refs: list[TensorRef] = []
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise InputRefused(f"a dict of tensors has names for keys, found {type(name).__name__}")
        if not isinstance(value, Tensor):
            try:
                value = torch.as_tensor(value)
            except (TypeError, ValueError, RuntimeError):
                raise InputRefused(f"{name!r} is {type(value).__name__}, neither tensor nor array") from None
        refs.append(_ref(name, value, {}))
    return _source("dict", "tensors", tuple(refs))


def _source(path: str, kind: str, refs: tuple[TensorRef, ...]) -> Source:
    weights, skipped = view(refs, Context())
    return Source(path, kind, refs, tuple(weights), tuple(skipped), lambda: _identify(refs))


def _identify(refs: tuple[TensorRef, ...]) -> tuple[str, str]:
    """Fingerprint from names, shapes, dtypes and up to 4096 numbers of each tensor."""
    content = hashlib.sha256()
    for ref in refs:
        content.update(f"{ref.name!r} {ref.dtype} {ref.shape}\n".encode("utf-8", "surrogatepass"))
        if ref.problem:
            continue
        flat = ref.load().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLE)][: 2 * SAMPLE].contiguous().cpu()
        content.update(sample.view(torch.uint8).numpy().tobytes() if len(sample) else b"")
    return content.hexdigest(), ""


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _problem(tensor: Tensor) -> str:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return "not initialised yet: run one batch through the lazy module first"
    if tensor.is_meta:
        return "on the meta device: it has a shape but no numbers"
    if tensor.is_quantized:
        return "quantized storage: dequantize the module first"
    return ""


def _ref(name: str, tensor: Tensor, facts: Mapping[str, Any]) -> TensorRef:
    GUARD.name(Path("the model"), name)
    problem = _problem(tensor)
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return TensorRef(name, (), _dtype(tensor), InMemory(tensor), facts, None, problem)
    return TensorRef(name, tuple(tensor.shape), _dtype(tensor), InMemory(tensor), facts, _identity(tensor), problem)


def _identity(tensor: Tensor) -> Hashable:
    """Equal for two names of the same numbers; None where storage cannot be named (sparse, meta, fake)."""
    if tensor.layout != torch.strided or tensor.is_meta or tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _hooked(module: nn.Module) -> dict[str, Loader]:
    """Weights that the hooks of the older weight_norm and spectral_norm recompute before every forward."""
    return {
        hook.name: Hooked(module, hook)
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm | SpectralNorm)
    }


def _effective(name: str, loader: Loader, facts: Mapping[str, Any]) -> TensorRef:
    value = loader()
    return TensorRef(name, tuple(value.shape), _dtype(value), loader, {**facts, "parametrized": True})


_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _facts(module: nn.Module) -> dict[str, Any]:
    """What the module's class says of its tensors' use; by name, so that no import of transformers is needed."""
    facts: dict[str, Any] = {"module": type(module).__name__}
    if isinstance(module, _CONV):
        facts.update(
            conv=True,
            kernel_size=module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            output_padding=module.output_padding,
            padding_mode=module.padding_mode,
            dilation=module.dilation,
            groups=module.groups,
            transposed=module.transposed,
        )
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        facts["embedding"] = True
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        facts["recurrent"] = module.mode if isinstance(module, nn.RNNBase) else type(module).__name__
    elif isinstance(module, nn.Bilinear):
        facts["bilinear"] = True
    elif type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers."):
        facts["input_first"] = True
    return facts
