"""Look at a running model and leave it as it was: modes, buffers, gradients, hooks and random numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["untouched"]


@contextmanager
def untouched(model: nn.Module, *, train: bool = False) -> Iterator[nn.Module]:
    """Put the model into eval mode for the block; afterwards everything is what and where it was.

    Restored, also when the block raises: the mode of every submodule, the *values* of buffers (normalization
    statistics, power-iteration vectors) in their own storage, ``requires_grad`` and ``grad`` of every parameter, and
    the random number generators of the CPU and of the devices the model lives on. Parameters are neither copied nor
    checked: do not write to them inside.

    Args:
        model: any module.
        train: keep each submodule's own mode instead of eval.

    >>> layer = nn.BatchNorm1d(2)
    >>> with untouched(layer, train=True):
    ...     _ = layer(torch.randn(4, 2))
    >>> layer.running_mean.tolist(), layer.num_batches_tracked.item()
    ([0.0, 0.0], 0)
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p, _, _ in parameters if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            if not train:
                for module, _ in modes:
                    module.training = False
            yield model
        finally:
            for module, mode in modes:
                module.training = mode
            with torch.no_grad():
                for buffer, before in buffers:
                    if not torch.equal(buffer, before):
                        buffer.copy_(before)
            for parameter, wanted, grad in parameters:
                parameter.requires_grad_(wanted)
                parameter.grad = grad
