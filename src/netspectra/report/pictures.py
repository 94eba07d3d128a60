"""Pages of text and plotly figures, for results that are no analysis of weights."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from netspectra.report.page import content_policy, encode, guarded_styles

__all__ = ["html_page"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1c1c1c }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
table { font-variant-numeric: tabular-nums }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; overflow-x: auto }
@media (prefers-color-scheme: dark) { body { background: #16181c; color: #e4e4e4 } th, td { border-color: #3a3d44 } }
"""


def html_page(title: str, body: str, figures: Sequence[Any], below: str = "") -> str:
    """A self-contained page: nothing is loaded, and only its own scripts run.

    Args:
        title: plain text.
        body: markup of ours, in which everything foreign is escaped.
        figures: plotly figures, drawn after the body.
        below: markup that follows them.
    """
    from plotly.offline import get_plotlyjs

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
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{body}{places}{below}{stand_ins}"
        f'<script type="application/json" id="figures">{data}</script>'
        f"<script>{library}</script><script>{script}</script></body></html>\n"
    )
