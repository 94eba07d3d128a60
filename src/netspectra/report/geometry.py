"""The page of one weight's geometry: the report's style, its own script, and a policy that lets nothing else run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from netspectra.report.page import assembled, framed
from netspectra.report.payload import SCENE_DEPTH, plain

__all__ = ["render_geometry"]

SCRIPTS = ("text.js", "theme.js", "geometry.js", "geometry-page.js")


def render_geometry(geometry: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page of a `Geometry.to_dict`; the same data give the same bytes."""
    body = framed("geometry.html")
    return assembled(body, SCRIPTS, plain(geometry, SCENE_DEPTH), title="netspectra geometry")
