"""What plain rounding of the same weights to int8 or int4 would cost: measured, so that nobody is fooled."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from netspectra.linalg.rounding import Grid, nearest
from netspectra.verbs.compress.quality import HeldOut
from netspectra.verbs.compress.sites import Sites

__all__ = ["rounding"]

GROUP = 64


def rounding(model: nn.Module, sites: Sites, held: HeldOut) -> dict[str, dict[str, Any]]:
    """Held-out measures and bytes of the selected weights rounded to int8 (a scale a row) and int4 (groups of 64)."""
    modules = {m.name: m.module for site in sites.found if len(site.members) == 1 for m in site.members.values()}
    found: dict[str, dict[str, Any]] = {}
    for name, bits, group in (("int8", 8, 0), ("int4", 4, GROUP)):
        before = {key: module.weight.data for key, module in modules.items()}
        size, was = 0.0, 0.0
        try:
            grid = Grid(bits, group, symmetric=True)
            for module in modules.values():
                weight: Tensor = module.weight.data  # type: ignore[assignment, union-attr]
                flat = weight.flatten(1).float()
                numbers = nearest(flat, grid, search=False).numbers()
                module.weight.data = numbers.reshape(weight.shape).to(weight.dtype)  # type: ignore[union-attr]
                size += grid.bytes(*flat.shape)
                was += weight.numel() * weight.element_size()
            found[name] = {**held.measure(model), "bytes": int(size), "bytes_before": int(was)}
        finally:
            for key, module in modules.items():
                module.weight.data = before[key]  # type: ignore[union-attr, assignment]
    return found
