"""``netspectra pissa``: a LoRA that starts from a checkpoint's own leading singular directions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspectra.faces.cli.app import Exclude, Include, JsonOut, PathArgument, Quiet, app
from netspectra.faces.cli.output import tell_files, writable, write_json


@app.command(
    epilog="Examples: netspectra pissa ./base --rank 16 -o start   |   "
    "netspectra pissa model.safetensors --rank 0.3 --include '*attn*' -o start"
)
def pissa(
    path: PathArgument,
    rank: Annotated[
        str, typer.Option(metavar="RANK|ENERGY", help="Rank, or the share of each weight's energy, such as 0.3.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder: base/ and adapter/ go into it.")],
    include: Include = None,
    exclude: Exclude = None,
    json_out: JsonOut = None,
    quiet: Quiet = False,
) -> None:
    """Split every linear weight into a PEFT adapter of its top singular directions and a base of the rest (PiSSA)."""
    from netspectra.faces.cli.progress import following
    from netspectra.sources import open as open_source
    from netspectra.verbs.lora import asked_rank
    from netspectra.verbs.lora import pissa as splitting
    from netspectra.weight import Selection

    options = asked_rank(rank)
    writable(json_out)
    source, selection = open_source(path), Selection(tuple(include or ()), tuple(exclude or ()))
    with following([w for w in source if selection.accepts(w.name)], quiet=quiet) as progress:
        found = splitting(source, out, options, selection, progress=progress)
    if json_out is not None:
        write_json(json_out, found.to_dict())
    if not quiet and json_out != "-":
        print(found)
    tell_files(json_out, str(out / "base"), str(out / "adapter"))
