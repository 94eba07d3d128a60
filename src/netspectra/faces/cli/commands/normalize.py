"""``netspectra normalize``: a checkpoint with matrices of a given operator norm."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from netspectra.checkpoint import refuse_foreign
from netspectra.faces.cli.app import Exclude, Include, JsonOut, PathArgument, Quiet, app
from netspectra.faces.cli.output import writable, write_json


@app.command(
    epilog="Examples: netspectra normalize critic.safetensors -o normalized --budget 20   |   "
    "netspectra normalize ./checkpoint -o clipped --method clip --target 5 --include '*attn*'"
)
def normalize(
    path: PathArgument,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Folder to write; without it, only the table.")
    ] = None,
    target: Annotated[float, typer.Option(metavar="K", help="Operator norm of each weight.")] = 1.0,
    budget: Annotated[
        float | None, typer.Option(metavar="B", help="Instead: the product of all norms; each gets its root.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="scale; 'at most': scale down only; clip: cut singular values above K.")
    ] = "scale",
    grid: Annotated[
        int | None, typer.Option(metavar="N", help="Input size for convolutions as operators.", show_default="by kind")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    json_out: JsonOut = None,
    quiet: Quiet = False,
) -> None:
    """Scale or clip weights to an operator norm, from checkpoint to checkpoint."""
    from netspectra.faces.cli.progress import following
    from netspectra.sources import open as open_source
    from netspectra.verbs.train.normalize import Method, NormalizeOptions
    from netspectra.verbs.train.rescale import rescale
    from netspectra.weight import Selection

    options = NormalizeOptions(
        target=target,
        budget=budget,
        method=cast("Method", method),
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
    )
    writable(json_out)
    if out is not None:
        refuse_foreign(out)
    source = open_source(path)
    selection = Selection(options.include, options.exclude)
    with following([weight for weight in source if selection.accepts(weight.name)], quiet=quiet) as progress:
        result, saved = rescale(source, out, options, grid=grid, progress=progress)
    if json_out is not None:
        write_json(json_out, result.to_dict())
    if json_out != "-" and not quiet:
        print(result)
    if saved is not None:
        print(saved, file=sys.stderr)
