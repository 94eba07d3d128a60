"""What was found out about the way of signals through a network, as an object to look at and export."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netspectra.record import Value, Verdict
from netspectra.verbs.train.rules import BlockFinding, score
from netspectra.verbs.train.spectra import JacobianSpectrum
from netspectra.version import __version__
from netspectra.written import strict_json, write_by_suffix

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Trainability", "number", "plain"]

SHOWN = 48  # blocks in a table


@dataclass(frozen=True, eq=False)
class Trainability:
    """Whether signals pass a network, and where along its depth they are lost or blow up.

    Attributes:
        model: the class of the network.
        origin: where signals start: an input, or the output of an embedding.
        samples: how many samples the Jacobian was taken at.
        jacobian: the spectrum of d output / d start; None where the output is not finite.
        blocks: along the depth.
        verdicts: what the rules say.
        notes: what a reader should know.
        input_rms: rms of what enters; None where that is an embedding.
        seed: of the probes.
    """

    model: str
    origin: str
    samples: int
    jacobian: JacobianSpectrum | None
    blocks: tuple[BlockFinding, ...]
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()
    input_rms: float | None = None
    seed: int = 0

    @property
    def rms(self) -> Value:
        """Root mean square of the singular values of the end-to-end Jacobian: 1 keeps gradients as they are."""
        return self.jacobian.rms if self.jacobian else Value.unknown("the output is not finite")

    @property
    def max(self) -> Value:
        """The largest of them."""
        return self.jacobian.max if self.jacobian else Value.unknown("the output is not finite")

    @property
    def share(self) -> Value:
        """Share of them in 0.1 ... 10."""
        return self.jacobian.share if self.jacobian else Value.unknown("the output is not finite")

    @property
    def score(self) -> Value:
        """Decades from an isometry: what the average direction loses, plus 1.5 log10 of the rms above 1."""
        return score(self.jacobian)[0] if self.jacobian else Value.unknown("the output is not finite")

    @property
    def passes(self) -> bool:
        """Whether no rule warns."""
        return all(verdict.level in ("ok", "note") for verdict in self.verdicts)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for strict JSON."""
        j = self.jacobian
        return {
            "schema": 1,
            "netspectra": __version__,
            "model": self.model,
            "origin": self.origin,
            "samples": self.samples,
            "input_rms": plain(self.input_rms),
            "score": plain(self.score),
            "jacobian": None
            if j is None
            else {
                "shape": list(j.shape),
                "count": j.count,
                "how": j.how,
                "products": j.products,
                **{name: plain(getattr(j, name)) for name in QUANTITIES},
                "errors": {name: value.error for name in QUANTITIES if (value := getattr(j, name)).error is not None},
                "values": None if j.values is None else np.sort(j.values.ravel())[::-1].tolist(),
            },
            "blocks": [_block(block) for block in self.blocks],
            "verdicts": [
                {"rule": v.rule, "level": v.level, "message": v.message, "evidence": plain(v.evidence)}
                for v in self.verdicts
            ],
            "notes": list(self.notes),
            "seed": self.seed,
        }

    def to_json(self) -> str:
        """`to_dict` as text, strict JSON."""
        return strict_json(self.to_dict(), indent=1)

    def to_html(self) -> str:
        """One page with verdicts, picture and table, self-contained."""
        from netspectra.report.pictures import html_page

        return html_page(f"Trainability of {self.model}", self._summary(), [self.plot()], self._table())

    def save(self, path: str | Path) -> None:
        """Write ``.json`` or ``.html``; never half a file."""
        save(self, path)

    def plot(self, *, save: str | Path | None = None) -> go.Figure:
        """The depth profile: gain of each block, gradient and activation along the depth, singular values."""
        from netspectra.figures import save_figure
        from netspectra.verbs.train.picture import profile

        figure = profile({"": self})
        if save is not None:
            save_figure(figure, Path(save))
        return figure

    def __str__(self) -> str:
        """Tell it in a terminal."""
        return "\n".join([*self.headline(), "", *table(self.blocks), "", *told(self.verdicts, self.notes)])

    def headline(self) -> list[str]:
        """What is known of the whole, in two lines."""
        j = self.jacobian
        head = f"{self.model}: {len(self.blocks)} blocks, from {self.origin}, {self.samples} samples"
        if j is None:
            return [head, "the output is not finite"]
        return [
            head,
            f"end-to-end Jacobian {j.shape[0]} x {j.shape[1]} ({j.how}): rms {number(j.rms)}, max {number(j.max)}, "
            f"median {number(j.median)}, in 0.1 ... 10: {percent(j.share)}, effective rank "
            f"{number(j.effective_rank)} of {j.count}",
        ]

    def __repr__(self) -> str:
        """Say the essentials in one line."""
        rules = ", ".join(verdict.rule for verdict in self.verdicts)
        return f"Trainability({self.model}: rms {number(self.rms)}, score {number(self.score)}; {rules})"

    def _repr_html_(self) -> str:
        """Show verdicts and blocks in notebooks."""
        return self._summary() + self._table()

    def _summary(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in self.headline())
        says = "".join(
            f"<li><b>{html.escape(v.rule)}</b> ({v.level}): {html.escape(v.message)}. "
            f"<i>{html.escape(str(v.evidence.get('advice', '')))}</i></li>"
            for v in self.verdicts
        )
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return f"{lines}<ul>{says}{notes}</ul>"

    def _table(self) -> str:
        head = "".join(f"<th>{title}</th>" for title in COLUMNS)
        rows = "".join(
            f"<tr><td><code>{html.escape(block.name)}</code></td>"
            + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(block)[1:])
            + "</tr>"
            for block in self.blocks
        )
        return f'<div class="wide"><table class="numbers"><tr>{head}</tr>{rows}</table></div>'


QUANTITIES = ("rms", "max", "median", "lost", "share", "effective_rank", "condition_number")
COLUMNS = ("block", "kind", "gain", "σ rms", "σ max", "to output", "from start", "activation", "cosine")


def _block(block: BlockFinding) -> dict[str, Any]:
    numbers = ("rms", "max", "gain", "backward", "forward", "activation", "cosine", "dead")
    return {
        "name": block.name,
        "kind": block.kind,
        "residual": block.residual,
        "shape": list(block.shape),
        **{name: plain(getattr(block, name)) for name in numbers},
        "decades": plain(block.decades),
    }


def _cells(block: BlockFinding) -> list[str]:
    kind = f"{block.kind}{' (residual)' * block.residual}"
    numbers = (block.gain, block.rms, block.max, block.backward, block.forward, block.activation, block.cosine)
    return [block.name, kind, *map(number, numbers)]


def table(blocks: Sequence[BlockFinding], most: int = SHOWN) -> list[str]:
    """The blocks as lines of text; the middle is left out of long lists."""
    rows = [list(COLUMNS), *map(_cells, blocks)]
    if len(blocks) > most:
        half = most // 2
        rows = [*rows[: half + 1], ["…", f"{len(blocks) - 2 * half} more", *[""] * 7], *rows[-half:]]
    for row in rows:
        row[0], row[1] = _short(row[0], 40), _short(row[1], 36)
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    aligned = [
        [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True))]
        for r in rows
    ]
    return ["  ".join(row).rstrip() for row in aligned]


def told(verdicts: Sequence[Verdict], notes: Sequence[str]) -> list[str]:
    """Verdicts and notes as lines of text."""
    lines = []
    for verdict in verdicts:
        standing, advice = verdict.evidence.get("standing", ""), verdict.evidence.get("advice", "")
        lines.append(f"{verdict.level}: {verdict.rule} ({standing}): {verdict.message}")
        lines.append(f"      {advice}")
    return [*lines, *(f"note: {note}" for note in notes)]


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width // 2]}…{text[len(text) - width + width // 2 + 1 :]}"


def number(value: float) -> str:
    """A number in few characters; ``-`` where it is not known.

    >>> number(0.98765), number(1.2e-9), number(float("nan")), number(12345.6)
    ('0.988', '1.2e-09', '-', '1.2e+04')
    """
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"


def percent(value: float) -> str:
    """A share."""
    return "-" if math.isnan(value) else f"{value:.0%}"


def plain(data: Any) -> Any:
    """Plain data for strict JSON: floats, None for what is not finite."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [plain(value) for value in data]
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    return data


def save(found: Any, path: str | Path) -> None:
    """Write what has ``to_json`` and ``to_html`` by suffix."""
    writers = {".json": found.to_json, ".html": found.to_html}
    write_by_suffix(path, writers)
