"""``netspectra interpret``: what the directions of a transformer mean in tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import CsvOut, HtmlOut, JsonOut, PathArgument, Quiet, app
from netspectra.faces.cli.output import export, tell_files, writable


@app.command(
    epilog="Examples: netspectra interpret model.gguf --html heads.html   |   "
    "netspectra interpret ./checkpoint --layer 0 --layer 1 --kind ov --json -   |   "
    "netspectra interpret model.gguf --calibration texts.txt --html heads.html"
)
def interpret(
    path: PathArgument,
    layer: Annotated[list[int] | None, typer.Option(metavar="N", help="Only this layer; repeatable.")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="Only ov, qk, mlp_in or mlp_out; repeatable.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Directions of each circuit.")] = 8,
    words: Annotated[int, typer.Option(min=2, help="Tokens a list.")] = 10,
    rate: Annotated[float, typer.Option(help="False discovery rate of directions.")] = 0.02,
    null: Annotated[int, typer.Option(min=100, help="Lists of random directions that calibrate.")] = 20_000,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where no config tells.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text on which the effect of removing directions is measured."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Texts of it, at most.")] = 16,
    removals: Annotated[int, typer.Option(min=1, help="Directions removed, the most coherent ones.")] = 24,
    html: HtmlOut = None,
    json_out: JsonOut = None,
    csv: CsvOut = None,
    seed: Annotated[int, typer.Option(help="Of the random directions.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Read what attention heads and MLPs read and write, as token lists that chance does not give."""
    from netspectra.faces.cli.progress import sharing
    from netspectra.live.build import build
    from netspectra.live.samples import read_samples, text_batches, tokenizer
    from netspectra.live.vocabulary import vocabulary
    from netspectra.sources import open as open_source
    from netspectra.verbs.interpret import InterpretOptions
    from netspectra.verbs.interpret import interpret as interpreting
    from netspectra.verbs.interpret.circuits import KINDS, Kind
    from netspectra.verbs.interpret.effect import measuring

    writable(html, json_out, csv)
    texts = read_samples(calibration)[:samples] if calibration is not None else None
    unknown = [one for one in kind or () if one not in KINDS]
    if unknown:
        raise InputRefused(f"--kind {unknown[0]}: there are {', '.join(KINDS)}")
    options = InterpretOptions(
        top=top,
        words=words,
        layers=tuple(layer) if layer else None,
        kinds=cast("tuple[Kind, ...]", tuple(kind)) if kind else tuple(KINDS),
        null=null,
        rate=rate,
        heads=heads,
        removals=removals,
        seed=seed,
    )
    source = open_source(path)
    tokens = None
    with sharing(quiet=quiet) as progress:
        effect = None
        if texts is not None:
            network, tokens = build(source), tokenizer(source)
            batches = text_batches(texts, tokens, network, size=8, longest=128)
            effect = measuring(network, open_source(network), batches, progress)
        said, why = vocabulary(source, tokens)
        found = interpreting(source, options, words=said, effect=effect, notes=(why,) if why else (), progress=progress)
    export(found, html, json_out, csv)
    if not quiet and "-" not in (html, json_out, csv):
        print(found)
    tell_files(html, json_out, csv)
