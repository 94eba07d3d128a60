"""What a model is called with, and which tensor of what it gives back is meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused

__all__ = ["call", "main_output", "moved", "samples_in", "selected", "tensors"]

# Fields of a model's output, the most telling first; else the first floating tensor counts.
FIELDS = ("logits", "last_hidden_state", "prediction", "sample")


def call(model: nn.Module, batch: Any) -> Any:
    """Run the model on a batch: a mapping by keyword, a tuple or list by position, anything else as one argument.

    >>> call(nn.Identity(), (torch.ones(2),)).tolist()
    [1.0, 1.0]
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def main_output(output: Any) -> Tensor:
    """The tensor that an output is about: itself, its ``logits`` or the like, or its first floating tensor.

    Raises:
        InputRefused: there is no floating tensor in it.

    >>> main_output({"loss": None, "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
    if isinstance(output, Mapping):
        for name in FIELDS:
            if isinstance(output.get(name), Tensor):
                return output[name]
    for tensor in tensors(output):
        if tensor.is_floating_point() or tensor.is_complex():
            return tensor
    raise InputRefused(f"the model returned {type(output).__name__} without a floating tensor: wrap it so that it does")


def tensors(data: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, sequences and dataclass-like outputs, in order."""
    if isinstance(data, Tensor):
        yield data
    elif isinstance(data, Mapping):
        for value in data.values():
            yield from tensors(value)
    elif isinstance(data, Sequence) and not isinstance(data, str | bytes):
        for value in data:
            yield from tensors(value)


def moved(batch: Any, device: torch.device | str) -> Any:
    """The same batch with its tensors on a device; mappings become plain dicts.

    >>> moved({"ids": torch.ones(1)}, "cpu")
    {'ids': tensor([1.])}
    """
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(moved(value, device) for value in batch)
    return batch


def samples_in(batch: Any) -> int:
    """How many samples a batch holds: the first axis of its first tensor.

    >>> samples_in({"ids": torch.ones(3, 2)})
    3
    """
    for tensor in tensors(batch):
        return tensor.shape[0] if tensor.dim() else 1
    raise InputRefused("a calibration batch holds no tensor; give tensors, or mappings or tuples of them")


def selected(batch: Any, rows: Tensor, count: int) -> Any:
    """These samples of a batch of ``count``: of every tensor whose first axis counts them; the rest as it is.

    >>> selected({"ids": torch.arange(3), "flag": True}, torch.tensor([0, 2]), 3)
    {'ids': tensor([0, 2]), 'flag': True}
    """
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)] if batch.dim() and batch.shape[0] == count else batch
    if isinstance(batch, Mapping):
        return {key: selected(value, rows, count) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(selected(value, rows, count) for value in batch)
    return batch
