"""Fresh values for the parameters of known modules: matrices orthogonal, norms one, biases zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from netspectra.errors import InputRefused
from netspectra.linalg.orthogonal import delta_orthogonal, semi_orthogonal

__all__ = ["TRANSPOSED", "Draw", "Method", "Values", "draws", "is_norm"]

Method = Literal["orthogonal", "gaussian", "spectral", "keep"]
Values = Callable[[Sequence[int], torch.Generator], Tensor]  # of a shape, float64
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_GATES = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3}


@dataclass(frozen=True, eq=False)
class Draw:
    """What one parameter gets.

    Attributes:
        name: of the parameter.
        scheme: in words; empty where it is left alone.
        value: makes the new value, of the parameter's shape or another one; None where it is left alone.
        reason: why it is left alone.
    """

    name: str
    parameter: nn.Parameter
    scheme: str = ""
    value: Values | None = None
    reason: str = ""


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, by its class or its name."""
    known = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)
    return isinstance(module, known) or "norm" in type(module).__name__.lower()


def draws(model: nn.Module, method: Method) -> Iterator[Draw]:
    """One `Draw` a parameter, in the order of the modules; shared parameters once."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            label = f"{prefix}.{name}" if prefix else name
            if isinstance(parameter, UninitializedParameter):
                raise InputRefused(f"{label} has no shape yet: run one batch through the lazy module first")
            yield _draw(label, name, parameter, module, method, id(parameter) in tables)


def _draw(label: str, name: str, p: nn.Parameter, module: nn.Module, method: Method, table: bool) -> Draw:
    """The row of one parameter."""
    if table:
        return Draw(label, p, reason="embedding: its scale is that of the input")
    if not p.is_floating_point():
        return Draw(label, p, reason=f"{p.dtype} numbers")
    if "Parametriz" in type(module).__name__ or name.endswith(("_g", "_v", "_orig")):
        return Draw(label, p, reason="parametrized: initialise before parametrizing")
    if is_norm(module):
        if name in ("weight", "bias"):
            one = name == "weight" and type(module).__name__ != "GemmaRMSNorm"  # that one multiplies by 1 + weight
            return Draw(label, p, "ones" if one else "zeros", lambda shape, g: torch.full(shape, float(one)))
        return Draw(label, p, reason="of a normalization")
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and "bias" in name:
        return Draw(label, p, "zeros", _recurrent_bias(module, name))
    if p.dim() == 1:
        if name in ("bias", "in_proj_bias"):
            return Draw(label, p, "zeros", lambda shape, g: torch.zeros(shape))
        return Draw(label, p, reason="a vector of its own")
    known = _matrix(name, p, module)
    if known is None:
        return Draw(label, p, reason=f"how {type(module).__name__} uses it is not known")
    if method == "keep":
        return Draw(label, p, reason="kept as it was")
    scheme, value = known
    if method == "orthogonal":
        return Draw(label, p, scheme, value)
    fan_in = _fan_in(name, p, module)
    return Draw(
        label,
        p,
        f"Gaussian, variance 1 / {fan_in}",
        lambda shape, g: torch.randn(*shape, generator=g, dtype=torch.float64) / math.sqrt(fan_in),
    )


def _matrix(name: str, p: Tensor, module: nn.Module) -> tuple[str, Values] | None:
    """The orthogonal scheme of a weight whose use is known."""
    if isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and p.dim() == 2):
        return "orthogonal", lambda shape, g: semi_orthogonal(shape[0], shape[1], g)
    if isinstance(module, nn.MultiheadAttention):
        parts = 3 if name == "in_proj_weight" else 1
        if name.endswith("proj_weight"):
            return _stacked(parts, "q, k, v")
        return None
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and name.startswith("weight"):
        return _stacked(_gates(module), "gates")
    if isinstance(module, _CONVS) and name == "weight":
        if module.groups == 1 and all(s == 1 for s in module.stride):
            return "delta-orthogonal", delta_orthogonal
        return _stacked(module.groups, "groups")
    if isinstance(module, TRANSPOSED) and name == "weight":
        return _stacked(module.groups, "groups")
    return None


def _stacked(parts: int, of: str) -> tuple[str, Values]:
    """Blocks on top of each other, each orthogonal."""

    def value(shape: Sequence[int], g: torch.Generator) -> Tensor:
        rows, columns = shape[0] // parts, math.prod(shape[1:])
        return torch.cat([semi_orthogonal(rows, columns, g) for _ in range(parts)]).reshape(*shape)

    return ("orthogonal" if parts == 1 else f"orthogonal, {parts} {of}"), value


def _gates(module: nn.Module) -> int:
    return _GATES.get(str(getattr(module, "mode", type(module).__name__)), 1)


def _recurrent_bias(module: nn.Module, name: str) -> Values:
    """Zero; the forget gate of an LSTM one (Jozefowicz et al. 2015), in the input's bias alone."""

    def value(shape: Sequence[int], g: torch.Generator) -> Tensor:
        bias = torch.zeros(shape)
        if _gates(module) == 4 and "ih" in name:
            bias[len(bias) // 4 : len(bias) // 2] = 1
        return bias

    return value


def _fan_in(name: str, p: Tensor, module: nn.Module) -> int:
    if type(module).__name__ == "Conv1D" and p.dim() == 2:  # of transformers: stored inputs first
        return p.shape[0]
    if isinstance(module, TRANSPOSED):
        return p.shape[0] // module.groups * p[0, 0].numel()
    return p[0].numel()
