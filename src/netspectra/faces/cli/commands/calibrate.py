"""``netspectra calibrate``: second moments of every layer's inputs and output gradients, kept in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspectra.faces.cli.app import (
    Address,
    AffordableBatch,
    Engine,
    Exclude,
    Include,
    ModelMaker,
    Objective,
    PathArgument,
    Quiet,
    Samples,
    Seed,
    Spread,
    Tokens,
    app,
)
from netspectra.faces.cli.engine import engine as chosen
from netspectra.faces.cli.output import tell_files, writable
from netspectra.faces.cli.progress import sharing


@app.command(
    epilog="Examples: netspectra calibrate ./model texts.txt -o moments.safetensors   |   "
    "netspectra calibrate /shared/model /shared/texts.txt -o moments.safetensors --shards 32 --engine ray "
    "--address auto, then netspectra compress /shared/model --stream --keep 0.5 --moments moments.safetensors "
    "--engine ray --address auto -o smaller"
)
def calibrate(
    path: PathArgument,
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Text (blank lines or lines separate samples), .npz or .safetensors."),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Where the moments go.")],
    shards: Annotated[
        int,
        typer.Option(
            min=1, help="Jobs that the batches are dealt to. The engine changes no bit; this, the gradients' draws."
        ),
    ] = 8,
    objective: Objective = None,
    spread: Spread = None,
    model: ModelMaker = None,
    samples: Samples = 512,
    tokens: Tokens = 128,
    batch_size: AffordableBatch = None,
    include: Include = None,
    exclude: Exclude = None,
    seed: Seed = 0,
    engine: Engine = "local",
    address: Address = None,
    quiet: Quiet = False,
) -> None:
    """Run a model on a few samples and keep the second moments that compress and quantize plan with (--moments)."""
    from netspectra.doors.calibration import calibrate as calibrating

    writable(out)
    run = chosen(engine, address, workers=0, quiet=quiet)
    with sharing(quiet=quiet) as progress:
        found = calibrating(
            path,
            data,
            shards=shards,
            model=model,
            samples=samples,
            tokens=tokens,
            batch_size=batch_size,
            run=run,
            progress=progress,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            objective=objective,
            spread=spread,
            seed=seed,
        )
        found.save(out)
    if not quiet:
        print(f"{len(found.owner)} layers, {found.samples} samples")
    tell_files(out)
