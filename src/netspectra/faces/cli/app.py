"""The command-line application and the options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from netspectra.version import __version__

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

PathArgument = Annotated[
    str,
    typer.Argument(
        metavar="PATH", help="Checkpoint: a file, a folder, an address (s3://...) or a hub id.", show_default=False
    ),
]
Include = Annotated[
    list[str] | None, typer.Option(metavar="PATTERN", help="Only weights whose name matches: glob, or re:REGEX.")
]
Exclude = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Leave out weights whose name matches.")]

HtmlOut = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="Write the self-contained report (- for stdout).")
]
JsonOut = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON (- for stdout).")]
CsvOut = Annotated[str | None, typer.Option("--csv", metavar="FILE", help="Write the metrics as CSV (- for stdout).")]
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.", show_default="cpu")]
Workers = Annotated[int, typer.Option(metavar="N", min=0, help="Weights in work at a time.", show_default="processors")]
Engine = Annotated[
    str, typer.Option("--engine", metavar="local|ray", help="Threads in this process, or processes of a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="Of a running Ray cluster, or auto.", show_default="one of this machine"
    ),
]
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

# Of the commands that run a model, and of those that plan.
CalibrationFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Text (blank lines or lines separate samples), .npz or .safetensors."),
]
Objective = Annotated[str | None, typer.Option(help="What to keep: logits, embedding, hidden, output.")]
ModelMaker = Annotated[
    str | None, typer.Option("--model", metavar="MODULE:CALLABLE", help="Builds the module, where no config does.")
]
Spread = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Share of the moments from samples with tokens drawn anew, for other texts.",
        show_default="0.4 where the model reads tokens, else 0",
    ),
]  # fmt: skip
Samples = Annotated[int, typer.Option(min=1, help="Calibration samples, at most.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of a sample, at most.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples a batch.")]
AffordableBatch = Annotated[
    int | None, typer.Option(min=1, help="Samples a batch.", show_default="32, or fewer where memory asks for it")
]
MomentsFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read the moments if the file exists, else write them there.")
]
ModelFolder = Annotated[Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where the model goes.")]
PlanFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Read this plan if it exists, else write it there.")
]
PlanOnly = Annotated[bool, typer.Option("--plan-only", help="Stop at the plan.")]
Streaming = Annotated[
    bool, typer.Option("--stream", help="Layer by layer with no live model: for what memory cannot hold.")
]
LargestLoss = Annotated[float | None, typer.Option(help="Budget: the predicted loss a sample; as small as it allows.")]
Seed = Annotated[int, typer.Option(help="Of all draws.")]

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
