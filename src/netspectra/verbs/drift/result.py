"""What a test of a window found, as an object to look at and export."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.record import Verdict
from netspectra.report.drift_page import render_drift
from netspectra.written import columns, strict_json, write_by_suffix

if TYPE_CHECKING:
    from netspectra.verbs.drift.sequential import Evidence

__all__ = ["ColumnShift", "DirectionShift", "LayerDrift", "StatisticDrift", "WindowDrift", "drift_page"]


@dataclass(frozen=True)
class StatisticDrift:
    """One statistic of one layer.

    Attributes:
        name: ``distribution``, ``every direction``, ``spread``, ``spectrum`` or ``residual``.
        p: by exchanging rows; of this statistic alone, not adjusted.
        effect: how large, beyond what chance makes; ``means`` says in what.
        chance: the effect that chance alone exceeds in one of twenty windows (of a ratio: in either direction).
        means: what the effect is.
    """

    name: str
    p: float
    effect: float
    chance: float
    means: str


@dataclass(frozen=True)
class DirectionShift:
    """How the window lies along one principal direction of the reference.

    Attributes:
        direction: its number, the largest variance first.
        shift: difference of means, in standard deviations of the reference's held-out rows.
        spread: ratio of standard deviations, window to reference.
        p: of the shift, adjusted for all directions of all layers.
        share: of the reference's variance that the direction has.
        columns: names of the columns it involves most, each with its weight.
    """

    direction: int
    shift: float
    spread: float
    p: float
    share: float
    columns: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class ColumnShift:
    """How the mean of one column moved.

    Attributes:
        column: its name, or its number.
        shift: in standard deviations of the reference.
        p: adjusted for all columns of all layers; None where the directions do not span the columns (more than 32 of
            them, by default): then the shift is a description, not a test.
    """

    column: str
    shift: float
    p: float | None


@dataclass(frozen=True)
class LayerDrift:
    """How a window differs in one layer.

    Attributes:
        layer: its name.
        p: of its statistics together, by exchanging rows.
        adjusted: the same, adjusted for the number of layers: the chance of naming any wrong layer is bounded.
        shift: distance of the means along the directions, in their standard deviations, beyond what chance makes.
        statistics: one each.
        directions: those that moved most.
        columns: those whose mean moved most.
    """

    layer: str
    p: float
    adjusted: float
    shift: float
    statistics: tuple[StatisticDrift, ...]
    directions: tuple[DirectionShift, ...]
    columns: tuple[ColumnShift, ...]


@dataclass(frozen=True)
class WindowDrift:
    """Whether a window of rows comes from where the reference came from.

    Attributes:
        p: of all layers and statistics together; below ``alpha`` in a share ``alpha`` of windows that are alike.
        alpha: level of the alarm.
        layers: the one that says most first.
        rows: of the window that were used.
        reference_rows: held-out rows they were compared with.
        permutations: how often rows were exchanged.
        name: of the window.
        notes: what a reader should know.
        scene: for the picture, rows of both in the two directions that moved most; no part of the JSON.
    """

    p: float
    alpha: float
    layers: tuple[LayerDrift, ...]
    rows: int
    reference_rows: int
    permutations: int
    name: str = "window"
    notes: tuple[str, ...] = ()
    scene: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def alarm(self) -> bool:
        """Whether the window differs."""
        return self.p <= self.alpha

    @property
    def layer(self) -> str:
        """The layer that says most."""
        return self.layers[0].layer

    @property
    def verdict(self) -> Verdict:
        """The finding as a sentence."""
        first = self.layers[0]
        told = f"{self.rows} rows against {self.reference_rows} of the reference, p = {self.p:.3g}"
        evidence = {"p": self.p, "layer": first.layer, "layer_p": first.adjusted}
        if not self.alarm:
            return Verdict("no-drift", "ok", f"no drift that can be told from chance: {told}", evidence)
        sharpest = min(first.statistics, key=lambda s: (s.p, s.name != "distribution"))
        moved = [d for d in first.directions if d.p <= self.alpha]
        way = f"; direction {moved[0].direction} by {moved[0].shift:+.2f} sd" if moved else ""
        where = f"most in {first.layer!r} ({sharpest.name} {sharpest.effect:.3g}{way})"
        return Verdict("drift", "error", f"the window differs, {where}: {told}", evidence)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON."""
        found = asdict(self) | {"alarm": self.alarm, "verdict": asdict(self.verdict)}
        del found["scene"]
        return json.loads(json.dumps(found, allow_nan=False))

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict(), indent=1)

    def to_html(self) -> str:
        """A self-contained page: which layer, which directions, how much."""
        return drift_page([self])

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.html``; never half a file.

        Raises:
            InputRefused: another suffix.
        """
        write_by_suffix(path, {".json": self.to_json, ".html": self.to_html})

    def __str__(self) -> str:
        """Show the verdict, the layers and the directions that moved."""
        lines = [f"{self.verdict.rule}: {self.verdict.message}", *self.notes, ""]
        names = list(dict.fromkeys(s.name for layer in self.layers for s in layer.statistics))
        rows = [("layer", "p", "adjusted", "shift", *names)]
        for layer in self.layers:
            effects = {s.name: f"{s.effect:.3f}" for s in layer.statistics}
            numbers = f"{layer.p:.3f}", f"{layer.adjusted:.3f}", f"{layer.shift:.2f}"
            rows.append((layer.layer, *numbers, *(effects.get(name, "-") for name in names)))
        lines += columns(rows)
        shifted = [c for layer in self.layers for c in layer.columns if c.p is not None and c.p <= self.alpha]
        if shifted and self.alarm:
            told = ", ".join(f"{c.column} {c.shift:+.2f} (p {c.p:.3f})" for c in shifted[:8])
            lines += ["", f"columns that moved (sd, p adjusted): {told}"]
        moved = [(layer.layer, d) for layer in self.layers for d in layer.directions if d.p <= self.alpha]
        if moved and self.alarm:
            lines += ["", "directions that moved (sd, p adjusted):"]
            lines += [
                f"  {name} {d.direction}: {d.shift:+.2f}, p {d.p:.3f}, spread x {d.spread:.2f}; {_columns(d)}"
                for name, d in moved[:8]
            ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """Show it in notebooks."""
        return f"<pre>{html.escape(str(self))}</pre>"


def drift_page(windows: Sequence[WindowDrift], stream: Sequence[Evidence] = ()) -> str:
    """One self-contained page of several windows, or of a stream of them."""
    pages = [one.to_dict() | {"scene": one.scene} for one in windows]
    return render_drift(pages, [one.to_dict() for one in stream])


def _columns(d: DirectionShift) -> str:
    return ", ".join(f"{name} {weight:+.2f}" for name, weight in d.columns[:3])
