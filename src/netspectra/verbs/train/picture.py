"""The depth profile as a plotly figure, and pages that hold such figures."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from netspectra.verbs.train.findings import Trainability

__all__ = ["html_page", "profile"]

COLOURS = ("#1f6fb4", "#d95f02", "#1b9e77")
LOST, GREW = "#b2182b", "#e08214"


def profile(found: Mapping[str, Trainability]) -> go.Figure:
    """Gain of each block, gradient along the depth, singular values of the end-to-end Jacobian.

    Args:
        found: by a label each (before, after); one with an empty label alone.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=2,
        column_widths=[0.68, 0.32],
        specs=[[{}, {"rowspan": 2}], [{}, None]],
        shared_xaxes=True,
        vertical_spacing=0.08,
        subplot_titles=("Jacobian and activations along the depth", "end-to-end singular values", "gain of each block"),
    )
    for place, (label, one) in enumerate(found.items()):
        colour = COLOURS[place % len(COLOURS)]
        _depth(figure, one, label, colour)
        gains = [max(-8.0, min(8.0, block.decades)) for block in one.blocks]
        bars = colour if len(found) > 1 else [LOST if gain < 0 else GREW for gain in gains]
        names = [block.name for block in one.blocks]
        x = list(range(1, len(names) + 1))
        figure.add_bar(
            x=x, y=gains, marker_color=bars, name=label, showlegend=False, hovertext=names, row=2, col=1
        )
        if one.jacobian is not None and one.jacobian.values is not None:
            values = np.sort(one.jacobian.values.ravel())[::-1]
            values = values[values > 0]
            values = values[np.unique(np.linspace(0, len(values) - 1, min(400, len(values))).astype(int))]
            shares = np.linspace(0, 1, len(values))
            line = {"color": colour}
            figure.add_scatter(x=shares, y=values, mode="lines", line=line, showlegend=False, name=label, row=1, col=2)
        elif one.jacobian is not None:
            points = [(0.0, one.jacobian.max), (0.5, one.jacobian.median)]
            known = [(x, float(y)) for x, y in points if y.known and y > 0]
            marker = {"color": colour}
            figure.add_scatter(
                x=[x for x, _ in known], y=[y for _, y in known], mode="markers", marker=marker, showlegend=False,
                name=label, row=1, col=2,
            )
    figure.add_hrect(y0=0.1, y1=10, fillcolor="#888", opacity=0.12, line_width=0, row=1, col=2)
    _axes(figure, found)
    return figure


def _depth(figure: go.Figure, one: Trainability, label: str, colour: str) -> None:
    x = list(range(1, len(one.blocks) + 1))
    names = [block.name for block in one.blocks]
    lines = (
        ("gradient: block to output", [block.backward for block in one.blocks], "solid"),
        ("signal: start to block", [block.forward for block in one.blocks], "dash"),
        ("activation rms", [block.activation for block in one.blocks], "dot"),
    )
    for title, values, dash in lines:
        y = [float(value) if value > 0 and math.isfinite(value) else None for value in values]
        name = f"{title} ({label})" if label else title
        line = {"color": colour, "dash": dash}
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hovertext=names, row=1, col=1)


def _axes(figure: go.Figure, found: Mapping[str, Trainability]) -> None:
    figure.update_yaxes(type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="power", row=1, col=2)
    figure.update_yaxes(title="log10", zeroline=True, zerolinecolor="#444", row=2, col=1)
    figure.update_xaxes(title="block", row=2, col=1)
    figure.update_xaxes(title="share of the values", row=1, col=2)
    figure.update_layout(
        template="plotly_white",
        legend={"orientation": "h", "y": -0.18, "font": {"size": 11}},
        margin={"t": 40, "l": 60, "r": 20, "b": 40},
        height=620,
        bargap=0.15,
    )


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; overflow-x: auto }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e4e4e4 } th, td { border-color: #3a3d44 } }
"""


def html_page(title: str, body: str, figures: Sequence[Any]) -> str:
    """A self-contained page: nothing is loaded, and only its own scripts run.

    Args:
        title: plain text.
        body: markup of ours, in which everything foreign is escaped.
        figures: plotly figures, drawn after the body.
    """
    import json

    from plotly.offline import get_plotlyjs

    from netspectra.report.page import content_policy, encode, guarded_styles

    library = get_plotlyjs()
    data = encode([json.loads(figure.to_json()) for figure in figures])
    script = (
        "JSON.parse(document.getElementById('figures').textContent).forEach((figure, place) => "
        "Plotly.newPlot(`figure${place}`, figure.data, figure.layout, {displaylogo: false, responsive: true}));"
    )
    policy = content_policy(scripts=(script, library), styles=(STYLE, ""))
    places = "".join(f'<figure id="figure{place}"></figure>' for place in range(len(figures)))
    stand_ins = "".join(f'<template id="{name}"></template>' for name in guarded_styles(library))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{body}{places}{stand_ins}"
        f'<script type="application/json" id="figures">{data}</script>'
        f"<script>{library}</script><script>{script}</script></body></html>\n"
    )
