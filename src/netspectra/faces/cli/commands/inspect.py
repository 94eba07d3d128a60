"""``netspectra inspect``: headers only."""

from __future__ import annotations

from netspectra.faces.cli.app import JsonOut, PathArgument, Verbose, app
from netspectra.faces.cli.output import write_json


@app.command(epilog="Example: netspectra inspect ./checkpoint --json -")
def inspect(path: PathArgument, json_out: JsonOut = None, verbose: Verbose = False) -> None:
    """Show what a checkpoint holds, by its headers alone, and what an analysis would cost."""
    from netspectra.faces.cli import table
    from netspectra.faces.cli.forecast import forecast
    from netspectra.sources import open as open_source

    source = open_source(path)
    if json_out is not None:
        write_json(json_out, table.contents(source, forecast(source)))
    if json_out != "-":
        table.show_source(source, forecast(source), verbose=verbose)
