"""The command that shows what one layer does to space."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.commands import JsonOut, PathArgument, Quiet, _writable, app

if TYPE_CHECKING:
    import numpy as np

__all__ = ["geometry", "read_inputs"]


@app.command(
    epilog="Examples: netspectra geometry ./checkpoint encoder.layer.0.attention.self.query.weight --html query.html"
    "   |   netspectra geometry model.safetensors fc1.weight --inputs digits.npz --html fc1.html"
)
def geometry(
    path: PathArgument,
    weight: Annotated[
        str, typer.Argument(metavar="WEIGHT", help="Name of the weight, as inspect prints it.", show_default=False)
    ],
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Inputs of the layer: .npy or .npz with 'inputs' and, if any, 'labels'."),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write the interactive page (- for stdout).")
    ] = None,
    json_out: JsonOut = None,
    quiet: Quiet = False,
) -> None:
    """Show what one layer does to space: turn, stretch, turn, on a sphere and on real inputs."""
    import netspectra

    _writable(html, json_out)
    numbers, labels = read_inputs(inputs) if inputs else (None, None)
    seen = netspectra.geometry(path, numbers, name=weight, labels=labels)
    for target, text in ((html, seen.to_html), (json_out, seen.to_json)):
        if target == "-":
            sys.stdout.write(text())
        elif target is not None:
            seen.save(target) if Path(target).suffix.lower() in (".html", ".json") else _write(target, text())
            print(f"wrote {target}", file=sys.stderr)
    if not quiet and "-" not in (html, json_out):
        print(seen)
