"""``netspectra compare``: what changed between checkpoints, and what they are to one another."""

from __future__ import annotations

from typing import Annotated

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import ASKED_TO_FAIL, CsvOut, Exclude, HtmlOut, Include, JsonOut, PathArgument, Quiet, app
from netspectra.faces.cli.output import tell_files, writable, write


@app.command(
    epilog="Examples: netspectra compare base.safetensors tuned.safetensors --html change.html   |   "
    "netspectra compare ./approved ./deployed.gguf --fail-on changed   |   "
    "netspectra compare ./base ./adapter --json -   |   netspectra compare epoch1.pt epoch2.pt epoch3.pt"
)
def compare(
    before: PathArgument,
    after: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="One or more to compare with the first.", show_default=False)
    ],
    html: HtmlOut = None,
    json_out: JsonOut = None,
    csv: CsvOut = None,
    include: Include = None,
    exclude: Exclude = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on", metavar="LINEAGE",
            help="Exit with 3 on this verdict; 'changed' is every one but identical and same-up-to-precision.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compare checkpoints of any formats: what changed, how much, and whether one descends from the other."""
    from netspectra.faces.cli.progress import following
    from netspectra.sources import open as open_source
    from netspectra.verbs.compare import CompareOptions
    from netspectra.verbs.compare import compare as comparing
    from netspectra.verbs.compare.lineage import CHANGED, LINEAGES
    from netspectra.weight import Selection

    asked: set[str] = set()
    for name in fail_on or ():
        if name not in (*LINEAGES, "changed"):
            raise InputRefused(f"--fail-on {name}: give one of {', '.join(LINEAGES)}, or changed")
        asked |= set(CHANGED) if name == "changed" else {name}
    options = CompareOptions(include=tuple(include or ()), exclude=tuple(exclude or ()))
    writable(html, json_out, csv)
    source, others = open_source(before), [open_source(path) for path in after]
    selection = Selection(options.include, options.exclude)
    weights = [w for w in source if selection.accepts(w.name)] * len(others)
    with following(weights, quiet=quiet) as progress:
        found = comparing(source, others, options, progress=progress)
    for target, text in ((html, found.to_html), (json_out, found.to_json), (csv, found.to_csv)):
        if target is not None:
            write(target, text())
    if not quiet and "-" not in (html, json_out, csv):
        print(found)
    tell_files(html, json_out, csv)
    if asked & {one.lineage.rule for one in found.candidates}:
        raise typer.Exit(ASKED_TO_FAIL)
