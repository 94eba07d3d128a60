"""What plain rounding of the same weights to int8 or int4 would cost: measured, so that nobody is fooled."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.sites import Sites

__all__ = ["rounded", "rounding"]

GROUP = 64


def rounded(W: Tensor, bits: int, group: int | None) -> tuple[Tensor, float]:
    """Symmetric rounding to the nearest, a scale a row, or a group of columns; and how many bytes that takes.

    >>> import torch
    >>> rounded(torch.tensor([[1.0, -0.5, 0.1]]), 8, None)[0]
    tensor([[ 1.0000, -0.5039,  0.1024]])
    """
    flat = W.flatten(1).float()
    m, n = flat.shape
    size = group if group and n % group == 0 else n
    cut = flat.reshape(m, -1, size)
    top = 2 ** (bits - 1) - 1
    scale = cut.abs().amax(-1, keepdim=True).clamp_min(1e-30) / top
    values = (cut / scale).round().clamp(-top - 1, top) * scale
    return values.reshape(W.shape).to(W.dtype), m * n * bits / 8 + scale.numel() * 2


def rounding(model: nn.Module, sites: Sites, held: HeldOut) -> dict[str, dict[str, Any]]:
    """Held-out measures and bytes of the selected weights rounded to int8 (a scale a row) and int4 (groups of 64)."""
    modules = {m.name: m.module for site in sites.found if len(site.members) == 1 for m in site.members.values()}
    found: dict[str, dict[str, Any]] = {}
    for name, bits, group in (("int8", 8, None), ("int4", 4, GROUP)):
        before = {key: module.weight.data for key, module in modules.items()}
        size, was = 0.0, 0.0
        try:
            for module in modules.values():
                weight: Tensor = module.weight.data  # type: ignore[assignment, union-attr]
                module.weight.data, some = rounded(weight, bits, group)  # type: ignore[union-attr]
                size += some
                was += weight.numel() * weight.element_size()
            found[name] = {**held.measure(model), "bytes": int(size), "bytes_before": int(was)}
        finally:
            for key, module in modules.items():
                module.weight.data = before[key]  # type: ignore[union-attr, assignment]
    return found
