"""``netspectra geometry``: what one layer does to space."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import JsonOut, PathArgument, Quiet, app
from netspectra.faces.cli.output import export, tell_files, writable


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
        typer.Option(metavar="FILE", help="Inputs of the layer: .npy, .npz or safetensors; 'labels' colours them."),
    ] = None,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write the interactive page (- for stdout).")
    ] = None,
    json_out: JsonOut = None,
    quiet: Quiet = False,
) -> None:
    """Show what one layer does to space: turn, stretch, turn, on a sphere and on real inputs."""
    from netspectra.sources import open as open_source
    from netspectra.verbs.geometry import geometry, one_of

    writable(html, json_out)
    numbers, labels = _read(inputs) if inputs is not None else (None, None)
    seen = geometry(one_of(open_source(path), weight), numbers, labels=labels)
    export(seen, html, json_out)
    if not quiet and "-" not in (html, json_out):
        print(seen)
    tell_files(html, json_out)


def _read(path: Path) -> tuple[Any, list[Any] | None]:
    """The inputs in a file and their labels, if it has any; read as a checkpoint is, so no pickle runs."""
    from netspectra.sources import open as open_source

    arrays = {ref.name: ref for ref in open_source(path).tensors}
    labels = arrays.pop("labels", None)
    chosen = arrays.get("inputs") or (next(iter(arrays.values())) if len(arrays) == 1 else None)
    if chosen is None:
        raise InputRefused(f"{path}: holds {', '.join(arrays) or 'no array'}; name the one to take 'inputs'")
    for ref in (chosen, labels):
        if ref is not None and ref.problem:
            raise InputRefused(f"{path}: {ref.name}: {ref.problem}")
    return chosen.load(), None if labels is None else labels.load().flatten().tolist()
