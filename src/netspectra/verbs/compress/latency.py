"""What a layer really takes on this machine: measured beside the dense layer, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from netspectra.forms import FORMS, Member, Site

__all__ = ["Clock"]

ROUNDS = 5
SIZES = 3  # measured a curve; those between are interpolated


class Clock:
    """Times of layers, each kind and shape measured once."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self._known: dict[tuple[object, ...], tuple[float, float]] = {}

    def dense(self, site: Site) -> float | None:
        """Milliseconds of the site's layers as they are, on one calibration batch; None where its shape is unknown."""
        if any(not member.shape for member in site.members.values()):
            return None
        return sum(self._pair(member, member.module, ("dense",))[1] for member in site.members.values())

    def curve(self, site: Site, form: str, sizes: np.ndarray) -> np.ndarray | None:
        """Milliseconds at every size: measured at the smallest, the middle and the largest, else interpolated.

        Each is the ratio to the dense layer measured in the same rounds, times the dense layer's own time, so that a
        drift of the machine's speed cancels.
        """
        dense = self.dense(site)
        if dense is None:
            return None
        places = sorted({round(i) for i in np.linspace(0, len(sizes) - 1, min(SIZES, len(sizes)))})
        measured = [self._size(site, form, int(sizes[place])) for place in places]
        return np.interp(sizes, sizes[places], measured)

    def _size(self, site: Site, form: str, size: int) -> float:
        specs = FORMS[form].specs(site, size)
        total = 0.0
        for member in site.members.values():
            if member.name not in specs:
                total += self._pair(member, member.module, ("dense",))[1]
                continue
            spec = specs[member.name]
            new = FORMS[form].empty(member.module, spec)
            old, ms = self._pair(member, new, (form, *sorted((k, str(v)) for k, v in spec.items())))
            total += ms / max(old, 1e-9) * self._pair(member, member.module, ("dense",))[1]
        return total

    def _pair(self, member: Member, new: nn.Module, key: Sequence[object]) -> tuple[float, float]:
        """Median milliseconds of the dense layer and of the new one, called in turn on the same input."""
        whole = (*key, type(member.module).__name__, tuple(member.W.shape), member.shape, _settings(member.module))
        if whole not in self._known:
            x = _input(member, new)
            seen: tuple[list[float], list[float]] = ([], [])
            with torch.no_grad():
                for parameter in new.parameters():
                    if not parameter.isfinite().all():
                        parameter.normal_(generator=torch.Generator().manual_seed(0))
                dense_input = _input(member, member.module)
                for _ in range(ROUNDS + 1):
                    for module, data, times in ((member.module, dense_input, seen[0]), (new, x, seen[1])):
                        started = time.perf_counter()
                        module(data)
                        times.append((time.perf_counter() - started) * 1e3)
            self._known[whole] = statistics.median(seen[0][1:]), statistics.median(seen[1][1:])
        return self._known[whole]


def _settings(module: nn.Module) -> tuple[object, ...]:
    names = ("stride", "padding", "dilation", "kernel_size", "groups")
    found: Mapping[str, object] = {name: getattr(module, name, None) for name in names}
    return tuple(map(str, found.values()))


def _input(member: Member, new: nn.Module) -> torch.Tensor:
    """An input as the calibration's, of the width that the new layer reads."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(member.module, nn.Embedding):
        return torch.randint(0, member.module.num_embeddings, member.shape, generator=generator)
    shape = list(member.shape)
    convolution = isinstance(member.module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    axis = -member.module.weight.dim() + 1 if convolution else -1  # type: ignore[union-attr]
    width = getattr(new, "in_channels" if convolution else "in_features", None)
    if isinstance(width, int):
        shape[axis] = width
    weight = next(member.module.parameters())
    return torch.randn(shape, generator=generator).to(weight)
