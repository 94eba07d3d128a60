"""``netspectra compare``: what changed between checkpoints, and what they are to one another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from netspectra.checkpoint import refuse_foreign
from netspectra.errors import InputRefused
from netspectra.faces.cli.app import (
    ASKED_TO_FAIL,
    Address,
    CsvOut,
    Engine,
    Exclude,
    HtmlOut,
    Include,
    JsonOut,
    PathArgument,
    Quiet,
    app,
)
from netspectra.faces.cli.engine import engine as chosen
from netspectra.faces.cli.output import export, tell_files, writable, write


@app.command(
    epilog="Examples: netspectra compare base.safetensors tuned.safetensors --html change.html   |   "
    "netspectra compare ./approved ./deployed.gguf --fail-on changed   |   "
    "netspectra compare ./base ./adapter --json -   |   netspectra compare epoch1.pt epoch2.pt epoch3.pt   |   "
    "netspectra compare ./base ./tuned --extract-lora 0.95 -o adapter"
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
    extract_lora: Annotated[
        str | None,
        typer.Option(
            "--extract-lora", metavar="RANK|ENERGY",
            help="Write the change as a PEFT adapter: of this rank (16), or holding this share of its energy (0.95).",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="The adapter's folder.", show_default=False)
    ] = None,
    factors_only: Annotated[
        bool, typer.Option("--factors-only", help="Leave changed biases and norms out of the adapter.")
    ] = False,
    advise_lora: Annotated[
        bool, typer.Option("--advise-lora", help="Suggest a rank for each changed weight; with -o, begin an adapter.")
    ] = False,
    engine: Engine = "local",
    address: Address = None,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Compare checkpoints of any formats: what changed, how much, and whether one descends from the other."""
    from netspectra.faces.cli.progress import following
    from netspectra.runfile import is_run
    from netspectra.sources import open as open_source
    from netspectra.verbs.compare import CompareOptions
    from netspectra.verbs.compare import compare as comparing
    from netspectra.verbs.compare.lineage import CHANGED, LINEAGES
    from netspectra.verbs.lora import LoraOptions, asked_rank, pissa
    from netspectra.weight import Selection

    if (extract_lora is not None and out is None) or (out is not None and extract_lora is None and not advise_lora):
        raise InputRefused("-o DIR goes with --extract-lora or --advise-lora")
    adapter = None if extract_lora is None else replace(asked_rank(extract_lora), vectors=not factors_only)
    if (adapter or advise_lora) and len(after) > 1:
        raise InputRefused("an adapter is of one pair: give two checkpoints")
    if out is not None:
        refuse_foreign(out)
    asked: set[str] = set()
    for name in fail_on or ():
        if name not in (*LINEAGES, "changed"):
            raise InputRefused(f"--fail-on {name}: give one of {', '.join(LINEAGES)}, or changed")
        asked |= set(CHANGED) if name == "changed" else {name}
    options = CompareOptions(include=tuple(include or ()), exclude=tuple(exclude or ()))
    writable(html, json_out, csv)
    if any(is_run(path) for path in (before, *after)):
        if html or csv or include or exclude or adapter or advise_lora or asked - set(CHANGED) or len(after) > 1:
            raise InputRefused("a run file keeps spectra, not weights: two of them can be compared, with --json and "
                               "--fail-on changed only; give checkpoints for the rest")  # fmt: skip
        if engine != "local" or address is not None:
            raise InputRefused("run files are compared at once: leave --engine out")
        if asked and asked != set(CHANGED):
            raise InputRefused("spectra tell no lineage: with run files only --fail-on changed can be asked")
        _spectra(before, after[0], json_out, bool(asked), quiet)
        return
    source, others = open_source(before), [open_source(path) for path in after]
    selection = Selection(options.include, options.exclude)
    weights = [w for w in source if selection.accepts(w.name)] * len(others)
    run = chosen(engine, address, workers=0 if engine == "ray" else 1, quiet=quiet)
    with following(weights, quiet=quiet) as progress:
        found = comparing(source, others, options, run=run, progress=progress)
    export(found, html, json_out, csv)
    shown = not quiet and "-" not in (html, json_out, csv)
    if shown:
        print(found)
    if advise_lora and shown:
        _advise(found.advise_lora())
    if out is not None:
        made = found.adapter(out, adapter) if adapter else pissa(source, out, LoraOptions(ranks=found.advise_lora()))
        if shown:
            print(f"\n{made}")
    tell_files(html, json_out, csv, out)
    if asked & {one.lineage.rule for one in found.candidates}:
        raise typer.Exit(ASKED_TO_FAIL)


def _advise(ranks: dict[str, int]) -> None:
    width = max(map(len, ranks), default=0)
    print("\nranks for an adapter: directions of the change beyond noise, or those that hold 95 % of its energy")
    for name, rank in ranks.items():
        print(f"{name.ljust(width)}  {rank:>5}")


def _spectra(before: str, after: str, json_out: str | None, failing: bool, quiet: bool) -> None:
    """Compare where a run file is one of the two; a checkpoint beside it is analysed."""
    from netspectra.analysis import Analysis
    from netspectra.runfile import RunFile, is_run
    from netspectra.sources import open as open_source
    from netspectra.verbs.analyze import AnalyzeOptions, analyze
    from netspectra.verbs.compare.spectra import compare_spectra

    def analysed(path: str) -> Analysis:
        if is_run(path):
            return Analysis.from_run(RunFile.read(path))
        return analyze(open_source(path), AnalyzeOptions())

    found = compare_spectra(analysed(before), analysed(after))
    if json_out is not None:
        write(json_out, found.to_json())
    if not quiet and json_out != "-":
        print(found)
    tell_files(json_out)
    if failing and found.differs:
        raise typer.Exit(ASKED_TO_FAIL)
