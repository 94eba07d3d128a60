"""``netspectra report``: exports of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspectra.faces.cli.app import CsvOut, HtmlOut, JsonOut, Verbose, app
from netspectra.faces.cli.output import export, tell_files, writable


@app.command(epilog="Example: netspectra report job.run --html report.html")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run file of an analysis, finished or not.")],
    html: HtmlOut = None,
    json_out: JsonOut = None,
    csv: CsvOut = None,
    verbose: Verbose = False,
) -> None:
    """Export a run file, also while it is written; without --html, --json or --csv show its table."""
    from netspectra.analysis import Analysis
    from netspectra.runfile import RunFile

    found = Analysis.from_run(RunFile.read(run))
    writable(html, json_out, csv)
    export(found, html, json_out, csv)
    if html is None and json_out is None and csv is None:
        from netspectra.faces.cli import table

        table.show_analysis(found, verbose=verbose)
    tell_files(html, json_out, csv)
