"""One weight before and after: how much changed, in which directions, and what of it is more than rounding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netspectra.errors import NotDecomposable
from netspectra.linalg.algebra import Sum
from netspectra.linalg.batch import svdvals_batch
from netspectra.linalg.lanczos import golub_kahan
from netspectra.linalg.lattice import Form, form_of
from netspectra.linalg.operator import Dense
from netspectra.linalg.product import Factored, product_svd, product_svdvals
from netspectra.linalg.spectrum import Spectrum
from netspectra.linalg.svd import svd
from netspectra.linalg.values import svdvals, union
from netspectra.metrics import chosen, evaluate
from netspectra.record import Record, Value
from netspectra.verbs.compare.aligned import RELATED, change_of, inner
from netspectra.verbs.compare.directions import LEADING, directions, new_directions, principal
from netspectra.verbs.compare.matching import Pair
from netspectra.weight import Weight

__all__ = ["Delta", "delta_of"]

OF_DELTA = ("stable_rank", "effective_rank", "numerical_rank", "k90", "mp_edge", "spikes", "mp_distance")
WITHIN = 1.15  # root mean square of the change over that of rounding up to which it is rounding; see benchmarks/compare
ROWS_OF = 1 << 20  # entries looked at at a time
INSIDE = 0.95  # share of the entries that must have moved no further than rounding can
ARITHMETIC = 8 * 2.0**-23  # relative change of an entry that float32 arithmetic alone (scaling, fusing) brings


@dataclass(frozen=True, eq=False)
class Delta:
    """What happened to one weight, W to W + D.

    Attributes:
        name: the weight before.
        after: its name after.
        how: what told that they belong together.
        relative_change: ||D||_F / ||W||_F.
        cosine: <W, W + D> / (||W|| ||W + D||).
        spectral_change: sigma_1(D) / sigma_1(W).
        spectral_distance: ||sigma(W) - sigma(W + D)||_2 / ||W||_F, which ``relative_change`` bounds (Mirsky).
        spectrum: of D; None where nothing changed.
        metrics: of D's spectrum: stable rank, effective rank, spikes beyond the noise edge, ...
        rank: directions of D above what rounding both forms can bring.
        rest: energy of D outside these directions over the expected energy of rounding.
        whiteness: sigma_1(D) / (rms(D) (sqrt m + sqrt n)): about 1 for noise.
        rounding: rms(D) over the rms of rounding; None where both are stored alike.
        equal: every number is the same.
        precise: not equal, but within the rounding of the coarser form.
        forms: on which grid the numbers lie, before and after.
        moved: share of the entries that changed by more than rounding.
        zeroed: share of the moved entries that were not zero and are now, not counting what a quantizer rounded.
        scaling: <W, W + D> / ||W||^2, and what is left relative to ||D|| once W is so scaled.
        angles: cosines of the principal angles of the leading left, and right, singular subspaces.
        intruders: new leading directions (arXiv 2410.21228); unknown where they are not compared.
        changes: metrics before and after.
        notes: what a reader should know.
        parameters: how many numbers.
        shape: (m, n).
    """

    name: str
    after: str
    how: str
    relative_change: Value
    cosine: Value
    spectral_change: Value
    spectral_distance: Value
    parameters: int
    shape: tuple[int, int]
    kind: str = ""
    norms: tuple[float, float, float] = (0.0, 0.0, 0.0)  # ||W||^2, ||W + D||^2, <W, W + D>
    spectrum: Spectrum | None = None
    metrics: Mapping[str, Value] = field(default_factory=dict)
    rank: int = 0
    rest: float = 0.0
    whiteness: float | None = None
    rounding: float | None = None
    equal: bool = False
    precise: bool = False
    forms: tuple[str, str] = ("", "")
    moved: float = 0.0
    zeroed: float = 0.0
    scaling: tuple[float, float] = (1.0, 1.0)
    angles: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    intruders: Value = field(default_factory=lambda: Value(0.0))
    changes: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether more than rounding happened."""
        return not self.equal and not self.precise

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON; what is unknown is null, with a note."""
        named = ("relative_change", "cosine", "spectral_change", "spectral_distance", "intruders")
        values = {name: getattr(self, name) for name in named}
        notes = [f"{name}: {value.note}" for name, value in {**values, **self.metrics}.items() if value.note]
        spectrum = self.spectrum
        return {
            "before": self.name,
            "after": self.after,
            "matched_by": self.how,
            **{name: number(value) for name, value in values.items()},
            "change": "none" if self.equal else "rounding" if self.precise else "change",
            "forms": list(self.forms),
            "rounding": self.rounding,
            "rank": self.rank,
            "rest": self.rest,
            "whiteness": self.whiteness,
            "moved": self.moved,
            "zeroed": self.zeroed,
            "scaling": {"factor": self.scaling[0], "rest": self.scaling[1]},
            "spectrum": None
            if spectrum is None
            else {"how": spectrum.how, "error": spectrum.error.tolist(), "values": spectrum.values.tolist()},
            "metrics": {name: number(value) for name, value in self.metrics.items()},
            "principal_angles": {"left": list(self.angles[0]), "right": list(self.angles[1])},
            "metric_changes": {name: {"before": a, "after": b} for name, (a, b) in self.changes.items()},
            "notes": [*self.notes, *notes],
        }


def number(value: float | None) -> float | None:
    """For JSON: what is not finite is nothing."""
    return float(value) if value is not None and math.isfinite(value) else None


def delta_of(pair: Pair, before: Record, after: Record | None) -> Delta:
    """Compare one weight before and after, both in memory for as long as it takes.

    Args:
        pair: the two.
        before: the analysis of the first, for its spectrum and metrics.
        after: of the second; None where it is base plus adapter, whose sum is never formed.

    Raises:
        NotDecomposable: NaN or Inf in one of them.

    Cost: the singular values of the difference, ten leading triplets of each; for possible intruders a full SVD.
    """
    if pair.before.factors and pair.after.factors:
        return _of_factors(pair, before, after)
    if pair.added:
        return _of_adapter(pair, before)
    return _of_matrices(pair, before, after)


# ---- two matrices ------------------------------------------------------------------------------------------------


def _of_matrices(pair: Pair, before: Record, after: Record | None) -> Delta:
    A, B, notes = change_of(pair)
    a2, b2, ab = inner(A, A), inner(B, B), inner(A, B)
    told = _told(pair, a2, b2, ab)
    D = B - A
    flat_a, flat_b = A.flatten(0, 1), B.flatten(0, 1)
    forms = form_of(flat_a, *_kept(pair.before)), form_of(flat_b, *_kept(pair.after))
    names = forms[0].name, forms[1].name
    if not D.any():
        same = pair.before.dtype == pair.after.dtype
        return Delta(**told, equal=same, precise=not same, forms=names, notes=notes, intruders=Value(0.0),
                     spectral_change=Value(0.0), spectral_distance=Value(0.0),
                     changes=_changes(before, after))  # fmt: skip
    flat = D.flatten(0, 1)
    d2 = inner(D, D)
    told["relative_change"] = _ratio(math.sqrt(d2), math.sqrt(a2))
    precise, rounding, moved, tau2 = _rounded(flat, flat_a, forms, d2)
    rounded = forms[1].coded and names[0] != names[1]  # a quantizer makes zeros of what is small
    gone = 0 if rounded else int(((flat_b == 0) & (flat_a != 0)).sum())
    factor = ab / a2 if a2 > 0 else 1.0
    over = torch.add(flat_b, flat_a, alpha=-factor)
    left = math.sqrt(inner(over, over) / d2)
    del over
    spectrum = svdvals(D[0]) if len(D) == 1 else union(svdvals_batch(D), (len(D) * D.shape[1], len(D) * D.shape[2]))
    m, n = D.shape[1:]
    room = 3.0 if names == ("float32", "float32") else 1.1  # whoever merged two factors rounded their product too
    floor = room * math.sqrt(tau2) * (math.sqrt(m) + math.sqrt(n)) + float(spectrum.error.max(initial=0.0))
    rank = int((spectrum.values > floor).sum())
    beyond = float((spectrum.values[rank:] ** 2).sum())
    related = ab > RELATED * math.sqrt(a2 * b2)
    count, touched = flat.numel(), int((flat != 0).sum())
    del D, flat, flat_a, flat_b, forms  # the directions take memory of their own
    angles, intruders = directions(A, B, related and not precise)
    return Delta(
        **told,
        spectral_change=_ratio(spectrum.sigma_max, before.spectrum.sigma_max),
        spectral_distance=_distance(before, after, math.sqrt(a2)),
        spectrum=spectrum,
        metrics=evaluate(chosen(OF_DELTA), spectrum),
        rank=rank,
        rest=beyond / (tau2 * count) if tau2 > 0 else 0.0,
        whiteness=spectrum.sigma_max / (math.sqrt(d2 / count) * (math.sqrt(m) + math.sqrt(n))),
        rounding=rounding,
        precise=precise,
        forms=names,
        moved=moved,
        zeroed=gone / touched,
        scaling=(factor, left),
        angles=angles,
        intruders=intruders,
        changes=_changes(before, after),
        notes=notes,
    )


def _kept(weight: Weight) -> tuple[str, str]:
    return weight.part.ref.dtype, weight.part.ref.stored


def _told(pair: Pair, a2: float, b2: float, ab: float) -> dict[str, Any]:
    both = math.sqrt(a2) * math.sqrt(b2)
    cosine = Value(max(-1.0, min(1.0, ab / both)), error=1e-12) if both > 0 else (
        Value(1.0) if a2 == b2 else Value.unknown("one of the two is zero")
    )  # fmt: skip
    return {
        "name": pair.before.name,
        "after": pair.after.name,
        "how": pair.how,
        "kind": pair.before.kind,
        "relative_change": Value(0.0),
        "cosine": cosine,
        "parameters": pair.before.parameters,
        "shape": pair.before.shape,
        "norms": (a2, b2, ab),
    }


def _ratio(value: float, whole: float) -> Value:
    if whole > 0:
        return Value(value / whole, error=1e-12 * value / whole)
    return Value(0.0) if value == 0 else Value.unknown("the weight was zero before")


def _rounded(D: Tensor, A: Tensor, forms: tuple[Form, Form], d2: float) -> tuple[bool, float | None, float, float]:
    """Whether D is rounding, its size over rounding's, the share of entries that moved further, rounding's variance.

    Args:
        D: the change, (rows, n).
        A: the weight before.
        forms: on which grid the numbers lie, before and after.
        d2: sum of the squares of D.
    """
    a, b = forms
    like = a.name == b.name  # the same numbers would be rounded alike: any difference is change, but for arithmetic
    outside, variance = 0, 0.0
    for rows in torch.arange(len(D)).split(max(1, ROWS_OF // max(1, D.shape[1]))):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        size = D[part].abs()
        half_a, half_b = (form.half.expand_as(D)[part] for form in forms)
        variance += float((half_a**2 + half_b**2).sum()) / 3
        if not like:
            near = 1.02 * (half_a + half_b)
        elif a.name in ("float32", "float64"):
            near = ARITHMETIC * A[part].abs()
        else:
            near = torch.zeros(())
        outside += int((size > near).sum())
    moved, tau2 = outside / D.numel(), variance / D.numel()
    if like:
        return outside == 0, None, moved, tau2
    ratio = math.sqrt(d2 / D.numel() / tau2) if tau2 > 0 else math.inf
    return ratio <= WITHIN and moved <= 1 - INSIDE, ratio, moved, tau2


def _distance(before: Record, after: Record | None, norm: float) -> Value:
    if after is None:
        return Value.unknown("would need base and adapter multiplied out")
    a, b = before.spectrum, after.spectrum
    if sorted(a.shape) != sorted(b.shape) or not a.complete or not b.complete:
        return Value.unknown("the two are not laid out as matrices of one shape")
    if norm == 0:
        return Value.unknown("the weight was zero before")
    error = float(np.linalg.norm(a.error) + np.linalg.norm(b.error)) / norm
    return Value(float(np.linalg.norm(a.values - b.values)) / norm, error=error)


def _changes(before: Record, after: Record | None) -> dict[str, tuple[float | None, float | None]]:
    if after is None:
        return {}
    return {
        name: (number(value), number(after.metrics[name]))
        for name, value in before.metrics.items()
        if name in after.metrics
    }


# ---- adapters ----------------------------------------------------------------------------------------------------


def _factored(weight: Weight, turned: bool = False) -> Factored:
    assert weight.factors
    B, A = (factor.detach().cpu().double() for factor in weight.factors.load())
    if not bool(B.isfinite().all() and A.isfinite().all()):
        raise NotDecomposable("contains NaN or Inf")
    return Factored(A.mT, B.mT, weight.factors.scale) if turned else Factored(B, A, weight.factors.scale)


def _inner(P: Factored, Q: Factored) -> float:
    """<P, Q> from the thin factors."""
    return P.scale * Q.scale * float(((P.B.mT @ Q.B) * (P.A @ Q.A.mT)).sum())


def _of_factors(pair: Pair, before: Record, after: Record | None) -> Delta:
    P, Q = _factored(pair.before), _factored(pair.after, pair.transposed)
    a2, b2, ab = _inner(P, P), _inner(Q, Q), _inner(P, Q)
    told = _told(pair, max(a2, 0.0), max(b2, 0.0), ab)
    spectrum = product_svdvals(torch.cat([Q.scale * Q.B, -P.scale * P.B], 1), torch.cat([Q.A, P.A], 0))
    top, norm = before.spectrum.sigma_max, math.sqrt(max(a2, 0.0))
    coarse = max(STORED.get(w.part.ref.dtype, 2.0**-23) for w in (pair.before, pair.after))
    differ = pair.before.part.ref.dtype != pair.after.part.ref.dtype
    size = math.sqrt(spectrum.frobenius2)
    told["relative_change"] = _ratio(size, norm)
    equal = P.scale == Q.scale and torch.equal(P.B, Q.B) and torch.equal(P.A, Q.A)
    precise = not equal and size <= (coarse if differ else ARITHMETIC) * math.sqrt(P.A.shape[0]) * norm
    k = min(LEADING, P.A.shape[0], Q.A.shape[0], *P.shape)
    one, other = product_svd(P.B, P.A, P.scale, k=k), product_svd(Q.B, Q.A, Q.scale, k=k)
    return Delta(
        **told,
        spectral_change=_ratio(spectrum.sigma_max, top),
        spectral_distance=_distance(before, after, norm),
        spectrum=None if equal else spectrum,
        metrics={} if equal else evaluate(chosen(("stable_rank", "effective_rank", "k90")), spectrum),
        rank=int((spectrum.values > coarse * top).sum()),
        equal=equal,
        precise=precise,
        moved=0.0 if equal or precise else 1.0,
        forms=(pair.before.part.ref.dtype, pair.after.part.ref.dtype),
        angles=principal((one.U, one.Vh), (other.U, other.Vh)),
        intruders=Value.unknown("two adapters: neither is the other's base"),
        changes=_changes(before, after),
        notes=("compared as factors, never multiplied out",),
    )


def _of_adapter(pair: Pair, before: Record) -> Delta:
    """Base against base plus adapter; D is the adapter, with the sign of the direction."""
    base, adapter = (pair.after, pair.before) if pair.added == "before" else (pair.before, pair.after)
    matrix = base.layout.blocks(base.part.load().detach().cpu())[0].double()
    D = _factored(adapter)
    w2, d2 = float((matrix * matrix).sum()), max(_inner(D, D), 0.0)
    wd = D.scale * float(((D.B.mT @ matrix) * D.A).sum())
    added2, inner = w2 + 2 * wd + d2, w2 + wd
    a2, b2 = (added2, w2) if pair.added == "before" else (w2, added2)
    told = _told(pair, a2, max(b2, 0.0), inner)
    told["relative_change"] = _ratio(math.sqrt(d2), math.sqrt(a2))
    told["parameters"] = base.parameters
    spectrum = product_svdvals(D.B, D.A, D.scale)
    if d2 == 0:
        return Delta(**told, equal=True, spectral_change=Value(0.0), spectral_distance=Value(0.0))
    k = min(LEADING, *base.shape)
    plain = svd(matrix.float(), k=k)
    whole = golub_kahan(Sum(Dense(matrix), D), k, seed=0)
    angles, new = principal((plain.U, plain.Vh), (whole.U, whole.Vh)), whole.U.float()
    ways = (plain.U, new) if pair.added == "after" else (new, plain.U)
    if pair.added == "after":
        intruders = new_directions(lambda: svd(matrix.float()).U, *ways)
    else:
        intruders = Value.unknown("taking an adapter away: compare in the other order")
    told["name"] = base.name
    return Delta(
        **told,
        spectral_change=_ratio(spectrum.sigma_max, float(plain.S[0])),
        spectral_distance=Value.unknown("would need base and adapter multiplied out"),
        spectrum=spectrum,
        metrics=evaluate(chosen(("stable_rank", "effective_rank", "k90")), spectrum),
        rank=int((spectrum.values > spectrum.error).sum()),
        moved=1.0,
        forms=(base.dtype, adapter.part.ref.dtype),
        angles=angles,
        intruders=intruders,
        notes=("an adapter: the change is its product, never multiplied out",),
    )


STORED = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}
