"""Pictures of records, as plotly figures for notebooks and papers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.record import Record

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["log_grid", "save_figure", "spectra"]

MOST = 40
POINTS = 250


def log_grid(count: int, points: int = POINTS) -> np.ndarray:
    """Indices 0 ... count - 1 thinned to about ``points``, evenly on a log axis, both ends kept.

    >>> log_grid(5).tolist()
    [0, 1, 2, 3, 4]
    >>> int(log_grid(4096)[-1]), len(log_grid(4096)) <= 250
    (4095, True)
    """
    if count <= points:
        return np.arange(count)
    return np.unique(np.round(np.geomspace(1, count, points)).astype(int)) - 1


def spectra(records: Sequence[Record]) -> go.Figure:
    """Singular values against index, log-log, one curve a record; beyond 40 an even choice over the depth."""
    import plotly.graph_objects as go

    if len(records) > MOST:
        records = [records[i] for i in np.linspace(0, len(records) - 1, MOST).round().astype(int)]
    figure = go.Figure()
    for record in records:
        grid = log_grid(len(record.spectrum))
        values = record.spectrum.values[grid]
        shown = values > 0
        figure.add_scatter(x=grid[shown] + 1, y=values[shown], name=_plain(record.name), mode="lines")
    figure.update_xaxes(type="log", title="index")
    figure.update_yaxes(type="log", title="singular value", exponentformat="power")
    figure.update_layout(template="plotly_white", legend={"font": {"size": 10}}, margin={"t": 30})
    return figure


def _plain(name: str) -> str:
    """A name as plotly shows it: in its texts a few tags act, links among them."""
    return name.replace("&", "&amp;").replace("<", "&lt;")


def save_figure(figure: go.Figure, path: Path) -> None:
    """Write a figure by suffix: self-contained ``.html``, or an image through kaleido."""
    suffix = path.suffix.lower()
    if suffix == ".html":
        figure.write_html(path, include_plotlyjs=True, config={"displaylogo": False, "showSendToCloud": False})
        return
    if suffix not in (".png", ".svg", ".pdf"):
        raise InputRefused(f"{path}: cannot draw {suffix!r}; there are .html, .png, .svg and .pdf")
    try:
        figure.write_image(path, width=1000, height=650)
    except ValueError:
        raise InputRefused("pictures need kaleido: pip install 'netspectra[image]'") from None
    except RuntimeError as wrong:
        raise EnvironmentFailure(f"{path}: kaleido could not draw: {str(wrong).splitlines()[0]}") from None
