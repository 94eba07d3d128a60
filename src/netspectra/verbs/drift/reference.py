"""What a reference keeps of its rows: a basis for every layer, and held-out rows in it to compare windows with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from netspectra.errors import InputRefused
from netspectra.verbs.drift.activations import activations, layers_of
from netspectra.verbs.drift.basis import Basis, Coordinates, Learner
from netspectra.verbs.drift.compared import Side, compared, scene
from netspectra.verbs.drift.options import DriftOptions
from netspectra.verbs.drift.result import WindowDrift
from netspectra.verbs.drift.rows import Chunk, Reservoir, as_chunks
from netspectra.verbs.drift.sequential import Sequential

__all__ = ["Kept", "Reference", "fitted"]

HELD = 0.6  # of few rows, the share that is held out of the fit
FEWEST, FEW = 30, 200


@dataclass(frozen=True, eq=False)
class Kept:
    """One layer of a reference: its basis, names of its columns (or none) and the held-out rows in it."""

    basis: Basis
    columns: tuple[str, ...]
    rows: Coordinates


@dataclass(eq=False)
class Reference:
    """Where rows used to come from: test windows of rows against it.

    Attributes:
        layers: what is kept of each, by name.
        rows: how many it was made of.
        options: how it was made.
        notes: what a reader should know.
        model: whose activations the rows are; None where they are given as rows.
    """

    layers: Mapping[str, Kept]
    rows: int
    options: DriftOptions
    notes: tuple[str, ...] = ()
    model: nn.Module | None = None

    @property
    def held(self) -> int:
        """How many rows windows are compared with."""
        return len(next(iter(self.layers.values())).rows)

    @property
    def fingerprint(self) -> str:
        """Of what it keeps: two references that say the same of every window have the same one."""
        digest = hashlib.sha256()
        for name, kept in self.layers.items():
            digest.update(name.encode())
            for array in (kept.basis.centre, kept.basis.scale, kept.basis.V, kept.rows.along, kept.rows.whole):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def test(
        self,
        window: Any,
        *,
        alpha: float = 0.05,
        permutations: int = 499,
        name: str = "window",
        seed: int | None = None,
    ) -> WindowDrift:
        """Tell whether a window of rows comes from where the reference came from; which layer, which directions.

            p = (1 + #{b: T_b >= T_0}) / (1 + permutations)

        Rows of the window and held-out rows of the reference are exchanged at random. Statistics of every layer see
        the same exchanges: the energy distance between the two, with the directions as large as they are and all
        alike; variances along the reference's directions; eigenvalues of the covariance; energy outside the
        directions, more or less of it. Their p-values are combined and ranked once more, so that for rows that are
        drawn alike and independently p <= a in a share a of windows, exactly. Rows that hang together (frames of
        one video) are not independent: thin them.

        Args:
            window: rows as the reference was made of: arrays, or batches for its model. Two rows at least.
            alpha: level of the alarm.
            permutations: exchanges; p is no smaller than 1 / (permutations + 1).
            name: what to call the window.
            seed: of the exchanges; the reference's own by default.

        Raises:
            InputRefused: other layers or columns than the reference's, NaN or Inf, fewer than two rows.

        Cost: for N rows of both together about 2 permutations N^2 operations a layer, at most 3000 rows.
        """
        if not 0 < alpha < 1 or permutations < 19:
            raise InputRefused("alpha lies between 0 and 1, and fewer than 19 permutations cannot say p <= 0.05")
        kept, notes = Reservoir(self.options.most, self.options.seed), []
        for chunk in self.chunks(window, notes):
            kept.add_(chunk)
        if kept.count < 2:
            raise InputRefused(f"{name}: has {kept.count} rows; two at least, and twenty to see more than a landslide")
        if kept.count > self.options.most:
            notes.append(f"{self.options.most} of the window's {kept.count} rows were used, evenly drawn")
        sides = {
            layer: Side(
                one.basis,
                one.columns,
                one.rows,
                one.basis.coordinates(kept.rows[layer]),
                kept.rows[layer].mean(0, dtype=float),
            )
            for layer, one in self.layers.items()
        }
        p, layers = compared(sides, permutations, self.options.seed if seed is None else seed)
        rows = min(kept.count, self.options.most)
        told = (*self.notes, *notes)
        picture = scene(sides[layers[0].layer], layers[0])
        return WindowDrift(p, alpha, layers, rows, self.held, permutations, name, told, picture)

    def sequential(self, *, alpha: float = 0.05, seed: int | None = None) -> Sequential:
        """Watch windows one after another for as long as wished; the chance of ever alarming falsely is at most alpha.

        See `Sequential`.
        """
        return Sequential(self, alpha=alpha, seed=self.options.seed if seed is None else seed)

    def chunks(self, window: Any, notes: list[str]) -> Iterator[dict[str, np.ndarray]]:
        """The window's rows, checked and in the order of the reference's columns."""
        if self.model is not None:
            found, columns = activations(self.model, window, self.layers, notes), {}
        else:
            found, columns = as_chunks(window)
        order = {name: self._order(name, columns.get(name, ()), notes) for name in self.layers}
        for chunk in found:
            yield {name: self._checked(name, chunk, order[name]) for name in self.layers}

    def _order(self, name: str, columns: tuple[str, ...], notes: list[str]) -> np.ndarray | None:
        """Where the reference's columns are in the window; None where names say nothing."""
        known = self.layers[name].columns
        if not known or not columns or known == columns:
            return None
        missing = [column for column in known if column not in columns]
        if missing:
            raise InputRefused(f"the window lacks the columns {', '.join(missing[:5])} of the reference")
        if extra := [column for column in columns if column not in known]:
            notes.append(f"columns that the reference has not are left out: {', '.join(extra[:5])}")
        return np.array([columns.index(column) for column in known])

    def _checked(self, name: str, chunk: Chunk, order: np.ndarray | None) -> np.ndarray:
        if name not in chunk:
            raise InputRefused(f"the window has no layer {name!r} (it has {', '.join(list(chunk)[:6])})")
        rows = chunk[name] if order is None else chunk[name][:, order]
        width = len(self.layers[name].basis.centre)
        if rows.shape[1] != width:
            raise InputRefused(f"{name}: rows of {rows.shape[1]} numbers, the reference has {width}")
        return rows

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file of it holds: arrays by name, and plain data."""
        arrays: dict[str, np.ndarray] = {}
        for i, kept in enumerate(self.layers.values()):
            of = {"centre": kept.basis.centre, "scale": kept.basis.scale, "V": kept.basis.V.astype(np.float32)}
            of |= {"variances": kept.basis.variances, "along": kept.rows.along}
            of |= {"beside": kept.rows.beside, "whole": kept.rows.whole}
            arrays |= {f"{i}|{name}": np.ascontiguousarray(array) for name, array in of.items()}
        about = {
            "schema": 1,
            "rows": self.rows,
            "options": asdict(self.options),
            "notes": list(self.notes),
            "model": type(self.model).__name__ if self.model is not None else "",
            "layers": [
                {"name": n, "columns": list(k.columns), "total": k.basis.total, "sketched": k.basis.sketched}
                for n, k in self.layers.items()
            ],
        }
        return arrays, about

    def __str__(self) -> str:
        """Say what it is made of."""
        lines = [f"reference of {self.rows} rows, {self.held} of them held out", *self.notes]
        for name, kept in self.layers.items():
            share = kept.basis.variances.sum() / kept.basis.total if kept.basis.total else 1.0
            n, k = kept.basis.V.shape
            how = ", sketched" if kept.basis.sketched else ""
            lines.append(f"  {name}: {k} of {n} directions hold {share:.1%} of the variance{how}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        """Say it in one line."""
        return f"Reference({self.rows} rows, layers {', '.join(self.layers)})"


def fitted(
    data: Any, options: DriftOptions, *, model: nn.Module | None = None, layers: tuple[str, ...] = ()
) -> Reference:
    """Make a reference in one pass; memory for ``reserve`` rows of every layer and their covariances or sketches.

    Args:
        data: rows, or batches for the model.
        options: how.
        model: whose activations are to be watched.
        layers: patterns of names of layers.
    """
    notes: list[str] = []
    if model is not None:
        found, columns = activations(model, data, layers_of(model, layers), notes), {}
    else:
        found, columns = as_chunks(data)
    kept = Reservoir(options.reserve, options.seed)
    learners: dict[str, Learner] = {}
    for chunk in found:
        chunk = chunk if model is not None else _selected(chunk, layers)
        if not learners:
            learners = {
                name: Learner(rows.shape[1], directions=options.directions, exact=options.exact)
                for name, rows in chunk.items()
            }
        if {name: learner.n for name, learner in learners.items()} != {n: r.shape[1] for n, r in chunk.items()}:
            raise InputRefused("the reference's rows change their layers or widths on the way")
        _learn(learners, kept.add_(chunk))
    if kept.count < FEWEST:
        raise InputRefused(f"a reference of {kept.count} rows says nothing: give {FEWEST} at least, better a thousand")
    if kept.count * HELD < options.reserve:
        _learn(learners, kept.halved(int(kept.count * HELD)))
    if kept.count < FEW:
        notes.append(f"the reference has {kept.count} rows only: small drifts will not be seen")
    bases = {name: learner.basis() for name, learner in learners.items()}
    return Reference(
        {name: Kept(b, columns.get(name, ()), b.coordinates(kept.rows[name])) for name, b in bases.items()},
        kept.count,
        options,
        tuple(notes),
        model,
    )


def _selected(chunk: Chunk, layers: tuple[str, ...]) -> Chunk:
    from netspectra.weight import Selection

    taken = Selection(layers)
    found = {name: rows for name, rows in chunk.items() if taken.accepts(name)}
    if not found:
        raise InputRefused(f"no layer matches {', '.join(layers)}; there are {', '.join(list(chunk)[:8])}")
    return found


def _learn(learners: Mapping[str, Learner], rows: Mapping[str, np.ndarray]) -> None:
    for name, learner in learners.items():
        if len(rows[name]):
            learner.add_(rows[name])


def restored(arrays: Mapping[str, Tensor], about: Mapping[str, Any], what: str) -> Reference:
    """Undo `Reference.saved`, believing nothing.

    Raises:
        InputRefused: anything is not as it must be.
    """
    from netspectra.verbs.drift.stored import checked

    layers: dict[str, Kept] = {}
    for i, layer in enumerate(checked(arrays, about, what)):
        of = {name: arrays[f"{i}|{name}"].double().numpy() for name in ("centre", "scale", "V", "variances")}
        rows = Coordinates(*(arrays[f"{i}|{name}"].float().numpy() for name in ("along", "beside", "whole")))
        basis = Basis(**of, total=float(layer["total"]), sketched=layer["sketched"])
        if (len(rows.beside) == 0) != (basis.beside == 0):
            raise InputRefused(f"{what}: layer {i} is not as netspectra writes it: damaged? Make the reference anew")
        layers[layer["name"]] = Kept(basis, tuple(layer["columns"]), rows)
    return Reference(layers, about["rows"], DriftOptions(**about["options"]), tuple(about["notes"]))
