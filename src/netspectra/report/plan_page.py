"""The page of a plan: the frontier, what held-out data says, every decision. Inert, self-contained, plain data in."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from netspectra.report.pictures import INKS, html_page

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["decisions_table", "render_plan"]

SYMBOLS = ("circle-open", "square-open", "diamond-open", "triangle-up-open", "cross-open", "x-open", "star-open")
CAPTION = (
    "Predictions add up what each layer loses alone; what is measured includes how these errors act on one another, "
    "and samples that nothing was fitted to. Trust the line to compare sizes, the points for what is left."
)
WAYS = {"uniform": "the same bits everywhere", "random": "bits drawn at random", "weights": "bits by the weights alone"}
MISSING = (
    " Bits chosen by losses that are measured layer by layer are not among them: <code>--weigh measured</code> adds "
    "them, for three runs a layer."
)


def render_plan(document: Mapping[str, Any]) -> str:
    """One complete, self-contained HTML page of a plan; every string of it is treated as text.

    Args:
        document: `netspectra.plan.Plan.to_dict`.
    """
    verb = html.escape(str(document["verb"]))
    traces = _traces(document)
    body = [
        f"<p>{_asked(document['options'])}</p>",
        _cards(document),
        *(f"<p>{html.escape(note)}</p>" for note in document["notes"]),
    ]
    spent = _ways(document["held_out"].get("frontier", []))
    figures = [
        *([_figure("Size against loss", traces)] if traces else []),
        *([_figure("Ways to spend the same bytes", spent)] if spent else []),
    ]
    below = [
        f"<p>{CAPTION}</p>" if traces else "",
        f"<p>{_told(document['held_out']['frontier'])}</p>" if spent else "",
        _quality(document),
        "<h2>Every layer</h2>",
        decisions_table(document),
    ]
    return html_page(f"netspectra {verb}", "\n".join(body), figures, "\n".join(below))


def _figure(title: str, traces: Sequence[Mapping[str, Any]]) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure(data=traces)
    figure.update_layout(
        title=title,
        height=480,
        colorway=INKS,
        margin={"t": 10, "r": 20, "b": 130, "l": 70},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "entrywidth": 210},
    )
    figure.update_xaxes(title="bytes of the selected weights", tickformat="~s", nticks=6)
    figure.update_yaxes(title="loss a sample", type="log", dtick=1)
    return figure


def _asked(options: Mapping[str, Any]) -> str:
    """What was asked for, in words: what is off or empty is left out."""
    return html.escape("; ".join(_wording(name, value) for name, value in options.items() if _given(value)))


def _given(value: Any) -> bool:
    return value not in (False, None, [], (), "", {})


def _wording(name: str, value: Any) -> str:
    """
    >>> _wording("held_out", 0.125), _wording("centre", True), _wording("levels", [8, 4])
    ('held out 0.125', 'centre', 'levels 8 4')
    """
    if isinstance(value, Mapping):
        value = ", ".join(_wording(key, inner) for key, inner in value.items() if _given(inner))
    elif isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    elif isinstance(value, float):
        value = f"{value:,.0f}" if value >= 1e5 else f"{value:.6g}"
    return name.replace("_", " ") + ("" if value is True else f" {value}")


def _cards(document: Mapping[str, Any]) -> str:
    totals, finish = document["totals"], document.get("finish", {})
    cards: list[tuple[str, str]] = []
    if totals:
        for what in ("parameters", "bytes"):
            before, after = totals["model_before"][what], totals["model_after"][what]
            cards.append((f"{after:,}", f"{what} ({after / max(before, 1):.1%} of {before:,})"))
        if document.get("verb") == "quantize":
            bits = 8 * totals["selected_after"]["bytes"] / max(totals["selected_before"]["parameters"], 1)
            cards.append((f"{bits:.2f}", "bits a number of the selected weights, scales included"))
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
    for place, (name, loss, size) in enumerate(points):
        if loss > 0:
            marker = {"size": 11, "symbol": SYMBOLS[place % len(SYMBOLS)]}  # open: two may lie on one another
            traces.append({"name": name, "mode": "markers", "marker": marker, "x": [size], "y": [loss]})
    return traces


def _ways(frontier: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each way to spend the bytes of so many bits everywhere, measured."""
    names = dict.fromkeys(name for point in frontier for name in point["losses"])
    return [
        {
            "name": WAYS.get(name, f"bits by {name} losses"),
            "mode": "lines+markers",
            "marker": {"size": 11, "symbol": symbol},
            "x": [point["bytes"] for point in frontier],
            "y": [point["losses"][name] or None for point in frontier],
            "text": [f"the bytes of {point['bits']} bits everywhere" for point in frontier],
        }
        for name, symbol in zip(names, SYMBOLS, strict=False)
    ]


def _told(frontier: Sequence[Mapping[str, Any]]) -> str:
    """What the second picture shows, and how to get the way that it lacks."""
    samples = frontier[0]["samples"]
    missing = "" if any("measured" in point["losses"] for point in frontier) else MISSING
    return f"Ways to spend the same bytes: each point is measured on {samples} held-out samples.{missing}"
