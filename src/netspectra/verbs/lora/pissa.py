"""An adapter that starts from a weight's own leading singular directions, and the base without them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from netspectra.checkpoint import MANIFEST, new_folder, refuse_foreign
from netspectra.errors import InputRefused
from netspectra.linalg.values import svdvals
from netspectra.live.saved import same_config, save_tensors
from netspectra.verbs.lora.adapter import Bench, Place, refusal, write_adapter
from netspectra.verbs.lora.extract import beyond, factored
from netspectra.verbs.lora.options import LoraOptions
from netspectra.verbs.lora.result import Extraction
from netspectra.weight import ITEMSIZE, Index, Selection, Source, TensorRef, Weight

__all__ = ["pissa"]


def pissa(
    source: Source,
    to: str | Path,
    options: LoraOptions,
    selection: Selection = Selection(),
    *,
    progress: Callable[[Weight | None], None] = lambda weight: None,
) -> Extraction:
    """Split every linear weight W = U S V^T into an adapter of its top triplets and a base of the rest.

        B = U_r sqrt(S_r), A = sqrt(S_r) V_r^T, base W - B A

    so that training begins in the directions that act most, not at zero. Base and adapter together are the
    checkpoint, to the rounding of its dtype. Linear weights only, as in the source.

    Args:
        source: the checkpoint.
        to: a folder that does not exist yet: ``to/base`` and ``to/adapter`` are written.
        options: rank, energy, or ranks by name.
        selection: of weights.
        progress: called with each weight that is done.

    Raises:
        InputRefused: no weight is selected, or a selected one is packed.

    Source: Meng, Wang & Zhang 2024, arXiv 2404.02948. Cost: all singular values and the leading triplets of each
    weight; one in memory at a time.
    """
    to = Path(to)
    for name in ("base", "adapter"):
        refuse_foreign(to / name)
    named = source.weights if options.ranks is None else [w for w in source.weights if w.name in options.ranks]
    weights = [w for w in named if selection.accepts(w.name) and w.kind in LINEAR and not refusal(w)]
    packed = [w.name for w in weights if w.part.ref.stored or ITEMSIZE.get(w.part.ref.dtype, 8) == 1]
    if not weights or packed or source.format == "gguf":
        reason = "its weights are packed: give the checkpoint in a floating dtype" if packed else "no linear weight"
        raise InputRefused(f"{source.path}: {reason}; 'netspectra inspect' lists what it holds")
    places = []
    for weight in weights:
        spectrum = svdvals(_change(weight)[0].float())
        rank = options.rank_of(weight.name, spectrum)
        if rank:
            places.append(Place(weight, rank, beyond(spectrum, rank), partial(_change, weight)))
    bench = Bench(getattr(torch, options.dtype), factored, progress)
    with new_folder(to / "adapter") as folder:
        size = write_adapter(folder, places, bench, base=str(to / "base"))
        manifest = json.dumps({"format": 1}) + "\n"
        (folder / MANIFEST).write_text(manifest)
    rest = replace(bench, progress=lambda weight: None, held=None)
    refs = list(_residuals(source, {p.weight.part.ref.name: p for p in places}, rest))
    save_tensors(refs, [], to / "base", source=source, describe=same_config(source), stock=True)
    rows = tuple(bench.found[place.weight.name] for place in places)
    return Extraction(str(to), rows, (), (), (NOTE,), size, str(to / "base"))


LINEAR = ("linear", "attention")
NOTE = "load base/ and then adapter/ onto it; on the original base the adapter would count its directions twice"


def _change(weight: Weight) -> tuple[Tensor, float]:
    W = weight.layout.blocks(weight.part.load().detach().cpu())[0].double()
    return W, float(W.norm())


def _residuals(source: Source, places: dict[str, Place], bench: Bench) -> Iterator[TensorRef]:
    """Every tensor in the order of the source; of those with an adapter, what it leaves."""
    for ref in source.tensors:
        yield replace(ref, load=Rest(ref, places[ref.name], bench)) if ref.name in places else ref


class Rest:
    """W - B A in the checkpoint's dtype, as a `netspectra.weight.Loader`."""

    def __init__(self, ref: TensorRef, place: Place, bench: Bench) -> None:
        """Remember where the weight lies."""
        self.ref, self.place, self.bench = ref, place, bench

    def __call__(self, index: Index = ()) -> Tensor:
        """Compute it, then select."""
        B, A = self.bench.factors(self.place)
        W = _change(self.place.weight)[0] - B.double() @ A.double()
        found = self.place.weight.layout.tensor(W[None], self.ref.shape).to(getattr(torch, self.ref.dtype))
        return found[index] if index else found
