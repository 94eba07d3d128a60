"""Second moments of what enters and leaves every layer, from a few batches; nothing else of the data is kept."""

from __future__ import annotations

import inspect
import json
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms.factors import is_conv1d
from netspectra.linalg.moments import Moments, load_moments, save_moments
from netspectra.live.batches import call, samples_in
from netspectra.live.spill import Spill
from netspectra.live.untouched import untouched
from netspectra.verbs.compress.objective import Objective, token_mask
from netspectra.verbs.compress.structure import Structure, observe

__all__ = ["Calibration", "calibrate", "fitting", "joined", "layers", "mixed", "rows"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WIDEST = 12_288  # outputs whose second moment is kept: it takes 8 m^2 bytes, 19 GB for a vocabulary of 49152
LARGEST_MOMENTS = 1 << 28  # bytes of moments that stay in memory after a calibration
LARGEST_PATCHES = 1 << 24  # numbers of im2col rows held at once


@dataclass(eq=False)
class Calibration:
    """What a calibration found.

    Attributes:
        inputs: moments by the module that owns them.
        owner: by module name, whose input moments are its own too (q, k and v share one).
        outputs: moments of the gradient at each module's output; empty without a backward pass.
        samples: how many samples were seen.
        shapes: of the first input, by module.
        calls: how often a module ran in the first batch, in the order in which they first ran.
        structure: which layers belong together.
        spread: share of the input moments that is of samples with tokens drawn anew.
        path: the file that it was read from.
    """

    inputs: dict[str, Moments] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, Moments] = field(default_factory=dict)
    samples: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    structure: Structure = field(default_factory=Structure)
    spread: float = 0.0
    path: Path | None = None

    @property
    def order(self) -> list[str]:
        """Module names in the order in which they first ran."""
        return list(self.calls)

    def positions(self, name: str) -> float:
        """Rows a sample: tokens or pixels."""
        return self.inputs[self.owner[name]].count / max(self.samples, 1)

    def spill_(self) -> Calibration:
        """Move the matrices to a temporary file where they would fill more memory than planning itself takes."""
        kept = [*self.inputs.values(), *self.outputs.values()]
        if sum(moments.bytes for moments in kept) > LARGEST_MOMENTS:
            spill = Spill()
            for moments in kept:
                if isinstance(moments.held, Tensor):
                    moments.held = spill.put(moments.held)
        return self

    def save(self, path: str | Path) -> None:
        """Write it as one safetensors file."""
        named = {f"in:{name}": moments for name, moments in self.inputs.items()}
        named |= {f"out:{name}": moments for name, moments in self.outputs.items()}
        about = {
            "owner": self.owner,
            "samples": self.samples,
            "shapes": self.shapes,
            "calls": self.calls,
            "structure": self.structure.to_dict(),
            "spread": self.spread,
        }
        save_moments(named, path, {"calibration": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote."""
        named, strings = load_moments(path)
        if "calibration" not in strings:
            raise InputRefused(f"{path}: holds moments, but no calibration; give the file that a calibration wrote")
        try:
            return replace(cls._from(named, json.loads(strings["calibration"])), path=Path(path))
        except (KeyError, TypeError, ValueError) as wrong:
            raise InputRefused(
                f"{path}: lacks {str(wrong)[:200]!a}: written by another version? Calibrate again"
            ) from None

    @classmethod
    def _from(cls, named: Mapping[str, Moments], about: Mapping[str, Any]) -> Calibration:
        return cls(
            {name[3:]: moments for name, moments in named.items() if name.startswith("in:")},
            about["owner"],
            {name[4:]: moments for name, moments in named.items() if name.startswith("out:")},
            about["samples"],
            {name: tuple(shape) for name, shape in about["shapes"].items()},
            about["calls"],
            Structure.from_dict(about["structure"]),
            float(about["spread"]),
        )


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that can be decided on, by name: exact classes, so that none with a forward of its own is meant."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Embedding, *CONVOLUTIONS) or is_conv1d(module)
    }


def rows(module: nn.Module, x: Tensor, keep: Tensor | None = None) -> Iterator[Tensor]:
    """What a layer multiplies its matrix with, as rows (tokens, n), for groups (g, tokens, n), a few at a time.

    Args:
        module: a Linear, Conv1D or ConvNd.
        x: its input.
        keep: boolean, of the shape of x without the last axis: the tokens that are no padding.
    """
    if not isinstance(module, CONVOLUTIONS):
        yield x[keep] if keep is not None else x.reshape(-1, x.shape[-1])
        return
    taps = module.weight[0, 0].numel()
    each = max(1, x[0].numel() * taps)
    for chunk in x.split(max(1, LARGEST_PATCHES // each)):
        yield _patches(module, chunk)


def _patches(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """Im2col: (tokens, c_in taps), for groups (g, tokens, c_in / g taps), the channel before the taps."""
    dims = module.weight.dim() - 2
    if isinstance(module.padding, str):
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        pads = [(s // 2, s - s // 2) if module.padding == "same" else (0, 0) for s in spans]
    else:
        pads = [(p, p) for p in module.padding]
    flat = [width for pair in reversed(pads) for width in pair]
    x = F.pad(x, flat, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    for d, (size, step, hole) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        x = x.unfold(2 + d, hole * (size - 1) + 1, step)[..., ::hole]
    batch, channels = x.shape[:2]
    groups = module.groups
    x = x.reshape(batch, groups, channels // groups, *x.shape[2:])
    places, taps = range(3, 3 + dims), range(3 + dims, 3 + 2 * dims)
    x = x.permute(1, 0, *places, 2, *taps).reshape(groups, -1, channels // groups * module.weight[0, 0].numel())
    return x if groups > 1 else x[0]


def fitting(model: nn.Module, batch: Any) -> Any:
    """A batch without the labels that a data loader adds: as many positional parts as the model's forward takes."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return batch
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(model.forward).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return batch
    return batch[: sum(p.kind in kinds for p in parameters)]


class _Recorder:
    """Hooks on every layer that add to a calibration while a batch runs."""

    def __init__(self, modules: Mapping[str, nn.Module], found: Calibration, *, backward: bool) -> None:
        self.modules, self.found, self.backward = modules, found, backward
        self.batch: Any = None
        self.seen: list[tuple[str, weakref.ref[Tensor]]] = []
        self.first = True
        self.made: list[tuple[str, Tensor]] = []
        self.norms: dict[str, str] = {}
        self.handles: list[Any] = []

    def open(self, model: nn.Module) -> None:
        """Put the hooks on."""
        self.handles = [m.register_forward_hook(self._hook(name)) for name, m in self.modules.items()]
        self.watch_norms(model)

    def begin(self, batch: Any) -> None:
        """Before a batch."""
        self.seen = []
        self.batch = batch

    def _hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            x = args[0] if args else None
            if not isinstance(x, Tensor) or not isinstance(output, Tensor):
                return None
            convolution = isinstance(module, CONVOLUTIONS)
            batched = x.dim() == (module.weight.dim() if convolution else 2) or not convolution
            tokens = x.shape if isinstance(module, nn.Embedding) else x.shape[:-1]
            keep = None if convolution else token_mask(name, tokens, self.batch)
            self._input(name, module, x if batched else x[None], keep, x)
            changed = self._output(name, module, output, keep) if self.backward else None
            if self.first and convolution:
                self.made.append((name, output if changed is None else changed))
            return changed

        return hook

    def watch_norms(self, model: nn.Module) -> None:
        """Note which batch normalization reads which convolution's output, in the first batch."""

        def hook(norm: str) -> Callable[..., None]:
            def note(module: nn.Module, args: tuple[Any, ...]) -> None:
                for name, output in self.made if self.first else ():
                    if args and args[0] is output:
                        self.norms[name] = norm

            return note

        for name, module in model.named_modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                self.handles.append(module.register_forward_pre_hook(hook(name)))

    def _input(self, name: str, module: nn.Module, x: Tensor, keep: Tensor | None, identity: Tensor) -> None:
        found = self.found
        found.calls[name] = found.calls.get(name, 0) + self.first
        found.shapes.setdefault(name, tuple(identity.shape))
        sharable = not isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        owner = next((n for n, seen in self.seen if seen() is identity), None) if sharable else None
        if name not in found.owner:  # one that runs later than the first batch has seen less than its owner
            found.owner[name] = owner if owner and self.first else name
        if found.owner[name] != name:
            if owner == found.owner[name]:
                return
            found.inputs[name] = found.inputs[found.owner[name]].copy()  # equal until now, on its own from here
            found.owner[name] = name
        if sharable:
            self.seen.append((name, weakref.ref(identity)))
        if isinstance(module, nn.Embedding):
            moments = found.inputs.setdefault(name, Moments.zeros(module.num_embeddings, diagonal=True))
            moments.add_counts_(x if keep is None else x[keep])
            return
        for part in rows(module, x, keep):
            if name not in found.inputs:
                found.inputs[name] = Moments.zeros(part.shape[-1], groups=part.shape[0] if part.dim() == 3 else 1)
            found.inputs[name].add_(part)

    def _output(self, name: str, module: nn.Module, output: Tensor, keep: Tensor | None) -> Tensor | None:
        if not output.is_floating_point():
            return None
        entering = None
        if not output.requires_grad:
            entering = output.detach().requires_grad_()
            output = entering * 1  # no leaf, so that what follows may work in place
        axis = 1 if isinstance(module, CONVOLUTIONS) and output.dim() == module.weight.dim() else -1
        if output.shape[axis] > WIDEST:
            return output if entering is not None else None

        def leaving(g: Tensor) -> None:
            g = g.movedim(axis, -1)
            part = g[keep] if keep is not None else g.reshape(-1, g.shape[-1])
            moments = self.found.outputs.setdefault(name, Moments.zeros(part.shape[-1]))
            moments.add_(part)

        output.register_hook(leaving)
        return output if entering is not None else None

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()


def mixed(main: Calibration, other: Calibration, share: float) -> Calibration:
    """Input moments of which ``share`` comes from another calibration of the same model; gradients stay the main's."""
    inputs = {name: m.mixed(other.inputs.get(name, m), share) for name, m in main.inputs.items()}
    return replace(main, inputs=inputs, spread=share)


def joined(parts: Sequence[Calibration]) -> Calibration:
    """The calibration of all batches, from those of its shards, added in the order in which they are given.

    Layers share an input where they did in every shard; the structure is the first one's.
    """
    calls, shapes = dict(parts[0].calls), dict(parts[0].shapes)
    for part in parts[1:]:
        calls |= {name: 0 for name in part.calls if name not in calls}
        shapes = part.shapes | shapes
    owners: dict[tuple[str | None, ...], str] = {}  # by what owns a layer's input in each shard
    names = dict.fromkeys(name for part in parts for name in part.owner)
    owner = {name: owners.setdefault(tuple(part.owner.get(name) for part in parts), name) for name in names}
    inputs = {
        name: Moments.summed([part.inputs[key] for part, key in zip(parts, keys, strict=True) if key is not None])
        for keys, name in owners.items()
    }
    outputs = {
        name: Moments.summed([part.outputs[name] for part in parts if name in part.outputs])
        for name in dict.fromkeys(name for part in parts for name in part.outputs)
    }
    samples = sum(part.samples for part in parts)
    return Calibration(inputs, owner, outputs, samples, shapes, calls, parts[0].structure)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    modules: Mapping[str, nn.Module],
    objective: Objective | None,
    *,
    probes: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] = lambda samples: None,
) -> Calibration:
    """Run the batches and sum up second moments of every layer's input and output gradient.

    Padding is left out where a batch has an ``attention_mask``. The model comes back untouched.

    Args:
        model: any module.
        batches: what it is called with.
        modules: the layers to follow, by name; `layers` finds them.
        objective: whose label-free loss is differentiated; None: no backward pass.
        probes: draws from the loss a batch; each costs one backward pass.
        seed: of the draws.
        progress: called with the number of samples after each batch.

    Raises:
        InputRefused: no batches, or a signal that does not depend on any layer.
    """
    found = Calibration()
    generator = torch.Generator().manual_seed(seed)
    with untouched(model):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        recorder = _Recorder(modules, found, backward=objective is not None)
        try:
            for batch in batches:
                if recorder.first:
                    found.structure = observe(model, batch, modules)
                    recorder.open(model)
                recorder.begin(batch)
                if objective is None:
                    with torch.no_grad():
                        call(model, batch)
                else:
                    with torch.enable_grad():
                        signal = objective.of(model, batch)
                        if bool(signal.isnan().any()):
                            raise InputRefused(
                                "the model answers with NaN in the calibration: its numbers overflow, or a sample "
                                "holds NaN"
                            )
                        if not signal.requires_grad:
                            raise InputRefused("the model's output depends on no layer that can be compressed")
                        for probe in range(probes):
                            objective.draw(signal, generator).backward(retain_graph=probe < probes - 1)
                if recorder.first:
                    found.structure = replace(found.structure, norms=recorder.norms)
                    recorder.first, recorder.made = False, []
                found.samples += samples_in(batch)
                progress(found.samples)
        finally:
            recorder.close()
    if not found.samples:
        raise InputRefused("the calibration holds no batch; give at least one")
    return found.spill_()
