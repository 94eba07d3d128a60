"""Pages of text and plotly figures, for results that are no analysis of weights."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from netspectra.report.page import assembled, framed, heatmap_styles

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["COLOURS", "INKS", "html_page"]

SCRIPTS = ("text.js", "theme.js", "plots.js", "pictures.js")
# A figure is made in the colours of the light theme; on a page each stands for its name in the style sheet.
COLOURS = {
    "#0072b2": "data-1",
    "#d55e00": "data-2",
    "#009e73": "data-3",
    "#b8568f": "data-4",
    "#c98a00": "data-5",
    "#4a9fd4": "data-6",
    "#6b4fa0": "data-7",
    "#5c5f66": "data-8",
    "#b3261e": "error",
    "#6b7686": "faint",
    "#566273": "muted",
    "#ffffff": "surface",
}
INKS = [colour for colour, name in COLOURS.items() if name.startswith("data-")]


def html_page(title: str, body: str, figures: Sequence[go.Figure], below: str = "") -> str:
    """A self-contained page in the report's two themes: nothing is loaded, and only its own scripts run.

    Args:
        title: plain text.
        body: markup of ours, in which everything foreign is escaped.
        figures: drawn after the body, each under its own title; colours of `COLOURS` follow the theme.
        below: markup that follows them.
    """
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs() if figures else ""
    drawn = [_plain(figure) for figure in figures]
    places = "".join(
        f'<figure><figcaption>{one["title"]}</figcaption><div id="figure{place}"></div></figure>'
        for place, one in enumerate(drawn)
    )
    markup = f"<h1>{html.escape(title)}</h1>\n{body}\n{places}\n{below}"
    template = framed("pictures.html").replace("$body", markup.replace("$", "$$"))
    cells = any(trace["type"] == "heatmap" for one in drawn for trace in one["data"])
    return assembled(
        template,
        SCRIPTS,
        {"colours": COLOURS, "figures": drawn},
        title=html.escape(title),
        styles=("report.css", "pictures.css"),
        library=library,
        attributes=heatmap_styles(library) if cells else (),
    )


def _plain(figure: go.Figure) -> dict[str, Any]:
    """A figure's traces and layout without the library's own theme, its title apart."""
    found = json.loads(str(figure.to_json()))
    layout = found["layout"]
    layout.pop("template", None)
    title = layout.pop("title", {}).get("text", "")
    return {"title": title, "data": found["data"], "layout": layout}
