"""The page of a plan: the frontier, what held-out data says, every decision. Inert, self-contained, plain data in."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.report.page import content_policy, encode, guarded_styles

__all__ = ["decisions_table", "render_plan"]

CAPTION = (
    "Predictions add up what each layer loses alone; what is measured includes how these errors act on one another, "
    "and samples that nothing was fitted to. Trust the line to compare sizes, the points for what is left."
)
RAISED = "font-size:70%"  # the style attribute that the charts' library writes on exponents
STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #5b6675; --line: #d8dee6; --page: #fff; --bar: #3f6fb5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --quiet: #9aa6b5; --line: #333c48; --page: #14181d; --bar: #7ba7e8; }
}
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p, .quiet { color: var(--quiet); margin: .3rem 0 }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .9rem; min-width: 9rem }
.card b { display: block; font-size: 1.25rem; font-weight: 600 }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap }
td.number, th.number { text-align: right }
td.reason { white-space: normal; min-width: 14rem; padding-left: .6rem; color: var(--quiet) }
code { font-size: .92em } tr.left td { color: var(--quiet) }
#frontier { height: 28rem } @media (max-width: 600px) { #frontier { height: 34rem }
  td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 7.5rem } }
"""

SCRIPT = """
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const library = document.getElementById("library");
const place = document.getElementById("frontier");
if (!place || !library) return;
const script = document.createElement("script");
script.textContent = library.textContent;
document.head.append(script);
const draw = () => {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = { color: ink, gridcolor: line, zerolinecolor: line };
  const layout = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink },
    margin: { t: 10, r: 10, b: innerWidth < 600 ? 190 : 110, l: 70 },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", entrywidth: 210 },
    xaxis: { ...axis, title: { text: "bytes of the selected weights" }, nticks: innerWidth < 600 ? 4 : 9 },
    yaxis: { ...axis, type: "log", dtick: 1, title: { text: "loss a sample" }, exponentformat: "power" } };
  Plotly.react(place, data.traces, layout, { displaylogo: false, responsive: true, showSendToCloud: false });
};
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
"""


def render_plan(document: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page of a plan; every string of it is treated as text.

    Args:
        document: `netspectra.plan.Plan.to_dict`.
    """
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    traces = _traces(document)
    policy = content_policy(scripts=(SCRIPT, library), styles=(STYLE, ""), attributes=(RAISED,))
    stand_ins = "".join(f'<template id="{name}"></template>' for name in guarded_styles(library))
    picture = f'<h2>Size against loss</h2><div id="frontier"></div><p>{CAPTION}</p>' if traces else ""
    body = "\n".join(
        [
            f"<h1>netspectra {html.escape(str(document['verb']))}</h1>",
            f'<p class="quiet">{_asked(document["options"])}</p>',
            _cards(document),
            *(f"<p>{html.escape(note)}</p>" for note in document["notes"]),
            picture,
            _quality(document),
            "<h2>Every layer</h2>",
            decisions_table(document),
        ]
    )
    charts = f'<script type="text/plain" id="library">{library}</script>' if traces else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>netspectra {html.escape(str(document['verb']))}</title><style>{STYLE}</style>"
        f"{stand_ins}</head><body>\n"
        f'{body}\n<script type="application/json" id="data">{encode({"traces": traces})}</script>'
        f"{charts}<script>{SCRIPT}</script></body></html>\n"
    )


def _asked(options: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in options.items() if value not in (False, None, [], "")}
    return html.escape(", ".join(f"{name} {_plain(value)}" for name, value in shown.items()))


def _plain(value: Any) -> str:
    """A value of the options as people write it.

    >>> _plain({"group": 64, "ranks": [0, 8], "weighed": True}), _plain(94016.0), _plain("int4")
    ('(group 64, ranks 0 8, weighed)', '94016', 'int4')
    """
    if isinstance(value, Mapping):
        some = {name: one for name, one in value.items() if one is not False}
        return f"({', '.join(name if one is True else f'{name} {_plain(one)}' for name, one in some.items())})"
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    if isinstance(value, float):
        return f"{value:.10g}"
    return json.dumps(value).strip('"')


def _cards(document: Mapping[str, Any]) -> str:
    totals, finish = document["totals"], document.get("finish", {})
    cards: list[tuple[str, str]] = []
    if totals:
        for what in ("parameters", "bytes"):
            before, after = totals["model_before"][what], totals["model_after"][what]
            cards.append((f"{after:,}", f"{what} ({after / max(before, 1):.1%} of {before:,})"))
        if document.get("verb") == "quantize":
            bits = 8 * totals["selected_after"]["bytes"] / max(totals["selected_before"]["parameters"], 1)
            cards.append((f"{bits:.2f}", "bits a number of the selected layers, scales and biases included"))
        else:
            kept = totals["selected_after"]["parameters"] / max(totals["selected_before"]["parameters"], 1)
            cards.append((f"{kept:.1%}", "of the selected weights kept"))
    for name, value in _final(document).items():
        cards.append((_number(value), f"{name} on held-out data"))
    for name, value in finish.get("task", {}).items():
        cards.append((f"{_number(value[0])} to {_number(value[1])}", name))
    if "speed" in finish:
        cards.append((f"{finish['speed']['ratio']:.2f} x", "measured speed of the whole model"))
    return (
        '<div class="cards">'
        + "".join(f'<div class="card"><b>{html.escape(b)}</b>{html.escape(t)}</div>' for b, t in cards)
        + "</div>"
    )


def _final(document: Mapping[str, Any]) -> dict[str, float]:
    held, finish = document["held_out"], document.get("finish", {})
    if "final" in finish:
        return finish["final"]
    if "kept" in held:
        return held["candidates"][held["kept"]]
    return held.get("plan", {})


def _improved(document: Mapping[str, Any]) -> Mapping[str, float]:
    """What was measured after refitting or healing, where one of them changed something."""
    finish = document.get("finish", {})
    changed = any(isinstance(found, Mapping) and found.get("kept") is True for found in finish.values())
    return finish.get("final", {}) if changed else {}


def _quality(document: Mapping[str, Any]) -> str:
    """What each candidate lost on held-out data, and plain rounding beside it."""
    held, totals = document["held_out"], document["totals"]
    rows: list[tuple[str, Mapping[str, float], int | None]] = []
    after = totals["selected_after"]["bytes"] if totals else None
    for name, found in held.get("candidates", {}).items():
        rows.append((name + (" (kept)" if name == held.get("kept") else ""), found, after))
    if "plan" in held:
        rows.append(("the given plan", held["plan"], after))
    if final := _improved(document):
        rows.append(("after refitting and healing", final, after))
    if "drawn" in held:
        rows.append(("for comparison: bits drawn at random", held["drawn"], int(held["drawn"]["bytes"])))
    for name, found in held.get("rounding", {}).items():
        rows.append((f"for comparison: the same weights rounded to {name}", found, int(found["bytes"])))
    if not rows:
        return ""
    names = list(dict.fromkeys(key for _, found, _ in rows for key in found if not key.startswith("bytes")))
    head = "".join(f'<th class="number">{html.escape(name)}</th>' for name in ("bytes", *names))
    lines = "".join(
        f'<tr><td>{html.escape(label)}</td><td class="number">{"" if size is None else f"{size:,}"}</td>'
        + "".join(f'<td class="number">{_number(found.get(name))}</td>' for name in names)
        + "</tr>"
        for label, found, size in rows
    )
    table = f'<div class="wide"><table><tr><th></th>{head}</tr>{lines}</table></div>'
    return f"<h2>Held-out data</h2>{table}{_said(held, after)}"


def _said(held: Mapping[str, Any], size: int | None) -> str:
    """Plainly, whether rounding would have been better."""
    own = held.get("candidates", {}).get(held.get("kept", ""), held.get("plan"))
    better = [
        name
        for name, found in held.get("rounding", {}).items()
        if own and size is not None and found["bytes"] <= size and found["loss"] < own["loss"]
    ]
    if not better:
        return ""
    return (
        f"<p><b>Plain rounding to {' or '.join(better)} is smaller and loses less than this plan</b> (before refitting "
        "and healing). Prefer it where your runtime has such kernels; fewer parameters are faster without any.</p>"
    )


def decisions_table(document: Mapping[str, Any]) -> str:
    """Every decision as a table."""
    timed = any(d["before"]["milliseconds"] is not None for d in document["decisions"])
    coded = document.get("verb") == "quantize"
    shown = ["rank", "bytes", "bits"] if coded else ["size", "parameters", "kept"]
    head = ["layer", "kind", "form", *shown, "loss", *(["ms before", "after"] if timed else []), "why"]
    replaced = {d["reason"] for d in document["decisions"] if d["form"] != "dense"}
    common = next(iter(replaced)) if len(replaced) == 1 else ""  # said once, not on every line
    rows = []
    for d in document["decisions"]:
        before, after = d["before"], d["after"]
        share = after["parameters"] / before["parameters"] if before["parameters"] else 1.0
        bits = 8 * after["bytes"] / max(before["parameters"], 1)
        left = (f"{after['bytes']:,}", f"{bits:.2f}") if coded else (f"{after['parameters']:,}", f"{share:.0%}")
        numbers = (d["size"] or "", *left, _number(d["loss"]))
        cells = [
            f"<td><code>{html.escape(d['site'])}</code></td><td>{html.escape(d['kind'])}</td>",
            f"<td>{html.escape(d['form'])}</td>{''.join(map(_cell, numbers))}",
            f"{_cell(_number(before['milliseconds']))}{_cell(_number(after['milliseconds']))}" if timed else "",
            f'<td class="reason">{"" if d["reason"] == common else html.escape(d["reason"])}</td>',
        ]
        dull = ' class="left"' if d["form"] == "dense" else ""
        rows.append(f"<tr{dull}>{''.join(cells)}</tr>")
    numeric = head[3:-1]
    heads = "".join(f'<th class="number">{name}</th>' if name in numeric else f"<th>{name}</th>" for name in head)
    said = f"<p>{html.escape(common)}</p>" if common else ""
    return f'{said}<div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _cell(value: Any) -> str:
    return f'<td class="number">{value}</td>'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _traces(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    frontier: Sequence[Mapping[str, Any]] = document["frontier"]
    traces: list[dict[str, Any]] = []
    if frontier:
        shown = [point for point in frontier if point["loss"] > 0]
        traces.append(
            {
                "name": "predicted, every size",
                "mode": "lines",
                "x": [point["bytes"] for point in shown],
                "y": [point["loss"] for point in shown],
                "text": [f"{point['keep']:.0%} kept" for point in shown],
            }
        )
    held, totals = document["held_out"], document["totals"]
    after = totals["selected_after"]["bytes"] if totals else 0
    points = [(f"{name}, measured", found["loss"], after) for name, found in held.get("candidates", {}).items()]
    if "plan" in held:
        points.append(("this plan, measured", held["plan"]["loss"], after))
    if final := _improved(document):
        points.append(("refitted and healed, measured", final["loss"], after))
    if "drawn" in held:
        points.append(("bits drawn at random, measured", held["drawn"]["loss"], held["drawn"]["bytes"]))
    points += [(f"rounded to {name}, measured", f["loss"], f["bytes"]) for name, f in held.get("rounding", {}).items()]
    for name, loss, size in points:
        if loss > 0:
            traces.append({"name": name, "mode": "markers", "marker": {"size": 11}, "x": [size], "y": [loss]})
    return traces
