"""Weights for which signals pass: orthogonal matrices, then scales that the Jacobian of each block asks for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, get_args

import torch
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.live.batches import moved
from netspectra.live.blocks import Block, Call
from netspectra.live.conditions import freshly_normalized, plain_kernels, widened
from netspectra.live.jacobian import vjp
from netspectra.live.norm import operator_norm
from netspectra.live.trace import Trace, traced
from netspectra.live.untouched import untouched
from netspectra.verbs.train.draws import Draw, Method, Values, draws, is_norm
from netspectra.verbs.train.initialization import Change, Initialization
from netspectra.verbs.train.mirrored import Mirror, mirrors
from netspectra.verbs.train.trainability import TrainabilityOptions, backward_profile, output_probes, trainability

__all__ = ["InitializeOptions", "initialize_"]

STEP = 8.0  # largest factor of one round
BOLD = 6  # rounds that go the whole way; then, where blocks keep answering each other (GELU), a part of it
CALM = 0.2


@dataclass(frozen=True)
class InitializeOptions:
    """How to initialise.

    Attributes:
        method: ``orthogonal`` (delta-orthogonal where a convolution permits), ``gaussian`` (variance 1 / fan in),
            ``spectral`` (spectral norm sqrt(out / in), no Jacobian), ``keep`` (scale what is there).
        target: rms singular value of the end-to-end Jacobian that plain networks are brought to.
        branch: rms singular value of each residual branch over that of its stream; by default 1 / sqrt(branches).
        mirror: draw orthogonal weights in mirrored pairs where a plain network's activations are not odd functions.
        rescale: whether the Jacobian may set scales after the draw.
        tolerance: relative error of the gain of each block to stop at, and half of that of the whole.
        rounds: most measurements.
        include: names of parameters to touch, as globs; all by default.
        exclude: names of parameters to leave alone.
        seed: of draws and probes; the global generators are not touched.
        start: as `TrainabilityOptions.start`.
    """

    method: Method = "orthogonal"
    target: float = 1.0
    branch: float | None = None
    mirror: bool = True
    rescale: bool = True
    tolerance: float = 0.02
    rounds: int = 60
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0
    start: str = ""
    measure: TrainabilityOptions = field(default_factory=TrainabilityOptions)

    def __post_init__(self) -> None:
        """Refuse what means nothing."""
        if self.method not in get_args(Method):
            raise InputRefused(f"method {self.method!r}: there are {', '.join(get_args(Method))}")
        if not self.target > 0 or not self.tolerance > 0 or (self.branch is not None and self.branch < 0):
            raise InputRefused("target and tolerance are positive, branch is not negative")

    def accepts(self, name: str) -> bool:
        """Whether a parameter may be touched."""
        taken = not self.include or any(fnmatchcase(name, pattern) for pattern in self.include)
        return taken and not any(fnmatchcase(name, pattern) for pattern in self.exclude)


def initialize_(model: nn.Module, batch: Any, options: InitializeOptions = InitializeOptions()) -> Initialization:
    """Initialise a network in place; see `netspectra.initialize_`."""
    measure = TrainabilityOptions(
        options.start, options.measure.exact, options.measure.probes, options.measure.steps, options.seed
    )
    before = trainability(model, batch, measure)
    held = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    try:
        changes = _drawn(model, batch, options)
        if options.method == "spectral":
            _spectral(model, batch, options, changes)
            rounds = 0
        else:
            rounds = _rescaled(model, batch, options, measure, changes) if options.rescale else 0
        after = trainability(model, batch, measure)
    except BaseException:
        with torch.no_grad():
            for parameter, value in held:
                parameter.copy_(value)
        raise
    return Initialization(before, after, tuple(changes.values()), rounds, options.method, options.seed)


def _drawn(model: nn.Module, batch: Any, options: InitializeOptions) -> dict[int, Change]:
    """Write fresh values; one row a parameter, by its identity."""
    generator = torch.Generator().manual_seed(options.seed)
    rows = [
        draw if options.accepts(draw.name) else Draw(draw.name, draw.parameter, reason="not asked for")
        for draw in draws(model, options.method)
    ]
    mirrored = _mirrors(model, batch, options, rows) if options.mirror and options.method == "orthogonal" else {}
    changes: dict[int, Change] = {}
    for draw in rows:
        parameter, scheme = draw.parameter, draw.scheme
        if draw.value is not None:
            mirror = mirrored.get(id(parameter))
            scheme += ", mirrored" * (mirror is not None)
            drawn = mirror.draw if mirror else _whole
            with torch.no_grad():
                parameter.copy_(drawn(draw.value, parameter.shape, generator))
        touched = draw.value is not None or draw.reason == "kept as it was"
        changes[id(parameter)] = Change(draw.name, tuple(parameter.shape), scheme, draw.reason, parameter, touched)
    if options.method != "keep":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
    return changes


def _whole(value: Values, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return value(shape, generator)


def _mirrors(model: nn.Module, batch: Any, options: InitializeOptions, rows: Sequence[Draw]) -> dict[int, Mirror]:
    """How to mirror which parameter of the model, by its identity."""
    subject = _subject(model, batch)
    real = {id(mine): id(theirs) for mine, theirs in subject.pairs}
    drawn = {id(row.parameter) for row in rows if row.value is not None}
    found: dict[int, Mirror] = {}

    def see(trace: Trace) -> None:
        found.update(mirrors(subject.model, subject.batch, trace, lambda p: real[id(p)] in drawn))

    _look(subject, options, see)
    return {real[key]: mirror for key, mirror in found.items()}


# -- scales by the Jacobian ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Subject:
    """What is measured: the model itself, or a float32 copy whose parameters follow the model's."""

    model: nn.Module
    batch: Any
    pairs: Sequence[tuple[Tensor, Tensor]]  # parameter of the copy, of the model

    def update(self) -> None:
        with torch.no_grad():
            for mine, theirs in self.pairs:
                if mine is not theirs:
                    mine.copy_(theirs)


def _subject(model: nn.Module, batch: Any) -> _Subject:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    subject, batch, _ = widened(model, moved(batch, device))
    return _Subject(subject, batch, list(zip(subject.parameters(), model.parameters(), strict=True)))


def _rescaled(
    model: nn.Module, batch: Any, options: InitializeOptions, measure: TrainabilityOptions, changes: dict[int, Change]
) -> int:
    """Scale weights until every plain block has gain 1 and every branch its share; the number of measurements."""
    subject = _subject(model, batch)
    real = {id(mine): theirs for mine, theirs in subject.pairs}

    def handles(block: Block) -> list[Tensor]:
        found = [real[id(p)] for p in (_branch_end(block) if block.residual else _weights(block)) if id(p) in real]
        return [p for p in found if changes[id(p)].touched]

    for done in range(options.rounds):
        worst, total = 1.0, 0.0
        power = 1.0 if done < BOLD else CALM
        for block, gain, wanted in _wishes(subject, options, measure):
            parameters = handles(block)
            if not parameters or not 0 < gain < math.inf or wanted <= 0:
                continue
            factor = max(1 / STEP, min(STEP, wanted / gain))
            worst = max(worst, factor, 1 / factor)
            total += 0.0 if block.residual else math.log(factor)
            with torch.no_grad():
                for parameter in parameters:
                    change = changes[id(parameter)]
                    each = factor ** (power / len(parameters))
                    parameter.mul_(each)
                    change.scale *= each
        subject.update()
        if worst <= 1 + options.tolerance and abs(total) <= 2 * options.tolerance:
            return done + 1
    return options.rounds


def _wishes(
    subject: _Subject, options: InitializeOptions, measure: TrainabilityOptions
) -> list[tuple[Block, float, float]]:
    """Each block with weights, what its weights do to gradients, and what they should."""
    found: list[tuple[Block, float, float]] = []

    def look(trace: Trace) -> None:
        branches = _branches(trace, measure)
        share = options.branch if options.branch is not None else 1 / math.sqrt(max(len(branches), 1))
        plain = [block for block in trace.blocks if _weights(block) and block not in branches]
        normal = any(is_norm(call.module) for block in trace.blocks for call in block.calls)
        each = options.target ** (1 / max(len(plain), 1)) if not branches and not normal else 1.0
        for block, gain in zip(trace.blocks, _gains(trace, measure), strict=True):
            if block in branches:
                found.append((block, branches[block], share))
            elif block in plain:
                found.append((block, gain, each))

    _look(subject, options, look)
    return found


def _branches(trace: Trace, measure: TrainabilityOptions) -> dict[Block, float]:
    """What each residual branch adds to the gradient that its stream carries, relative to that.

    The gradient at the block's start is that at the sum, which the stream brings, plus what the branch brings.
    """
    blocks = [block for block in trace.blocks if block.sum is not None]
    sums = torch.zeros(len(blocks), 2, dtype=torch.float64)
    for w in output_probes(trace, measure) if blocks else ():
        ends = [block.sum for block in blocks if block.sum is not None]
        grads = vjp([*(block.source for block in blocks), *ends], trace.output, w)
        for place, (start, end) in enumerate(zip(grads[: len(blocks)], grads[len(blocks) :], strict=True)):
            if start.numel() == end.numel():
                sums[place, 0] += (start - end.reshape(start.shape)).double().square().sum().cpu()
                sums[place, 1] += end.double().square().sum().cpu()
    ratios = (sums[:, 0] / sums[:, 1]).sqrt().tolist()
    return {block: ratio for block, ratio in zip(blocks, ratios, strict=True) if math.isfinite(ratio)}


def _look(subject: _Subject, options: InitializeOptions, see: Callable[[Trace], None]) -> None:
    """Show a trace of the present weights."""
    with untouched(subject.model), plain_kernels():
        freshly_normalized(subject.model, subject.batch)
        see(traced(subject.model, subject.batch, options.start))


def _gains(trace: Trace, measure: TrainabilityOptions) -> list[float]:
    """By what factor the gradient from the output changes in each block."""
    if not bool(trace.output.isfinite().all()):
        raise InputRefused("the output is not finite: check the batch, and parameters that are left alone")
    sizes = [cut.numel() // trace.samples for cut in trace.cuts]
    along = backward_profile(trace, sizes, measure)
    return [float(a / b) if b > 0 else 0.0 for a, b in itertools.pairwise(along)]


def _weights(block: Block) -> list[Tensor]:
    """The matrices of a block whose scale is its scale: no norm comes after them."""
    last = max((call.began for call in block.calls if is_norm(call.module)), default=0)
    return [p for call in block.calls if call.mixes and call.ended > last for p in _own(call)]


def _own(call: Call) -> list[Tensor]:
    module = call.module
    if isinstance(module, nn.MultiheadAttention):
        return [module.out_proj.weight]
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return [p for name, p in module.named_parameters(recurse=False) if name.startswith("weight_ih")]
    return [p for p in module.parameters(recurse=False) if p.dim() > 1]


def _branch_end(block: Block) -> list[Tensor]:
    """What scales a residual branch: its last weight matrix, or the norm that comes after it."""
    inner = [c for c in block.calls if c.name not in block.skipped or c.mixes]
    for call in sorted(inner, key=lambda c: -c.ended):
        if call.mixes:
            return _own(call)
        weight = getattr(call.module, "weight", None)
        if is_norm(call.module) and isinstance(weight, nn.Parameter):
            return [weight]
    return []


# -- spectral condition ----------------------------------------------------------------------------------------------


def _spectral(model: nn.Module, batch: Any, options: InitializeOptions, changes: dict[int, Change]) -> None:
    """Scale every matrix to spectral norm sqrt(out / in) (Yang, Simon & Bernstein 2023, arXiv 2310.17813)."""
    subject = _subject(model, batch)
    real = {id(mine): theirs for mine, theirs in subject.pairs}
    grids: dict[int, tuple[int, ...]] = {}

    def see(trace: Trace) -> None:
        for block in trace.blocks:
            for call in block.calls:
                grids.update({id(real[id(p)]): call.received for p in call.module.parameters(recurse=False)})

    _look(subject, options, see)
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            change = changes[id(p)]
            if p.dim() < 2 or not change.touched or not change.scheme:
                continue
            change.scheme = "Gaussian, spectral norm sqrt(out / in)"
            change.scale *= _to_condition(module, p, grids.get(id(p), ()), name)


def _to_condition(module: nn.Module, p: Tensor, received: tuple[int, ...], name: str) -> float:
    """Scale one parameter to the condition; the factor."""
    out, into = p.shape[0], p.shape[1]
    if "Conv" in type(module).__name__ and p.dim() > 2:
        assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.modules.conv._ConvTransposeNd)
        out, into = module.out_channels, module.in_channels
        dims = p.dim() - 2
        grid = received[-dims:] if len(received) > dims else (16, 16, 16)[:dims]
        norm = operator_norm(module, grid, tolerance=1e-3, bound=False).value
    else:
        if type(module).__name__ == "Conv1D":
            out, into = into, out
        if name == "in_proj_weight":
            out //= 3
        norm = float(torch.linalg.matrix_norm(p.detach().double(), ord=2))
    factor = math.sqrt(out / into) / norm if norm > 0 else 1.0
    with torch.no_grad():
        p.mul_(factor)
    return factor
