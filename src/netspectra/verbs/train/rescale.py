"""Normalize a checkpoint: every weight matrix to an operator norm, streamed from file to file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from netspectra.errors import InputRefused, NotDecomposable
from netspectra.linalg.values import svdvals, union
from netspectra.live.saved import Saved, same_config, save_tensors
from netspectra.verbs.convolution import operator_spectrum
from netspectra.verbs.train.normalize import LayerNorm, Normalized, NormalizeOptions, clipped
from netspectra.weight import Index, Loader, Part, Selection, Source, TensorRef, Weight

__all__ = ["rescale"]

Change = Callable[[Tensor], Tensor]


def rescale(
    source: Source,
    to: str | Path | None,
    options: NormalizeOptions,
    *,
    grid: int | None = None,
    progress: Callable[[Weight | None], None] = lambda weight: None,
) -> tuple[Normalized, Saved | None]:
    """Write a checkpoint whose matrices have a given operator norm, or cut their singular values, once.

    Convolutions are taken as operators on the grid, with what a file does not tell assumed as in `netspectra.analyze`.
    The parts of a fused tensor are normalized one by one. Packed weights, products and tied tensors are left alone.

    Args:
        source: an opened checkpoint.
        to: the folder to write; None to look only.
        options: target, budget, method ``scale``, ``at most`` or ``clip``, selection.
        grid: input size of convolutions; by default 64, 16 x 16 or 8 x 8 x 8.
        progress: called with each weight that is done.

    Raises:
        InputRefused: a method that needs a live model, or nothing to normalize.
    """
    if options.method == "orthogonal" or options.gain:
        raise InputRefused("a checkpoint is normalized once: method 'scale', 'at most' or 'clip', without gain")
    selection = Selection(options.include, options.exclude)
    found: list[tuple[Weight, float, float, tuple[int, ...]]] = []
    skipped: list[tuple[str, str]] = []
    for weight in source.weights:
        if not selection.accepts(weight.name):
            continue
        reason = _refusal(weight)
        if not reason:
            try:
                found.append((weight, *_norm(weight, grid)))
            except (NotDecomposable, InputRefused) as wrong:
                reason = str(wrong)
        if reason:
            skipped.append((weight.name, reason))
        progress(weight)
    zero = [weight.name for weight, norm, *_ in found if norm == 0]
    skipped += [(name, "it is zero: there is no direction to scale") for name in zero]
    found = [row for row in found if row[1] > 0]
    if not found:
        raise InputRefused(f"{source.path}: nothing to normalize; 'netspectra inspect' lists what a checkpoint holds")
    target = options.target if options.budget is None else options.budget ** (1 / len(found))
    changes: dict[str, list[tuple[Part, Change]]] = {}
    rows = []
    for weight, norm, reshaped, sizes in found:
        after = norm if options.method != "scale" and norm <= target else target
        if after != norm:
            change = _change(weight, norm, target, options)
            changes.setdefault(weight.part.ref.name, []).append((weight.part, change))
        rows.append(LayerNorm(weight.name, weight.kind, sizes, norm, after, after, reshaped if sizes else None))
    result = Normalized(tuple(rows), tuple(skipped), target, options)
    if to is None:
        return result, None
    refs = [
        TensorRef(ref.name, ref.shape, ref.dtype, _Changed(ref.load, tuple(changes[ref.name])))
        if ref.name in changes
        else ref
        for ref in source.tensors
    ]
    return result, save_tensors(refs, [], to, source=source, describe=same_config(source), stock=True)


def _refusal(weight: Weight) -> str:
    if weight.factors is not None:
        return "it is kept as a product"
    if weight.part.ref.stored:
        return f"it is packed ({weight.part.ref.stored})"
    if weight.aliases:
        return "it is tied to another weight"
    return ""


def _norm(weight: Weight, grid: int | None) -> tuple[float, float, tuple[int, ...]]:
    """The operator norm, the norm of the unfolded matrix, and the grid of a convolution."""
    tensor = weight.part.load()
    blocks = weight.layout.blocks(tensor)
    spectrum = svdvals(blocks[0]) if len(blocks) == 1 else union([svdvals(block) for block in blocks], weight.shape)
    operator = operator_spectrum(weight, tensor, spectrum, grid)
    if operator is None:
        return spectrum.sigma_max, spectrum.sigma_max, ()
    return operator.spectrum.sigma_max, spectrum.sigma_max, operator.grid


def _change(weight: Weight, norm: float, target: float, options: NormalizeOptions) -> Change:
    if options.method == "clip" and not weight.kind.startswith("conv") and weight.layout.groups == 1:
        layout = weight.layout

        def cut(tensor: Tensor) -> Tensor:
            return layout.tensor(clipped(layout.blocks(tensor)[0], target)[None], tuple(tensor.shape))

        return cut
    return lambda tensor: (tensor.double() * (target / norm)).to(tensor.dtype)


@dataclass(frozen=True, eq=False)
class _Changed:
    """A tensor with some of its parts changed, as a `Loader`."""

    load: Loader
    changes: tuple[tuple[Part, Change], ...]

    def __call__(self, index: Index = ()) -> Tensor:
        with torch.no_grad():
            whole = self.load().clone()
            for part, change in self.changes:
                view = whole if part.reshape is None else whole.view(part.reshape)
                view[part.index] = change(view[part.index])
        return whole[index] if index else whole
