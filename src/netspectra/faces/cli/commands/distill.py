"""``netspectra distill`` and ``netspectra expressivity``: what a network uses, and a student that starts from it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from netspectra.checkpoint import refuse_foreign
from netspectra.errors import InputRefused
from netspectra.faces.cli.app import (
    BatchSize,
    Exclude,
    HtmlOut,
    Include,
    JsonOut,
    ModelMaker,
    PathArgument,
    Quiet,
    Tokens,
    app,
)
from netspectra.faces.cli.output import export, tell_files, writable
from netspectra.faces.cli.planned import opened

Data = Annotated[
    Path, typer.Option("--calibration", metavar="FILE", help="Text, .npz or .safetensors: what the model is run on.")
]
Samples = Annotated[int, typer.Option(min=1, help="Samples, at most.")]


@app.command(
    epilog="Examples: netspectra distill ./teacher --calibration texts.txt --html student.html   |   "
    "netspectra distill ./teacher --calibration texts.txt --width 0.25 --depth 3 --steps 500 -o ./student"
)
def distill(
    path: PathArgument,
    calibration: Data,
    width: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of neurons and channels that the student keeps.")
    ] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Layers that it keeps.")] = None,
    stream: Annotated[
        int | None, typer.Option(min=2, help="Dimensions of the residual stream that it keeps (norms before layers).")
    ] = None,
    steps: Annotated[int, typer.Option(min=0, help="Steps of training towards the teacher.")] = 0,
    rate: Annotated[float, typer.Option(help="Their learning rate.")] = 3e-4,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where the student goes.")] = None,
    objective: Annotated[str | None, typer.Option(help="What counts: logits, embedding, hidden, output.")] = None,
    model: ModelMaker = None,
    samples: Samples = 256,
    tokens: Tokens = 64,
    batch_size: BatchSize = 16,
    include: Include = None,
    exclude: Exclude = None,
    html: HtmlOut = None,
    json_out: JsonOut = None,
    seed: Annotated[int, typer.Option(help="Of resampling and of the order of batches.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Tell how small a student of a model may be, and make one that starts from its teacher."""
    from netspectra.faces.cli.progress import sharing
    from netspectra.live.saved import save
    from netspectra.verbs.distill import DistillOptions
    from netspectra.verbs.distill import distill as distilling

    writable(html, json_out)
    if out is not None:
        refuse_foreign(out)
        if width is None and depth is None and stream is None:
            raise InputRefused("-o DIR writes a student: say how small, --width 0.25, --depth 3 or --stream 384")
    elif steps:
        raise InputRefused("--steps trains a student: name a folder for it, -o DIR")
    source, network, batches = opened(path, model, calibration, samples, tokens, batch_size)
    assert batches is not None
    options = DistillOptions(tuple(include or ()), tuple(exclude or ()), objective, seed)
    with sharing(quiet=quiet) as progress:
        found = distilling(network, batches, None, options, progress=progress)
        if out is not None:
            wide = 1.0 if width is None else width
            student = found.student(wide, depth=depth, stream=stream, progress=progress)
            if steps:
                found.train(
                    student,
                    steps=steps,
                    rate=rate,
                    objective=objective,
                    seed=seed,
                    each=lambda step, loss: progress("train", step / steps),
                )
            print(save(student, str(out), source=source), file=sys.stderr)
    _told(found, html, json_out, quiet)


@app.command(
    epilog="Examples: netspectra expressivity ./checkpoint --calibration texts.txt --html use.html   |   "
    "netspectra expressivity model.safetensors --model my_models:make --calibration inputs.npz --json -"
)
def expressivity(
    path: PathArgument,
    calibration: Data,
    model: ModelMaker = None,
    samples: Samples = 256,
    tokens: Tokens = 64,
    batch_size: BatchSize = 16,
    include: Include = None,
    exclude: Exclude = None,
    html: HtmlOut = None,
    json_out: JsonOut = None,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Show how many directions each layer uses on data, beside those that its weights have."""
    from netspectra.faces.cli.progress import sharing
    from netspectra.verbs.distill import DistillOptions
    from netspectra.verbs.distill import expressivity as looking

    writable(html, json_out)
    _, network, batches = opened(path, model, calibration, samples, tokens, batch_size)
    assert batches is not None
    options = DistillOptions(tuple(include or ()), tuple(exclude or ()), None, seed)
    with sharing(quiet=quiet) as progress:
        found = looking(network, batches, options, progress=progress)
    _told(found, html, json_out, quiet)


def _told(found: Any, html: str | None, json_out: str | None, quiet: bool) -> None:
    export(found, html, json_out)
    if not quiet and "-" not in (html, json_out):
        print(found)
    tell_files(html, json_out)
