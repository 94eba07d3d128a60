"""The page of a plan: the frontier, what held-out data says, every decision. Inert, self-contained, plain data in."""

from __future__ import annotations

import html
import math
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
CUT = " Sizes whose predicted loss is under a hundredth of the least that was measured are left out."
NEGLIGIBLE = 0.01  # of the least measured loss: smaller predictions would press all that was measured into a corner
DECADES = 8  # ticks of an axis of losses, at most
WAYS = {"uniform": "the same bits everywhere", "random": "bits drawn at random", "weights": "bits by the weights alone"}
WORDS = {"layer": "", "kind": "", "form": "", "why": "reason"}  # columns of text, and the class of their cells
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
        f"<p>{CAPTION}{CUT if _cut(document) else ''}</p>" if traces else "",
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
        margin={"t": 10, "r": 20, "b": 60 + 20 * math.ceil(len(traces) / 3), "l": 60},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "entrywidth": 210},
    )
    losses = [y for trace in traces for y in trace["y"] if y]
    decades = math.log10(max(losses) / min(losses)) if losses else 1
    figure.update_xaxes(title={"text": "bytes of the selected weights", "standoff": 10}, tickformat="~s", nticks=6)
    figure.update_yaxes(title={"text": "loss a sample", "standoff": 12}, automargin=True, type="log",
                        dtick=max(1, math.ceil(decades / DECADES)))  # fmt: skip
    return figure


def _asked(options: Mapping[str, Any]) -> str:
    """What was asked for, in words: what is off or empty is left out."""
    said = {"budget": "", "heal_rate": options.get("heal")}  # the budget has a name of its own
    told = {name: value for name, value in options.items() if _given(value) and said.get(name, True)}
    return html.escape("; ".join(_wording(name, value) for name, value in told.items()))


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
        rows.append(("bits drawn at random, to compare", held["drawn"], int(held["drawn"]["bytes"])))
    for name, found in held.get("rounding", {}).items():
        rows.append((f"rounded to {name}, to compare", found, int(found["bytes"])))
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
    """Every decision as a table; columns that say nothing anywhere are left out."""
    decisions: Sequence[Mapping[str, Any]] = document["decisions"]
    replaced = {d["reason"] for d in decisions if d["form"] != "dense"}
    common = next(iter(replaced)) if len(replaced) == 1 else ""  # said once, not on every line
    columns = {name: cells for name, cells in _columns(document, common).items() if any(cells)}
    numeric = [name for name in columns if name not in WORDS]
    heads = "".join(f'<th class="number">{name}</th>' if name in numeric else f"<th>{name}</th>" for name in columns)
    rows = []
    for place, decision in enumerate(decisions):
        cells = "".join(_cell(cells[place], WORDS.get(name, "number")) for name, cells in columns.items())
        dull = ' class="left"' if decision["form"] == "dense" else ""
        rows.append(f"<tr{dull}>{cells}</tr>")
    said = f"<p>{html.escape(common)}</p>" if common else ""
    return f'{said}<div class="wide"><table><tr>{heads}</tr>{"".join(rows)}</table></div>'


def _columns(document: Mapping[str, Any], common: str) -> dict[str, list[str]]:
    """The cells of every column, by its heading."""
    decisions: Sequence[Mapping[str, Any]] = document["decisions"]
    coded = document.get("verb") == "quantize"
    before, after = [d["before"] for d in decisions], [d["after"] for d in decisions]
    both = list(zip(before, after, strict=True))
    sizes = [str(d["size"] or "") for d in decisions]
    if coded:
        shown = {
            "rank": sizes,
            "bytes": [f"{now['bytes']:,}" for now in after],
            "bits": [f"{8 * now['bytes'] / max(was['parameters'], 1):.2f}" for was, now in both],
        }
    else:
        share = [now["parameters"] / was["parameters"] if was["parameters"] else 1.0 for was, now in both]
        shown = {
            "size": sizes,
            "parameters": [f"{now['parameters']:,}" for now in after],
            "kept": [f"{part:.0%}" for part in share],
        }
    known = any(d["loss"] is not None for d in decisions if d["form"] != "dense")
    return {
        "layer": [f"<code>{html.escape(d['site']).replace('.', '.<wbr>')}</code>" for d in decisions],
        "kind": [html.escape(d["kind"]) for d in decisions],
        "form": [html.escape(d["form"]) for d in decisions],
        **shown,
        "loss": [_number(d["loss"]) if known else "" for d in decisions],
        "ms before": [_number(was["milliseconds"]) for was in before],
        "ms after": [_number(now["milliseconds"]) for now in after],
        "why": ["" if d["reason"] == common else html.escape(d["reason"]) for d in decisions],
    }


def _cell(value: str, kind: str) -> str:
    return f'<td class="{kind}">{value}</td>' if kind else f"<td>{value}</td>"


def _number(value: float | None) -> str:
    """
    >>> _number(0.98765432), _number(0.999987654), _number(None)
    ('0.9877', '0.999988', '')
    """
    if value is None:
        return ""
    return f"{value:.6f}" if 0.9995 <= value < 0.9999995 else f"{value:.4g}"  # a cosine near 1


def _traces(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    frontier: Sequence[Mapping[str, Any]] = document["frontier"]
    traces: list[dict[str, Any]] = []
    if frontier:
        floor = _floor(document)
        shown = [point for point in frontier if point["loss"] > floor]
        traces.append(
            {
                "name": "predicted, every size",
                "mode": "lines",
                "x": [point["bytes"] for point in shown],
                "y": [point["loss"] for point in shown],
                "text": [f"{point['keep']:.0%} kept" for point in shown],
            }
        )
    points = _points(document)
    for place, (name, loss, size) in enumerate(points):
        if loss > 0:
            marker = {"size": 11, "symbol": SYMBOLS[place % len(SYMBOLS)]}  # open: two may lie on one another
            traces.append({"name": name, "mode": "markers", "marker": marker, "x": [size], "y": [loss]})
    return traces


def _points(document: Mapping[str, Any]) -> list[tuple[str, float, int]]:
    """What was measured: name, loss, bytes."""
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
    return points


def _floor(document: Mapping[str, Any]) -> float:
    """Predicted losses that are not drawn."""
    return NEGLIGIBLE * min((loss for _, loss, _ in _points(document) if loss > 0), default=0.0)


def _cut(document: Mapping[str, Any]) -> bool:
    floor = _floor(document)
    return any(0 < point["loss"] <= floor for point in document["frontier"])


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
