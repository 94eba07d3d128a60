"""What was found of a layer's geometry, as an object to read, look at and keep."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netspectra.errors import InputRefused
from netspectra.version import __version__
from netspectra.written import strict_json, write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Direction", "Geometry"]


@dataclass(frozen=True)
class Direction:
    """One singular triplet: a direction of inputs, how much it is stretched, and where it goes.

    Attributes:
        sigma: the stretch.
        weight_energy: sigma^2 as a share of the weight's squared Frobenius norm.
        input_energy: share of the inputs' energy that lies along v, the mean not taken off; None without inputs.
        output_energy: share of the outputs' energy that comes out along u; None without inputs.
        turn: angle between v and u in degrees, 0 to 90, for square matrices; None for others, whose inputs and
            outputs live in different spaces.
        mean_angle: angle between v and the mean input in degrees, 0 to 90; None without inputs.
        inputs: the input coordinates that weigh most in v, as (index, entry of v).
        outputs: the same of u.
    """

    sigma: float
    weight_energy: float
    input_energy: float | None
    output_energy: float | None
    turn: float | None
    mean_angle: float | None
    inputs: tuple[tuple[int, float], ...]
    outputs: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Geometry:
    """W = U S V^T as three steps, and what they do to a sphere and to real inputs.

    Attributes:
        name: of the weight.
        kind: linear, conv2d, embedding, ...
        shape: (m, n) of the map, outputs by inputs.
        tokens: whether the inputs are tokens that an embedding looks up: n of them, each an axis of its own.
        directions: the leading singular triplets, at most eight; the picture shows the first three.
        typical: root mean square stretch of a random input, ||W||_F / sqrt(n).
        inputs_stretch: root mean square stretch of the given inputs; None without.
        inputs_are: what the inputs are, in words; empty without.
        shown: share of the energy that the picture's axes carry, by what: ``weight``, and with inputs ``inputs as they
            are`` (their principal axes), ``inputs along v``, ``outputs along u``, ``outputs as they are``.
        notes: what a reader should know.
        scene: the picture's coordinates and frames, for the page.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    tokens: bool
    directions: tuple[Direction, ...]
    typical: float
    inputs_stretch: float | None
    inputs_are: str
    shown: Mapping[str, float]
    notes: tuple[str, ...]
    scene: Mapping[str, Any] = field(repr=False)

    @property
    def figure(self) -> go.Figure:
        """The four steps side by side as a plotly figure: a circle in the two leading directions, and the inputs."""
        from netspectra.figures import steps

        return steps(self.scene)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for strict JSON."""
        return {
            "netspectra": __version__,
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "tokens": self.tokens,
            "directions": [asdict(direction) for direction in self.directions],
            "typical": self.typical,
            "inputs_stretch": self.inputs_stretch,
            "inputs_are": self.inputs_are,
            "shown": dict(self.shown),
            "notes": list(self.notes),
            "scene": dict(self.scene),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return strict_json(self.to_dict())

    def to_html(self) -> str:
        """The interactive page as text: complete in itself, it loads nothing."""
        from netspectra.report import render_geometry

        return render_geometry(self.to_dict())

    def save(self, path: str | Path) -> None:
        """Write by suffix: the interactive page ``.html``, the data ``.json``, the four steps ``.png .svg .pdf``."""
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".html":
            write_atomically(path, self.to_html())
        elif suffix == ".json":
            write_atomically(path, self.to_json())
        elif suffix in (".png", ".svg", ".pdf"):
            from netspectra.figures import save_figure

            save_figure(self.figure, path)
        else:
            raise InputRefused(f"{path}: cannot tell the format from {suffix!r}: .html, .json, .png, .svg or .pdf")

    def __str__(self) -> str:
        """Say in a table which directions are stretched, by how much, and what the inputs have of them."""
        m, n = self.shape
        lines = [f"{self.name}: {self.kind}, {n} {'tokens' if self.tokens else 'inputs'} to {m} outputs"]
        given = "" if self.inputs_stretch is None else f"; {self.inputs_are}: {self.inputs_stretch:.3g} times"
        lines.append(f"a random input is stretched {self.typical:.3g} times (root mean square){given}")
        wide = self.inputs_stretch is not None
        square = any(d.turn is not None for d in self.directions)
        head = ["direction", "stretch", "of weight"]
        head += ["of inputs", "of outputs", "from mean"] * wide + ["turned"] * square
        rows = [
            [str(i + 1), f"{d.sigma:.4g}", _percent(d.weight_energy)]
            + [_percent(d.input_energy), _percent(d.output_energy), _degrees(d.mean_angle)] * wide
            + [_degrees(d.turn)] * square
            for i, d in enumerate(self.directions)
        ]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines += ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *rows]]
        shares = ", ".join(f"{_percent(share)} of the energy of {what}" for what, share in self.shown.items())
        lines.append(f"the picture's axes carry {shares}")
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        """Show the interactive page in notebooks, with the table as text where frames are not shown."""
        page = html.escape(self.to_html(), quote=True)
        return (
            f'<iframe srcdoc="{page}" width="100%" height="860" frameborder="0" title="Geometry of a layer">'
            f"</iframe><details><summary>as text</summary><pre>{html.escape(str(self))}</pre></details>"
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _degrees(angle: float | None) -> str:
    return "-" if angle is None else f"{angle:.0f}°"
