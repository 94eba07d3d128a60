"""Inputs of a layer in any of the forms they come in: vectors, images for a convolution, tokens for an embedding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from netspectra.errors import InputRefused, NotDecomposable

__all__ = ["Inputs", "as_inputs"]

MOST = 4096
LABEL = 24  # characters of a label that are kept


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a layer receives.

    Attributes:
        numbers: (count, n) float64; of tokens their numbers, (count,).
        tokens: whether they are tokens of an embedding.
        labels: one each, as short text; empty where there are none.
        described: in words.
        notes: what was left out.
    """

    numbers: np.ndarray
    tokens: bool
    labels: tuple[str, ...]
    described: str
    notes: tuple[str, ...] = ()


def as_inputs(
    inputs: Any, labels: Sequence[Any] | None, kind: str, shape: tuple[int, int], kernel: tuple[int, ...]
) -> Inputs | None:
    """Bring inputs into the form (count, n), or refuse them; None where there are none to be had.

    Args:
        inputs: as given.
        labels: one each, or None.
        kind: of the weight.
        shape: (m, n) of the matrix; of an embedding (tokens, width).
        kernel: spatial size of a convolution's kernel, where known.
    """
    if inputs is None:
        if kind != "embedding":
            if labels is not None:
                raise InputRefused("labels belong to inputs: give both")
            return None
        inputs = np.arange(shape[0])
        described = f"all {shape[0]} tokens"
    else:
        inputs = np.asarray(torch.as_tensor(inputs).detach().cpu().double() if _floating(inputs) else inputs)
        described = ""
    if kind == "embedding" and inputs.dtype.kind in "iu":
        return _tokens(inputs.ravel(), labels, shape[0], described)
    if inputs.dtype.kind not in "iufb":
        raise InputRefused(f"inputs hold {inputs.dtype}; give numbers")
    labelled = labels
    if kernel and inputs.ndim == len(kernel) + 2:
        inputs, labelled = _patches(inputs, kernel), None
        described = "patches of images"
    if inputs.ndim < 2 or inputs.shape[-1] != shape[1]:
        raise InputRefused(
            f"inputs of shape {inputs.shape} do not fit: this weight takes {shape[1]} numbers each"
            + (f", or images of {shape[1] // math.prod(kernel)} channels" if kernel else "")
        )
    flat = inputs.reshape(-1, shape[1]).astype(float)
    if not np.isfinite(flat).all():
        raise NotDecomposable("the inputs contain NaN or Inf")
    if not len(flat):
        raise InputRefused("there are no inputs")
    kept, names, notes = _sampled(flat, labelled)
    return Inputs(kept, False, names, f"{len(flat)} {described or 'inputs'}", notes)


def _floating(inputs: Any) -> bool:
    """Whether it is a tensor of a type that numpy has not."""
    return isinstance(inputs, torch.Tensor) and inputs.dtype.is_floating_point


def _tokens(ids: np.ndarray, labels: Sequence[Any] | None, count: int, described: str) -> Inputs:
    if not len(ids):
        raise InputRefused("there are no inputs")
    if ids.min() < 0 or ids.max() >= count:
        raise InputRefused(f"token {ids.min() if ids.min() < 0 else ids.max()} does not exist: there are {count}")
    kept, names, notes = _sampled(ids.astype(np.int64), labels)
    return Inputs(kept, True, names, described or f"{len(ids)} tokens", notes)


def _sampled(numbers: np.ndarray, labels: Sequence[Any] | None) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """At most `MOST` of them, evenly chosen, with their labels."""
    if labels is not None and len(labels) != len(numbers):
        raise InputRefused(f"{len(labels)} labels for {len(numbers)} inputs: give one each")
    places = np.unique(np.linspace(0, len(numbers) - 1, min(MOST, len(numbers))).round().astype(int))
    names = () if labels is None else tuple(str(labels[int(i)])[:LABEL] for i in places)
    left = len(numbers) - len(places)
    return numbers[places], names, (f"{len(places)} of {len(numbers)} inputs, evenly chosen, were used",) * bool(left)


def _patches(images: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray:
    """Every window of the kernel's size that lies within the images, as (count, channels * kernel)."""
    if any(size < side for size, side in zip(images.shape[2:], kernel, strict=True)):
        raise InputRefused(f"images of {images.shape[2:]} are smaller than the kernel {kernel}")
    places = np.unique(np.linspace(0, len(images) - 1, min(64, len(images))).round().astype(int))
    axes = tuple(range(2, images.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(images[places], kernel, axis=axes)
    moved = np.moveaxis(windows, 1, len(axes) + 1)  # (count, places, channels, kernel)
    return moved.reshape(-1, images.shape[1] * math.prod(kernel))
