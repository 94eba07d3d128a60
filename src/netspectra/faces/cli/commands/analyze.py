"""``netspectra analyze``: options in, one call of the library, output by `table`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspectra.errors import InputRefused
from netspectra.faces.cli.app import (
    ASKED_TO_FAIL,
    Address,
    CsvOut,
    Device,
    Engine,
    Exclude,
    FailOn,
    HtmlOut,
    Include,
    JsonOut,
    PathArgument,
    Quiet,
    RunOut,
    Strict,
    Verbose,
    Workers,
    app,
)
from netspectra.faces.cli.engine import engine as chosen
from netspectra.faces.cli.output import export, tell_files, writable

if TYPE_CHECKING:
    from netspectra.analysis import Analysis
    from netspectra.run import Run
    from netspectra.weight import Source


@app.command(
    epilog="Examples: netspectra analyze model.safetensors --html report.html   |   "
    "netspectra analyze ./checkpoint --include '*attn*' --rank 64 --json - | jq .summary   |   "
    "netspectra analyze ./checkpoint --run job.run   (interrupted? the same line again resumes)   |   "
    "netspectra analyze /shared/checkpoint --run job.run --engine ray --address auto"
)
def analyze(
    path: PathArgument,
    run: RunOut = None,
    html: HtmlOut = None,
    json_out: JsonOut = None,
    csv: CsvOut = None,
    metrics: Annotated[
        str | None, typer.Option(metavar="A,B", help="Metrics, by name; 'netspectra metrics' lists them.")
    ] = None,
    rank: Annotated[
        str | None, typer.Option(metavar="K,L", help="Also the relative error of the best rank-K approximation.")
    ] = None,
    include: Include = None,
    exclude: Exclude = None,
    accuracy: Annotated[float, typer.Option(help="Largest relative error of a singular value.")] = 1e-6,
    grid: Annotated[
        int | None, typer.Option(metavar="N", help="Input size for convolutions as operators.", show_default="by kind")
    ] = None,
    thorough: Annotated[
        bool,
        typer.Option("--thorough", help="Also bootstrap intervals, p-values, FARMS, the randomised twin: much slower."),
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of what --thorough draws.")] = 0,
    geometry: Annotated[
        list[str] | None,
        typer.Option("--geometry", metavar="WEIGHT", help="Also show this weight's geometry in the report."),
    ] = None,
    workers: Workers = 0,
    device: Device = None,
    engine: Engine = "local",
    address: Address = None,
    gpus: Annotated[
        float | None,
        typer.Option("--gpus", metavar="SHARE", help="GPUs of a weight, on Ray with --device cuda.", show_default="1"),
    ] = None,
    strict: Strict = False,
    fail_on: FailOn = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find every weight's singular values, metrics and verdicts."""
    writable(run, html, json_out, csv)
    from netspectra.sources import open as open_source
    from netspectra.verbs.geometry import geometry as look
    from netspectra.verbs.geometry import one_of

    source = open_source(path)
    if geometry and html is None:
        raise InputRefused("--geometry is a section of the report: give --html FILE too")
    shown = [one_of(source, name) for name in geometry or ()]
    found = analyzed(
        source,
        run=run,
        metrics=None if metrics is None else tuple(name.strip() for name in metrics.split(",") if name.strip()),
        ranks=_whole_numbers("--rank", rank),
        accuracy=accuracy,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        device=device,
        grid=grid,
        thorough=thorough,
        seed=seed,
        engine=chosen(engine, address, gpus, workers=workers, device=device, quiet=quiet),
        quiet=quiet,
        known=tuple(fail_on or ()),
    )
    export(found, html, json_out, csv, [look(weight) for weight in shown])
    if not quiet and "-" not in (html, json_out, csv):
        from netspectra.faces.cli import table

        table.show_analysis(found, verbose=verbose)
    tell_files(html, json_out, csv, run)
    _leave(found, strict, tuple(fail_on or ()))


def analyzed(
    source: Source,
    *,
    run: Path | None = None,
    engine: Run | None = None,
    quiet: bool = False,
    known: Sequence[str] = (),
    **wanted: object,
) -> Analysis:
    """Analyze with progress on stderr, into a run file where one is named; what several commands do."""
    from netspectra.faces.cli.progress import following
    from netspectra.run.local import LocalRun
    from netspectra.runfile import RunFile
    from netspectra.verbs.analyze import AnalyzeOptions, analyze, job
    from netspectra.weight import Selection

    _known_verdicts(known)
    options = AnalyzeOptions(**wanted)  # type: ignore[arg-type]
    selection = Selection(options.include, options.exclude)
    weights = [weight for weight in source.weights if selection.accepts(weight.name)]
    keep = RunFile.create_or_resume(run, job(source, options)) if run else None
    try:
        with following(weights, quiet=quiet) as progress:
            found = analyze(source, options, run=engine or LocalRun(), runfile=keep, progress=progress)
        if keep:
            keep.finish()
    finally:
        if keep:
            keep.close()
    return found


def _known_verdicts(names: Sequence[str]) -> None:
    from netspectra.record import LEVELS
    from netspectra.verdicts import RULES

    known = [*(rule.name for rule in RULES), *LEVELS[1:]]
    for name in names:
        if name not in known:
            raise InputRefused(f"--fail-on {name}: there are {', '.join(known)}")


def _leave(found: Analysis, strict: bool, fail_on: Sequence[str]) -> None:
    from netspectra.sources.guard import printable

    hit = [(r, v) for r in found for v in r.verdicts if v.rule in fail_on or v.level in fail_on]
    for record, verdict in hit[:10]:
        print(f"failing on {verdict.rule}: {printable(record.name)}: {verdict.message}", file=sys.stderr)
    lost = [skipped for skipped in found.skipped if not skipped.routine] if strict else []
    for skipped in lost[:10]:
        print(f"strict: {printable(skipped.name)} was skipped: {printable(skipped.reason, 500)}", file=sys.stderr)
    if hit or lost:
        raise typer.Exit(ASKED_TO_FAIL)


def _whole_numbers(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in (text or "").split(",") if number.strip())
    except ValueError:
        raise InputRefused(f"{option} {text}: give whole numbers, separated by commas") from None
