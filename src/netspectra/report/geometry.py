"""The page of one weight's geometry: the report's style, its own script, and a policy that lets nothing else run."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template
from typing import Any

from netspectra.report.page import asset, content_policy, encode
from netspectra.report.payload import SCENE_DEPTH, plain

__all__ = ["render_geometry"]

SCRIPTS = ("text.js", "theme.js", "geometry.js", "geometry-page.js")


def render_geometry(geometry: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page of a `Geometry.to_dict`; the same data give the same bytes."""
    script = '(() => {\n"use strict";\n' + "\n".join(asset(name) for name in SCRIPTS) + "\n})();\n"
    style = asset("report.css")
    return Template(asset("geometry.html")).substitute(
        policy=content_policy(scripts=(script,), styles=(style,)),
        style=style,
        data=encode(plain(geometry, SCENE_DEPTH)),
        script=script,
    )
