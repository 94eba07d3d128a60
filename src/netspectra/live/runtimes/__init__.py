"""Quantized models as other programs load them: one file a format.

What a program accepts (versions tried: torchao 0.18, compressed-tensors 0.20, transformers 5.24, gguf 0.19):

- ``torchao``: 2 to 8 bits, groups or rows, zero points or none; Linear, Embedding, Conv2d. Loaded by torchao itself
  and by transformers. Kernels exist for some of these only; else it decodes at every call, as ours do.
- ``compressed-tensors``: the library packs and decodes 2 to 8 bits; vLLM's and SGLang's kernels take 4 and 8.
- ``gguf``: Q8_0, Q5_0, Q4_0, F16: symmetric, groups of 32. llama.cpp; the K types only by its own ``llama-quantize``.
- ``dequantized``: plain numbers in the original dtype, for anything.

Corrections are no part of the first three: they go beside them as a PEFT adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from netspectra.errors import InputRefused
from netspectra.forms.coded import CodedModule, stock

__all__ = ["coded_modules", "decoded", "lacking"]


def coded_modules(model: nn.Module) -> dict[str, CodedModule]:
    """The quantized layers of a model by name.

    Raises:
        InputRefused: there are none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, CodedModule)}
    if not found:
        raise InputRefused("no layer of this model is quantized; apply a plan of ns.quantize first")
    return found


def decoded(
    model: nn.Module, make: Callable[[str, CodedModule], nn.Module] | None = None, *, corrected: bool = True
) -> nn.Module:
    """A copy of a model with stock layers in the place of codes.

    Args:
        model: left as it is.
        make: builds the layer of a name; by default the decoded numbers.
        corrected: with the corrections multiplied in.
    """
    modules = coded_modules(model)
    memo: dict[int, Any] = {}
    for name, module in modules.items():
        memo[id(module)] = stock(module, corrected=corrected) if make is None else make(name, module)
    return copy.deepcopy(model, memo)  # whatever is in the memo is taken instead of being copied


def lacking(what: str, package: str) -> InputRefused:
    """The error for a library that is not installed."""
    return InputRefused(f"{what} needs {package}: pip install {package}")


def widths(modules: Mapping[str, CodedModule]) -> dict[str, int]:
    """Bits by name."""
    return {name: module.bits for name, module in modules.items()}
