"""The difference of two checkpoints as an adapter of the first."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from netspectra.checkpoint import MANIFEST, new_folder, refuse_foreign
from netspectra.errors import InputRefused
from netspectra.linalg.operator import LowRank
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.svd import svd
from netspectra.verbs.compare.aligned import change_of
from netspectra.verbs.compare.delta import Delta
from netspectra.verbs.compare.lineage import Vector
from netspectra.verbs.compare.matching import Pair
from netspectra.verbs.lora.adapter import Bench, Place, refusal, write_adapter
from netspectra.verbs.lora.options import LoraOptions
from netspectra.verbs.lora.result import Extraction
from netspectra.weight import Source, TensorRef, Weight

__all__ = ["beyond", "extract_lora", "factored"]


def extract_lora(
    before: Source,
    after: Source,
    pairs: Sequence[Pair],
    deltas: Sequence[Delta],
    vectors: Sequence[Vector],
    to: str | Path,
    options: LoraOptions,
    *,
    unmatched: Sequence[str] = (),
    progress: Callable[[Weight | None], None] = lambda weight: None,
) -> Extraction:
    """Write W + D of every weight as W and two factors of D, by its leading singular triplets.

    No other factors of the rank miss less: ||D - B A||_F^2 is the sum of the squared singular values beyond it.

    Args:
        before: the base.
        after: what the base with the adapter is to be.
        pairs: the weights of both, as they were matched.
        deltas: what was found on them.
        vectors: what was found on the other tensors.
        to: the folder.
        options: rank or energy.
        unmatched: weights in one source only.
        progress: called with each weight that is done.

    Raises:
        InputRefused: one of the two is an adapter, or the base's names are not a live model's (GGUF).

    Source: Eckart & Young 1936, Psychometrika 1. Cost: the leading triplets of each D; one pair in memory at a time.
    """
    refuse_foreign(Path(to))
    if any(w.factors for source in (before, after) for w in source.weights):
        raise InputRefused("one of the two is an adapter already; give two whole checkpoints")
    if before.format == "gguf":
        raise InputRefused(f"{before.path}: names of GGUF are not those of a live model; give the base as safetensors")
    found = {delta.name: delta for delta in deltas}
    places, missed = [], [(name, "is in one of the two only") for name in unmatched]
    for pair in pairs:
        delta = found.get(pair.before.name)
        if delta is None:
            missed.append((pair.before.name, "could not be compared"))
        elif delta.spectrum is not None and not delta.equal:
            reason = refusal(pair.before)
            rank = options.rank_of(delta.name, delta.spectrum)
            if reason:
                missed.append((pair.before.name, reason))
            elif rank:
                places.append(Place(pair.before, rank, beyond(delta.spectrum, rank), partial(_change, pair)))
    saved, whole, biases, lost = _vectors(before, after, vectors, {p.path for p in places}, options.vectors)
    missed += lost
    bench = Bench(getattr(torch, options.dtype), factored, progress)
    with new_folder(to) as folder:
        size = write_adapter(
            folder, places, bench, saved=saved, whole=whole, biases=biases, base=before.path if before.root else ""
        )
        weights = tuple(bench.found[place.weight.name] for place in places)
        done = Extraction(
            str(to), weights, tuple(ref.name.removeprefix("base_model.model.") for ref in saved), tuple(missed),
            _notes(biases, places), size,
        )  # fmt: skip
        (folder / MANIFEST).write_text(json.dumps({"format": 1, "adapter": done.to_dict()}, indent=1) + "\n")
    return done


def _notes(biases: bool, places: Sequence[Place]) -> tuple[str, ...]:
    notes = ["biases overwrite the base's: switching the adapter off does not bring those back"] if biases else []
    if any(place.weight.kind == "embedding" for place in places):
        notes.append("where the model ties its output to its embedding, PEFT adapts the input side only")
    return tuple(notes)


def beyond(spectrum: Spectrum, rank: int) -> tuple[float, float]:
    """What the best factors of this rank miss: Frobenius and spectral norm."""
    tail = spectrum.values[rank:]
    return float(np.sqrt(np.sum(tail[::-1] ** 2))), float(tail[0]) if len(tail) else 0.0


def factored(D: Tensor, rank: int) -> LowRank:
    """Leading triplets; in float64, since of a nearly full rank the tail is far smaller than the first."""
    return svd(D, k=rank)


def _change(pair: Pair) -> tuple[Tensor, float]:
    A, B, _ = change_of(pair)
    return (B - A)[0], float(B.norm())


def _vectors(
    before: Source, after: Source, vectors: Sequence[Vector], factored: set[str], wanted: bool
) -> tuple[list[TensorRef], list[str], bool, list[tuple[str, str]]]:
    """Tensors that go along whole: biases by name, norms and the like as modules of their own."""
    ours, theirs = ({ref.name: ref for ref in source.tensors} for source in (before, after))
    saved: list[TensorRef] = []
    lost: list[tuple[str, str]] = []
    modules: dict[str, list[str]] = defaultdict(list)
    changed = {v.name: v.after for v in vectors if v.change == "change"}
    for name in ours:
        module, _, attribute = name.rpartition(".")
        if attribute in ("weight", "bias"):
            modules[module].append(name)
    whole, biases = [], False
    partner = {v.name: v.after for v in vectors}
    done: set[str] = set()
    for name, other in changed.items():
        module, _, attribute = name.rpartition(".")
        matrix = any(len(ours[n].shape) > 1 for n in modules[module])
        if not wanted:
            lost.append((name, "biases, norms and buffers were not asked for"))
        elif attribute == "bias" and (matrix or module in factored):
            inner = ".base_layer" if module in factored else ""
            saved.append(_renamed(theirs[other], f"base_model.model.{module}{inner}.bias"))
            biases = True
        elif attribute in ("weight", "bias") and not matrix and module and all(n in partner for n in modules[module]):
            if module not in done:
                done.add(module)
                whole.append(module)
                saved += [_renamed(theirs[partner[n]], f"base_model.model.{n}") for n in modules[module]]
        else:
            lost.append((name, "is no weight or bias of a module of its own"))
    return saved, whole, biases, lost


def _renamed(ref: TensorRef, name: str) -> TensorRef:
    return TensorRef(name, ref.shape, ref.dtype, ref.load)
