"""What an initialisation changed, and what that did to the way of signals."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from netspectra.verbs.train.findings import Trainability, number, save, told
from netspectra.version import __version__
from netspectra.written import strict_json

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Change", "Initialization"]


@dataclass(eq=False)
class Change:
    """One parameter.

    Attributes:
        name: of the parameter.
        shape: of it.
        scheme: what was drawn; empty where it was left alone.
        reason: why it was left alone.
        parameter: the tensor itself.
        touched: whether its scale may change.
        scale: by what the draw was multiplied.
    """

    name: str
    shape: tuple[int, ...]
    scheme: str
    reason: str
    parameter: Tensor = field(repr=False)
    touched: bool
    scale: float = 1.0

    @property
    def left(self) -> bool:
        """Whether it is as it was."""
        return not self.scheme and self.scale == 1.0


@dataclass(frozen=True, eq=False)
class Initialization:
    """Before and after, and every parameter.

    Attributes:
        before: of the weights that were there.
        after: of the new ones.
        changes: one a parameter, in the order of the model.
        rounds: measurements of the Jacobian that scales took.
        method: how weights were drawn.
        seed: of the draws.
    """

    before: Trainability
    after: Trainability
    changes: tuple[Change, ...]
    rounds: int
    method: str
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for strict JSON."""
        return {
            "schema": 1,
            "netspectra": __version__,
            "method": self.method,
            "seed": self.seed,
            "rounds": self.rounds,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "parameters": [
                {"name": c.name, "shape": list(c.shape), "scheme": c.scheme, "scale": c.scale, "reason": c.reason}
                for c in self.changes
            ],
        }

    def to_json(self) -> str:
        """`to_dict` as text, strict JSON."""
        return strict_json(self.to_dict(), indent=1)

    def to_html(self) -> str:
        """One page with both pictures in one, self-contained."""
        from netspectra.report.pictures import html_page

        return html_page(f"Initialisation of {self.after.model}", self._summary(), [self.plot()], self._table())

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.html``; never half a file."""
        save(self, path)

    def plot(self, *, save: str | Path | None = None) -> go.Figure:
        """The depth profile before and after."""
        from netspectra.figures import save_figure
        from netspectra.verbs.train.picture import profile

        figure = profile({"before": self.before, "after": self.after})
        if save is not None:
            save_figure(figure, Path(save))
        return figure

    def _rows(self) -> list[tuple[str, str, str]]:
        b, a = self.before, self.after
        rows = [(name, number(getattr(b, name)), number(getattr(a, name))) for name in ("rms", "max", "share", "score")]
        verdicts = [", ".join(v.rule for v in one.verdicts) for one in (b, a)]
        return [*rows, ("verdicts", verdicts[0], verdicts[1])]

    def __str__(self) -> str:
        """Tell it in a terminal."""
        rows = [("", "before", "after"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        table = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        schemes: dict[str, int] = {}
        for change in self.changes:
            key = change.scheme or f"left alone, {change.reason}"
            schemes[key] = schemes.get(key, 0) + 1
        scales = [c.scale for c in self.changes if c.scale != 1.0]
        span = f", {len(scales)} scaled by {number(min(scales))} ... {number(max(scales))}" if scales else ""
        return "\n".join(
            [
                f"{self.after.model}: {len(self.changes)} parameters, {self.method}, seed {self.seed}, "
                f"{self.rounds} rounds{span}",
                *(f"  {count} x {scheme}" for scheme, count in schemes.items()),
                "",
                *table,
                "",
                *told([v for v in self.after.verdicts if v.level != "ok"], ()),
            ]
        ).rstrip()

    def __repr__(self) -> str:
        """Say the essentials in one line."""
        return (
            f"Initialization({self.after.model}, {self.method}: rms {number(self.before.rms)} -> "
            f"{number(self.after.rms)}, score {number(self.before.score)} -> {number(self.after.score)})"
        )

    def _repr_html_(self) -> str:
        """Show before and after in notebooks."""
        return self._summary() + self._table()

    def _summary(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(n)}</td><td>{html.escape(b)}</td><td>{html.escape(a)}</td></tr>"
            for n, b, a in self._rows()
        )
        return f'<div class="wide"><table><tr><th></th><th>before</th><th>after</th></tr>{rows}</table></div>'

    def _table(self) -> str:
        rows = "".join(
            f"<tr><td><code>{html.escape(c.name)}</code></td><td>{html.escape(c.scheme or c.reason)}</td>"
            f"<td>{number(c.scale)}</td></tr>"
            for c in self.changes
        )
        head = "<tr><th>parameter</th><th>scheme</th><th>scale</th></tr>"
        return f'<div class="wide"><table class="numbers">{head}{rows}</table></div>'
