"""The page of a drift test: the verdict, layers by statistics, how the window lies, what moved. No script at all."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.report.comparison_page import STYLE as SHARED
from netspectra.report.page import content_policy

__all__ = ["render_drift"]

STYLE = (
    SHARED
    + """
:root { --before: #6b7f99; --after: #c2500a } @media (prefers-color-scheme: dark) { :root { --before: #8fa3bd;
  --after: #ff9a52 } }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif } svg text { fill: var(--quiet) }
.before { fill: var(--before); fill-opacity: .45 } .after { fill: var(--after); fill-opacity: .8 }
.line { stroke: var(--line); stroke-width: 1 } .curve { fill: none; stroke: var(--after); stroke-width: 2 }
.bound { stroke: var(--error); stroke-dasharray: 5 4 } .dull { fill: var(--before); fill-opacity: .6 }
.side { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem }
"""
)
SIDE, EDGE = 360, 34  # of the scatter
BAR, ROW = 230, 22
WINDOWS = 20  # told one by one
SHADES = ((0.002, 8), (0.01, 6), (0.05, 4), (0.2, 1))  # p up to, shade


def render_drift(windows: Sequence[Mapping[str, Any]], stream: Sequence[Mapping[str, Any]] = ()) -> str:
    """One complete, self-contained HTML page; nothing of it runs or is loaded, every string is treated as text.

    Args:
        windows: `WindowDrift.to_dict` of each, with ``scene`` where there is a picture.
        stream: `Evidence.to_dict` after each window, where they were watched in sequence.
    """
    parts = [_stream(stream)] if stream else []
    if len(windows) > 1:
        parts.append(_overview(windows))
    shown = sorted(windows, key=lambda window: window["p"])[:WINDOWS]
    parts += [_window(window) for window in windows if any(window is one for one in shown)]
    if len(shown) < len(windows):
        parts.append(f"<p>The {len(shown)} windows with the least p of {len(windows)} are shown one by one.</p>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(scripts=(), styles=(STYLE,))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>netspectra drift</title><style>{STYLE}</style></head><body>\n"
        f"<h1>netspectra drift</h1>\n{''.join(parts)}\n</body></html>\n"
    )


def _verdict(name: str, alarm: bool, message: str) -> str:
    word = "drift" if alarm else "no drift"
    level = "error" if alarm else "ok"
    return f'<p><code>{_text(name)}</code></p><div class="verdict {level}"><b>{word}</b><p>{_text(message)}</p></div>'


def _window(window: Mapping[str, Any]) -> str:
    first = window["layers"][0]
    cards = [
        (f"{window['p']:.3g}", "p of everything together"),
        (f"{first['shift']:.2f} sd", f"distance of the means in {first['layer']}"),
        (str(window["rows"]), "rows of the window"),
        (str(window["reference_rows"]), "held-out rows of the reference"),
    ]
    shown = "".join(f'<div class="card"><b>{_text(value)}</b>{_text(label)}</div>' for value, label in cards)
    notes = "".join(f"<p>{_text(note)}</p>" for note in window["notes"])
    picture = _scatter(window["scene"]) if window.get("scene") else ""
    return (
        f"{_verdict(window['name'], window['alarm'], window['verdict']['message'])}"
        f'<div class="cards">{shown}</div>{notes}<h2>Where</h2>{_map(window["layers"])}'
        f'<h2>How, in {_text(first["layer"])}</h2><div class="side">{picture}'
        f"{_directions(first)}{_columns(first)}</div>"
        f"<h2>Every number</h2>{_list(window['layers'])}"
    )


def _map(layers: Sequence[Mapping[str, Any]]) -> str:
    """Layers by statistics: the effect, shaded by its p."""
    names = list(dict.fromkeys(s["name"] for layer in layers for s in layer["statistics"]))
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in ("together", *names))
    lines = ""
    for layer in layers:
        held = {s["name"]: s for s in layer["statistics"]}
        cells = _cell(layer["adjusted"], f"p {layer['adjusted']:.3g}", "adjusted for the number of layers")
        for name in names:
            s = held.get(name)
            cells += '<td class="gap"></td>' if s is None else _cell(s["p"], f"{s['effect']:.2g}", f"p {s['p']:.3g}")
        lines += f'<tr><th scope="row">{_text(layer["layer"])}</th>{cells}</tr>'
    shades = "".join(f'<span class="s{shade}">p ≤ {bound:g}</span>' for bound, shade in SHADES)
    caption = '<p class="quiet">Effect sizes; each statistic has its own unit (below).</p>'
    grid = f'<table class="map"><thead><tr><th></th>{head}</tr></thead>{lines}</table>'
    return f'<div class="legend">{shades}</div>{caption}<div class="wide">{grid}</div>'


def _cell(p: float, text: str, title: str) -> str:
    shade = next((f"s{shade}" for bound, shade in SHADES if p <= bound), "none")
    return f'<td class="{shade}" title="{_text(title)}">{_text(text)}</td>'


def _scatter(scene: Mapping[str, Any]) -> str:
    """Reference and window in the two directions that moved most."""
    before, after = scene["reference"], scene["window"]
    reach = 1.05 * max((abs(v) for point in (*before, *after) for v in point), default=1.0) or 1.0
    unit = (SIDE - 2 * EDGE) / (2 * reach)

    def dots(points: Sequence[Sequence[float]], kind: str, radius: float) -> str:
        return "".join(
            f'<circle class="{kind}" cx="{SIDE / 2 + unit * x:.1f}" cy="{SIDE / 2 - unit * y:.1f}" r="{radius}"/>'
            for x, y in points
        )

    half, far = SIDE / 2, SIDE - EDGE
    x, y = scene["directions"]
    axes = (
        f'<line class="line" x1="{EDGE}" x2="{far}" y1="{half}" y2="{half}"/>'
        f'<line class="line" y1="{EDGE}" y2="{far}" x1="{half}" x2="{half}"/>'
        f'<text x="{far}" y="{half + 16}" text-anchor="end">{_text(x)}</text>'
        f'<text x="{half + 6}" y="{EDGE - 6}">{_text(y)}</text>'
        f'<text x="{EDGE}" y="{SIDE - 8}">±{reach:.2g} sd</text>'
        f'<circle class="before" cx="{EDGE + 80}" cy="{SIDE - 12}" r="5"/>'
        f'<text x="{EDGE + 90}" y="{SIDE - 8}">reference</text>'
        f'<circle class="after" cx="{EDGE + 170}" cy="{SIDE - 12}" r="5"/>'
        f'<text x="{EDGE + 180}" y="{SIDE - 8}">window</text>'
    )
    body = axes + dots(before, "before", 2.5) + dots(after, "after", 3)
    return f'<svg viewBox="0 0 {SIDE} {SIDE}" width="{SIDE}" role="img" aria-label="Reference and window">{body}</svg>'


def _bars(rows: Sequence[tuple[str, float, bool, str]], title: str, label: str) -> str:
    """Signed bars from a middle line."""
    largest = max((abs(value) for _, value, _, _ in rows), default=0.0) or 1.0
    wide, half = 2 * BAR + 40, BAR * 0.72
    lines = ""
    for i, (name, value, sure, more) in enumerate(rows):
        y, length = i * ROW + 6, half * abs(value) / largest * 0.9
        x = BAR + 60 if value >= 0 else BAR + 60 - length
        kind = "after" if sure else "dull"
        short = name if len(name) <= 18 else f"{name[:8]}…{name[-9:]}"
        lines += (
            f'<text x="0" y="{y + 11}">{_text(short)}</text><rect class="{kind}" x="{x:.1f}" y="{y}" '
            f'width="{max(length, 0.5):.1f}" height="{ROW - 8}"/>'
            f'<text x="{wide + 28}" y="{y + 11}" text-anchor="end">{value:+.2f}{more}</text>'
        )
    tall = len(rows) * ROW + 8
    middle = f'<line class="line" x1="{BAR + 60}" x2="{BAR + 60}" y1="0" y2="{tall}"/>'
    frame = f'viewBox="0 0 {wide + 30} {tall}" width="{wide + 30}" role="img" aria-label="{title}"'
    return f'<div><h3>{title}</h3><p class="quiet">{label}</p><svg {frame}>{middle}{lines}</svg></div>'


def _directions(layer: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{d['direction']} ({', '.join(name for name, _ in d['columns'][:2])})",
            d["shift"],
            d["p"] <= 0.05,
            f" ×{d['spread']:.2f}",
        )
        for d in layer["directions"]
    ]
    return _bars(
        rows,
        "Directions that moved most",
        "mean, in sd, and × change of spread; coloured where p, adjusted, is at most 0.05",
    )


def _columns(layer: Mapping[str, Any]) -> str:
    tested = any(c["p"] is not None for c in layer["columns"])
    rows = [(c["column"], c["shift"], tested and c["p"] <= 0.05, "") for c in layer["columns"]]
    how = "coloured where p, adjusted, is at most 0.05" if tested else "a description, not a test"
    return _bars(rows, "Columns that moved most", f"mean, in sd of the reference; {how}")


def _list(layers: Sequence[Mapping[str, Any]]) -> str:
    lines = ""
    for layer in layers:
        for s in layer["statistics"]:
            cells = "".join(f'<td class="number">{s[key]:.3g}</td>' for key in ("p", "effect", "chance"))
            texts = [f"<td>{_text(text)}</td>" for text in (layer["layer"], s["name"], s["means"])]
            lines += f"<tr>{texts[0]}{texts[1]}{cells}{texts[2]}</tr>"
    head = ("layer", "statistic", "p", "effect", "by chance up to", "unit")
    heads = "".join(f"<th{' class=number' if 1 < i < 5 else ''}>{name}</th>" for i, name in enumerate(head))
    return f'<div class="wide"><table class="list"><tr>{heads}</tr>{lines}</table></div>'


def _overview(windows: Sequence[Mapping[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td><code>{_text(w['name'])}</code></td><td>{'drift' if w['alarm'] else '-'}</td>"
        f'<td class="number">{w["p"]:.3g}</td><td class="number">{w["rows"]}</td>'
        f"<td>{_text(w['layers'][0]['layer'])}</td></tr>"
        for w in windows
    )
    head = '<tr><th>window</th><th></th><th class="number">p</th><th class="number">rows</th><th>most in</th></tr>'
    return f'<h2>Every window</h2><div class="wide"><table class="list">{head}{rows}</table></div>'


def _stream(stream: Sequence[Mapping[str, Any]]) -> str:
    """The evidence over the windows: -log10 of the anytime-valid p."""
    last = stream[-1]
    heights = [-math.log10(max(one["p"], 1e-300)) for one in stream]
    bound = -math.log10(last["alpha"])
    top = 1.1 * max(*heights, bound)
    wide, tall = 640, 200
    step = (wide - 60) / max(len(stream) - 1, 1)
    points = " ".join(f"{50 + i * step:.1f},{tall - 20 - (tall - 40) * h / top:.1f}" for i, h in enumerate(heights))
    y = tall - 20 - (tall - 40) * bound / top
    picture = (
        f'<svg viewBox="0 0 {wide} {tall}" width="{wide}" role="img" aria-label="Evidence over the windows">'
        f'<line class="line" x1="50" x2="{wide - 10}" y1="{tall - 20}" y2="{tall - 20}"/>'
        f'<line class="bound" x1="50" x2="{wide - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<polyline class="curve" points="{points}"/>'
        f'<text x="54" y="{y - 5:.1f}">alarm, p = {last["alpha"]:g}</text><text x="50" y="{tall - 4}">window '
        f'{stream[0]["window"]}</text><text x="{wide - 10}" y="{tall - 4}" text-anchor="end">{last["window"]}</text>'
        f'<text x="0" y="14">p 1e-{max(*heights, bound):.0f}</text></svg>'
    )
    return f"{_verdict('all windows in sequence', last['alarm'], last['verdict']['message'])}{picture}"


def _text(text: Any) -> str:
    return html.escape(str(text))
