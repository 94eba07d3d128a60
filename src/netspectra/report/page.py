"""The page: a template, a style, a script, the data, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from netspectra.report.payload import payload

__all__ = ["assembled", "asset", "content_policy", "encode", "framed", "guarded_styles", "heatmap_styles", "render"]

# In this order they are one script: what is defined above is used below.
SCRIPTS = (
    "text.js",
    "theme.js",
    "data.js",
    "plots.js",
    "trends.js",
    "overview.js",
    "table.js",
    "spectra.js",
    "reading.js",
    "depth.js",
    "geometry.js",
    "geometries.js",
    "details.js",
    "page.js",
)
LIVE = "connect-src 'self'; "


def render(
    document: Mapping[str, Any], glossary: Sequence[Mapping[str, str]], geometry: Sequence[Mapping[str, Any]] = ()
) -> str:
    """One complete, self-contained HTML page of an analysis.

    The page loads nothing, runs only its own script and the charts' library (their hashes are in its content
    security policy; the library stands there as text until the first chart is drawn) and treats every string of the
    document as text. The same document gives the same bytes.

    Args:
        document: the JSON of an analysis (schema 1).
        glossary: what each metric means; entries with name, title, formula, meaning, reference, range.
        geometry: of chosen weights, each as `Geometry.to_dict` gives it; without any the page has no such section.
    """
    from plotly.offline import get_plotlyjs

    body = asset("head.html") + asset("report.html")
    data = payload(document, glossary, geometry)
    return assembled(body, SCRIPTS, data, title="netspectra report", library=get_plotlyjs())


def framed(name: str) -> str:
    """A template under the head and the bar that all pages but the report have."""
    return asset("head.html") + asset("bar.html") + asset(name)


def assembled(
    template: str,
    scripts: Sequence[str],
    data: Any,
    *,
    title: str = "",
    styles: Sequence[str] = ("report.css",),
    library: str = "",
    attributes: Sequence[str] = (),
    live: bool = False,
) -> str:
    """A page of a template: style, data, one script and, if it draws charts, their library, under its policy.

    Args:
        template: with ``$policy``, ``$style``, ``$data`` and ``$script``; ``$library`` and ``$stand_ins`` for charts;
            ``$title`` where it begins with ``head.html``.
        scripts: assets that are one script, in this order.
        data: what the script draws.
        title: of the page.
        styles: assets that are one style.
        library: the charts' library; none by default.
        attributes: as in `content_policy`.
        live: as in `content_policy`.
    """
    script = '(() => {\n"use strict";\n' + "\n".join(asset(name) for name in scripts) + "\n})();\n"
    style = "".join(asset(name) for name in styles)
    allowed = ((script, library), (style, "")) if library else ((script,), (style,))
    return Template(template).substitute(
        title=title,
        policy=content_policy(*allowed, attributes=attributes, live=live),
        style=style,
        data=encode(data),
        script=script,
        library=library,
        stand_ins="".join(f'<template id="{name}"></template>' for name in guarded_styles(library)),
    )


def content_policy(
    scripts: Sequence[str], styles: Sequence[str], *, attributes: Sequence[str] = (), live: bool = False
) -> str:
    """A content security policy under which exactly these inline scripts and styles act, and nothing is loaded.

    The charts' library adds one empty style element, so the empty style is among ``styles``; ``attributes`` are the
    style attributes that it writes. A ``live`` page may ask the server that it came from for data.
    """
    allowed = [*map(_digest, styles), *(["'unsafe-hashes'", *map(_digest, attributes)] if attributes else [])]
    return (
        "default-src 'none'; "
        f"script-src {' '.join(map(_digest, scripts))}; "
        f"style-src {' '.join(allowed)}; "
        f"{LIVE if live else ''}"
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def guarded_styles(library: str) -> list[str]:
    """Ids of the style sheets that the charts' library would add as soon as it loads, unless the id is taken.

    They belong to maps, which no report draws, and the policy would refuse them: empty elements take their ids.

    >>> guarded_styles('if(!document.getElementById("' + 64 * "0" + '")){}') == [64 * "0"]
    True
    """
    return sorted(set(re.findall(r'document\.getElementById\("([0-9a-f]{64})"\)', library)))


def heatmap_styles(library: str) -> list[str]:
    """The style attributes that the charts' library writes on heat maps, so that their cells have sharp edges.

    >>> heatmap_styles('a.CSS_DECLARATIONS=[["image-rendering","pixelated"]];')
    ['', 'image-rendering: pixelated; ']
    """
    found = re.search(r"CSS_DECLARATIONS=(\[\[.*?\]\]);", library)
    pairs = json.loads(found[1]) if found else []
    return ["", "".join(f"{name}: {value}; " for name, value in pairs)]


def encode(data: Any) -> str:
    """JSON that cannot end its script element nor be taken for markup: ASCII, with ``< > &`` escaped.

    >>> encode("</script>")
    '"\\\\u003c/script\\\\u003e"'
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def asset(name: str) -> str:
    """The text of one of the page's parts."""
    return files("netspectra.report").joinpath("assets", name).read_text(encoding="utf-8").replace("\r\n", "\n")
