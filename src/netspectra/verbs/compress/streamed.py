"""From checkpoint to checkpoint with no live model: one weight in memory at a time, the rest copied byte for byte.

For networks larger than memory, and for files whose code is not at hand. Without data every layer keeps the same share,
since plain singular values cannot weigh layers against one another; with saved moments of a calibration the budget is
allocated by predicted loss, as for a live model. Every layer is a job of its own, for threads or for a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from netspectra.checkpoint import SHARD
from netspectra.errors import InputRefused
from netspectra.forms import FORMS, Member, Site
from netspectra.forms.place import Placed
from netspectra.live.build import skeleton, state_owners
from netspectra.live.saved import Saved, same_config, save_tensors
from netspectra.live.spill import Spill
from netspectra.methods import METHODS
from netspectra.plan import Cost, Decision, Plan
from netspectra.run import Run
from netspectra.run.local import LocalRun
from netspectra.verbs.compress.allocate import Budget, Choice, Component, allocate, total
from netspectra.verbs.compress.calibrate import WIDEST, Calibration, layers
from netspectra.verbs.compress.options import CompressOptions
from netspectra.verbs.compress.sites import Members, Shrinkage
from netspectra.weight import ITEMSIZE, Loader, Selection, Source, TensorRef, Weight

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
    run: Run = LocalRun(),
    progress: Progress = lambda what, share: None,
    largest: int = SHARD,
) -> tuple[Plan, Saved | None]:
    """Compress a checkpoint's matrices into factors, weight by weight.

    Peak memory is about ten times the largest selected matrix in its stored dtype (its decomposition in float64),
    whatever the checkpoint's size; every other tensor is copied in pieces. Factors wait in a temporary file beside the
    folder until it is their turn to be written, so that any engine may make them in any order.

    Args:
        source: an opened checkpoint of plain numbers, under the live model's names.
        to: the folder to write; None to plan only.
        options: ``keep`` or ``parameters``, a selection, a method.
        calibration: moments of an earlier run on the same model; by default there is no data.
        plan: an earlier plan whose ranks are to be used; decisions of other forms are refused.
        run: the engine that maps over layers; the same bytes are written whichever it is. On other machines the
            calibration has to be one that was loaded from a file that they can read.
        progress: called with what is being done and its share, 0 ... 1.
        largest: bytes of one file.

    Raises:
        InputRefused: packed weights, names that are not the live model's, a budget that cannot be met.
    """
    method = options.method or ("two_sided" if calibration and calibration.outputs else
                                "whitened" if calibration else "plain")  # fmt: skip
    matrices = _layers(source, Selection(options.include, options.exclude), calibration)
    sites = _Sites(method, Shrinkage(options.shrink_inputs, options.shrink_outputs), options.centre)
    if plan is None:
        plan = _plan(source, matrices, sites, options, run, progress)
    ranks = _ranks(plan, matrices)
    if to is None:
        return plan, None
    factors = _fitted(matrices, sites, ranks, run, progress, Path(to))
    refs = list(_streamed(source, matrices, ranks, factors))
    records = [Placed(name, FACTORS, {"rank": rank}) for name, rank in ranks.items()]
    return plan, save_tensors(refs, records, to, source=source, describe=same_config(source), largest=largest)


@dataclass(frozen=True, eq=False, repr=False)
class _Layer(Weight):
    """A layer of the checkpoint that can be factored, as a `Run` takes it: its numbers are left where they are.

    Attributes:
        bias: of the same layer.
        embedding: whether it looks rows up.
        known: the calibration; where that came from a file, the file.
    """

    bias: TensorRef | None = None
    embedding: bool = False
    known: Calibration | Path | None = None

    @classmethod
    def of(cls, weight: Weight, bias: TensorRef | None, embedding: bool, known: Calibration | None) -> _Layer:
        own = {field.name: getattr(weight, field.name) for field in fields(weight)}
        return cls(**own, bias=bias, embedding=embedding, known=known and (known.path or known))

    @property
    def layer(self) -> str:
        """Name of the module."""
        return self.name.removesuffix(".weight")

    @property
    def numbers(self) -> int:
        """Its own, and its bias's."""
        return self.parameters + (self.bias.numel if self.bias else 0)

    @property
    def beside(self) -> int:
        """The matrix and its two factors in float64, and second moments and their roots where there are some."""
        m, n = self.shape
        sides = (n,) if self.embedding or m > WIDEST else (m, n)
        return 24 * m * n + (sum(16 * side**2 for side in sides) if self.known is not None else 0)

    def module(self) -> nn.Module:
        """The layer, loaded: a Linear (also for what is stored inputs first) or an Embedding."""
        stored = self.part.load()
        m, n = self.shape
        if self.embedding:
            made: nn.Module = nn.utils.skip_init(nn.Embedding, *stored.shape, dtype=stored.dtype)
        else:
            made = nn.utils.skip_init(nn.Linear, n, m, bias=self.bias is not None, dtype=stored.dtype)
            stored = stored if tuple(stored.shape) == (m, n) and self.layout.rows == (0,) else stored.mT
        with torch.no_grad():
            made.weight.copy_(stored)  # type: ignore[operator]
            if self.bias is not None:
                made.bias.copy_(self.bias.load())  # type: ignore[operator]
        return made


def _layers(source: Source, selection: Selection, calibration: Calibration | None) -> dict[str, _Layer]:
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
            if selection.accepts(weight.name) and (allowed is None or name in allowed):
                found[name] = _Layer.of(weight, refs.get(f"{name}.bias"), embedding, calibration)
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


@dataclass(frozen=True)
class _Sites:
    """Makes a site of a layer, where it is worked on.

    Attributes:
        method: what truncates.
        shrinkage: of the moments.
        centre: whether errors are taken about the mean.
    """

    method: str
    shrinkage: Shrinkage
    centre: bool

    def of(self, layer: _Layer) -> Site:
        """The site, its layer loaded."""
        known = _read(layer.known, layer.known.stat().st_mtime_ns) if isinstance(layer.known, Path) else layer.known
        member = Members(known, self.shrinkage, self.centre).member(layer.layer, layer.module())
        return self.named(layer, {"weight": member})

    def named(self, layer: _Layer, members: Mapping[str, Member] = {}) -> Site:
        """The site by name and kind: what allocation keeps of it."""
        return Site(layer.layer, "embedding" if layer.embedding else "linear", members, {}, self.method)


@lru_cache(maxsize=1)
def _read(path: Path, written: int) -> Calibration:
    """A calibration of a file: read once a process, its matrices when they are asked for."""
    return Calibration.load(path)


def _curve(layer: Weight, sites: _Sites) -> tuple[str, list[tuple[int, int, float]]]:
    """Why a layer cannot be factored, if so; else rank, parameters and loss of every size it can have."""
    assert isinstance(layer, _Layer)
    form, site = FORMS[FACTORS], sites.of(layer)
    unseen = layer.known is not None and METHODS[sites.method].needs and site.member.inputs is None
    reason = form.refuses(site) or ("the calibration did not see it run" if unseen else "")
    if reason:
        return reason, []
    curve = form.curve(site)
    rows = zip(curve.sizes, curve.parameters, curve.losses, strict=True)
    return "", [(int(rank), int(parameters), float(loss)) for rank, parameters, loss in rows]


def _plan(
    source: Source,
    matrices: Mapping[str, _Layer],
    sites: _Sites,
    options: CompressOptions,
    run: Run,
    progress: Progress,
) -> Plan:
    """A rank for every matrix: by predicted loss where the method can compare layers, else the same share of each."""
    found: dict[str, tuple[str, list[tuple[int, int, float]]]] = {}
    for weight, curve in run(partial(_curve, sites=sites), matrices.values()):
        found[weight.name.removesuffix(".weight")] = curve
        progress("decompose", len(found) / len(matrices))
    choices: list[tuple[Choice, ...]] = []
    for name, layer in matrices.items():
        light = sites.named(layer)
        rows = [Choice(light, FACTORS, rank, _cost(layer, count), loss) for rank, count, loss in found[name][1]]
        choices.append((Choice(light, DENSE, 0, _cost(layer, layer.numbers), 0.0), *rows))
    before = sum(row[0].cost.parameters for row in choices)
    limit = options.parameters if options.parameters is not None else (options.keep or 0.5) * before
    if METHODS[sites.method].comparable and any(layer.known is not None for layer in matrices.values()):
        parts = [Component(((row[0].site,),), {id(row[0].site): row}) for row in choices]
        chosen = [choice for option in allocate(parts, Budget("parameters", limit)) for choice in option.choices]
        note = "ranks by predicted loss, from saved moments"
    else:
        chosen = [_share(row, limit / before if before else 1.0) for row in choices]
        note = "the same share of every layer: without moments of inputs and outputs layers cannot be compared"
    first = {row[0].site.name: row[0] for row in choices}
    decisions = tuple(_decision(first[one.site.name], one, found[one.site.name][0]) for one in chosen)
    whole = Cost(source.parameters, sum(ref.nbytes for ref in source.tensors))
    dense, decided = total(d.before for d in decisions), total(d.after for d in decisions)
    after = Cost(whole.parameters - dense.parameters + decided.parameters, whole.bytes - dense.bytes + decided.bytes)
    return Plan(
        decisions,
        options={"method": sites.method, "keep": options.keep, "parameters": options.parameters, "stream": True},
        totals={"selected_before": dense, "selected_after": decided, "model_before": whole, "model_after": after},
        notes=(note, "planned without a live model: nothing was tried on held-out data"),
        fingerprint=source.fingerprint,
    )


def _share(row: tuple[Choice, ...], share: float) -> Choice:
    """The largest choice within this share of the layer; the smallest, if none is."""
    fits = [choice for choice in row if choice.cost.parameters <= share * row[0].cost.parameters]
    return max(fits, key=lambda choice: choice.cost.parameters) if fits else row[min(1, len(row) - 1)]


def _cost(layer: _Layer, parameters: int) -> Cost:
    return Cost(parameters, parameters * ITEMSIZE[layer.part.ref.dtype])


def _decision(dense: Choice, chosen: Choice, reason: str) -> Decision:
    name = chosen.site.name
    if chosen.form == DENSE and not reason:
        reason = "no rank within the budget saves anything"
    return Decision(name, chosen.site.kind, (name,), chosen.form, chosen.size, dense.cost, chosen.cost, chosen.loss,
                    reason)  # fmt: skip


def _ranks(plan: Plan, matrices: Mapping[str, _Layer]) -> dict[str, int]:
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


def _fit(layer: Weight, sites: _Sites, ranks: Mapping[str, int]) -> dict[str, Tensor]:
    """The factors of one layer, by their names below its own."""
    assert isinstance(layer, _Layer)
    (module,) = FORMS[FACTORS].fit(sites.of(layer), ranks[layer.layer]).values()
    return {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}


def _fitted(
    matrices: Mapping[str, _Layer],
    sites: _Sites,
    ranks: Mapping[str, int],
    run: Run,
    progress: Progress,
    to: Path,
) -> dict[str, dict[str, Loader]]:
    """The factors of every layer that gets some; they wait in a nameless file beside the folder to be."""
    spill = Spill(next(parent for parent in to.absolute().parents if parent.is_dir()))
    found: dict[str, dict[str, Loader]] = {}
    for weight, factors in run(partial(_fit, sites=sites, ranks=ranks), [matrices[name] for name in ranks]):
        name = weight.name.removesuffix(".weight")
        found[name] = {key: _Piece(spill.put(tensor)) for key, tensor in factors.items()}
        progress("factor", len(found) / len(ranks))
    return found


def _streamed(
    source: Source, matrices: Mapping[str, _Layer], ranks: Mapping[str, int], factors: Mapping[str, dict[str, Loader]]
) -> Iterator[TensorRef]:
    """Every tensor in the order of the source: as it lies there, or the factors that take its place."""
    biases = {f"{name}.bias" for name in ranks if matrices[name].bias is not None}
    for ref in source.tensors:
        name = ref.name.removesuffix(".weight")
        if name in ranks and ref.name != name:
            for key, shape in _shapes(matrices[name], ranks[name]).items():
                yield TensorRef(f"{name}.{key}", shape, ref.dtype, factors[name][key])
        elif ref.name not in biases:
            yield ref


def _shapes(layer: _Layer, rank: int) -> dict[str, tuple[int, ...]]:
    """Of the factors of one layer."""
    m, n = layer.shape
    shapes: dict[str, tuple[int, ...]] = {"0.weight": (rank, n), "1.weight": (m, rank)}
    if layer.embedding:  # (vocabulary, d) in the file
        shapes = {"0.weight": (m, rank), "1.weight": (n, rank)}
    if layer.bias is not None:
        shapes["1.bias"] = (m,)
    return shapes


@dataclass(frozen=True, eq=False)
class _Piece:
    """One factor, as a `netspectra.weight.Loader`."""

    whole: Callable[[], Tensor]

    def __call__(self, index: tuple[slice | int, ...] = ()) -> Tensor:
        found = self.whole()
        return found[index] if index else found
