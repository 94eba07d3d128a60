"""``netspectra metrics``, ``formats``, ``env``: what there is."""

from __future__ import annotations

from netspectra.faces.cli.app import JsonOut, app
from netspectra.faces.cli.output import write_json


@app.command()
def metrics(
    json_out: JsonOut = None,
) -> None:
    """List the metrics: formula, meaning, source."""
    from netspectra.analysis import glossary
    from netspectra.metrics import METRICS

    entries = glossary(list(METRICS))
    if json_out is not None:
        write_json(json_out, {"metrics": entries})
    if json_out != "-":
        from netspectra.faces.cli import table

        table.show_metrics(entries)


@app.command()
def formats() -> None:
    """List the file formats that can be read, and what each needs."""
    from netspectra.faces.cli import table

    table.show_formats()


@app.command()
def env() -> None:
    """Print versions and machine, for bug reports."""
    from netspectra.faces.cli.environment import environment

    for name, value in environment().items():
        print(f"{name}: {value}")
