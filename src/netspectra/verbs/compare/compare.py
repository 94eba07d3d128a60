"""The verb: match, measure each pair as it streams by, judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from netspectra.analysis import Analysis
from netspectra.errors import InputRefused, NotDecomposable
from netspectra.linalg.lattice import form_of
from netspectra.record import Record, Skipped
from netspectra.run import Run
from netspectra.run.local import LocalRun
from netspectra.verbs.analyze import AnalyzeOptions, measure
from netspectra.verbs.compare.delta import ARITHMETIC, Delta, delta_of
from netspectra.verbs.compare.lineage import Family, Vector, lineage
from netspectra.verbs.compare.matching import Matching, Pair, as_float, match, match_names, others
from netspectra.verbs.compare.result import Compared, Comparison
from netspectra.verbs.rank import RANKED, rank
from netspectra.weight import Selection, Source, TensorRef, Weight

__all__ = ["CompareOptions", "compare"]


@dataclass(frozen=True)
class CompareOptions:
    """What is asked of a comparison.

    Attributes:
        include: patterns of weight names to take (glob, or ``re:`` and a regular expression); none means all.
        exclude: patterns to leave out.
        accuracy: as of an analysis.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    accuracy: float = 1e-6


Finding = tuple[Record | Skipped, Record | Skipped, Delta | Skipped]


def compare(
    before: Source,
    after: Sequence[Source],
    options: CompareOptions = CompareOptions(),
    *,
    run: Run = LocalRun(workers=1),
    progress: Callable[[Weight | None], None] = lambda weight: None,
) -> Comparison:
    """Compare each source with the first, one pair of weights in memory at a time.

    Raises:
        InputRefused: nothing to compare: no weight is selected.
    """
    selection = Selection(options.include, options.exclude)
    compared = tuple(_one(before, other, selection, options, run, progress) for other in after)
    names = _unique([before.path, *(source.path for source in after)])
    return Comparison(before.describe(), compared, names, _ranking(names, compared))


def _one(
    before: Source,
    after: Source,
    selection: Selection,
    options: CompareOptions,
    run: Run,
    progress: Callable[..., None],
) -> Compared:
    ours = [w for w in before.weights if selection.accepts(w.name)]
    theirs = list(after.weights)
    if not ours or not theirs:
        path = after.path if ours else before.path
        raise InputRefused(f"{path}: no weight to compare; 'netspectra inspect' lists what a checkpoint holds")
    found = match(ours, theirs)
    if options.include or options.exclude:  # what the other source has besides was not asked for
        found = replace(found, only_after=())
    work = [_Paired.of(pair) for pair in found.pairs]
    findings: dict[int, Finding] = {}
    for weight, finding in run(partial(_compared, options=AnalyzeOptions(accuracy=options.accuracy)), work):
        findings[id(weight)] = finding
        progress(weight)
    rows = [findings[id(weight)] for weight in work]
    deltas = tuple(row[2] for row in rows if isinstance(row[2], Delta))
    unread = tuple(row[2] for row in rows if isinstance(row[2], Skipped))
    vectors, alone = _vectors(before, after, selection)
    adapter = any(pair.added for pair in found.pairs)
    floating = () if adapter else tuple(ref.name for ref in alone if _floating(ref))
    family = Family(
        deltas, vectors, _matched(found), _alone(found), tuple(s.name for s in unread), floating, adapter
    )  # fmt: skip
    return Compared(
        source=after.describe(),
        lineage=lineage(family),
        deltas=deltas,
        unread=unread,
        vectors=vectors,
        matched=family.matched,
        only_before=tuple((w.name, w.shape) for w in found.only_before),
        only_after=tuple((w.name, w.shape) for w in found.only_after),
        notes=_notes(found, alone),
        before=_analysis(before, rows, 0),
        after=_analysis(after, rows, 1),
        sources=(before, after),
        pairs=found.pairs,
    )


@dataclass(frozen=True, eq=False, repr=False)
class _Paired(Weight):
    """A pair as a `Run` takes it: the larger weight of the two, which carries both along."""

    pair: Pair | None = None

    @classmethod
    def of(cls, pair: Pair) -> _Paired:
        larger = _larger(pair)
        return cls(**{field.name: getattr(larger, field.name) for field in fields(larger)}, pair=pair)

    @property
    def beside(self) -> int:
        """The partner; both, their difference, and how far either may be rounded, in float64, and one more."""
        assert self.pair is not None
        return min(self.pair.before.nbytes, self.pair.after.nbytes) + 48 * self.parameters


def _larger(pair: Pair) -> Weight:
    return pair.after if pair.added == "before" else pair.before


def _compared(weight: Weight, options: AnalyzeOptions) -> Finding:
    """The work on one pair."""
    assert isinstance(weight, _Paired) and weight.pair is not None
    pair = weight.pair
    one = measure(_larger(pair) if pair.added else pair.before, options)
    other = one if pair.added else measure(pair.after, options)
    if isinstance(one, Skipped) or isinstance(other, Skipped):
        lost = one if isinstance(one, Skipped) else other
        assert isinstance(lost, Skipped)
        return one, other, lost
    try:
        return one, other, delta_of(pair, one, None if pair.added else other)
    except (NotDecomposable, InputRefused) as reason:
        return one, other, Skipped(pair.before.name, pair.before.shape, str(reason))


def _matched(found: Matching) -> float:
    """Share of the numbers of the larger source that have a partner; an adapter's base needs none."""
    if any(pair.added for pair in found.pairs):
        adapters = found.only_after if found.pairs[0].added == "after" else found.only_before
        return len(found.pairs) / (len(found.pairs) + len(adapters))
    paired = sum(math.prod(pair.before.shape) for pair in found.pairs)
    alone = (sum(math.prod(w.shape) for w in side) for side in (found.only_before, found.only_after))
    return paired / max(paired + max(alone), 1)


def _alone(found: Matching) -> tuple[str, ...]:
    if any(pair.added for pair in found.pairs):
        return ()
    return tuple(w.name for w in (*found.only_before, *found.only_after))


def _notes(found: Matching, alone: Sequence[TensorRef]) -> tuple[str, ...]:
    notes = []
    ways = {how: sum(pair.how == how for pair in found.pairs) for how in ("end of name", "content", "shape")}
    told = ", ".join(f"{count} by {how}" for how, count in ways.items() if count)
    if told:
        notes.append(f"not matched by their whole name: {told}")
    if alone:
        notes.append(f"other tensors in one source only: {len(alone)}, such as {alone[0].name}")
    if any(pair.added for pair in found.pairs):
        notes.append("one source is an adapter: base weights that it does not touch are taken as unchanged")
    return tuple(notes)


# ---- vectors -----------------------------------------------------------------------------------------------------


def _vectors(before: Source, after: Source, selection: Selection) -> tuple[tuple[Vector, ...], tuple[TensorRef, ...]]:
    """Biases, norms, buffers: by name alone."""
    ours = [ref for ref in others(before.tensors, before.weights) if selection.accepts(ref.name)]
    theirs = others(after.tensors, after.weights)
    pairs = match_names([(r.name, r.shape) for r in ours], [(r.name, r.shape) for r in theirs])
    found = tuple(_vector(ours[i], theirs[j]) for i, j, _ in sorted(pairs))
    left = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    alone = [ref for i, ref in enumerate(ours) if i not in left[0]]
    if not selection.include and not selection.exclude:
        alone += [ref for j, ref in enumerate(theirs) if j not in left[1]]
    return found, tuple(alone)


def _vector(one: TensorRef, other: TensorRef) -> Vector:
    a, b = (as_float(ref.load()).reshape(1, -1) for ref in (one, other))
    size = float(torch.linalg.vector_norm(b - a))
    norm = float(torch.linalg.vector_norm(a))
    if torch.equal(a.nan_to_num(nan=0.5), b.nan_to_num(nan=0.5)):
        change = "none" if one.dtype == other.dtype else "rounding"
    elif not (math.isfinite(size) and _floating(one) and _floating(other)):
        change = "change"
    else:
        forms = form_of(a, one.dtype, one.stored), form_of(b, other.dtype, other.stored)
        bound = ARITHMETIC * a.abs() if forms[0].name == forms[1].name else 1.02 * (forms[0].half + forms[1].half)
        if forms[0].name == forms[1].name and forms[0].name not in ("float32", "float64"):
            bound = torch.zeros(())
        change = "rounding" if bool(((b - a).abs() <= bound).all()) else "change"
    relative = size / norm if norm > 0 else (0.0 if size == 0 else math.inf)
    return Vector(one.name, other.name, one.shape, relative, change)


def _floating(ref: TensorRef) -> bool:
    return ref.dtype.startswith(("float", "bfloat"))


# ---- several -----------------------------------------------------------------------------------------------------


def _analysis(source: Source, rows: Sequence[Finding], side: int) -> Analysis:
    """The records of one side, under the names of the first source, so that candidates are paired."""
    records = tuple(row[side] for row in rows if isinstance(row[side], Record))
    skipped = tuple(row[side] for row in rows if isinstance(row[side], Skipped))
    kept: dict[str, Any] = {record.name: record for record in records if isinstance(record, Record)}
    missed = tuple(s for s in skipped if isinstance(s, Skipped))
    return Analysis(tuple(kept.values()), (*source.skipped, *missed), source.describe(), {}, len(rows))


def _unique(paths: list[str]) -> tuple[str, ...]:
    return tuple(paths) if len(set(paths)) == len(paths) else tuple(f"{i}: {p}" for i, p in enumerate(paths, 1))


def _ranking(names: tuple[str, ...], compared: Sequence[Compared]) -> Any:
    """All candidates by their spectra, over the weights that every one of them has."""
    tables = []
    for one in compared:
        held = {record.name for record in one.after}  # not the sum of base and adapter, which is never formed
        tables.append({d.name: d.after for d in one.deltas if d.after in held})
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    if not shared:
        return None
    first = compared[0].before
    candidates = {names[0]: _subset(first, {name: name for name in shared})}
    for name, one, table in zip(names[1:], compared, tables, strict=True):
        candidates[name] = _subset(one.after, {table[key]: key for key in shared})
    return rank(candidates, metrics=RANKED) if all(len(a) for a in candidates.values()) else None


def _subset(analysis: Analysis, names: dict[str, str]) -> Analysis:
    records = tuple(replace(r, name=names[r.name]) for r in analysis if r.name in names)
    return Analysis(records, (), analysis.source, {}, len(records))
