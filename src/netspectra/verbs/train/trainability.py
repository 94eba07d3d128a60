"""Whether signals pass a network: the end-to-end Jacobian, and where along the depth it is lost or blows up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import moved
from netspectra.live.blocks import Block
from netspectra.live.conditions import freshly_normalized, plain_kernels, widened
from netspectra.live.jacobian import NoForwardProducts, energies, pushed
from netspectra.live.trace import Trace, traced
from netspectra.live.untouched import untouched
from netspectra.record import Value
from netspectra.verbs.train.findings import Trainability
from netspectra.verbs.train.rules import RULES, BlockFinding, Case
from netspectra.verbs.train.spectra import Limits, gauss_probes, root_mean, spectrum_of
from netspectra.verdicts import spoken

__all__ = ["TrainabilityOptions", "backward_profile", "examine", "output_probes", "trainability"]

FEW = 16  # output numbers of a sample up to which every one is followed back: nothing is left to chance
PAIRS = 256  # samples whose cosines are compared


@dataclass(frozen=True)
class TrainabilityOptions:
    """How to measure.

    Attributes:
        start: name of the submodule at whose output signals start; by default the floating input, or the embedding.
        exact: largest short side of a Jacobian that is decomposed in full.
        probes: random vectors where a norm is estimated.
        steps: Golub-Kahan steps for the largest singular value, two products each.
        seed: of the probes; the global generators are not touched.
    """

    start: str = ""
    exact: int = 256
    probes: int = 8
    steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured with."""
        if self.probes < 2 or self.steps < 1 or self.exact < 0:
            raise InputRefused("trainability needs at least 2 probes, 1 step, and no negative size")

    @property
    def limits(self) -> Limits:
        """The same, for one Jacobian."""
        return Limits(self.exact, self.probes, self.steps, self.seed)


def trainability(model: nn.Module, batch: Any, options: TrainabilityOptions = TrainabilityOptions()) -> Trainability:
    """Measure a network's Jacobians at a batch; see `netspectra.trainability`."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    subject, batch, notes = widened(model, moved(batch, device))
    if any(module.training for module in model.modules()):
        notes = (*notes, "measured in eval mode: normalization frozen, dropout off")
    with untouched(subject), plain_kernels():
        notes = (*notes, *freshly_normalized(subject, batch))
        trace = traced(subject, batch, options.start)
        return examine(trace, type(model).__name__, options, notes)


def examine(trace: Trace, model: str, options: TrainabilityOptions, notes: tuple[str, ...] = ()) -> Trainability:
    """What `trainability` finds on a trace."""
    input_rms = _rms(trace.start) if trace.given else None
    if not trace.given:
        notes = (*notes, f"signals are measured in units of the rms of the {trace.origin}, {trace.unit:.3g}")
    broken = _broken(trace)
    whole, blocks = None, ()
    if not broken:
        sizes = [cut.numel() // trace.samples for cut in trace.cuts]
        limits = options.limits
        whole = spectrum_of(trace.start, trace.output, trace.samples, min(sizes), limits, function=trace.rerun)
        blocks, more = _blocks(trace, sizes, options)
        notes = (*notes, *more)
    case = Case(whole, blocks, input_rms, _cosine(trace.start, trace.samples), broken)
    return Trainability(
        model, trace.origin, trace.samples, whole, blocks, spoken(RULES, case), notes, input_rms, options.seed
    )


def _broken(trace: Trace) -> str:
    """Name of the first block whose end is not finite."""
    if not bool(trace.start.isfinite().all()):
        return trace.origin
    return next((block.name for block in trace.blocks if not bool(block.target.isfinite().all())), "")


def _blocks(trace: Trace, sizes: list[int], options: TrainabilityOptions) -> tuple[tuple[BlockFinding, ...], tuple]:
    """Every block: its own Jacobian, and those from it to the output and from the start to it."""
    backward = backward_profile(trace, sizes, options)
    forward, notes = _forward_profile(trace, sizes, options)
    found = []
    for place, block in enumerate(trace.blocks):
        count = min(sizes[place : place + 2])
        samples = trace.samples
        own = spectrum_of(block.source, block.target, samples, count, options.limits, density=False)
        after = backward[place + 1]
        gain = Value(backward[place] / after, error=_relative(backward[place], after)) if after > 0 else Value(0.0)
        found.append(
            BlockFinding(
                block.name,
                block.kind,
                block.residual,
                any(call.mixes for call in block.calls),
                own.shape,
                own.rms,
                own.max,
                gain,
                after,
                forward[place],
                _rms(block.target),
                _cosine(block.target, samples),
                _dead(block, samples),
            )
        )
    return tuple(found), notes


def _relative(a: Value, b: Value) -> float:
    """Standard error of a ratio, were its two ends independent: they share their probes, so it is less."""
    return float(a / b) * math.hypot((a.error or 0.0) / a if a > 0 else 0.0, (b.error or 0.0) / b)


def output_probes(trace: Trace, options: TrainabilityOptions) -> list[Tensor]:
    """Vectors to send back from the output: one for each number of a sample if there are few, else random ones."""
    count = trace.output.numel() // trace.samples
    if count > FEW:
        return gauss_probes(options.probes, trace.output, options.seed)
    basis = torch.eye(count).to(trace.output)
    return [row.expand(trace.samples, -1).reshape(trace.output.shape) for row in basis]


def backward_profile(trace: Trace, sizes: list[int], options: TrainabilityOptions) -> list[Value]:
    """Rms singular value of the Jacobian from each cut to the output; that of the output itself is 1."""
    narrow = [min(sizes[place:]) for place in range(len(sizes))]
    sums = energies(trace.cuts[:-1], trace.output, output_probes(trace, options))
    whole = [s.sum(1) / (trace.samples * k) for s, k in zip(sums, narrow, strict=False)]
    if sizes[-1] <= FEW:
        return [*(Value(math.sqrt(float(s.sum()))) for s in whole), Value(1.0)]
    return [*map(root_mean, whole), Value(1.0)]


def _forward_profile(trace: Trace, sizes: list[int], options: TrainabilityOptions) -> tuple[list[Value], tuple]:
    """Rms singular value of the Jacobian from the start to each block's end."""
    targets = [block.target for block in trace.blocks]
    probes = gauss_probes(options.probes, trace.start, options.seed + 1)
    try:
        sums = pushed(trace.start, targets, probes)
    except NoForwardProducts as why:
        unknown = Value.unknown(f"no products with J: {why}")
        return [unknown] * len(targets), (f"no forward profile: {why}",)
    narrow = [min(sizes[: place + 2]) for place in range(len(targets))]
    return [root_mean(s.sum(1) / (trace.samples * k)) for s, k in zip(sums, narrow, strict=True)], ()


def _rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def _cosine(x: Tensor, samples: int) -> Value:
    """Mean cosine between the activations of different samples."""
    if samples < 2:
        return Value.unknown("needs two independent samples")
    rows = x.detach()[:PAIRS].double().flatten(1)
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-300)
    total = rows.sum(0).square().sum() - rows.square().sum()
    return Value(float(total) / (len(rows) * (len(rows) - 1)))


def _dead(block: Block, samples: int) -> Value:
    """Share of the units that are exactly zero for every sample."""
    if samples < 2:
        return Value.unknown("needs two independent samples")
    return Value(float((block.target.detach() == 0).flatten(1).all(0).double().mean()))
