"""What a user may ask of a quantization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from netspectra.errors import InputRefused
from netspectra.forms import FORMS
from netspectra.forms.codes import BITS, Coding
from netspectra.verbs.compress.options import CompressOptions

__all__ = ["QuantizeOptions"]

LEVELS = (16, 8, 6, 5, 4, 3, 2)
USUAL = 4.25  # bits a weight: int4 with groups of 64, without zero points
CHECKED = 256  # samples along whose errors predictions are checked, at most


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantize. One budget is given: bits, bytes or loss.

    Attributes:
        bits: average bits of a selected weight, scales, zero points and corrections included; 4.25 where no budget is
            given: what int4 with groups of 64 takes.
        bytes: of the selected weights and their biases, at most.
        loss: largest predicted loss a sample; then as few bytes as it allows.
        levels: bits a weight may get, of 16, 8, 6, 5, 4, 3, 2.
        ranks: of the 16-bit corrections that are weighed against more bits; 0: none.
        group: inputs that share a scale, at most (the largest divisor up to it); 0: a whole row.
        symmetric: no zero points: what GGUF's Q8_0, Q5_0 and Q4_0 and several kernels need.
        scales: their dtype, ``float16``, as GGUF wants it; None: bfloat16 in a model of that dtype, else float16.
        rounding: ``compensated``: later inputs make up for the errors of earlier ones (GPTQ); ``nearest``.
        rounds: times that codes and correction are made anew for what the other leaves.
        weigh: ``predicted``: by the spectrum of the error under moments of activations and gradients, checked along
            each layer's own error in one more pass over some 256 samples; ``measured``: the moments' prediction,
            scaled for each layer by the loss measured when it alone is quantized; ``weights``: by the error of
            the weights alone, which does not predict the loss and is here to show it.
        forms: forms of `netspectra.forms` that may be chosen instead: ``neurons``, ``pivoted``, ... for joint plans.
        include: patterns of names to take.
        exclude: patterns of names to leave.
        objective: what to keep: logits, embedding, hidden, output, a function; None: what the output suggests.
        probes: draws of the label-free loss for each batch.
        spread: share of the input moments that is of samples with tokens drawn from the whole vocabulary, which helps
            on other texts; None: 0.4 where the model reads tokens, else 0.
        held_out: share of the calibration samples that only judges.
        seed: of all draws.
    """

    bits: float | None = None
    bytes: float | None = None
    loss: float | None = None
    levels: tuple[int, ...] = LEVELS
    ranks: tuple[int, ...] = (0, 8, 16, 32)
    group: int = 64
    symmetric: bool = False
    scales: Literal["float16"] | None = None
    rounding: Literal["compensated", "nearest"] = "compensated"
    rounds: int = 1
    weigh: Literal["predicted", "measured", "weights"] = "predicted"
    forms: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    objective: str | Callable[[Any, Any], Tensor] | None = None
    probes: int = 1
    spread: float | None = None
    held_out: float = 0.125
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before any work."""
        given = [name for name in ("bits", "bytes", "loss") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputRefused(f"one budget at a time, found {', '.join(given)}")
        for name in given:
            if not getattr(self, name) > 0:
                raise InputRefused(f"a budget of {name} is positive, found {getattr(self, name)}")
        if self.bits is not None and self.bits > 32:
            raise InputRefused(f"{self.bits} bits a weight: weights have 32 at most")
        wrong = sorted(set(self.levels) - {16, *BITS})
        if wrong or not self.levels:
            raise InputRefused(f"levels {wrong or '()'}: there are 16, {', '.join(map(str, BITS))}")
        if any(rank < 0 for rank in self.ranks) or 0 not in self.ranks:
            raise InputRefused(f"ranks of corrections are not negative, and 0 (none) is one; found {self.ranks}")
        if self.group and self.group < 8:
            raise InputRefused(
                f"groups of {self.group} inputs: scales would outweigh codes; give 8 or more, or 0: rows"
            )
        if self.scales not in (None, "float16"):
            raise InputRefused(f"scales {self.scales!r}: there is float16, or None")
        if self.rounding not in ("compensated", "nearest"):
            raise InputRefused(f"rounding {self.rounding!r}: there are compensated, nearest")
        if self.weigh not in ("predicted", "measured", "weights"):
            raise InputRefused(f"weigh {self.weigh!r}: there are predicted, measured, weights")
        if self.rounds < 1:
            raise InputRefused(f"rounds are 1 at least, found {self.rounds}")
        for name in self.forms:
            if name not in FORMS or FORMS[name].named:
                shrinking = ", ".join(name for name, form in FORMS.items() if not form.named)
                raise InputRefused(f"form {name!r}: there are {shrinking}")

    def following(self, plan: Mapping[str, Any]) -> QuantizeOptions:
        """The same, with the grid that a plan was made with where nothing else was asked for.

        Args:
            plan: options of the plan. Groups, zero points, rounding and the ranks that may stand in it are taken.
        """
        before, usual = plan.get("coding"), QuantizeOptions()
        if not isinstance(before, Mapping):
            return self
        found: dict[str, Any] = {
            **{name: before.get(name) for name in ("group", "symmetric", "rounds")},
            "scales": "float16" if before.get("scales") == "float16" else None,
            "rounding": "compensated" if before.get("compensate", True) else "nearest",
            "ranks": tuple(ranks) if isinstance(ranks := before.get("ranks"), list | tuple) else None,
        }
        taken = {
            name: value
            for name, value in found.items()
            if getattr(self, name) == getattr(usual, name)
            and (name == "scales" or type(value) is type(getattr(usual, name)))
        }
        return replace(self, **taken)

    @property
    def coding(self) -> Coding:
        """How weights become codes."""
        return Coding(
            self.group, self.symmetric, self.rounding == "compensated", tuple(sorted(set(self.ranks))),
            rounds=self.rounds, bits=tuple(bits for bits in self.levels if bits != 16), scales=self.scales,
        )  # fmt: skip

    def limit(self, weights: int, biases: int) -> tuple[float, float]:
        """Bytes that may be spent on weights and their biases, and the bits a weight which that makes.

        Args:
            weights: how many numbers are selected.
            biases: bytes of theirs, which every form keeps.
        """
        if self.bytes is not None:
            return self.bytes, 8 * (self.bytes - biases) / max(weights, 1)
        bits = USUAL if self.bits is None else self.bits
        return bits / 8 * weights + biases, bits

    def compression(self) -> CompressOptions:
        """The same as options of the planner that both verbs share; a budget in bits becomes one in bytes there."""
        names = ["half" if bits == 16 else f"int{bits}" for bits in self.levels]
        return CompressOptions(
            loss=self.loss,
            bytes=None if self.loss is not None else self.bytes or float("inf"),
            include=self.include,
            exclude=self.exclude,
            method="plain" if self.weigh == "weights" else None,
            forms=(*names, *self.forms),
            objective=self.objective,
            probes=self.probes,
            spread=self.spread,
            checked=CHECKED if self.weigh == "predicted" else 0,
            held_out=self.held_out,
            seed=self.seed,
            coding=self.coding,
        )
