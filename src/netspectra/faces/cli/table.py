"""Findings as tables that fit the window; names cut in the middle, control characters escaped, colour optional."""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from netspectra.analysis import RELATIVE_ERROR, Analysis
from netspectra.record import LEVELS, Level, Record, Value, Verdict
from netspectra.sources.guard import printable
from netspectra.weight import ITEMSIZE, Source

if TYPE_CHECKING:
    from netspectra.faces.cli.forecast import Forecast
    from netspectra.plan import Plan

__all__ = [
    "contents",
    "middle",
    "show_analysis",
    "show_formats",
    "show_metrics",
    "show_plan",
    "show_source",
    "terminal",
]

STYLE: dict[Level, str] = {"ok": "green", "note": "cyan", "warn": "yellow", "error": "bold red"}
# Columns of the table, the first to be dropped in a narrow window last.
COLUMNS = {
    "sigma_max": "σ max",
    "condition_number": "condition",
    "stable_rank": "stable rk",
    "sigma_min": "σ min",
    "effective_rank": "eff. rank",
    "k90": "k 90 %",
    "numerical_rank": "num. rank",
}
NAME = 28


def terminal() -> Console:
    """Colours and width of the terminal; unlimited width where output is no terminal and COLUMNS is not set."""
    console = Console(highlight=False, emoji=False)
    if not sys.stdout.isatty() and "COLUMNS" not in console._environ:
        console = Console(highlight=False, emoji=False, width=400)
    return console


def middle(text: str, width: int) -> str:
    """A dotted name in at most ``width`` characters: first without ``.weight``, then from the layer's number on.

    >>> middle("encoder.layer.11.attention.self.query.weight", 40)
    'encoder.layer.11.attention.self.query'
    >>> middle("encoder.layer.11.attention.self.query.weight", 28)
    '…11.attention.self.query'
    >>> middle("encoder.layer.11.attention.self.query.weight", 16)
    '…11.atte…f.query'
    """
    text = printable(text, limit=10**6)
    if len(text) > width:
        text = text.removesuffix(".weight")
    if len(text) > width and (number := re.search(r"(?<=\.)\d+\.", text)):
        text = f"…{text[number.start() :]}"
    if len(text) <= width:
        return text
    head = width // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def number(value: Value | None) -> str:
    """A value in at most nine characters; a lower bound says so.

    >>> number(Value(12345.678)), number(Value(0.00012345)), number(Value(1e9, low=1e9, note="at least"))
    ('1.235e+04', '1.234e-04', '≥ 1e+09')
    """
    if value is None or not value.known:
        return "-"
    x = float(value)
    if value.note.startswith("at least"):
        return f"≥ {x:.3g}"
    if x == int(x) and abs(x) < 1e6:
        return str(int(x))
    return f"{x:.3f}" if 0.1 <= abs(x) < 1000 else (f"{x:.1f}" if 1000 <= abs(x) < 10_000 else f"{x:.3e}")


def show_analysis(found: Analysis, *, verbose: bool = False) -> None:
    """Print the table of weights, then what stands out."""
    console = terminal()
    source = found.source
    console.print(
        f"{printable(str(source['path']))}: {_plural(len(found), 'weight')}, "
        f"{amount(found.summary()['parameters'])} of "
        f"{amount(source['parameters'])} parameters, {source['format']}",
        soft_wrap=True,
        markup=False,
    )
    if len(found) + sum(not s.routine for s in found.skipped) < found.expected:
        console.print(f"unfinished: {len(found)} of {found.expected} weights", style="yellow")
    console.print(_table(found, console.width, verbose))
    if len(found) > 1:
        _over_all(console, found)
        _with_depth(console, found)
    _stands_out(console, found)
    _skipped(console, found, verbose)


GAP = 2
CHANGE = 1.5  # times, from the first layer to the last


def _table(found: Analysis, width: int, verbose: bool) -> Table:
    """As many metrics as fit beside the names, which take the room that is left, cut where they must be."""
    columns: dict[str, list[str]] = {"shape": [f"{r.shape[0]} × {r.shape[1]}" for r in found]}
    if verbose:
        columns["route"] = [r.spectrum.route for r in found]
        columns["seconds"] = [f"{r.spectrum.seconds:.3f}" for r in found]
    verdicts = max((len(_verdicts(record).plain) for record in found), default=0)
    longest = max((len(printable(record.name)) for record in found), default=0)
    room = width - sum(_width(*column) + GAP for column in columns.items()) - max(len("verdict"), min(verdicts, 30))
    names = [name for name in found.metric_names if name.startswith(RELATIVE_ERROR)]
    usual = [name for name in COLUMNS if name in found.metric_names]
    names += usual if len(usual) == len(COLUMNS) else [n for n in found.metric_names if n not in names]
    for name in names:
        title = COLUMNS.get(name, name.replace(RELATIVE_ERROR, "error k="))
        cells = [number(record.metrics.get(name)) for record in found]
        if room - _width(title, cells) - GAP < min(NAME, longest) + GAP:
            break
        columns[title] = cells
        room -= _width(title, cells) + GAP
    return _drawn(found, columns, max(NAME, min(longest, room - GAP)))


def _framed() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))


def _width(title: str, cells: list[str]) -> int:
    return max(map(len, (title, *cells)))


def _drawn(found: Analysis, columns: Mapping[str, list[str]], left: int) -> Table:
    table = _framed()
    table.add_column("weight", no_wrap=True, width=left)
    for title, cells in columns.items():
        justify = "left" if title == "route" else "right"
        table.add_column(title, justify=justify, no_wrap=True, width=_width(title, cells))
    table.add_column("verdict", no_wrap=True, max_width=30)
    for position, record in enumerate(found):
        row = [Text(cells[position]) for cells in columns.values()]
        table.add_row(Text(middle(record.name, left)), *row, _verdicts(record))
    return table


def _over_all(console: Console, found: Analysis) -> None:
    """The main metrics over all weights: what is unknown is counted, not averaged in."""
    table = _framed()
    heads = ("over all weights", "median", "mean by size", "smallest", "largest", "known")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left", no_wrap=True)
    usual = all(name in found.aggregates for name in COLUMNS)
    for name in (*COLUMNS, "alpha") if usual else found.metric_names:
        one = found.aggregates.get(name)
        if one is None or one.smallest is None or one.largest is None:
            continue
        at_least = "≥ " if one.bounds else ""
        numbers = (one.median, one.weighted_mean, one.smallest[0], one.largest[0])
        cells = [number(Value(x)) if x is not None else "-" for x in numbers]
        known = f"{one.known} of {one.known + one.unknown}" + f", {one.bounds} at least" * bool(one.bounds)
        title = COLUMNS.get(name, name.replace(RELATIVE_ERROR, "error k="))
        table.add_row(title, cells[0], at_least + cells[1], cells[2], at_least + cells[3], known)
    if table.row_count:
        console.print()
        console.print(table)


def _with_depth(console: Console, found: Analysis) -> None:
    """The strongest changes from the first layer to the last, if they are beyond chance and more than a little."""
    chance = 0.01 / max(len(found.trends), 1)
    told = [t for t in found.trends if t.p < chance and max(t.first, t.last) > CHANGE * min(t.first, t.last)]
    told.sort(key=lambda t: -abs(math.log(t.last / t.first)))
    for t in told[:3]:
        line = f"with depth: {t.metric} of {printable(t.role)} goes {number(Value(t.first))} → {number(Value(t.last))}"
        console.print(Text(f"{line} over {t.layers} layers (τ {t.tau:.2f})"), soft_wrap=True)
    if len(told) > 3:
        console.print(Text(f"with depth: {len(told) - 3} more trends in the JSON's summary", style="dim"))


def _spoken(record: Record) -> list[Verdict]:
    """What asks for a look; what only describes stays in the exports."""
    return [verdict for verdict in record.verdicts if verdict.level != "ok"]


def _verdicts(record: Record) -> Text:
    text = Text()
    for verdict in _spoken(record):
        text.append(("" if not text else ", ") + verdict.rule, style=STYLE[verdict.level])
    return text or Text("ok", style=STYLE["ok"])


def _stands_out(console: Console, found: Analysis) -> None:
    """One paragraph a rule: who, what, how sure the field is, what to do."""
    rules: dict[str, list[tuple[Record, Verdict]]] = {}
    for record in found:
        for verdict in _spoken(record):
            rules.setdefault(verdict.rule, []).append((record, verdict))
    for rule, said in sorted(rules.items(), key=lambda item: -LEVELS.index(item[1][0][1].level)):
        _, verdict = said[0]
        line = Text(f"{verdict.level}: {rule} ({verdict.evidence.get('standing', '')})", style=STYLE[verdict.level])
        line.append(f", {_plural(len(said), 'weight')}: {verdict.evidence.get('advice', '')}", style="default")
        console.print(line, soft_wrap=True)
        for record, verdict in said[:3]:
            console.print(Text(f"  {printable(record.name)}: {verdict.message}", style="dim"), soft_wrap=True)
        if len(said) > 3:
            console.print(Text(f"  and {len(said) - 3} more", style="dim"))


def _skipped(console: Console, found: Analysis, verbose: bool) -> None:
    reasons = Counter((s.reason, s.routine) for s in found.skipped)
    for (reason, routine), count in reasons.most_common():
        if verbose or not routine:
            names = [s.name for s in found.skipped if s.reason == reason]
            shown = ", ".join(printable(name, 80) for name in names[: None if verbose else 3])
            more = "" if verbose or count <= 3 else f" and {count - 3} more"
            style = "dim" if routine else "yellow"
            console.print(Text(f"skipped {count}: {reason}: {shown}{more}", style=style), soft_wrap=True)
    routine = sum(count for (_, usual), count in reasons.items() if usual)
    if routine and not verbose:
        console.print(f"{routine} vectors and other tensors without a spectrum left out (-v lists them)", style="dim")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def amount(count: int) -> str:
    """A count for people.

    >>> amount(22713216), amount(950)
    ('22.7 M', '950')
    """
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def bytes_amount(count: float) -> str:
    """A number of bytes for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def seconds_amount(seconds: float) -> str:
    """A duration for people."""
    if seconds < 100:
        return f"{max(seconds, 0.1):.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def contents(source: Source, estimate: Forecast) -> dict[str, Any]:
    """What `inspect` finds, as plain data."""
    return {
        "schema": 1,
        "source": {
            "path": source.path,
            "format": source.format,
            "parameters": source.parameters,
            "tensors": len(source.tensors),
        },
        "weights": [
            {
                "name": weight.name,
                "kind": weight.kind,
                "shape": list(weight.shape),
                "dtype": weight.dtype,
                "aliases": list(weight.aliases),
                "parameters": weight.parameters,
                "notes": list(weight.notes),
            }
            for weight in source
        ],
        "skipped": [asdict(s) for s in source.skipped],
        "forecast": asdict(estimate),
    }


def show_source(source: Source, estimate: Forecast, *, verbose: bool = False) -> None:
    """Print what a source holds."""
    console = terminal()
    size = sum(ref.numel * ITEMSIZE.get(ref.dtype, 0) for ref in source.tensors)
    console.print(
        f"{printable(source.path)}: {source.format}, {_plural(len(source.tensors), 'tensor')}, "
        f"{amount(source.parameters)} "
        f"parameters, {bytes_amount(size)}",
        soft_wrap=True,
        markup=False,
    )
    shapes = [f"{weight.shape[0]} × {weight.shape[1]}" for weight in source]
    names = [printable(f"{w.name} = {', '.join(w.aliases)}" if w.aliases else w.name, 10**6) for w in source]
    columns = {"kind": [w.kind for w in source], "shape": shapes, "dtype": [w.dtype for w in source]}
    room = console.width - sum(_width(*column) + GAP for column in columns.items())
    left = max(NAME, min(max(map(len, names), default=0), room))
    table = _framed()
    table.add_column("weight", no_wrap=True, width=left)
    for title, cells in columns.items():
        table.add_column(
            title, no_wrap=True, width=_width(title, cells), justify="right" if title == "shape" else "left"
        )
    for name, *cells in zip(names, *columns.values(), strict=True):
        table.add_row(Text(middle(name, left)), *map(Text, cells))
    console.print(table)
    _skipped_tensors(console, source, verbose)
    console.print(
        f"an analysis would take about {seconds_amount(estimate.seconds)} on {estimate.cores} cores and "
        f"{bytes_amount(estimate.bytes)} of memory (estimated)",
        soft_wrap=True,
    )


def _skipped_tensors(console: Console, source: Source, verbose: bool) -> None:
    grouped: dict[str, list[str]] = {}
    for skipped in source.skipped:
        grouped.setdefault(skipped.reason, []).append(skipped.name)
    for reason, names in grouped.items():
        shown = ", ".join(printable(name, 80) for name in names[: None if verbose else 3])
        more = "" if verbose or len(names) <= 3 else f" and {len(names) - 3} more"
        console.print(Text(f"skipped {len(names)}: {reason}: {shown}{more}", style="dim"), soft_wrap=True)


def show_metrics(entries: Sequence[Mapping[str, str]]) -> None:
    """Print the glossary of metrics."""
    console = terminal()
    for entry in entries:
        when = " with --thorough" if entry["when"] == "thorough" else ""
        head = Text(entry["name"], style="bold"), Text(entry["formula"], style="cyan")
        console.print(*head, Text(f"({entry['range']}){when}"))
        console.print(Text(f"  {entry['meaning']}"))
        console.print(Text(f"  {entry['reference']}", style="dim"))


def show_formats() -> None:
    """Print the formats and whether what they need is installed."""
    from importlib.util import find_spec

    from netspectra.sources import FORMATS

    console = terminal()
    for reader in FORMATS.values():
        ready = all(find_spec(module) is not None for module in reader.needs)
        state = "ready" if ready else f"needs pip install 'netspectra[{reader.extra}]'"
        console.print(f"{reader.name}: {state}", markup=False)


def show_plan(plan: Plan) -> None:
    """What becomes of every site, what held-out data says, and plain rounding beside it."""
    console = terminal()
    timed = any(d.before.milliseconds is not None for d in plan)
    coded = plan.verb == "quantize"
    shown = ["rank", "bytes", "bits"] if coded else ["size", "parameters", "kept"]
    columns = ["layer", "form", *shown, "loss", *(["ms"] if timed else [])]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("layer", "form") else "right")
    alone = [d for d in plan if d.form == "dense"]
    for d in plan:
        if d.form == "dense":
            continue
        share = d.after.parameters / max(d.before.parameters, 1)
        size, left = (d.after.bytes, f"{plan.bits(d):.2f}") if coded else (d.after.parameters, f"{share:.0%}")
        cells = [f"{size:,}", left, "" if d.loss is None else f"{d.loss:.3g}"]
        if timed:
            times = (d.before.milliseconds, d.after.milliseconds)
            cells.append("" if None in times else f"{times[0]:.2f} -> {times[1]:.2f}")
        table.add_row(middle(d.site, NAME), d.form, str(d.size), *cells)
    console.print(table)
    for reason, count in Counter(d.reason for d in alone).most_common():
        console.print(f"{count} x {printable(reason)}", style="dim")
    for line in plan.summary():
        console.print(line)
