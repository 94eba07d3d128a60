"""One layer of a checkpoint, as it is planned and replaced with no live model: a piece of work for any engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Member, Site, Spec
from netspectra.forms.codes import Coding
from netspectra.forms.rounded import bits_of
from netspectra.methods import METHODS
from netspectra.plan import Cost
from netspectra.verbs.compress.calibrate import WIDEST, Calibration
from netspectra.verbs.compress.latency import Clock
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.sites import Members, Shrinkage
from netspectra.verbs.compress.workshop import possible
from netspectra.weight import ITEMSIZE, TensorRef, Weight

__all__ = ["Layer", "Making", "Offer", "Pack", "made", "offered", "own_state"]

FACTORED, CODED, CORRECTED = 24, 56, 100  # bytes a number at the peak: for factors; for codes; and their corrections
Offer = tuple[str, list[tuple[str, int, Cost, float]]]
"""Why a layer can become nothing else, if so; form, size, cost and predicted loss of all it can be, dense first."""
Pack = Callable[[nn.Module], tuple[dict[str, Tensor], dict[str, Tensor]]]
"""What is written of a replacement: tensors by their names below the layer's, and those of a file beside the model."""


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Weight):
    """A layer of a checkpoint, as a `netspectra.run.Run` takes it: its numbers are left where they are.

    Attributes:
        bias: of the same layer.
        stands: what it is in the live model: ``linear``, ``conv1d`` (transformers' own, stored inputs first),
            ``embedding``.
        taking: bytes for each of its numbers while it is worked on: `FACTORED`, `CODED` or `CORRECTED`.
        known: the calibration; where that came from a file, the file.
    """

    bias: TensorRef | None = None
    stands: str = "linear"
    taking: int = FACTORED
    known: Calibration | Path | None = None

    @property
    def layer(self) -> str:
        """Name of the module."""
        return self.name.removesuffix(".weight")

    @property
    def numbers(self) -> int:
        """Its own, and its bias's."""
        return self.parameters + (self.bias.numel if self.bias else 0)

    @property
    def spare(self) -> int:
        """Bytes of its bias, which every form keeps."""
        return self.bias.numel * ITEMSIZE[self.bias.dtype] if self.bias else 0

    @property
    def beside(self) -> int:
        """The matrix and what is made of it in float64, and second moments and their roots where there are some."""
        m, n = self.shape
        sides = (n,) if self.stands == "embedding" or m > WIDEST else (m, n)
        moments = sum(16 * side**2 for side in sides) if self.known is not None else 0
        feedback = 24 * n**2 if moments and self.taking > FACTORED and self.stands != "embedding" else 0
        return self.taking * m * n + moments + feedback

    def module(self) -> nn.Module:
        """The layer, loaded."""
        stored = self.part.load()
        if not stored.isfinite().all():
            raise InputRefused(f"{self.name}: holds NaN or Inf; mend it, or leave it as it is: --exclude '{self.name}'")
        m, n = self.shape
        if self.stands == "embedding":
            made: nn.Module = nn.utils.skip_init(nn.Embedding, *stored.shape, dtype=stored.dtype)
        elif self.stands == "conv1d":
            from transformers.pytorch_utils import Conv1D

            made = Conv1D(m, n).to(stored.dtype)
        else:
            made = nn.utils.skip_init(nn.Linear, n, m, bias=self.bias is not None, dtype=stored.dtype)
            stored = stored if tuple(stored.shape) == (m, n) and self.layout.rows == (0,) else stored.mT
        with torch.no_grad():
            made.weight.copy_(stored)  # type: ignore[operator]
            if self.bias is not None:
                made.bias.copy_(self.bias.load())  # type: ignore[operator]
        return made


@dataclass(frozen=True)
class Making:
    """How layers become sites, where they are worked on.

    Attributes:
        options: method, forms, shrinkage; nothing of them that could not travel.
    """

    options: CompressOptions

    @property
    def method(self) -> str:
        """What decomposes."""
        assert self.options.method is not None
        return self.options.method

    def site(self, layer: Layer, coding: Coding | None = None) -> Site:
        """The site, its layer loaded."""
        known = _read(layer.known, layer.known.stat().st_mtime_ns) if isinstance(layer.known, Path) else layer.known
        share = Shrinkage(self.options.shrink_inputs, self.options.shrink_outputs)
        member = Members(known, share, self.options.centre).member(layer.layer, layer.module())
        return self.named(layer, {"weight": member}, coding)

    def named(self, layer: Layer, members: Mapping[str, Member] = {}, coding: Coding | None = None) -> Site:
        """The site by name and kind: what allocation keeps of it."""
        kind = "embedding" if layer.stands == "embedding" else "linear"
        return Site(layer.layer, kind, members, {"coding": coding or self.options.coding}, self.method)


@lru_cache(maxsize=1)
def _read(path: Path, written: int) -> Calibration:
    """A calibration of a file: read once a process, its matrices when they are asked for."""
    return Calibration.load(path)


def offered(layer: Weight, making: Making) -> Offer:
    """All that a layer can become."""
    assert isinstance(layer, Layer)
    site = making.site(layer)
    reason = _unseen(layer, site)
    found = [] if reason else list(possible(site, making.options, Clock()))
    if not reason and len(found) == 1:
        refusals = (FORMS[name].refuses(site) for name in making.options.forms if site.kind in FORMS[name].kinds)
        reason = next((refusal for refusal in refusals if refusal), "no form of it is smaller")
    return reason, [(choice.form, choice.size, choice.cost, choice.loss) for choice in found]


def _unseen(layer: Layer, site: Site) -> str:
    """Why the moments say nothing of a layer that the method needs to know; empty where they do."""
    needs, member = METHODS[site.method].needs, site.member
    if layer.known is None:
        return ""
    if "inputs" in needs and member.inputs is None:
        return "the calibration did not see it run"
    if "outputs" in needs and member.outputs is None:
        return f"no gradient of its outputs is known; of more than {WIDEST} none is kept"
    return ""


def own_state(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A replacement as `netspectra.live.saved.load` wants it."""
    return {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}, {}


def made(
    layer: Weight, making: Making, decided: Mapping[str, tuple[str, int]], pack: Pack
) -> tuple[Spec, dict[str, Tensor], dict[str, Tensor]]:
    """What stands for a layer: its spec, and what `Pack` says is written of it."""
    assert isinstance(layer, Layer)
    form, size = decided[layer.layer]
    coding, bits = making.options.coding, bits_of(form)
    if bits:  # rows of other numbers of bits and ranks know nothing of these: the codes are the same without them
        coding = replace(coding, bits=(bits,), ranks=tuple(sorted({0, size})))
    site = making.site(layer, coding)
    (spec,) = FORMS[form].specs(site, size).values()
    (module,) = FORMS[form].fit(site, size).values()
    return spec, *pack(module)
