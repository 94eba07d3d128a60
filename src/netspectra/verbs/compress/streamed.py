"""From checkpoint to checkpoint with no live model: one weight in memory at a time, the rest copied byte for byte.

For networks larger than memory, and for files whose code is not at hand. Without data every layer keeps the same share,
since plain singular values cannot weigh layers against one another; with saved moments of a calibration the budget is
allocated by predicted loss, as for a live model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from netspectra.checkpoint import SHARD
from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Site
from netspectra.forms.place import Placed
from netspectra.live.build import skeleton, state_owners
from netspectra.live.saved import Saved, same_config, save_tensors
from netspectra.methods import METHODS
from netspectra.plan import Cost, Decision, Plan
from netspectra.verbs.compress.allocate import Budget, Choice, Component, allocate, total
from netspectra.verbs.compress.calibrate import Calibration, layers
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.sites import Members, Shrinkage
from netspectra.weight import ITEMSIZE, Index, Selection, Source, TensorRef, Weight

__all__ = ["compress_stream"]

FACTORS, DENSE = "factors", "dense"
Progress = Callable[[str, float], None]


def compress_stream(
    source: Source,
    to: str | Path | None,
    options: CompressOptions,
    *,
    calibration: Calibration | None = None,
    plan: Plan | None = None,
    progress: Progress = lambda what, share: None,
    largest: int = SHARD,
) -> tuple[Plan, Saved | None]:
    """Compress a checkpoint's matrices into factors, weight by weight.

    Peak memory is about ten times the largest selected matrix in its stored dtype (its decomposition in float64),
    whatever the checkpoint's size; every other tensor is copied in pieces.

    Args:
        source: an opened checkpoint of plain numbers, under the live model's names.
        to: the folder to write; None to plan only.
        options: ``keep`` or ``parameters``, a selection, a method.
        calibration: moments of an earlier run on the same model; by default there is no data.
        plan: an earlier plan whose ranks are to be used; decisions of other forms are refused.
        progress: called with what is being done and its share, 0 ... 1.
        largest: bytes of one file.

    Raises:
        InputRefused: packed weights, names that are not the live model's, a budget that cannot be met.
    """
    method = options.method or ("two_sided" if calibration and calibration.outputs else
                                "whitened" if calibration else "plain")  # fmt: skip
    matrices = _matrices(source, Selection(options.include, options.exclude))
    reader = _Reader(matrices, calibration, method, options)
    if plan is None:
        plan = _plan(source, reader, options, progress)
    ranks = _ranks(plan, matrices)
    if to is None:
        return plan, None
    refs = list(_streamed(source, reader, ranks, progress))
    records = [Placed(name, FACTORS, {"rank": rank}) for name, rank in ranks.items()]
    return plan, save_tensors(refs, records, to, source=source, describe=same_config(source), largest=largest)


@dataclass(frozen=True, eq=False)
class _Matrix:
    """A layer of the checkpoint that can be factored, its numbers left where they are."""

    weight: Weight
    bias: TensorRef | None
    embedding: bool

    @property
    def name(self) -> str:
        return self.weight.name.removesuffix(".weight")

    @property
    def parameters(self) -> int:
        return self.weight.parameters + (self.bias.numel if self.bias else 0)

    def module(self) -> nn.Module:
        """The layer, loaded: a Linear (also for what is stored inputs first) or an Embedding."""
        stored = self.weight.part.load()
        m, n = self.weight.shape
        if self.embedding:
            made: nn.Module = nn.utils.skip_init(nn.Embedding, *stored.shape, dtype=stored.dtype)
        else:
            made = nn.utils.skip_init(nn.Linear, n, m, bias=self.bias is not None, dtype=stored.dtype)
            stored = stored if tuple(stored.shape) == (m, n) and self.weight.layout.rows == (0,) else stored.mT
        with torch.no_grad():
            made.weight.copy_(stored)  # type: ignore[operator]
            if self.bias is not None:
                made.bias.copy_(self.bias.load())  # type: ignore[operator]
        return made


def _matrices(source: Source, selection: Selection) -> dict[str, _Matrix]:
    """The layers that can be factored, by module name."""
    coded = [ref for ref in source.tensors if ref.stored or (len(ref.shape) > 1 and ITEMSIZE.get(ref.dtype, 8) == 1)]
    if coded:
        raise InputRefused(f"{source.path}: {coded[0].name} is packed ({coded[0].stored or coded[0].dtype}); "
                           "only a live model decodes it: leave --stream out")  # fmt: skip
    allowed = _live_layers(source)
    refs = {ref.name: ref for ref in source.tensors}
    found = {}
    for weight in source.weights:
        whole = not weight.part.index and weight.part.reshape is None and weight.factors is None
        named = weight.name.endswith(".weight") and not weight.aliases and weight.layout.groups == 1
        if whole and named and weight.kind in ("linear", "embedding") and len(weight.part.shape) == 2:
            name = weight.name.removesuffix(".weight")
            live = allowed.get(name) if allowed is not None else None
            embedding = weight.kind == "embedding" if live is None else isinstance(live, nn.Embedding)
            matrix = _Matrix(weight, refs.get(f"{name}.bias"), embedding)
            if selection.accepts(weight.name) and (allowed is None or matrix.name in allowed):
                found[matrix.name] = matrix
    return found


def _live_layers(source: Source) -> dict[str, nn.Module] | None:
    """The modules that may be replaced, as the live model has them, without numbers; None where no config tells.

    Refuses before any work what no live model could load afterwards.
    """
    if not source.config:
        return None
    model = skeleton(source.config, source.path)
    owners = state_owners(model)
    names = {name for group in owners for name in group}
    strangers = [ref.name for ref in source.tensors if ref.name not in names and ref.dtype.startswith(("f", "bf"))]
    if strangers:
        raise InputRefused(
            f"{source.path}: {strangers[0]} is called otherwise in the live {type(model).__name__}; "
            "only a live model renames it: leave --stream out"
        )
    tied = {name.removesuffix(".weight") for group in owners if len(group) > 1 for name in group}
    return {name: module for name, module in layers(model).items() if name not in tied}


@dataclass(frozen=True, eq=False)
class _Reader:
    """Loads one layer as a site."""

    matrices: Mapping[str, _Matrix]
    calibration: Calibration | None
    method: str
    options: CompressOptions

    def site(self, name: str) -> Site:
        matrix = self.matrices[name]
        shrinkage = Shrinkage(self.options.shrink_inputs, self.options.shrink_outputs)
        member = Members(self.calibration, shrinkage, self.options.centre).member(name, matrix.module())
        return Site(name, "embedding" if matrix.embedding else "linear", {"weight": member}, {}, self.method)


def _plan(source: Source, reader: _Reader, options: CompressOptions, progress: Progress) -> Plan:
    """A rank for every matrix: by predicted loss where the method can compare layers, else the same share of each."""
    form = FORMS[FACTORS]
    choices: list[tuple[Choice, ...]] = []
    reasons: dict[str, str] = {}
    for name, matrix in reader.matrices.items():
        site = reader.site(name)
        light = Site(name, site.kind, {}, {}, site.method)  # what allocation keeps of it
        dense = Choice(light, DENSE, 0, _cost(matrix, matrix.parameters), 0.0)
        reasons[name] = form.refuses(site) or _unseen(reader, site)
        smaller: list[Choice] = []
        if not reasons[name]:
            curve = form.curve(site)
            rows = zip(curve.sizes, curve.parameters, curve.losses, strict=True)
            smaller = [Choice(light, FACTORS, int(r), _cost(matrix, int(p)), float(loss)) for r, p, loss in rows]
        choices.append((dense, *smaller))
        progress("decompose", len(choices) / len(reader.matrices))
    before = sum(row[0].cost.parameters for row in choices)
    limit = options.parameters if options.parameters is not None else (options.keep or 0.5) * before
    if METHODS[reader.method].comparable and reader.calibration is not None:
        parts = [Component(((row[0].site,),), {id(row[0].site): row}) for row in choices]
        chosen = [choice for option in allocate(parts, Budget("parameters", limit)) for choice in option.choices]
        note = "ranks by predicted loss, from saved moments"
    else:
        chosen = [_share(row, limit / before if before else 1.0) for row in choices]
        note = "the same share of every layer: without moments of inputs and outputs layers cannot be compared"
    first = {row[0].site.name: row[0] for row in choices}
    decisions = tuple(_decision(first[one.site.name], one, reasons[one.site.name]) for one in chosen)
    whole = Cost(source.parameters, sum(ref.nbytes for ref in source.tensors))
    dense, decided = total(d.before for d in decisions), total(d.after for d in decisions)
    after = Cost(whole.parameters - dense.parameters + decided.parameters, whole.bytes - dense.bytes + decided.bytes)
    return Plan(
        decisions,
        options={"method": reader.method, "keep": options.keep, "parameters": options.parameters, "stream": True},
        totals={"selected_before": dense, "selected_after": decided, "model_before": whole, "model_after": after},
        notes=(note, "planned without a live model: nothing was tried on held-out data"),
        fingerprint=source.fingerprint,
    )


def _unseen(reader: _Reader, site: Site) -> str:
    if reader.calibration is not None and METHODS[reader.method].needs and site.member.inputs is None:
        return "the calibration did not see it run"
    return ""


def _share(row: tuple[Choice, ...], share: float) -> Choice:
    """The largest choice within this share of the layer; the smallest, if none is."""
    fits = [choice for choice in row if choice.cost.parameters <= share * row[0].cost.parameters]
    return max(fits, key=lambda choice: choice.cost.parameters) if fits else row[min(1, len(row) - 1)]


def _cost(matrix: _Matrix, parameters: int) -> Cost:
    return Cost(parameters, parameters * ITEMSIZE[matrix.weight.part.ref.dtype])


def _decision(dense: Choice, chosen: Choice, reason: str) -> Decision:
    name = chosen.site.name
    if chosen.form == DENSE and not reason:
        reason = "no rank within the budget saves anything"
    return Decision(name, chosen.site.kind, (name,), chosen.form, chosen.size, dense.cost, chosen.cost, chosen.loss,
                    reason)  # fmt: skip


def _ranks(plan: Plan, matrices: Mapping[str, _Matrix]) -> dict[str, int]:
    """The rank of every module that the plan factors."""
    ranks = {}
    for decision in plan:
        if decision.form == DENSE:
            continue
        if decision.form != FACTORS:
            raise InputRefused(
                f"{decision.site}: {decision.form} needs a live model; from a stream only factors are made"
            )
        (name,) = decision.modules
        if name not in matrices:
            raise InputRefused(
                f"{name}: the plan factors it, the checkpoint has no such plain matrix among the selected"
            )
        ranks[name] = decision.size
    return ranks


def _streamed(source: Source, reader: _Reader, ranks: Mapping[str, int], progress: Progress) -> Iterator[TensorRef]:
    """Every tensor in the order of the source: as it lies there, or the factors that take its place."""
    bench = _Bench(reader, len(ranks), progress)
    biases = {f"{name}.bias" for name in ranks if reader.matrices[name].bias is not None}
    for ref in source.tensors:
        name = ref.name.removesuffix(".weight")
        if name in ranks and ref.name != name:
            yield from _factors(reader.matrices[name], name, ranks[name], bench)
        elif ref.name not in biases:
            yield ref


def _factors(matrix: _Matrix, name: str, rank: int, bench: _Bench) -> Iterator[TensorRef]:
    """References to the factors of one layer."""
    m, n = matrix.weight.shape
    dtype = matrix.weight.part.ref.dtype
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (rank, n), "1.weight": (m, rank)}
    if matrix.embedding:  # (vocabulary, d) in the file
        shapes = {"0.weight": (m, rank), "1.weight": (n, rank)}
    if matrix.bias is not None:
        shapes["1.bias"] = (m,)
    for key, shape in shapes.items():
        yield TensorRef(f"{name}.{key}", shape, dtype, _Piece(bench, name, rank, key))


@dataclass(eq=False)
class _Bench:
    """Where one matrix at a time is fitted: the next one takes its place."""

    reader: _Reader
    wanted: int
    progress: Progress
    done: int = 0
    name: str = ""
    held: Mapping[str, Tensor] = field(default_factory=dict)

    def fitted(self, name: str, rank: int) -> Mapping[str, Tensor]:
        """The factors of a matrix."""
        if name != self.name:
            self.name, self.held = name, {}
            (module,) = FORMS[FACTORS].fit(self.reader.site(name), rank).values()
            self.held = {key: tensor.detach() for key, tensor in module.state_dict().items()}
            self.done += 1
            self.progress("factor and write", self.done / self.wanted)
        return self.held


@dataclass(frozen=True, eq=False)
class _Piece:
    """One factor, as a `netspectra.weight.Loader`: fitted when it is asked for."""

    bench: _Bench
    name: str
    rank: int
    key: str

    def __call__(self, index: Index = ()) -> Tensor:
        found = self.bench.fitted(self.name, self.rank)[self.key]
        return found[index] if index else found
