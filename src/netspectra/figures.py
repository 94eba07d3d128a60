"""Pictures of records, as plotly figures for notebooks and papers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.metrics.bulk import mp_cdf
from netspectra.record import Record, Value
from netspectra.report.curves import density

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["bulk_and_tail", "depth", "log_grid", "save_figure", "spectra", "steps"]

MOST = 40
POINTS = 250
BLUE, RED, GREEN, GREY, BAND = "#0072b2", "#d55e00", "#009e73", "#8a929c", "rgba(213, 94, 0, 0.16)"

INKS = (BLUE, RED, GREEN, "#b8568f", "#c98a00", "#4a9fd4", "#6b4fa0", "#5c5f66", "#7a3b00", "#a3c644")


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


def bulk_and_tail(record: Record) -> go.Figure:
    """One weight beside noise and beside a power law: where the singular values lie, and how the largest fall.

    Left the density of the singular values with that of noise of the same shape and median (Marchenko & Pastur), the
    end of its bulk, and the spikes beyond the calibrated edge. Right, on log axes, the share of the lambda at least as
    large as each, with the power law fitted to the tail and its interval. What is unknown is left out.
    """
    from plotly.subplots import make_subplots

    figure = make_subplots(cols=2, horizontal_spacing=0.1)
    if record.spectrum.sigma_max > 0:
        _bulk(figure, record)
        _tail(figure, record)
    figure.update_xaxes(title="singular value σ", col=1)
    figure.update_yaxes(title="density", rangemode="tozero", col=1)
    log = {"type": "log", "exponentformat": "power", "dtick": 1}
    figure.update_xaxes(title="λ / λ₁", **log, col=2)
    figure.update_yaxes(title="share of the λ at least as large", **log, col=2)
    figure.update_layout(template="plotly_white", showlegend=False, bargap=0, title=_plain(record.name), height=420)
    return figure


def _bulk(figure: go.Figure, record: Record) -> None:
    values = record.spectrum.values
    edge, spikes = (_known(record, name) for name in ("mp_edge", "spikes"))
    found = density(values, edge)
    assert found is not None  # there is something above zero
    end, counts = float(found["to"]), np.array(found["counts"])
    width = end / len(counts)
    middles = (np.arange(len(counts)) + 0.5) * width
    figure.add_bar(x=middles, y=counts / (len(values) * width), width=width, marker_color=BLUE, opacity=0.45)
    if edge:
        M, N = sorted(record.shape)
        noise = edge / (math.sqrt(M) + math.sqrt(N))
        at = np.linspace(max(0.0, math.sqrt(N) - math.sqrt(M)), math.sqrt(N) + math.sqrt(M), 200)
        share = np.diff(mp_cdf(at**2 / N, M / N)) / (np.diff(at) * noise)
        figure.add_scatter(x=(at[:-1] + at[1:]) / 2 * noise, y=share, mode="lines", line_color=RED)
        _upright(figure, edge, RED)
    if spikes is not None:
        calibrated = float(record.metrics["spikes"].detail["edge"])
        _upright(figure, calibrated, GREY)
        beyond = values[(values > calibrated) & (values <= end)]
        figure.add_scatter(
            x=beyond,
            y=np.zeros(len(beyond)),
            mode="markers",
            marker={"symbol": "triangle-up", "color": GREEN, "size": 7},
        )
    if found["beyond"]:
        text = f"{found['beyond']} more, up to {record.spectrum.sigma_max:.3g} →"
        figure.add_annotation(x=end, y=0.5, yref="y domain", xanchor="right", showarrow=False, text=text, row=1, col=1)
    figure.update_xaxes(range=[0, 1.03 * end], col=1)


def _tail(figure: go.Figure, record: Record) -> None:
    values = record.spectrum.values
    grid = log_grid(len(values))
    relative = (values[grid] / values[0]) ** 2
    kept = relative > 1e-12
    x, y = relative[kept], (grid[kept] + 1) / len(values)
    alpha = record.metrics.get("alpha")
    start, low, high = 1.0 + 1e-9, None, None
    if alpha is not None and alpha.known and alpha.low is not None and alpha.high is not None:
        start = float(np.exp(np.log(alpha.detail["xmin"]) - 2 * np.log(values[0])))
        low, high = alpha.low, alpha.high
    inside = x >= start * (1 - 1e-9)
    for shown, colour in ((~inside, GREY), (inside, BLUE)):
        figure.add_scatter(x=x[shown], y=y[shown], mode="markers", marker={"color": colour, "size": 4}, row=1, col=2)
    least = max(float(x.min()), 1e-3 * min(start, 1.0) if low is not None else 1e-5)
    figure.update_xaxes(range=[math.log10(least) - 0.1, 0.1], col=2)
    if alpha is None or low is None or high is None:
        return
    share = alpha.detail["tail"] / len(values)
    end = [share * start ** (exponent - 1) for exponent in (high, low, float(alpha))]
    for y1, fill in ((end[0], None), (end[1], "tonexty")):
        figure.add_scatter(
            x=[start, 1], y=[share, y1], mode="lines", line_width=0, fill=fill, fillcolor=BAND, row=1, col=2
        )
    figure.add_scatter(x=[start, 1], y=[share, end[2]], mode="lines", line_color=RED, row=1, col=2)
    _upright(figure, start, GREY, "2")
    text = f"α = {alpha:.2f} ({low:.2f} … {high:.2f}), {alpha.detail['tail']} values"
    figure.add_annotation(
        x=0.02, xref="x2 domain", y=0.04, yref="y2 domain", xanchor="left", showarrow=False, text=text
    )


def _upright(figure: go.Figure, x: float, colour: str, axis: str = "") -> None:
    line = {"color": colour, "dash": "dash", "width": 1.5}
    figure.add_shape(x0=x, x1=x, xref=f"x{axis}", y0=0, y1=1, yref=f"y{axis} domain", line=line)


def _known(record: Record, name: str) -> float | None:
    value = record.metrics.get(name)
    return float(value) if value is not None and value.known else None


def depth(records: Sequence[Record], metric: str) -> go.Figure:
    """One metric of every weight against its place in the checkpoint: a line a kind, with intervals where there are."""
    import plotly.graph_objects as go

    if not any(metric in record.metrics for record in records):
        known = dict.fromkeys(name for record in records for name in record.metrics)
        raise InputRefused(f"no metric {metric!r} was measured; there are {', '.join(known)}")
    figure = go.Figure()
    for kind in dict.fromkeys(record.kind for record in records):
        places = [i for i, r in enumerate(records) if r.kind == kind and _known(r, metric) is not None]
        found = [records[i].metrics[metric] for i in places]
        figure.add_scatter(
            x=[i + 1 for i in places],
            y=[float(value) for value in found],
            text=[_plain(records[i].name) for i in places],
            name=_plain(kind),
            mode="lines+markers" if len(places) > 1 else "markers",
            error_y=_bars(found),
        )
    figure.update_xaxes(title="place in the checkpoint")
    figure.update_yaxes(title=metric)
    figure.update_layout(template="plotly_white", margin={"t": 30})
    return figure


def _bars(found: Sequence[Value]) -> dict[str, Any] | None:
    if not any(value.low is not None and value.high is not None for value in found):
        return None
    up = [0.0 if value.high is None else value.high - float(value) for value in found]
    down = [0.0 if value.low is None else float(value) - value.low for value in found]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1}


def steps(scene: Mapping[str, Any]) -> go.Figure:
    """The four steps of a geometry side by side, in two of its axes: a circle, and the inputs where there are any.

    Args:
        scene: of a `Geometry`: sigma, frames of both turns, inputs.
    """
    from plotly.subplots import make_subplots

    inputs = scene.get("inputs")
    titles = ("x", "Vᵀ x: turned", "S Vᵀ x: stretched", "U S Vᵀ x: turned")
    figure = make_subplots(rows=2 if inputs else 1, cols=4, column_titles=titles, horizontal_spacing=0.05)
    sigma = np.array(scene["sigma"])[:2]
    d = len(sigma)
    into, out = (_flat(scene["sphere"][key][end], d) for key, end in (("into", 0), ("out", -1)))
    turns = np.linspace(0, 2 * math.pi, 121)
    circle = np.stack([np.cos(turns), np.sin(turns)], axis=1)[:, :d]
    views = [(into, np.ones(d)), (np.eye(d), np.ones(d)), (np.eye(d), sigma), (out, sigma)]
    for col, (frame, sizes) in enumerate(views, 1):
        _add_points(figure, (circle * sizes) @ frame, 1, col, mode="lines", line_color=BLUE)
        for i, tip in enumerate((np.eye(d) * sizes) @ frame):
            line = {"color": (RED, GREEN)[i], "width": 2.5}
            name = f"{'v' if col < 3 else 'u'}{'₁₂'[i]}"
            ends = np.stack([np.zeros(d), tip])
            _add_points(figure, ends, 1, col, mode="lines+text", text=["", name], textposition="top center", line=line)
    if inputs:
        before, after = (np.array(inputs[key]) for key in ("before", "after"))
        frames = [(before, inputs["into"][0]), (before, inputs["into"][-1])]
        frames += [(after, inputs["out"][0]), (after, inputs["out"][-1])]
        for col, (points, frame) in enumerate(frames, 1):
            _add_points(figure, points @ np.array(frame), 2, col, mode="markers", marker=_marker(inputs["labels"]))
    figure.update_xaxes(constrain="domain", nticks=5)
    figure.update_layout(template="plotly_white", showlegend=False, height=620 if inputs else 340, margin={"t": 40})
    for place in range(1, (8 if inputs else 4) + 1):
        figure.update_layout({f"yaxis{place}": {"scaleanchor": f"x{place}", "nticks": 5}})
    return figure


def _flat(frame: Any, d: int) -> np.ndarray:
    """The turn of the plane that is nearest to a turn of space."""
    u, _, vh = np.linalg.svd(np.array(frame)[:d, :d])
    return u @ vh


def _add_points(figure: go.Figure, points: np.ndarray, row: int, col: int, **look: Any) -> None:
    y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    figure.add_scatter(x=points[:, 0], y=y, row=row, col=col, hoverinfo="skip", **look)


def _marker(labels: Sequence[str] | None) -> dict[str, Any]:
    kinds = sorted(set(labels)) if labels else []
    if not labels or len(kinds) > 16:
        return {"size": 4, "color": BLUE, "opacity": 0.6}
    return {"size": 4, "color": [INKS[kinds.index(label) % len(INKS)] for label in labels], "opacity": 0.8}


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
