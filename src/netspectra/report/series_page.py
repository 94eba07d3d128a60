"""The page of a series of checkpoints: metrics over time, and where they changed. No script at all."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.report.drift_page import STYLE as SHARED
from netspectra.report.page import content_policy

__all__ = ["render_series"]

STYLE = (
    SHARED
    + """
.trace { fill: none; stroke: var(--before); stroke-opacity: .55; stroke-width: 1.2 }
.mark { fill: var(--error); fill-opacity: .14 } .grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)) } figure { margin: 0 } figcaption { color: var(--quiet) }
"""
)
WIDE, TALL, EDGE = 420, 190, 26
TRACES = 60  # weights drawn of one metric, evenly chosen


def render_series(document: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page; nothing of it runs or is loaded, every string is treated as text.

    Args:
        document: `Series.to_dict`.
    """
    verdict = document["verdict"]
    changed = bool(document["changes"])
    notes = "".join(f"<p>{_text(note)}</p>" for note in document["notes"])
    pictures = "".join(_picture(metric, document) for metric in document["values"])
    body = (
        f'<div class="verdict {"error" if changed else "ok"}"><b>{"changed" if changed else "no change"}</b>'
        f"<p>{_text(verdict['message'])}</p></div>{notes}"
        f'<p class="quiet">Each line is a weight, over its first value; marked: where a change may lie.</p>'
        f'<div class="grid">{pictures}</div>{"".join(map(_change, document["changes"]))}'
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(scripts=(), styles=(STYLE,))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>netspectra drift</title><style>{STYLE}</style></head><body>\n"
        f"<h1>netspectra drift: {len(document['names'])} checkpoints</h1>\n{body}\n</body></html>\n"
    )


def _picture(metric: str, document: Mapping[str, Any]) -> str:
    names: Sequence[str] = document["names"]
    weights = list(document["values"][metric].values())
    if len(weights) > TRACES:
        weights = [weights[i * len(weights) // TRACES] for i in range(TRACES)]
    lines = [[math.log(value / values[0]) for value in values] for values in weights]
    low, high = min(map(min, lines)), max(map(max, lines))
    span = max(high - low, 1e-6)
    step = (WIDE - 2 * EDGE) / (len(names) - 1)

    def x(i: float) -> float:
        return EDGE + step * i

    def y(value: float) -> float:
        return TALL - EDGE - (TALL - 2 * EDGE) * (value - low) / span

    marks = ""
    for change in document["changes"]:
        first, last = names.index(change["low"]) - 0.5, names.index(change["high"]) + 0.5
        left, right = max(x(first), EDGE), min(x(last), WIDE - EDGE)
        marks += f'<rect class="mark" x="{left:.1f}" y="{EDGE}" width="{right - left:.1f}" height="{TALL - 2 * EDGE}"/>'
    traces = "".join(
        f'<polyline class="trace" points="{" ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(line))}"/>'
        for line in lines
    )
    axes = (
        f'<line class="line" x1="{EDGE}" x2="{WIDE - EDGE}" y1="{y(0.0):.1f}" y2="{y(0.0):.1f}"/>'
        f'<text x="2" y="{EDGE - 8}">x {math.exp(high):.3g}</text>'
        f'<text x="2" y="{TALL - 6}">x {math.exp(low):.3g}</text>'
        f'<text x="{WIDE - EDGE}" y="{TALL - 6}" text-anchor="end">{_text(_short(names[-1]))}</text>'
    )
    frame = f'viewBox="0 0 {WIDE} {TALL}" width="{WIDE}" role="img" aria-label="{_text(metric)}"'
    return f"<figure><svg {frame}>{marks}{axes}{traces}</svg><figcaption>{_text(metric)}</figcaption></figure>"


def _change(change: Mapping[str, Any]) -> str:
    rows = ""
    for one in change["weights"]:
        p = "" if one["p"] is None else f"{one['p']:.3g}"
        rows += (
            f"<tr><td><code>{_text(one['weight'])}</code></td><td>{_text(one['metric'])}</td>"
            f'<td class="number">{one["ratio"]:.3f}</td><td class="number">{p}</td></tr>'
        )
    where = "" if change["low"] == change["high"] else f", between {_text(change['low'])} and {_text(change['high'])}"
    head = '<tr><th>weight</th><th>metric</th><th class="number">ratio</th><th class="number">p, adjusted</th></tr>'
    title = f"{_text(change['kind'])} at {_text(change['at'])}{where}, p = {change['p']:.3g}"
    return f'<h2>{title}</h2><div class="wide"><table class="list">{head}{rows}</table></div>'


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"


def _text(text: Any) -> str:
    return html.escape(str(text))
