"""The page of a comparison: the verdict, a map of the change (layers by kinds), every weight. No script at all."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from netspectra.report.page import content_policy

__all__ = ["place_of", "render_comparison"]

SHADES = 9  # of the map; one a decade of relative change, 1e-8 and below to 1
COLOURS = ("#eef4fb", "#d9e7f6", "#bdd6ee", "#99c0e3", "#73a5d4", "#5088c1", "#376ca8", "#28518a", "#1f3a68")
STYLE = (
    """
:root { color-scheme: light dark; --ink: #1c2430; --quiet: #5b6675; --line: #d8dee6; --page: #fff; --soft: #f4f6f9;
  --ok: #1d7a46; --warn: #9a5b00; --error: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --quiet: #9aa6b5; --line: #333c48; --page: #14181d; --soft: #1c2229;
    --ok: #6fd19b; --warn: #f0b45c; --error: #ff8a80; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem }
p, .quiet { color: var(--quiet); margin: .3rem 0 } p { overflow-wrap: anywhere }
.verdict { border: 1px solid var(--line); border-left: .4rem solid var(--warn); border-radius: .4rem;
  padding: .7rem 1rem; margin: 1rem 0; background: var(--soft) }
.verdict.ok { border-left-color: var(--ok) } .verdict.error { border-left-color: var(--error) }
.verdict b { font-size: 1.25rem } .verdict p { color: var(--ink) }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .9rem; min-width: 8rem;
  color: var(--quiet) }
.card b { display: block; font-size: 1.2rem; font-weight: 600; color: var(--ink) }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
table.list { width: 100% }
.list th, .list td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap }
.list td.number, .list th.number { text-align: right }
.map th { font-weight: 500; color: var(--quiet); text-align: right; padding: .15rem .5rem; white-space: nowrap }
.map thead th { vertical-align: bottom } .map thead th span { writing-mode: vertical-rl; transform: rotate(180deg);
  text-align: left }
.map td { min-width: 3.6rem; height: 1.7rem; text-align: center; font-size: .78rem; border: 2px solid var(--page);
  border-radius: .3rem; padding: 0 .2rem }
.map td.none { background: var(--soft); color: var(--quiet) } .map td.gap { background: none }
.map td.rounding { background: none; outline: 1px dashed var(--line); outline-offset: -3px; color: var(--quiet) }
.legend { display: flex; flex-wrap: wrap; gap: .3rem; align-items: center; font-size: .8rem; color: var(--quiet);
  margin: .6rem 0 } .legend span { padding: .1rem .5rem; border-radius: .2rem }
code { font-size: .92em }
"""
    + "\n".join(
        f".s{i} {{ background: {colour}; color: {'#1c2430' if i < 5 else '#fff'} }}" for i, colour in enumerate(COLOURS)
    )
    + "\n"
)
LEVELS = {"identical": "ok", "same-up-to-precision": "ok", "unrelated": "error", "different-architecture": "error"}


def render_comparison(document: Mapping[str, Any], names: Sequence[str]) -> str:
    """One complete, self-contained HTML page; nothing of it runs or is loaded, every string is treated as text.

    Args:
        document: `Comparison.to_dict`.
        names: of the sources, the first one first.
    """
    pairs = zip(names[1:], [document, *document.get("candidates", ())], strict=True)
    body = "\n".join(_candidate(names[0], name, one) for name, one in pairs)
    ranking = _ranking(document.get("ranking"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(scripts=(), styles=(STYLE,))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>netspectra compare</title><style>{STYLE}</style></head><body>\n"
        f"<h1>netspectra compare</h1>\n{body}\n{ranking}\n</body></html>\n"
    )


def _candidate(first: str, name: str, one: Mapping[str, Any]) -> str:
    summary = one["summary"]
    level = LEVELS.get(summary["lineage"], "warn")
    rows = [row["delta"] | {"kind": row["kind"], "shape": row["shape"]} for row in one["weights"] if row.get("delta")]
    notes = "".join(f"<p>{_text(note)}</p>" for note in summary["notes"])
    return (
        f'<p><code>{_text(first)}</code> to <code>{_text(name)}</code></p><div class="verdict {level}">'
        f"<b>{_text(summary['lineage'])}</b><p>{_text(summary['lineage_message'])}</p></div>"
        f"{_cards(summary)}{notes}{_alone(summary)}<h2>Where it changed</h2>{_map(rows)}"
        f"<h2>Every weight</h2>{_list(rows)}"
    )


def _cards(summary: Mapping[str, Any]) -> str:
    seen = summary["lineage_evidence"]
    cards = [
        (f"{seen['equal']} / {seen['rounding']} / {seen['changed']}", "weights equal / rounded / changed"),
        (f"{seen['relative_change']:.3g}", "relative change of all weights"),
        (f"{seen['cosine']:.5f}", "cosine of all weights"),
        (str(seen["vectors_changed"]), f"of {len(summary['vectors'])} other tensors changed"),
        (f"{summary['matched']:.1%}", "of the numbers matched"),
    ]
    shown = "".join(f'<div class="card"><b>{_text(value)}</b>{_text(label)}</div>' for value, label in cards)
    return f'<div class="cards">{shown}</div>'


def _alone(summary: Mapping[str, Any]) -> str:
    told = ""
    for side, key in (("first", "only_before"), ("second", "only_after")):
        if summary[key]:
            names = ", ".join(_text(row["name"]) for row in summary[key][:8])
            told += f"<p>{len(summary[key])} weights in the {side} only: {names}</p>"
    return told


def place_of(name: str) -> tuple[str, str]:
    """Layer and kind of a weight: the first number in its name, and the name without it.

    >>> place_of("encoder.layer.3.attention.query.weight")
    ('3', 'encoder.layer.*.attention.query')
    """
    short = re.sub(r"\.weight(?=$|\[)", "", name)
    found = re.search(r"(^|[._])(\d+)(?=$|[._\[])", short)
    if not found:
        return "", short
    return found[2], f"{short[: found.start(2)]}*{short[found.end(2) :]}"


def _map(rows: Sequence[Mapping[str, Any]]) -> str:
    """Layers by kinds: a cell's colour is the decade of the relative change."""
    cells = {place_of(row["before"]): row for row in rows}
    kinds = list(dict.fromkeys(kind for layer, kind in cells if layer))
    layers = sorted({layer for layer, _ in cells if layer}, key=int)
    start = _common(kinds)
    head = "".join(f'<th scope="col"><span>{_text(kind[len(start) :])}</span></th>' for kind in kinds)
    lines = [
        f'<tr><th scope="row">{_text(layer)}</th>'
        + "".join(_cell(cells.get((layer, kind))) for kind in kinds)
        + "</tr>"
        for layer in layers
    ]
    shade = "".join(f'<span class="s{i}">{_decade(i)}</span>' for i in range(SHADES))
    legend = f'<div class="legend">relative change {shade}<span>= equal</span><span>~ rounding only</span></div>'
    caption = f'<p class="quiet">Rows are layers, columns are <code>{_text(start)}…</code></p>' if start else ""
    grid = f'<div class="wide"><table class="map"><thead><tr><th></th>{head}</tr></thead>{"".join(lines)}</table></div>'
    plain = "".join(f"<tr><th>{_text(kind)}</th>{_cell(row)}</tr>" for (layer, kind), row in cells.items() if not layer)
    rest = f'<table class="map">{plain}</table>' if plain else ""
    return legend + caption + (grid if layers else "") + rest


def _common(kinds: Sequence[str]) -> str:
    """What all kinds begin with, up to a dot."""
    if len(kinds) < 2:
        return ""
    low, high = min(kinds), max(kinds)
    same = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low[: low.rfind(".", 0, same) + 1]


def _decade(shade: int) -> str:
    return f"1e{shade - SHADES + 1}" if shade < SHADES - 1 else "1"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return '<td class="gap"></td>'
    title = f'title="{_text(row["before"])}"'
    if row["change"] != "change":
        return f'<td class="{row["change"]}" {title}>{"=" if row["change"] == "none" else "~"}</td>'
    size = row["relative_change"]
    shade = SHADES - 1 if not size else min(max(round(math.log10(size)) + SHADES - 1, 0), SHADES - 1)
    return f'<td class="s{shade}" {title}>{_number(size, ".2g")}</td>'


def _list(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ("weight", "kind", "shape", "change", "relative", "cosine", "spectral", "rank", "spikes", "new directions")
    lines = []
    for row in rows:
        numbers = (
            _number(row["relative_change"], ".3g"),
            _number(row["cosine"], ".5f"),
            _number(row["spectral_change"], ".3g"),
            str(row["rank"]),
            _number(row["metrics"].get("spikes"), ".0f"),
            _number(row["intruders"], ".0f"),
        )
        texts = (row["kind"], " x ".join(map(str, row["shape"])), row["change"])
        cells = "".join(f"<td>{_text(text)}</td>" for text in texts)
        cells += "".join(f'<td class="number">{value}</td>' for value in numbers)
        lines.append(f"<tr><td><code>{_text(row['before'])}</code></td>{cells}</tr>")
    heads = "".join(f"<th{' class=number' if i > 3 else ''}>{name}</th>" for i, name in enumerate(head))
    return f'<div class="wide"><table class="list"><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _ranking(ranking: Mapping[str, Any] | None) -> str:
    if not ranking:
        return ""
    head = "".join(f'<th class="number">{_text(name)}</th>' for name in ranking["candidates"])
    lines = "".join(
        f"<tr><td>{_text(metric['title'])}</td>"
        + "".join(f'<td class="number">{_number(value, ".4g")}</td>' for value in metric["values"])
        + "</tr>"
        for metric in ranking["metrics"]
    )
    table = f'<div class="wide"><table class="list"><tr><th>metric</th>{head}</tr>{lines}</table></div>'
    return f"<h2>All of them by their spectra</h2>{table}<p>{_text(ranking['caution'])}</p>"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _text(text: Any) -> str:
    return html.escape(str(text))
