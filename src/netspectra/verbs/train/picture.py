"""The depth profile as a plotly figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from netspectra.verbs.train.findings import Trainability

__all__ = ["profile"]

COLOURS = ("#0072b2", "#d55e00", "#009e73")
LOST, GREW = "#b3261e", "#c98a00"


def profile(found: Mapping[str, Trainability]) -> go.Figure:
    """Gain of each block, gradient along the depth, singular values of the end-to-end Jacobian.

    Args:
        found: by a label each (before, after); one with an empty label alone.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=2,
        cols=2,
        column_widths=[0.68, 0.32],
        specs=[[{}, {"rowspan": 2}], [{}, None]],
        shared_xaxes=True,
        vertical_spacing=0.14,
        subplot_titles=("along the depth", "singular values", "gain of each block"),
    )
    for place, (label, one) in enumerate(found.items()):
        colour = COLOURS[place % len(COLOURS)]
        _depth(figure, one, label, colour)
        gains = [max(-8.0, min(8.0, block.decades)) for block in one.blocks]
        bars = colour if len(found) > 1 else [LOST if gain < 0 else GREW for gain in gains]
        names = [block.name for block in one.blocks]
        x = list(range(1, len(names) + 1))
        figure.add_bar(x=x, y=gains, marker_color=bars, name=label, showlegend=False, hovertext=names, row=2, col=1)
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
                x=[x for x, _ in known],
                y=[y for _, y in known],
                mode="markers",
                marker=marker,
                showlegend=False,
                name=label,
                row=1,
                col=2,
            )
    band = {"type": "rect", "xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": 0.1, "y1": 10}
    figure.add_shape(**band, fillcolor="#888", opacity=0.12, line_width=0)
    figure.update_annotations(yshift=6)
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
    figure.update_yaxes(type="log", exponentformat="e", row=1, col=1)
    figure.update_yaxes(type="log", exponentformat="e", row=1, col=2)
    figure.update_yaxes(title="log10", zeroline=True, zerolinecolor="#566273", row=2, col=1)
    figure.update_xaxes(title="block", row=2, col=1)
    figure.update_xaxes(title="share of the values", row=1, col=2)
    figure.update_layout(
        template="plotly_white",
        legend={"orientation": "h", "y": -0.12, "font": {"size": 11}},
        margin={"t": 40, "l": 60, "r": 20, "b": 40},
        height=620,
        bargap=0.15,
    )
