"""``netspectra report``: exports of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import CsvOut, HtmlOut, JsonOut, Verbose, app
from netspectra.faces.cli.output import export, tell_files, writable


@app.command(
    epilog="Examples: netspectra report job.run --html report.html   |   "
    "netspectra report monday.run --beside tuesday.run --html both.html"
)
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run file of an analysis or a monitor, finished or not.")],
    html: HtmlOut = None,
    json_out: JsonOut = None,
    csv: CsvOut = None,
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", metavar="RUN", help="Of monitors: draw this run beside the first.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Export a run file, also while it is written; without --html, --json or --csv show its table."""
    from netspectra.analysis import Analysis
    from netspectra.runfile import RunFile
    from netspectra.timeline import Timeline, is_monitor

    kept = RunFile.read(run)
    writable(html, json_out, csv)
    if is_monitor(kept.meta):
        seen = Timeline.from_run(kept)
        others = [Timeline.read(path) for path in beside or ()]
        export(seen, html, json_out, csv, *others)
        if html is None and json_out is None and csv is None:
            from netspectra.sources.guard import printable

            for line in "\n".join(str(one) for one in (seen, *others)).splitlines():
                print(printable(line, 1000))
        tell_files(html, json_out, csv)
        return
    if beside:
        raise InputRefused(f"{run}: the run file of an analysis; --beside is for those of monitors. Use compare")
    found = Analysis.from_run(kept)
    export(found, html, json_out, csv)
    if html is None and json_out is None and csv is None:
        from netspectra.faces.cli import table

        table.show_analysis(found, verbose=verbose)
    tell_files(html, json_out, csv)
