"""Under which conditions a model is measured: wide numbers, norms that saw data, kernels with two derivatives."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from netspectra.errors import InputRefused
from netspectra.live.batches import call

__all__ = ["freshly_normalized", "plain_kernels", "widened"]

_NARROW = (torch.float16, torch.bfloat16)


def widened(model: nn.Module, batch: Any) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """The model and its batch in float32, if they are in half precision: a copy, at the same values.

    Products in half precision would drown what they measure; widening is exact.
    """
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise InputRefused("a lazy module has no weights yet: run one batch through the model first")
    narrow = {p.dtype for p in (*model.parameters(), *model.buffers()) if p.dtype in _NARROW}
    if not narrow:
        return model, batch, ()
    told = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in narrow))
    return copy.deepcopy(model).float(), _cast(batch), (f"stored in {told}, computed in float32 on a copy",)


def freshly_normalized(model: nn.Module, batch: Any) -> tuple[str, ...]:
    """Give batch norms that never saw data the statistics of this batch; what a reader should know of it.

    As they are made they let everything through, and in training they do not. Call it inside `untouched`, which
    restores the buffers.
    """
    fresh = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.num_batches_tracked is not None
        and int(module.num_batches_tracked) == 0
    ]
    if not fresh:
        return ()
    momenta = [module.momentum for module in fresh]
    try:
        for module in fresh:
            module.momentum, module.training = 1.0, True
        with torch.no_grad():
            call(model, batch)
    finally:
        for module, momentum in zip(fresh, momenta, strict=True):
            module.momentum, module.training = momentum, False
    return (f"{len(fresh)} batch norms never saw data: frozen at the statistics of this batch",)


def _cast(batch: Any) -> Any:
    if isinstance(batch, Tensor):
        return batch.float() if batch.dtype in _NARROW else batch
    if isinstance(batch, Mapping):
        return {key: _cast(value) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(_cast(value) for value in batch)
    return batch


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Gradients on, and no kernels that cannot be differentiated twice (fused attention, compiled graphs)."""
    fast = torch.backends.mha.get_fastpath_enabled()
    kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with torch.inference_mode(False), torch.enable_grad(), kernel, torch.backends.cudnn.flags(enabled=False):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
