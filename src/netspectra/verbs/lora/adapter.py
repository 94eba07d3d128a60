"""An adapter as PEFT reads it: factors under its names, ranks and scales by module in its config.

Layout: PEFT's documentation of its checkpoint format. The update of ``PATH.weight`` is (alpha / r) B A with
``PATH.lora_A.weight`` (r, in) and ``PATH.lora_B.weight`` (out, r); of an embedding (B A)^T with ``lora_embedding_A``
(r, rows) and ``lora_embedding_B`` (columns, r); of a convolution both are kernels, B's of 1 x 1.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from netspectra.checkpoint import write_safetensors
from netspectra.linalg.operator import LowRank
from netspectra.verbs.lora.result import Adapted
from netspectra.weight import Index, TensorRef, Weight

__all__ = ["Bench", "Place", "refusal", "write_adapter"]

Progress = Callable[[Weight | None], None]


@dataclass(frozen=True, eq=False)
class Place:
    """A weight that gets factors.

    Attributes:
        weight: of the base.
        rank: of its factors.
        tail: singular values beyond the rank, of what the factors stand for.
        change: gives what the factors stand for (m, n) in float64 and the norm of the weight with it.
    """

    weight: Weight
    rank: int
    tail: tuple[float, float]
    change: Callable[[], tuple[Tensor, float]]

    @property
    def path(self) -> str:
        """Of the module."""
        return self.weight.name.removesuffix(".weight")


def refusal(weight: Weight) -> str:
    """Why PEFT has no place for factors of this weight; empty where it has."""
    if weight.factors:
        return "is an adapter already"
    if weight.part.index or weight.part.reshape is not None:
        return "is a part of a fused tensor"
    if not weight.name.endswith(".weight"):
        return "is not a module's .weight"
    if weight.layout.groups != 1:
        return "is a grouped convolution"
    if weight.aliases:
        return f"is tied to {weight.aliases[0]}; PEFT would adapt one of the two"
    flat = len(weight.part.shape) == 2
    if flat and (weight.kind == "embedding" or weight.layout.rows in ((0,), (1,))):
        return ""
    if weight.kind.startswith("conv") and len(weight.part.shape) in (3, 4, 5) and weight.layout.rows == (0,):
        return ""
    return f"is of a kind ({weight.kind}) without a LoRA layer in PEFT"


@dataclass(eq=False)
class Bench:
    """Where one weight at a time is factored: the next one takes its place."""

    dtype: torch.dtype
    factor: Callable[[Tensor, int], LowRank]
    progress: Progress
    place: Place | None = None
    held: tuple[Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        """Nothing is measured yet."""
        self.found: dict[str, Adapted] = {}

    def factors(self, place: Place) -> tuple[Tensor, Tensor]:
        """B (m, r) and A (r, n) as they are written, B A = U S V^T with sqrt(S) on either side."""
        if self.place is not place or self.held is None:
            self.place, self.held = place, None
            D, weight = place.change()
            found = self.factor(D, place.rank)
            root = found.S.double().sqrt()
            B = (found.U.double() * root).to(self.dtype)
            A = (root[:, None] * found.Vh.double()).to(self.dtype)
            self.held = B, A
            E = D - B.double() @ A.double()
            self.found[place.weight.name] = Adapted(
                place.weight.name,
                place.rank,
                min(D.shape),
                float(D.norm()),
                float(E.norm()),
                *_beyond(place, E),
                weight,
            )
            self.progress(place.weight)
        return self.held


def _beyond(place: Place, E: Tensor) -> tuple[float, float, float]:
    predicted, spectral = place.tail
    return predicted, float(E.abs().max()) if E.numel() else 0.0, spectral


@dataclass(frozen=True, eq=False)
class Piece:
    """One factor in PEFT's shape, as a `netspectra.weight.Loader`: computed when it is asked for."""

    bench: Bench
    place: Place
    left: bool
    turned: bool
    shape: tuple[int, ...]

    def __call__(self, index: Index = ()) -> Tensor:
        """Give the factor, or what ``index`` selects."""
        found = self.bench.factors(self.place)[0 if self.left else 1]
        found = (found.mT if self.turned else found).reshape(self.shape)
        return found[index] if index else found


def _pieces(place: Place, bench: Bench, dtype: str) -> Iterator[TensorRef]:
    (m, n), r = place.weight.shape, place.rank
    prefix = f"base_model.model.{place.path}"
    if place.weight.kind == "embedding":  # W (rows, d) + (B A)^T
        shapes = {"lora_embedding_A": ((r, m), True, True), "lora_embedding_B": ((n, r), False, True)}
    else:
        kernel = place.weight.part.shape[2:]
        shapes = {
            "lora_A.weight": ((r, n // math.prod(kernel), *kernel), False, False),
            "lora_B.weight": ((m, r, *(1,) * len(kernel)), True, False),
        }
    for role, (shape, left, turned) in shapes.items():
        yield TensorRef(f"{prefix}.{role}", shape, dtype, Piece(bench, place, left, turned, shape))


def write_adapter(
    folder: Path,
    places: Sequence[Place],
    bench: Bench,
    *,
    saved: Sequence[TensorRef] = (),
    whole: Sequence[str] = (),
    biases: bool = False,
    base: str = "",
) -> int:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json``; one weight's factors in memory at a time.

    Args:
        folder: where to.
        places: the weights with factors.
        bench: computes them.
        saved: further tensors, under PEFT's names.
        whole: modules whose tensors stand in ``saved`` (``modules_to_save``).
        biases: whether biases do.
        base: what the config says of the base.

    Returns:
        Bytes of the adapter's file.
    """
    dtype = str(bench.dtype).removeprefix("torch.")
    refs = [ref for place in places for ref in _pieces(place, bench, dtype)]
    target = folder / "adapter_model.safetensors"
    write_safetensors(target, [*refs, *saved], {"format": "pt"})
    # PEFT takes the first pattern that ends a module's path: longer paths before those that end them
    ranks = {place.path: place.rank for place in sorted(places, key=lambda place: -len(place.path))}
    usual = Counter(ranks.values()).most_common(1)[0][0] if ranks else 8
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted(whole) or None,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": any(p.weight.layout.rows == (1,) and p.weight.kind != "embedding" for p in places),
        "lora_dropout": 0.0,
        "init_lora_weights": True,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return target.stat().st_size
