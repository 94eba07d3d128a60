"""``netspectra watch``: a training while it runs, in the browser or in the terminal."""

from __future__ import annotations

import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netspectra.faces.cli.app import app

if TYPE_CHECKING:
    from netspectra.timeline import Timeline

BARS = "▁▂▃▄▅▆▇█"
PAUSE = 2.0


@app.command(
    epilog="Examples: netspectra watch train.run   |   netspectra watch train.run --terminal   (over ssh)   |   "
    "netspectra watch today.run --beside yesterday.run"
)
def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run file that a monitor writes, or has written.")],
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", metavar="RUN", help="Draw this run beside the first.")
    ] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show a table here instead of a page.")] = False,
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port.", show_default="a free one")] = 0,
) -> None:
    """Show a training while it runs: a page on this machine alone, or a table in the terminal."""
    from netspectra.timeline import Timeline

    runs = [run, *(beside or ())]
    for path in runs:
        Timeline.read(path)
    if terminal:
        _in_terminal(run)
        return
    from netspectra.faces.server import listening, serve

    token = secrets.token_urlsafe(24)
    with listening(port) as held:
        print("watching, until Ctrl-C; the address is for you alone:", file=sys.stderr)
        print(f"http://127.0.0.1:{held.getsockname()[1]}/?token={token}", flush=True)
        serve(runs, held, token)


def _in_terminal(run: Path) -> None:
    """A table that is drawn anew every other second until the training has ended; once where this is no terminal."""
    from rich.console import Console
    from rich.live import Live

    from netspectra.timeline import Timeline

    console = Console()
    found = Timeline.read(run)
    if not console.is_terminal:
        Console(width=160).print(_picture(found, 160, 1000))
        return
    with Live(_picture(found, console.width, console.height), console=console, auto_refresh=False) as live:
        while not (found.state and found.state["ended"]):
            time.sleep(PAUSE)
            found = Timeline.read(run)
            live.update(_picture(found, console.width, console.height), refresh=True)


def _picture(found: Timeline, width: int, height: int) -> Any:
    """State, a row a weight with the course of sigma_1, and the newest alarms; no more rows than there is room."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from netspectra.faces.cli.table import middle

    lines = max(2, min(len(found.alarms), height // 4))
    course = 24 if width >= 110 else 8
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("weight", "sigma_1", "", "since begin", "norm", "stable rank", "gradient", "alarms"):
        left = title in ("weight", "", "alarms")
        table.add_column(title, justify="left" if left else "right", no_wrap=title != "alarms", overflow="ellipsis")
    rows = found.rows()
    told = {alarm["name"] for alarm in found.alarms if alarm["until"] is None}
    shown = sorted(range(len(rows)), key=lambda i: rows[i][0] not in told)[: max(4, height - 5 - lines)]
    for i in sorted(shown):
        name, _, sigma, since, norm, rank, gradient, rules = rows[i]
        table.add_row(
            Text(middle(name, max(14, width - 78 - course))), sigma, Text(_course(found, name, course), style="cyan"),
            since, norm, rank, gradient, Text(rules, style="bold red"),
        )  # fmt: skip
    parts: list[Any] = [Text(_state(found), style="bold"), table]
    if len(rows) > len(shown):
        parts.append(Text(f"and {len(rows) - len(shown)} more; the page shows all", style="dim"))
    for alarm in list(found.alarms)[-lines:]:
        until = "" if alarm["until"] is None else f" to {alarm['until']}"
        line = f"step {alarm['step']}{until}: {alarm['rule']}: {middle(alarm['name'], 40)}: {alarm['message']}"
        parts.append(Text(line, style="red" if alarm["until"] is None else "dim", overflow="ellipsis", no_wrap=True))
    return Group(*parts)


def _state(found: Timeline) -> str:
    if found.state is None:
        return f"{found.path.name}: nothing was looked at yet"
    state, taken = found.state, found.overhead or 0.0
    told = [f"{found.path.name}: step {state['step']}", "ended" if state["ended"] else "running"]
    told.append(f"{len(found.alarms)} alarm{'s' * (len(found.alarms) != 1)}, {taken:.1%} of the time")
    lane = state["lanes"]["cheap"]
    if lane["gap"] > 2 * lane["every"]:
        told.append(f"looks spaced out to every {lane['gap']:.0f} steps by the budget")
    return ", ".join(told)


def _course(found: Timeline, name: str, width: int) -> str:
    """The course of sigma_1 as blocks, on a logarithmic scale."""
    import numpy as np

    values = found.curve(name)[1] if "sigma_1" in found.signals else np.zeros(0)
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return ""
    logs = np.log(values[np.unique(np.linspace(0, len(values) - 1, width).round().astype(int))])
    low, high = float(logs.min()), max(float(logs.max()), float(logs.min()) + 0.1)
    return "".join(BARS[min(len(BARS) - 1, int(len(BARS) * (log - low) / (high - low)))] for log in logs)
