"""Rows of a running model: what chosen modules give out, one row a sample; the model comes back untouched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import call, main_output, moved, samples_in
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.calibrate import fitting
from netspectra.verbs.compress.objective import token_mask
from netspectra.verbs.drift.rows import finite
from netspectra.weight import Selection

__all__ = ["OUTPUT", "activations", "batches", "layers_of"]

OUTPUT = "output"  # what the model itself gives out, as the name of a layer
DEFAULT = 5  # layers that are chosen where none are named, besides the output
WIDEST_OUTPUT = 4096  # a wider one (a vocabulary) is left out unless it is asked for
SIZE = 256  # samples a batch, where one tensor holds them all
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)
_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
)


def layers_of(model: nn.Module, patterns: tuple[str, ...] = ()) -> list[str]:
    """Names of the modules to look at, in the order of the model.

    Those that match a pattern; without any, five evenly chosen blocks (the entries of module lists, where there are
    any) or layers with a weight matrix, and ``output``.

    Raises:
        InputRefused: a pattern matches nothing.

    >>> layers_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    ['0', 'output']
    >>> layers_of(nn.Sequential(nn.Linear(4, 3), nn.ReLU()), ("1", "output"))
    ['1', 'output']
    """
    names = [name for name, _ in model.named_modules() if name]
    if patterns:
        for pattern in patterns:
            if not any(Selection((pattern,)).accepts(name) for name in (*names, OUTPUT)):
                raise InputRefused(f"no layer is called {pattern!r}; there are {', '.join(names[:8])}, ..., {OUTPUT}")
        chosen = Selection(patterns)
        return [name for name in (*names, OUTPUT) if chosen.accepts(name)]
    blocks = _blocks(model)
    found = blocks or [n for n, m in model.named_modules() if n and _mixes(m)][:-1]
    places = np.unique(np.linspace(0, len(found) - 1, min(DEFAULT, len(found))).round().astype(int))
    return [*(found[i] for i in places), OUTPUT]


def _blocks(model: nn.Module) -> list[str]:
    """Entries of the outermost module lists of two or more."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    outer = [(n, m) for n, m in lists if not any(n.startswith(f"{other}.") for other, _ in lists if other != n)]
    return [f"{name}.{i}".lstrip(".") for name, m in outer for i in range(len(m))]


def _mixes(module: nn.Module) -> bool:
    return not isinstance(module, nn.Embedding) and any(p.dim() > 1 for p in module.parameters(recurse=False))


def batches(data: Any) -> Iterable[Any]:
    """Batches to call a model with: of a tensor in turn, a mapping or tuple as one, a function's, or a list."""
    if isinstance(data, np.ndarray):
        data = torch.from_numpy(data)
    if isinstance(data, Tensor):
        return data.split(SIZE)
    if isinstance(data, Mapping | tuple):
        return [data]
    made: Any = data() if callable(data) and not hasattr(data, "__iter__") else data
    return made


def activations(model: nn.Module, data: Any, names: Iterable[str], notes: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Run the model over batches and give the rows of its layers.

    Images and sequences are averaged over their places, padding left out. Of a module that runs several times in one
    pass the last run counts. In eval mode, no gradients; hooks are taken off again.

    Args:
        model: any module.
        data: as `batches` takes it.
        names: of its modules, and ``output``.
        notes: what is left out, and why, is added here.

    Yields:
        (samples, width) of every layer, for each batch.
    """
    modules = dict(model.named_modules())
    wanted = list(names)
    for name in wanted:
        if name != OUTPUT and name not in modules:
            raise InputRefused(f"the model has no layer {name!r}: is it the one that the reference was made with?")
    some = next(iter([*model.parameters(), *model.buffers()]), None)
    for batch in batches(data):
        batch = fitting(model, moved(batch, some.device) if some is not None else batch)
        if isinstance(batch, tuple | list) and len(batch) == 1:
            batch = batch[0]
        seen = _run(model, batch, {n: modules[n] for n in wanted if n != OUTPUT}, OUTPUT in wanted)
        samples = samples_in(batch)
        rows: dict[str, np.ndarray] = {}
        for name in list(wanted):
            found = _rows(seen.get(name), modules.get(name), name, batch, samples)
            wide = name == OUTPUT and len(wanted) > 1 and not isinstance(found, str) and found.shape[1] > WIDEST_OUTPUT
            if wide or isinstance(found, str):
                notes.append(f"{name} is left out: {found if isinstance(found, str) else 'as wide as a vocabulary'}")
                wanted.remove(name)
            else:
                rows[name] = finite(found, name)
        if not rows:
            raise InputRefused(f"no layer gives a row a sample: {'; '.join(notes[:3])}")
        yield rows


def _run(model: nn.Module, batch: Any, modules: Mapping[str, nn.Module], output: bool) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def see(module: nn.Module, args: Any, result: Any) -> None:
            try:
                seen[name] = main_output(result).detach()
            except InputRefused:
                return

        return see

    hooks = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        with untouched(model), torch.no_grad():
            result = call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if output:
        seen[OUTPUT] = main_output(result).detach()
    return seen


def _rows(x: Tensor | None, module: nn.Module | None, name: str, batch: Any, samples: int) -> np.ndarray | str:
    """One row a sample, or why there is none."""
    if x is None:
        return "the model did not run it, or it gives no tensor"
    if x.is_complex():
        return "it gives complex numbers"
    x = x.float()
    if x.dim() == 3 and x.shape[0] != samples and x.shape[1] == samples:
        x = x.transpose(0, 1)
    if x.dim() == 0 or x.shape[0] != samples:
        return f"its output {tuple(x.shape)} has no axis of the {samples} samples"
    if x.dim() > 2:
        x = _averaged(x, module, token_mask(name, x.shape[:2], batch))
    return x.reshape(samples, -1).cpu().numpy()


def _averaged(x: Tensor, module: nn.Module | None, mask: Tensor | None) -> Tensor:
    """Mean over places, of which the channels are no part: the last axis of sequences, the second of images."""
    if mask is not None:
        weight = mask.to(x)[(..., *[None] * (x.dim() - 2))]
        return (x * weight).sum(1) / weight.sum(1).clamp_min(1)
    channels_last = isinstance(module, _LAST) or (x.dim() == 3 and not isinstance(module, _FIRST))
    return x.flatten(1, -2).mean(1) if channels_last else x.flatten(2).mean(2)
