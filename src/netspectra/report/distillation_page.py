"""The page of an expressivity view or a distillation: used directions beside those of the weights, widths, likeness."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.report.pictures import INKS, html_page

__all__ = ["render_distillation"]

SHOWN = 6  # layers whose spectra are drawn
SHADES = {"plain": 0.45, "used": 1.0}
BLUE, PALE, GROUND = INKS[0], "#6b7686", "#ffffff"


def render_distillation(document: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page; every string of the document is treated as text.

    Args:
        document: `Expressivity.to_dict` or `Distillation.to_dict`.
    """
    title = "Which directions the network uses" if document["verb"] == "expressivity" else "What a student could be"
    layers = document["layers"]
    body = [f"<p>{document['samples']} samples, {len(layers)} layers.</p>"]
    body += [f"<p>{html.escape(note)}</p>" for note in document["notes"]]
    figures = [_shares(layers), _spectra(layers)]
    below = []
    if document.get("widths"):
        rows = [
            [w["name"], w["kind"], w["width"], _interval(w["suggested"]), _interval(w["tenth"])]
            for w in document["widths"]
        ]
        head = ["chain", "units", "now", "for 1 % of the variance", "for 10 %"]
        below.append("<h2>How narrow it may become</h2>" + _table(head, rows))
    if document.get("likeness"):
        figures.append(_likeness(document["likeness"]))
    below.append(_layers(layers))
    return html_page(title, "".join(body), figures, "".join(below))


def _figure(title: str, height: int) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    margin = {"l": 10, "r": 10, "t": 30, "b": 40}
    figure.update_layout(title=title, height=height, margin=margin)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def _shares(layers: Sequence[Mapping[str, Any]]) -> Any:
    """Per layer the share of directions for 90 %: of the weights alone, and of their action on the data."""
    import plotly.graph_objects as go

    figure = _figure("Share of directions that hold 90 % of the energy", 260 + 22 * len(layers))
    names = [_label(one["name"]) for one in layers]
    for what, text, colour in (("plain", "weights alone", PALE), ("used", "action on the data", BLUE)):
        x = [one[what]["k90"]["value"] / one[what]["size"] for one in layers]
        errors: dict[str, Any] = {}
        if what == "used":
            k90, sizes = [one[what]["k90"] for one in layers], [one[what]["size"] for one in layers]
            bounds = {key: [k[key] or k["value"] for k in k90] for key in ("low", "high")}
            low = [v - b / size for v, b, size in zip(x, bounds["low"], sizes, strict=True)]
            high = [b / size - v for v, b, size in zip(x, bounds["high"], sizes, strict=True)]
            errors = {"error_x": {"type": "data", "array": high, "arrayminus": low, "thickness": 1}}
        figure.add_trace(
            go.Bar(y=names, x=x, name=text, orientation="h", marker_color=colour, opacity=SHADES[what], **errors)
        )
    figure.update_layout(barmode="group", legend={"orientation": "h", "y": 1.0, "yanchor": "bottom"})
    figure.update_yaxes(autorange="reversed", type="category")  # the layers of a Sequential are called 0, 3, 7
    figure.update_xaxes(tickformat=".0%", range=[0, 1])
    return figure


def _spectra(layers: Sequence[Mapping[str, Any]]) -> Any:
    """Of some layers, evenly along the depth: their action on the data (solid) and their weights (dotted)."""
    import plotly.graph_objects as go

    figure = _figure("Share of the energy in each direction (dotted: the weights alone)", 520)
    count = min(SHOWN, len(layers))
    shown = [layers[i * (len(layers) - 1) // max(1, count - 1)] for i in range(count)]
    for one, colour in zip(shown, INKS, strict=False):
        for what, dash in (("used", "solid"), ("plain", "dot")):
            use = one[what]
            figure.add_trace(
                go.Scatter(
                    x=[p + 1 for p in use["places"]],
                    y=[max(share, 1e-12) for share in use["curve"]],
                    name=_label(one["name"]),
                    legendgroup=one["name"],
                    showlegend=what == "used",
                    mode="lines",
                    line={"dash": dash, "color": colour},
                )
            )
    figure.update_layout(legend={"orientation": "h", "y": -0.2})
    figure.update_xaxes(type="log", title="direction")
    figure.update_yaxes(type="log", title="share", range=[-6, 0], dtick=1)
    return figure


def _likeness(pairs: Sequence[Mapping[str, Any]]) -> Any:
    import plotly.graph_objects as go

    rows = list(dict.fromkeys(one["teacher"] for one in pairs))
    columns = list(dict.fromkeys(one["student"] for one in pairs))
    cells = {(one["teacher"], one["student"]): one for one in pairs}
    grid = [[cells.get((a, b)) for b in columns] for a in rows]
    figure = _figure("Likeness of representations (debiased CKA), teacher by student", 320 + 18 * len(rows))
    figure.add_trace(
        go.Heatmap(
            z=[[one and one["cka"] for one in row] for row in grid],
            customdata=[
                [one and [one[key] for key in ("cosine", "chance", "k", "procrustes")] for one in row] for row in grid
            ],
            hovertemplate="teacher %{y}<br>student %{x}<br>CKA %{z:.3f}<br>cosine of %{customdata[2]} principal angles "
            "%{customdata[0]:.2f} (chance %{customdata[1]:.2f})<br>Procrustes %{customdata[3]:.2f}<extra></extra>",
            x=[_label(name) for name in columns],
            y=[_label(name) for name in rows],
            zmin=0,
            zmax=1,
            colorscale=[[0, GROUND], [1, BLUE]],
            colorbar={"thickness": 12, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    head = ["layer", "shape", "inputs: rank", "inputs: k90", "k99", "weights: k90", "action: k90", "k99"]
    rows = [
        [
            one["name"],
            "{} x {}".format(*one["shape"]),
            *(_interval(one["inputs"][key]) for key in ("effective_rank", "k90", "k99")),
            _interval(one["plain"]["k90"]),
            *(_interval(one["used"][key]) for key in ("k90", "k99")),
        ]
        for one in layers
    ]
    return "<h2>Every layer</h2>" + _table(head, rows)


def _interval(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "-"
    form = ".0f" if float(value["value"]).is_integer() else ".1f"
    text = format(value["value"], form)
    return text if value["low"] is None else f"{text} ({value['low']:{form}} - {value['high']:{form}})"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    first = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="numbers"><tr>{first}</tr>{lines}</table></div>'


def _label(name: str) -> str:
    """Text for a chart, where the library would read a little markup; the end of a long name."""
    return html.escape(name if len(name) <= 44 else f"…{name[-43:]}")
